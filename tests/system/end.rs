//! I3: a token lives only while its pod does.

use crate::support::{Cluster, Delivered, LIMIT, alone, condition, name, shared};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use std::time::Duration;
use testbed::kubelet::PodSpec;
use vault_token_operator::api::{FINALIZER, Phase};

async fn revoked(cluster: &Cluster, delivered: &Delivered, reason: &str) {
    let request = cluster.until_phase(&delivered.pod, Phase::Revoked).await;
    let (value, why, message) = condition(&request, "Revoked");
    assert_eq!((value.as_str(), why.as_str()), ("True", reason), "{message}");
    assert!(request.status.as_ref().is_some_and(|status| status.revoked_at.is_some()));
    assert!(!cluster.accepts(&delivered.token).await);
    let released = |request: &vault_token_operator::api::VaultTokenRequest| {
        !request.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
    };
    cluster.until(&delivered.pod, "finalizer gone", released).await;
}

#[tokio::test]
async fn i3_deleting_the_pod_kills_its_token_within_a_second() {
    let cluster = shared().await;
    let namespace = cluster.namespace("pod-deleted").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "24h")).await;
    cluster.kubelet.terminate(cluster.plane(), &delivered.pod).await.expect("terminating");
    let pod: Pod = cluster.pods(&namespace).get("web").await.expect("a pod");
    assert!(pod.metadata.deletion_timestamp.is_some());
    assert!(cluster.accepts(&delivered.token).await, "a terminating pod may need its token to end well");
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    let took = cluster.until_dead(delivered.accessor()).await;
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    revoked(cluster, &delivered, "PodDeleted").await;
}

#[tokio::test]
async fn i3_a_pod_that_finishes_loses_its_token() {
    let cluster = shared().await;
    let namespace = cluster.namespace("pod-finished").await;
    for (name, phase) in [("job", "Succeeded"), ("crash", "Failed")] {
        let delivered = cluster.deliver(&PodSpec::new(&namespace, name, "shop-read", "24h")).await;
        cluster.kubelet.report_end(cluster.plane(), &delivered.pod, phase).await.expect("a status");
        revoked(cluster, &delivered, "PodFinished").await;
    }
}

#[tokio::test]
async fn i3_a_pod_of_the_same_name_inherits_nothing() {
    let cluster = shared().await;
    let namespace = cluster.namespace("same-name").await;
    let spec = PodSpec::new(&namespace, "web-0", "shop-read", "24h");
    let first = cluster.deliver(&spec).await;
    cluster.kubelet.remove(cluster.plane(), &first.pod).await.expect("removed");
    let second = cluster.deliver(&spec).await;
    revoked(cluster, &first, "PodDeleted").await;
    assert!(cluster.accepts(&second.token).await);
}

#[tokio::test]
async fn i8_a_deleted_request_goes_only_when_its_token_is_dead() {
    let cluster = shared().await;
    let namespace = cluster.namespace("request-deleted").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "24h")).await;
    let requests = cluster.requests(&namespace);
    requests.delete(&name(&delivered.request), &DeleteParams::default()).await.expect("deleted");
    let deadline = std::time::Instant::now() + LIMIT;
    while cluster.request(&delivered.pod, 0).await.is_some() {
        assert!(std::time::Instant::now() < deadline, "the request is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!cluster.accepts(&delivered.token).await, "the request went before its token was dead");
}

#[tokio::test]
async fn i3_a_pod_that_is_deleted_while_the_operator_is_down_loses_its_token_when_it_is_back() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("operator-down").await;
    let gone = cluster.deliver(&PodSpec::new(&namespace, "gone", "shop-read", "24h")).await;
    let finished = cluster.deliver(&PodSpec::new(&namespace, "finished", "shop-read", "24h")).await;
    let alive = cluster.deliver(&PodSpec::new(&namespace, "alive", "shop-read", "24h")).await;
    cluster.system.kill_operator();
    cluster.kubelet.remove(cluster.plane(), &gone.pod).await.expect("removed");
    cluster.kubelet.report_end(cluster.plane(), &finished.pod, "Succeeded").await.expect("a status");
    assert!(cluster.accepts(&gone.token).await, "nobody is there to revoke it");
    cluster.system.start_operator(&[]).await.expect("the operator starts");
    revoked(cluster, &gone, "PodDeleted").await;
    revoked(cluster, &finished, "PodFinished").await;
    assert!(cluster.accepts(&alive.token).await, "I7: the token of a living pod stays");
}

#[tokio::test]
async fn the_operator_ends_cleanly_when_asked_to() {
    let (cluster, _guard) = alone().await;
    let status = cluster.system.stop_operator().await.expect("it ran");
    assert!(status.success(), "{status}");
}
