//! Somebody else's way to the API server: a service account with a token of its own.

use crate::support::Cluster;
use serde_json::Value;
use std::path::PathBuf;
use testbed::control_plane::BearerToken;
use testbed::kubelet::PodHandle;

/// A workload with every verb on requests that Kubernetes knows: RBAC alone would stop nothing here.
pub async fn powerful(cluster: &Cluster, namespace: &str) {
    let verbs = "--verb=create,get,list,update,patch,delete,deletecollection";
    let resources = "--resource=vaulttokenrequests.vaultproject.io,vaulttokenrequests.vaultproject.io/status";
    cluster.kubectl(&["create", "role", "powerful", "-n", namespace, verbs, resources]).await;
    let account = format!("--serviceaccount={namespace}:default");
    cluster.kubectl(&["create", "rolebinding", "powerful", "-n", namespace, "--role=powerful", &account]).await;
}

/// Somebody's way to the API server.
pub struct Who<'a> {
    cluster: &'a Cluster,
    kubeconfig: PathBuf,
}

impl<'a> Who<'a> {
    /// The namespace's service account `default`, by a token that is bound to this pod, or to none.
    pub async fn new(cluster: &'a Cluster, namespace: &str, pod: Option<&PodHandle>) -> Self {
        let bound = pod.map(|pod| (pod.name.as_str(), pod.uid.as_str()));
        let token =
            cluster.plane().service_account_token(namespace, "default", &[], bound, 600).await.expect("a token");
        Self::with(cluster, namespace, pod.map_or("nobody", |pod| pod.uid.as_str()), &token)
    }

    /// Whoever shows this token.
    pub fn with(cluster: &'a Cluster, namespace: &str, name: &str, token: &str) -> Self {
        let name = format!("who-{namespace}-{name}");
        let kubeconfig =
            cluster.plane().kubeconfig_for_token(&name, namespace, BearerToken::Inline(token)).expect("a kubeconfig");
        Self { cluster, kubeconfig }
    }

    pub async fn says(&self, arguments: &[&str]) -> String {
        let output = self.cluster.plane().kubectl_as(&self.kubeconfig, arguments).await.expect("kubectl runs");
        format!("{}{}", output.stdout, output.stderr)
    }

    /// What comes of creating this object.
    pub async fn creates(&self, object: &Value) -> String {
        let name = format!("{}.create.json", object["metadata"]["name"].as_str().expect("a name"));
        let file = self.cluster.system.testbed().run().path().join(name);
        std::fs::write(&file, object.to_string()).expect("written");
        self.says(&["create", "-f", &file.to_string_lossy()]).await
    }

    pub async fn patches(&self, name: &str, subresource: Option<&str>, patch: &Value) -> String {
        let patch = format!("--patch={patch}");
        let mut arguments = vec!["patch", "vtr", name, "--type=merge", &patch];
        let subresource = subresource.map(|name| format!("--subresource={name}"));
        arguments.extend(subresource.as_deref());
        self.says(&arguments).await
    }
}
