//! Workloads after the example of `examples/shop.yaml`.

use crate::cluster::Cluster;
use serde_json::{Value, json};
use testbed::node::SHELL_IMAGE;

/// What an app does that lives on.
pub const SLEEPS: [&str; 2] = ["-c", "exec busybox sleep 3600"];

/// A container of this name with a shell that gets these arguments.
pub fn shell(name: &str, arguments: &[&str]) -> Value {
    json!({ "name": name, "image": SHELL_IMAGE, "args": arguments, "env": [{ "name": "PATH", "value": "/bin" }] })
}

/// A template's pod.
fn pod(mut template: Value, name: &str) -> Value {
    template["apiVersion"] = json!("v1");
    template["kind"] = json!("Pod");
    template["metadata"]["name"] = json!(name);
    template
}

/// What the example's pod needs, with pods of a test's own.
pub struct Workload {
    pod: Value,
}

impl Workload {
    /// Makes the namespace and all in it but the pod.
    pub async fn new(cluster: &Cluster, namespace: &str) -> Self {
        let workload = Self::allowed(cluster, namespace).await;
        cluster.give_ca(namespace).await;
        workload
    }

    /// Makes the namespace, the service account and what it may have: an administrator's part.
    pub async fn allowed(cluster: &Cluster, namespace: &str) -> Self {
        let documents = vault_token_operator::yaml::documents(&cluster.example(namespace)).expect("YAML");
        let (pods, others): (Vec<_>, Vec<_>) = documents.into_iter().partition(|document| document["kind"] == "Pod");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": others });
        cluster.apply(namespace, &list.to_string()).await;
        Self { pod: pods.into_iter().next().expect("a pod") }
    }

    /// The example's pod for a template, with a shell that runs this in the place of its app.
    pub fn template(&self, arguments: &[&str]) -> Value {
        let mut spec = self.pod["spec"].clone();
        let app = &mut spec["containers"][0];
        app["image"] = json!(SHELL_IMAGE);
        app["args"] = json!(arguments);
        app["env"] = json!([{ "name": "PATH", "value": "/bin" }]);
        // A shell does not hear that it is to end.
        spec["terminationGracePeriodSeconds"] = json!(1);
        let metadata = json!({ "labels": { "app": "web" }, "annotations": self.pod["metadata"]["annotations"] });
        json!({ "metadata": metadata, "spec": spec })
    }

    /// The same for a pod that is injected: nothing of its own is about Vault but two annotations. The example's app reads its secret
    /// before the shell.
    pub fn injected_template(&self, arguments: &[&str]) -> Value {
        let reads = json!({ "name": "reads", "image": self.example_app()["image"] });
        json!({
            "metadata": { "labels": { "app": "web" },
                "annotations": { "vaultproject.io/inject": "true", "vaultproject.io/policies": "shop-read" } },
            "spec": { "serviceAccountName": "web", "terminationGracePeriodSeconds": 1,
                "initContainers": [reads], "containers": [shell("app", arguments)] },
        })
    }

    /// A pod of this name after that template.
    pub fn pod(&self, name: &str, arguments: &[&str]) -> Value {
        pod(self.template(arguments), name)
    }

    /// A pod of this name that is injected.
    pub fn injected_pod(&self, name: &str, arguments: &[&str]) -> Value {
        pod(self.injected_template(arguments), name)
    }

    /// The container of the example's app, which reads its secret and ends.
    pub fn example_app(&self) -> Value {
        self.pod["spec"]["containers"][0].clone()
    }

    /// Lets its pods take their tokens from the status of their requests: a right, and a binding that grants it.
    pub async fn allow_status(&self, cluster: &Cluster, namespace: &str) {
        let role = "vault-token-requester-status";
        let (role_flag, account) = (format!("--clusterrole={role}"), format!("--serviceaccount={namespace}:web"));
        cluster.must(&["-n", namespace, "create", "rolebinding", role, &role_flag, &account]).await;
        let patch = "--patch={\"spec\":{\"deliveries\":[\"Push\",\"Status\"]}}";
        cluster.must(&["patch", "vpb", &format!("{namespace}-web"), "--type=merge", patch]).await;
    }
}
