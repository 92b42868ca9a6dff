//! When Vault, the init container or the API server is away: nothing is lost, and everybody is told.

use crate::support::{alone, condition, token_of};
use testbed::kubelet::PodSpec;
use vault_token_operator::api::Phase;

#[tokio::test]
async fn a_sealed_vault_makes_pods_wait_and_tokens_die_late_but_surely() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("sealed").await;
    let before = cluster.deliver(&PodSpec::new(&namespace, "before", "shop-read", "1h")).await;
    cluster.vault().seal().await.expect("sealed");

    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    let unavailable = |request: &vault_token_operator::api::VaultTokenRequest| {
        request.status.as_ref().is_some_and(|status| status.reason.as_deref() == Some("VaultUnavailable"))
    };
    let waiting = cluster.until(&pod, "wait for Vault", unavailable).await;
    let (_, _, message) = condition(&waiting, "Issued");
    assert!(message.to_lowercase().contains("sealed"), "{message}");
    let text = cluster.kubectl(&["describe", "pod", "web", "-n", &namespace]).await;
    assert!(text.contains("VaultUnavailable") || text.contains("Events:"), "{text}");

    // A revocation that Vault cannot confirm is not given up, and the finalizer stays (I8).
    cluster.kubelet.remove(cluster.plane(), &before.pod).await.expect("removed");
    let held_up = cluster.until(&before.pod, "revocation held up", unavailable).await;
    assert!(!held_up.metadata.finalizers.unwrap_or_default().is_empty());
    assert_eq!(condition(&cluster.request(&before.pod, 0).await.expect("a request"), "Revoked").0, "False");

    cluster.vault().unseal().await.expect("unsealed");
    cluster.ended_well(&pod, &init).await;
    assert!(cluster.accepts(&token_of(&pod)).await);
    cluster.until_phase(&before.pod, Phase::Revoked).await;
    assert!(!cluster.accepts(&before.token).await);
    let request = cluster.request(&pod, 0).await.expect("a request");
    assert_eq!(cluster.live_tokens(&pod).await, 1, "attempts: {}", request.status.expect("a status").attempts);
}

#[tokio::test]
async fn an_init_container_that_cannot_be_reached_uses_up_its_attempts_and_leaves_no_token() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    cluster.system.start_operator(&[("VTO_WRAPPING_TTL", "1s")]).await.expect("the operator starts");
    let namespace = cluster.namespace("unreachable").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    let failed = cluster.until_phase(&pod, Phase::Failed).await;
    let (_, reason, message) = condition(&failed, "Issued");
    assert_eq!(reason, "AttemptsExhausted");
    assert!(message.contains("all 5 attempts failed") && message.contains("Connection refused"), "{message}");
    assert_eq!(cluster.live_tokens(&pod).await, 0, "every attempt's token was revoked");
}

#[tokio::test]
async fn an_operator_that_dies_between_record_and_delivery_starts_over() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("abandoned").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    let issued = cluster.until_phase(&pod, Phase::Issued).await;
    let first = issued.status.expect("a status").token_accessor.expect("an accessor");
    cluster.system.kill_operator();
    cluster.system.start_operator(&[]).await.expect("the operator starts");
    cluster.until_dead(&first).await;
    let again = |request: &vault_token_operator::api::VaultTokenRequest| {
        request.status.as_ref().is_some_and(|status| status.attempts == 2 && status.phase == Some(Phase::Issued))
    };
    cluster.until(&pod, "second attempt", again).await;
    assert_eq!(cluster.live_tokens(&pod).await, 1);
}

#[tokio::test]
async fn an_api_server_that_restarts_is_found_again() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("api-restart").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.plane().stop_apiserver().await;
    cluster.plane().start_apiserver().await.expect("started");
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    cluster.until_phase(&delivered.pod, Phase::Revoked).await;
    assert!(!cluster.accepts(&delivered.token).await);
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    cluster.ended_well(&pod, &init).await;
}
