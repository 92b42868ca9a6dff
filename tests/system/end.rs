//! I3: a token lives only while its pod does.

use crate::support::{Cluster, Delivered, LIMIT, alone, condition, name, shared};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use testbed::system::CLUSTER;
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
    // Its Events tell the story to its end.
    let object = format!("vtr/{}", name(&delivered.request));
    let told = |text: &str| ["TokenIssued", "TokenDelivered", "PodDeleted"].iter().all(|reason| text.contains(reason));
    cluster.until_says(&["events", "-n", &namespace, "--for", &object], "the story", told).await;
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
    let deadline = Instant::now() + LIMIT;
    while cluster.request(&delivered.pod, 0).await.is_some() {
        assert!(Instant::now() < deadline, "the request is still there");
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
async fn i3_a_namespace_that_is_deleted_takes_its_tokens_with_it_and_goes() {
    let cluster = shared().await;
    let namespace = cluster.namespace("goes").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "24h")).await;
    let waiting = cluster.pod(&PodSpec::new(&namespace, "waiting", "shop-read", "24h")).await;
    cluster.ask(&waiting, |_| ()).await;
    cluster.until(&waiting, "status", |request| request.status.is_some()).await;
    let client = cluster.plane().admin_client().expect("a client");
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete(&namespace, &DeleteParams::default()).await.expect("deleted");
    // What the controller manager does next: it deletes all that is in the namespace, waits until it is gone, and then lets the
    // namespace go. Nothing can be made in it any more, Events included.
    let pods = cluster.pods(&namespace);
    pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await.expect("deleted");
    let requests = cluster.requests(&namespace);
    let path = format!("/apis/vaultproject.io/v1alpha1/namespaces/{namespace}/vaulttokenrequests");
    // As that controller, with its rights and no others: admission is to let it do its work.
    let controller = "--as=system:serviceaccount:kube-system:namespace-controller";
    let said = cluster.kubectl(&["delete", "--raw", &path, controller]).await;
    assert!(!said.contains("rror"), "{said}");
    let deadline = Instant::now() + LIMIT;
    while !requests.list(&ListParams::default()).await.expect("a list").items.is_empty() {
        assert!(Instant::now() < deadline, "the requests keep their namespace");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!cluster.accepts(&delivered.token).await, "I3");
    let lines = cluster.audit_lines("namespace", &namespace);
    assert!(lines.iter().any(|line| line["step"] == "Revoked"), "the audit log outlives the namespace: {lines:#?}");
}

#[tokio::test]
async fn an_uninstall_as_the_readme_says_revokes_everything_and_leaves_nothing_stuck() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("uninstalled").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "24h")).await;
    let denied = cluster.pod(&PodSpec::new(&namespace, "denied", "root", "24h")).await;
    cluster.ask(&denied, |_| ()).await;
    cluster.until_phase(&denied, Phase::Denied).await;
    let waiting = cluster.pod(&PodSpec::new(&namespace, "waiting", "shop-read", "24h")).await;
    cluster.ask(&waiting, |_| ()).await;
    cluster.until(&waiting, "status", |request| request.status.is_some()).await;

    let text = cluster.kubectl(&["delete", "vtr", "-A", "--all", "--timeout=30s"]).await;
    assert!(!text.contains("timed out"), "{text}");
    assert!(!cluster.accepts(&delivered.token).await);
    assert_eq!(cluster.live_tokens_where("cluster", CLUSTER).await, 0);
    let crds = testbed::project::root().join("crds");
    let crds = crds.to_string_lossy();
    let text = cluster.kubectl(&["delete", "-f", &crds, "--timeout=30s"]).await;
    assert!(text.contains("deleted") && !text.contains("timed out"), "{text}");
    // And back again, for an operator that never went.
    let text = cluster.kubectl(&["apply", "--server-side", "-f", &crds]).await;
    assert!(text.contains("serverside-applied"), "{text}");
    let wait = ["wait", "--for=condition=Established", "--timeout=30s", "-f", &crds];
    let text = cluster.kubectl(&wait).await;
    assert!(text.contains("condition met"), "{text}");
    let subject = json!({ "namespaces": [namespace], "serviceAccounts": ["*"] });
    let spec = json!({ "subjects": [subject], "policies": ["*"] });
    cluster.system.bind_policies(&namespace, &spec).await.expect("a binding");
    // A look at the admission policies that came while the kind was gone found nothing in force: what is asked for before the next
    // one is denied.
    cluster.until_healthy("admission: in force").await;
    cluster.deliver(&PodSpec::new(&namespace, "again", "shop-read", "24h")).await;
}

#[tokio::test]
async fn the_operator_ends_cleanly_when_asked_to() {
    let (cluster, _guard) = alone().await;
    let status = cluster.system.stop_operator().await.expect("it ran");
    assert!(status.success(), "{status}");
}
