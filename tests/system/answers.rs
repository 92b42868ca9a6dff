//! Answers that are not what they look like: of a storage that fails in the midst, and of a token that has left its accessor behind.

use crate::fault::{Proxied, Traps};
use crate::support::{CALL_DEADLINE, LIMIT, alone, condition, reason, token_of};
use jiff::Timestamp;
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use testbed::proxy::{Break, Fault, Proxy};
use vault_token_operator::api::{AttemptOutcome, Phase, VaultTokenRequest};

/// What Vault says, with the status of a refusal, where it has lost its storage in the midst of a call.
const STORAGE: Break = Break::Says(
    StatusCode::BAD_REQUEST,
    r#"{"errors":["failed to persist accessor index entry: leadership lost while committing log"]}"#,
);

/// What Vault says, with the same status, of a token of which nothing but its accessor is left.
const NOT_FOUND: Break = Break::Says(StatusCode::BAD_REQUEST, r#"{"errors":["token not found"]}"#);

const MINT: &str = "auth/token/create/";
const RENEW: &str = "auth/token/renew-accessor";
const UNWRAP: &str = "sys/wrapping/unwrap";
const LOOK_UP_WRAPPING: &str = "sys/wrapping/lookup";

#[tokio::test]
async fn rule_2_a_mint_that_the_storage_fails_is_unclear_and_no_refusal() {
    let (cluster, _guard) = alone().await;
    let (_proxied, traps) = Proxied::trapped(cluster, |proxied| &proxied.vault).await;
    let namespace = cluster.namespace("storage-fails").await;
    // What is made from now on the sweep of the start does not find any more.
    cluster.until_healthy("without a request revoked").await;
    // The token is there, and nobody knows it.
    traps.set(Method::POST, MINT, 0, Fault::After(STORAGE));
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    traps.assert_sprung();
    let status = delivered.status();
    assert_eq!(status.attempts, 2, "{status:#?}");
    let [first] = &status.history[..] else { panic!("one attempt has ended: {status:#?}") };
    assert_eq!((first.number, first.outcome), (1, AttemptOutcome::Unrecorded));
    // A sweep follows.
    let line = cluster.until_audited("namespace", &namespace, "OrphanRevoked").await;
    assert_eq!(line["attempt"], 1, "{line:#?}");
    cluster.until_live(&namespace, 1).await;
    assert!(cluster.accepts(&delivered.token).await, "I7: the sweep took the wrong one");
}

#[tokio::test]
async fn an_unwrapping_that_the_storage_fails_is_no_interception() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("storage-fails-init").await;
    // Where Vault has opened it before, the wrapping token is used up; otherwise the same comes once more.
    for (name, call, fault, attempts) in [
        ("opened", UNWRAP, Fault::After(STORAGE), 2),
        ("unopened", UNWRAP, Fault::Before(STORAGE), 1),
        ("unseen", LOOK_UP_WRAPPING, Fault::After(STORAGE), 1),
    ] {
        let run = cluster.system.testbed().run();
        let vault = Proxy::before_server(run, cluster.vault().address()).await.expect("a proxy");
        let traps = Traps::default();
        vault.follow(traps.script());
        traps.set(Method::POST, call, 0, fault);
        let pod = cluster.pod(&PodSpec::new(&namespace, name, "shop-read", "1h")).await;
        let init = cluster.init_with(&pod, &[("VAULT_ADDR", &vault.url())]).await;
        cluster.ended_well(&pod, &init).await;
        traps.assert_sprung();
        let request = cluster.until_phase(&pod, Phase::Delivered).await;
        assert!(!request.is_compromised(), "{name}: {request:#?}");
        assert_eq!(request.status.as_ref().expect("a status").attempts, attempts, "{name}: {request:#?}");
        assert!(cluster.accepts(&token_of(&pod)).await, "{name}");
        assert_eq!(cluster.live_tokens(&pod).await, 1, "{name}");
    }
    let alarms = cluster.system.operator_metrics().await.expect("an answer").expect("an operator");
    assert!(!alarms.contains("alarms_total{kind=\"compromised\"} 1"), "{alarms}");
}

#[tokio::test]
async fn rule_8_a_renewal_that_is_refused_is_told_and_tried_again_until_the_token_is_surely_dead() {
    let (cluster, _guard) = alone().await;
    let (proxied, traps) = Proxied::trapped(cluster, |proxied| &proxied.vault).await;
    let namespace = cluster.namespace("refused-renewal").await;
    let refused = |request: &VaultTokenRequest| reason(request) == "RenewalFailed";

    // The token lives, whatever was said.
    traps.set(Method::POST, RENEW, 0, Fault::Before(NOT_FOUND));
    let alive = cluster.deliver(&PodSpec::new(&namespace, "alive", "shop-read", "20s")).await;
    let told = cluster.until(&alive.pod, "word of the refusal", refused).await;
    assert_eq!(told.phase(), Phase::Delivered);
    let (value, _, message) = condition(&told, "Delivered");
    assert!(
        value == "True" && message.contains("cannot be renewed") && message.contains("token not found"),
        "{message}"
    );
    traps.assert_sprung();
    let renewed = |request: &VaultTokenRequest| {
        reason(request) == "TokenDelivered" && request.status.as_ref().is_some_and(|status| status.renewed_at.is_some())
    };
    cluster.until(&alive.pod, "renewal", renewed).await;
    assert!(cluster.accepts(&alive.token).await, "I7");
    cluster.kubelet.remove(cluster.plane(), &alive.pod).await.expect("removed");
    cluster.until_phase(&alive.pod, Phase::Revoked).await;

    // This one is dead, and the same is said of it.
    let dead = cluster.deliver(&PodSpec::new(&namespace, "dead", "shop-read", "10s")).await;
    proxied.vault.follow(|call| match call.path.contains(RENEW) {
        true => Fault::Before(NOT_FOUND),
        false => Fault::None,
    });
    let accessor = json!({ "accessor": dead.accessor() });
    cluster.vault().must(Method::POST, "auth/token/revoke-accessor", Some(&accessor)).await.expect("revoked");
    let told = cluster.until(&dead.pod, "word of the refusal", refused).await;
    let sure = told.status.and_then(|status| status.expires_at).expect("an expiry").0 + CALL_DEADLINE;
    let deadline = Instant::now() + 4 * LIMIT;
    let over = loop {
        let request = cluster.request(&dead.pod, 0).await.expect("a request");
        if request.is_over() {
            break request;
        }
        assert!(refused(&request) && Instant::now() < deadline, "{request:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(Timestamp::now() >= sure, "nobody could know before {sure}");
    assert_eq!((over.phase(), reason(&over)), (Phase::Revoked, "TokenExpired"));
    let (value, why, message) = condition(&over, "Revoked");
    assert_eq!((value.as_str(), why.as_str()), ("True", "TokenExpired"));
    assert!(message.contains("Restart the pod"), "{message}");
    cluster.until_described("pod", "dead", &namespace, "TokenExpired").await;
}
