//! When Vault, the init container or the API server is away: nothing is lost, and everybody is told.

use crate::support::{LIMIT, alone, condition, reason, token_of};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use testbed::pki::Pki;
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};

#[tokio::test]
async fn a_sealed_vault_makes_pods_wait_and_tokens_die_late_but_surely() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("sealed").await;
    let before = cluster.deliver(&PodSpec::new(&namespace, "before", "shop-read", "1h")).await;
    cluster.vault().seal().await.expect("sealed");

    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    let unavailable = |request: &VaultTokenRequest| reason(request) == "VaultUnavailable";
    let waiting = cluster.until(&pod, "wait for Vault", unavailable).await;
    let (_, _, message) = condition(&waiting, "Issued");
    assert!(message.to_lowercase().contains("sealed"), "{message}");
    cluster.until_described("pod", "web", &namespace, "VaultUnavailable").await;

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
async fn init_containers_that_cannot_be_reached_or_cannot_reach_vault_use_up_their_attempts_and_leave_no_token() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    cluster.system.start_operator(&[("VTO_WRAPPING_TTL", "1s")]).await.expect("the operator starts");
    let namespace = cluster.namespace("unreachable").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    // Two whose init containers get their pushes, and cannot take them to Vault.
    let folder = cluster.system.testbed().run().folder("another-ca").expect("a folder");
    let another = Pki::new(&folder).expect("another CA").ca().path.to_string_lossy().into_owned();
    let mistrusting = cluster.pod(&PodSpec::new(&namespace, "mistrusting", "shop-read", "1h")).await;
    let mistrusting_init = cluster.init_with(&mistrusting, &[("VAULT_CACERT", &another)]).await;
    let lost = cluster.pod(&PodSpec::new(&namespace, "lost", "shop-read", "1h")).await;
    let lost_init = cluster.init_with(&lost, &[("VAULT_ADDR", "https://127.0.0.1:1")]).await;

    for (pod, words) in
        [(&pod, "Connection refused"), (&mistrusting, "invalid peer certificate"), (&lost, "Connection refused")]
    {
        let failed = cluster.until_phase(pod, Phase::Failed).await;
        let (_, reason, message) = condition(&failed, "Issued");
        assert_eq!(reason, "AttemptsExhausted");
        assert!(message.contains("all 5 attempts failed") && message.contains(words), "{message}");
        assert!(!message.contains("follows"), "no attempt follows the last one: {message}");
        assert_eq!(cluster.live_tokens(pod).await, 0, "every attempt's token was revoked");
    }
    for (init, pod, words) in
        [(mistrusting_init, mistrusting, "invalid peer certificate"), (lost_init, lost, "Connection refused")]
    {
        assert!(!crate::support::ended(&init).await.success());
        let message = init.termination_message();
        assert!(
            message.contains("and says: cannot reach Vault")
                && message.contains("VAULT_CACERT")
                && message.contains(words),
            "{}: {message}",
            pod.name
        );
    }
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

#[tokio::test]
async fn what_ends_while_its_attempt_waits_for_vault_ends_at_once() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("ends-while-minting").await;
    let policy = "sys/policies/acl/vault-token-operator";
    let whole = cluster.vault().must(Method::GET, policy, None).await.expect("a policy")["data"]["policy"].clone();
    let lacking = whole.as_str().expect("a policy").replace("auth/token/create/", "auth/token/create-not/");
    let set = async |text: &Value| {
        let text = json!({ "policy": text });
        cluster.vault().must(Method::PUT, policy, Some(&text)).await.expect("written");
    };
    set(&json!(lacking)).await;
    let waiting = async |name: &str| {
        let pod = cluster.pod(&PodSpec::new(&namespace, name, "shop-read", "1h")).await;
        cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
        cluster.ask(&pod, |_| ()).await;
        let waits = cluster.until(&pod, "wait for Vault", |request| reason(request) == "VaultForbids").await;
        assert_eq!(waits.phase(), Phase::Minting);
        pod
    };
    let (unwanted, gone) = (waiting("unwanted").await, waiting("gone").await);

    let name = request_name(&unwanted.name, &unwanted.uid, 0);
    cluster.kubectl(&["delete", "vtr", &name, "-n", &namespace, "--timeout=30s"]).await;
    assert!(cluster.request(&unwanted, 0).await.is_none(), "the request is stuck");
    cluster.kubelet.remove(cluster.plane(), &gone).await.expect("removed");
    let failed = cluster.until_phase(&gone, Phase::Failed).await;
    assert_eq!(condition(&failed, "Issued").1, "PodNotFound");

    set(&whole).await;
    let after = cluster.deliver(&PodSpec::new(&namespace, "after", "shop-read", "1h")).await;
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, 1);
    assert!(cluster.accepts(&after.token).await);
}

#[tokio::test]
async fn an_operator_that_finds_no_api_server_ends_when_asked_to() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    cluster.plane().stop_apiserver().await;
    let (process, _) = cluster.system.spawn_operator(&[]).expect("it starts");
    let said = async |words: &str| {
        let deadline = Instant::now() + LIMIT;
        while !std::fs::read_to_string(process.log()).expect("a log").contains(words) {
            assert!(Instant::now() < deadline, "it does not say {words:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    said("the watch of requests broke").await;
    let asked = Instant::now();
    process.stop(Duration::from_secs(10)).await;
    assert!(process.exit_status().is_some_and(|status| status.success()), "{:?}", process.exit_status());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    cluster.plane().start_apiserver().await.expect("started");
}
