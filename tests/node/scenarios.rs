//! What is seen on the node.

use crate::cluster::{Cluster, SHELL};
use crate::workload::{self, Workload};
use futures::future::{BoxFuture, FutureExt};
use serde_json::{Value, json};
use std::collections::HashSet;

/// One of them.
pub struct Scenario {
    pub name: &'static str,
    pub run: for<'a> fn(&'a Cluster) -> BoxFuture<'a, ()>,
}

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        /// All, in this order.
        pub const ALL: &[Scenario] =
            &[$(Scenario { name: stringify!($name), run: |cluster| $name(cluster).boxed() }),*];
    };
}

scenarios![
    the_operator_is_installed_as_the_readme_says,
    logs_exec_and_services_work,
    the_example_gets_its_token_reads_its_secret_and_loses_it,
    each_pod_of_a_deployment_has_a_token_of_its_own,
    a_job_completes_and_its_token_is_revoked,
];

/// All others stand on this.
async fn the_operator_is_installed_as_the_readme_says(cluster: &Cluster) {
    cluster.install().await;
}

/// The node itself.
async fn logs_exec_and_services_work(cluster: &Cluster) {
    cluster.must(&["create", "namespace", "node"]).await;
    let serve = "echo begun; exec busybox nc -ll -p 8080 -e busybox hostname";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "server", "labels": { "app": "server" } },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [{ "name": "app", "image": SHELL, "args": ["-c", serve],
            "env": [{ "name": "PATH", "value": "/bin" }] }] },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "server" },
        "spec": { "selector": { "app": "server" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [pod, service] });
    cluster.apply("node", &list.to_string()).await;
    cluster.must(&["-n", "node", "wait", "--for=condition=Ready", "pod/server", "--timeout=60s"]).await;
    assert_eq!(cluster.must(&["-n", "node", "logs", "server"]).await.trim(), "begun");
    let address = cluster.get(&["-n", "node", "service", "server"]).await["spec"]["clusterIP"].clone();
    let address = address.as_str().expect("an address");
    let ask = ["-n", "node", "exec", "server", "--", "/bin/busybox", "nc", "-w", "2", address, "80"];
    assert_eq!(cluster.must(&ask).await.trim(), "server");
    cluster.must(&["delete", "namespace", "node", "--timeout=60s"]).await;
}

/// README.md, "Try the example in your cluster".
async fn the_example_gets_its_token_reads_its_secret_and_loses_it(cluster: &Cluster) {
    cluster.apply("shop", &workload::example(cluster, "shop")).await;
    cluster.give_ca("shop").await;
    cluster
        .until("the app reads its secret", async || {
            let logs = cluster.must(&["-n", "shop", "logs", "web", "-c", "app", "--ignore-errors"]).await;
            let read = logs.contains("secret/data/shop/read: {\"greeting\":\"hello from read\"}");
            if read { Ok(()) } else { Err(logs) }
        })
        .await;
    assert_eq!(cluster.live("shop").await, 1);
    let requests = cluster.get(&["-n", "shop", "vtr"]).await;
    assert_eq!(phases(&requests), ["Delivered"]);
    cluster.must(&["-n", "shop", "delete", "pod", "web", "--timeout=60s"]).await;
    until_over(cluster, "shop").await;
    cluster.must(&["delete", "namespace", "shop", "--timeout=60s"]).await;
}

/// Three replicas; a restart of all of them; none.
async fn each_pod_of_a_deployment_has_a_token_of_its_own(cluster: &Cluster) {
    let workload = Workload::new(cluster, "three").await;
    let template = workload.template(&["-c", "exec busybox sleep 3600"]);
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": { "replicas": 3, "selector": { "matchLabels": { "app": "web" } }, "template": template },
    });
    cluster.apply("three", &deployment.to_string()).await;
    let rolled_out = ["-n", "three", "rollout", "status", "deployment/web", "--timeout=90s"];
    cluster.must(&rolled_out).await;
    let first = tokens(cluster, "three").await;
    assert_eq!(first.len(), 3, "each has its own");
    for token in &first {
        assert!(cluster.accepts(token).await, "the app reads its secret");
    }

    cluster.must(&["-n", "three", "rollout", "restart", "deployment/web"]).await;
    cluster.must(&rolled_out).await;
    cluster
        .until("the old tokens are revoked", async || match cluster.live("three").await {
            3 => Ok(()),
            live => Err(format!("{live} tokens live")),
        })
        .await;
    let second = tokens(cluster, "three").await;
    assert!(second.len() == 3 && second.is_disjoint(&first));
    for token in &second {
        assert!(cluster.accepts(token).await);
    }

    cluster.must(&["-n", "three", "scale", "deployment/web", "--replicas=0"]).await;
    until_over(cluster, "three").await;
    // While its tokens live, too, a namespace goes.
    cluster.must(&["-n", "three", "scale", "deployment/web", "--replicas=2"]).await;
    cluster.must(&rolled_out).await;
    assert_eq!(cluster.live("three").await, 2);
    cluster.must(&["delete", "namespace", "three", "--timeout=90s"]).await;
    assert_eq!(cluster.live("three").await, 0);
}

/// No sidecar holds it.
async fn a_job_completes_and_its_token_is_revoked(cluster: &Cluster) {
    let workload = Workload::new(cluster, "job").await;
    let mut template = workload.template(&["-c", "busybox test -s /var/run/secrets/vaultproject.io/token"]);
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "once" },
        "spec": { "backoffLimit": 0, "template": template },
    });
    cluster.apply("job", &job.to_string()).await;
    cluster.must(&["-n", "job", "wait", "--for=condition=Complete", "job/once", "--timeout=90s"]).await;
    until_over(cluster, "job").await;
    let requests = cluster.get(&["-n", "job", "vtr"]).await;
    assert_eq!(requests["items"][0]["status"]["reason"], "PodFinished");
    cluster.must(&["delete", "namespace", "job", "--timeout=60s"]).await;
}

/// The tokens in the pods of a Deployment, as their apps have them.
async fn tokens(cluster: &Cluster, namespace: &str) -> HashSet<String> {
    let pods = cluster.get(&["-n", namespace, "pods", "--field-selector=status.phase=Running"]).await;
    let mut tokens = HashSet::new();
    for pod in pods["items"].as_array().expect("a list") {
        if pod["metadata"]["deletionTimestamp"].is_string() {
            continue;
        }
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let cat = ["/bin/busybox", "cat", "/var/run/secrets/vaultproject.io/token"];
        let arguments = [&["-n", namespace, "exec", name, "-c", "app", "--"], &cat[..]].concat();
        tokens.insert(cluster.must(&arguments).await);
    }
    tokens
}

/// Waits until the requests of a namespace are over, and says that no token of it lives.
async fn until_over(cluster: &Cluster, namespace: &str) {
    cluster
        .until("its tokens are revoked", async || {
            let phases = phases(&cluster.get(&["-n", namespace, "vtr"]).await);
            if phases.iter().all(|phase| phase == "Revoked") { Ok(()) } else { Err(format!("{phases:?}")) }
        })
        .await;
    assert_eq!(cluster.live(namespace).await, 0);
}

fn phases(requests: &Value) -> Vec<String> {
    let items = requests["items"].as_array().expect("a list");
    items.iter().map(|request| request["status"]["phase"].as_str().unwrap_or_default().to_owned()).collect()
}
