//! What is seen on the node.

mod ends;
mod operator;
mod restarts;
mod shapes;

use crate::cluster::{Cluster, SHELL};
use crate::workload;
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
        &[$(Scenario { name: stringify!($name), run: |cluster| $name(cluster).boxed() }),*]
    };
}

use ends::*;
use operator::*;
use restarts::*;
use shapes::*;

/// All others stand on it.
pub const FIRST: &[Scenario] = scenarios![the_operator_is_installed_as_the_readme_says];

/// In this order, each alone.
pub const ALONE: &[Scenario] = scenarios![
    pods_wait_while_vault_is_away_and_say_so,
    an_operator_that_is_upgraded_or_deleted_loses_no_request,
    an_init_container_that_is_killed_asks_again_and_one_token_lives,
];

/// Takes five minutes, beside those below.
pub const BESIDE: &[Scenario] = scenarios![a_token_of_twenty_seconds_lives_as_long_as_its_pod];

/// In this order.
pub const OTHERS: &[Scenario] = scenarios![
    logs_exec_and_services_work,
    the_example_gets_its_token_reads_its_secret_and_loses_it,
    each_pod_of_a_deployment_has_a_token_of_its_own,
    a_job_completes_and_its_token_is_revoked,
    pods_that_fail_or_are_evicted_lose_their_tokens,
    a_cron_jobs_pods_have_tokens_of_their_own,
    a_restarted_container_and_a_new_sandbox_keep_the_one_token,
    a_pod_that_is_denied_again_and_again_is_bounded,
    an_app_of_another_user_reads_its_token_and_nobody_else_does,
    other_init_containers_and_sidecars_run_beside_it,
    a_pod_on_its_nodes_network_takes_its_token_from_the_status,
    pods_of_a_node_that_is_gone_lose_their_tokens,
];

/// After all others.
pub const LAST: &[Scenario] = scenarios![the_operator_is_uninstalled_as_the_readme_says];

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
    delete(cluster, "node").await;
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
    delete(cluster, "shop").await;
}

/// Three replicas; a restart of all of them; none.
async fn each_pod_of_a_deployment_has_a_token_of_its_own(cluster: &Cluster) {
    let workload = workload::Workload::new(cluster, "three").await;
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
    until_live(cluster, "three", 3).await;
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
    delete(cluster, "three").await;
}

/// The tokens in the pods of a Deployment, as their apps have them.
async fn tokens(cluster: &Cluster, namespace: &str) -> HashSet<String> {
    let pods = cluster.get(&["-n", namespace, "pods", "--field-selector=status.phase=Running"]).await;
    let mut tokens = HashSet::new();
    for pod in pods["items"].as_array().expect("a list") {
        if pod["metadata"]["deletionTimestamp"].is_string() {
            continue;
        }
        tokens.insert(token(cluster, namespace, pod["metadata"]["name"].as_str().expect("a name")).await);
    }
    tokens
}

/// The token in a pod, as its app has it.
async fn token(cluster: &Cluster, namespace: &str, pod: &str) -> String {
    let cat = ["/bin/busybox", "cat", "/var/run/secrets/vaultproject.io/token"];
    cluster.must(&[&["-n", namespace, "exec", pod, "-c", "app", "--"], &cat[..]].concat()).await
}

/// Waits until a pod is ready.
async fn ready(cluster: &Cluster, namespace: &str, pod: &str) {
    cluster.must(&["-n", namespace, "wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=90s"]).await;
}

/// Waits until Vault has this many live tokens for a namespace.
async fn until_live(cluster: &Cluster, namespace: &str, wanted: usize) {
    cluster
        .until("that many tokens live", async || match cluster.live(namespace).await {
            live if live == wanted => Ok(()),
            live => Err(format!("{live} tokens live, not {wanted}")),
        })
        .await;
}

/// Deletes a namespace, which has to go, and its tokens with it.
async fn delete(cluster: &Cluster, namespace: &str) {
    cluster.must(&["delete", "namespace", namespace, "--timeout=90s"]).await;
    assert_eq!(cluster.live(namespace).await, 0);
}

/// Waits until the requests of a namespace are over, and says that no token of it lives.
async fn until_over(cluster: &Cluster, namespace: &str) {
    cluster
        .until("its tokens are revoked", async || {
            let phases = phases(&cluster.get(&["-n", namespace, "vtr"]).await);
            let over = |phase: &String| matches!(phase.as_str(), "Revoked" | "Failed" | "Denied");
            if phases.iter().all(over) { Ok(()) } else { Err(format!("{phases:?}")) }
        })
        .await;
    assert_eq!(cluster.live(namespace).await, 0);
}

fn phases(requests: &Value) -> Vec<String> {
    let items = requests["items"].as_array().expect("a list");
    items.iter().map(|request| request["status"]["phase"].as_str().unwrap_or_default().to_owned()).collect()
}
