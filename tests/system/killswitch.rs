//! The kill switch of docs/threat-model.md, step by step.

use crate::support::{LIMIT, alone, token_of};
use reqwest::{Method, StatusCode};
use std::time::Instant;
use testbed::kubelet::PodSpec;
use vault_token_operator::api::Phase;

#[tokio::test]
async fn the_kill_switch_takes_every_token_and_makes_no_more() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("killed").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    // One that nobody has unwrapped.
    let wrapped = cluster.pod(&PodSpec::new(&namespace, "wrapped", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &wrapped).await.expect("a status");
    cluster.ask(&wrapped, |_| ()).await;
    cluster.until_phase(&wrapped, Phase::Issued).await;
    let vault = cluster.vault();
    for role in [
        "auth/kubernetes/role/vault-token-operator",
        "auth/kubernetes/role/vault-token-operator-sweep",
        "auth/token/roles/vault-token-operator-main",
    ] {
        vault.must(Method::DELETE, role, None).await.expect("deleted");
    }
    for prefix in ["auth/kubernetes/login", "auth/token/create/vault-token-operator-main"] {
        vault.must(Method::PUT, &format!("sys/leases/revoke-prefix/{prefix}"), None).await.expect("revoked");
    }
    let list = Method::from_bytes(b"LIST").expect("a method");
    let leases = "sys/leases/lookup/auth/token/create/vault-token-operator-main";
    let deadline = Instant::now() + LIMIT;
    loop {
        let (status, answer) = vault.request(list.clone(), leases, None).await.expect("an answer");
        if status == StatusCode::NOT_FOUND {
            break;
        }
        assert!(Instant::now() < deadline, "there are leases: {answer}");
    }
    assert!(!cluster.accepts(&delivered.token).await);
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, 0);
    let late = cluster.pod(&PodSpec::new(&namespace, "late", "shop-read", "1h")).await;
    let init = cluster.init(&late).await;
    cluster.until_described("pod", "late", &namespace, "VaultForbids").await;
    cluster.until_healthy("not logged in to Vault").await;
    // Those that come when there is no login are told the like.
    let later = cluster.pod(&PodSpec::new(&namespace, "later", "shop-read", "1h")).await;
    let later_init = cluster.init(&later).await;
    cluster.until_described("pod", "later", &namespace, "VaultForbids").await;
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, 0);
    // And back.
    cluster.system.tell_vault_again().await.expect("told");
    for (pod, init) in [(&late, &init), (&later, &later_init)] {
        cluster.ended_well(pod, init).await;
        assert!(cluster.accepts(&token_of(pod)).await);
    }
}
