//! What is seen on the node.

mod ends;
mod network;
mod operator;
mod restarts;
mod shapes;
mod usual;

use crate::cluster::Cluster;
use futures::future::{FutureExt, LocalBoxFuture};
use serde_json::{Value, json};
use std::collections::HashSet;

/// One of them.
pub struct Scenario {
    pub name: &'static str,
    pub run: for<'a> fn(&'a Cluster) -> LocalBoxFuture<'a, ()>,
}

macro_rules! scenarios {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$(Scenario { name: stringify!($name), run: |cluster| $module::$name(cluster).boxed_local() }),*]
    };
}

/// All others stand on it.
pub const FIRST: &[Scenario] = scenarios![operator::the_operator_is_installed_as_the_readme_says];

/// In this order, each alone.
pub const ALONE: &[Scenario] = scenarios![
    operator::pods_wait_while_vault_is_away_and_say_so,
    operator::an_operator_that_is_upgraded_or_deleted_loses_no_request,
    operator::a_replica_that_does_nothing_is_started_anew,
    restarts::an_init_container_that_is_killed_asks_again_and_one_token_lives,
    restarts::an_init_container_that_is_killed_on_either_side_of_its_push_leaves_one_token,
    network::the_operator_in_its_own_network_policy_does_all_it_does,
];

/// Takes five minutes, beside those below.
pub const BESIDE: &[Scenario] = scenarios![operator::a_token_of_twenty_seconds_lives_as_long_as_its_pod];

/// In this order.
pub const OTHERS: &[Scenario] = scenarios![
    usual::logs_exec_and_services_work,
    usual::the_example_gets_its_token_reads_its_secret_and_loses_it,
    usual::the_manifest_by_hand_gets_its_token,
    usual::each_pod_of_a_deployment_with_two_annotations_has_a_token_of_its_own,
    ends::a_job_completes_and_its_token_is_revoked,
    ends::pods_that_fail_or_are_evicted_lose_their_tokens,
    ends::a_cron_jobs_pods_have_tokens_of_their_own,
    ends::a_namespace_that_is_deleted_takes_its_tokens_with_it,
    restarts::a_restarted_container_and_a_new_sandbox_keep_the_one_token,
    shapes::a_pod_that_is_denied_again_and_again_is_bounded,
    shapes::a_static_pod_gets_no_token,
    shapes::what_cannot_be_injected_is_said_where_its_owner_looks,
    shapes::an_app_of_another_user_reads_its_token_and_nobody_else_does,
    shapes::other_init_containers_and_sidecars_run_beside_it,
    shapes::a_pod_on_its_nodes_network_takes_its_token_from_the_status,
    network::a_network_policy_that_lets_only_the_operator_in_lets_tokens_in,
    restarts::pods_of_a_node_that_is_gone_lose_their_tokens,
];

/// After all others.
pub const LAST: &[Scenario] = scenarios![
    operator::the_operator_is_uninstalled_as_the_readme_says,
    operator::helm_installs_and_uninstalls_it_as_the_readme_says,
    operator::the_demo_leaves_a_cluster_that_was_there_before_as_it_was,
];

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

/// Waits until `kubectl describe` says these words of something in a namespace.
async fn until_described(cluster: &Cluster, namespace: &str, what: &[&str], words: &str) {
    let describe = [&["-n", namespace, "describe"], what].concat();
    cluster
        .until(&format!("{what:?} is described by {words}"), async || {
            let text = cluster.must(&describe).await;
            if text.contains(words) { Ok(()) } else { Err(text) }
        })
        .await;
}

/// Evicts a pod, as `kubectl drain` does. An error says what the API server has against it.
async fn evict(cluster: &Cluster, namespace: &str, pod: &str) -> Result<(), String> {
    let eviction =
        json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": pod, "namespace": namespace } });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
    cluster.kubectl(&["create", "--raw", &path, "-f", &cluster.file(&eviction.to_string())]).await.map(drop)
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
