//! Pods that are not ready to be served yet: the request waits for them, by watching.

use crate::support::{ended, shared};
use serde_json::json;
use testbed::kubelet::PodSpec;
use vault_token_operator::api::VaultTokenRequest;

fn waits_for(reason: &'static str) -> impl Fn(&VaultTokenRequest) -> bool {
    move |request| request.status.as_ref().is_some_and(|status| status.reason.as_deref() == Some(reason))
}

#[tokio::test]
async fn a_request_waits_for_the_kubelet_to_report_the_container_and_the_address() {
    let cluster = shared().await;
    let namespace = cluster.namespace("waiting").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.kubelet.start_init(cluster.plane(), cluster.vault(), &pod, &[]).await.expect("init starts");
    cluster.until(&pod, "wait for the container", waits_for("InitContainerNotRunning")).await;
    let running = json!({ "phase": "Pending", "initContainerStatuses": [{ "name": "vault-init", "image": "",
        "imageID": "", "ready": false, "restartCount": 0,
        "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } } }] });
    cluster.kubelet.report(cluster.plane(), &pod, &running).await.expect("a status");
    let waiting = cluster.until(&pod, "wait for the address", waits_for("PodHasNoAddress")).await;
    assert_eq!(waiting.status.expect("a status").attempts, 0, "nothing was minted meanwhile");
    assert_eq!(init.exit_status(), None);
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ended_well(&pod, &init).await;
}

#[tokio::test]
async fn init_gives_up_when_its_time_is_over_and_says_what_it_waited_for() {
    let cluster = shared().await;
    let namespace = cluster.namespace("timeout").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let settings = [("VTO_TIMEOUT", "1s")];
    let init =
        cluster.kubelet.start_init(cluster.plane(), cluster.vault(), &pod, &settings).await.expect("init starts");
    assert!(!ended(&init).await.success());
    let told = init.termination_message();
    assert!(told.contains("no token within 1 s (--timeout)"), "{told}");
    assert!(told.contains("waiting for the kubelet to report the init container vault-init as running"), "{told}");
}
