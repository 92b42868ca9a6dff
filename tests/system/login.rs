//! The operator's own login to Vault: each way works, and is mended when it is lost.

use crate::support::{Cluster, alone, token_of};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::PathBuf;
use testbed::kubelet::PodSpec;
use testbed::settings::VaultKind;
use vault_token_operator::api::Phase;

/// Starts the operator anew with these settings and lets it do its whole job once.
async fn serves(cluster: &Cluster, namespace: &str, settings: &[(&str, &str)]) {
    cluster.system.kill_operator();
    cluster.system.start_operator(settings).await.expect("the operator starts");
    let namespace = cluster.namespace(namespace).await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    cluster.until_dead(delivered.accessor()).await;
}

fn secret_file(cluster: &Cluster, name: &str, secret: &Value) -> PathBuf {
    let path = cluster.system.testbed().run().path().join(name);
    // A line end, as an editor leaves it.
    std::fs::write(&path, format!("{}\n", secret.as_str().expect("a secret"))).expect("written");
    path
}

#[tokio::test]
async fn approle() {
    let (cluster, _guard) = alone().await;
    let vault = cluster.vault();
    vault.must(Method::POST, "sys/auth/approle", Some(&json!({ "type": "approle" }))).await.expect("enabled");
    let role = json!({ "token_policies": ["vault-token-operator"], "token_no_default_policy": true });
    let path = "auth/approle/role/operator";
    vault.must(Method::POST, path, Some(&role)).await.expect("a role");
    let id = vault.must(Method::GET, &format!("{path}/role-id"), None).await.expect("an ID");
    let secret = vault.must(Method::POST, &format!("{path}/secret-id"), None).await.expect("a secret ID");
    let file = secret_file(cluster, "secret-id", &secret["data"]["secret_id"]);
    let settings = [
        ("VTO_VAULT_AUTH", "approle"),
        ("VTO_VAULT_ROLE_ID", id["data"]["role_id"].as_str().expect("an ID")),
        ("VTO_VAULT_SECRET_ID_FILE", file.to_str().expect("a path")),
    ];
    serves(cluster, "approle", &settings).await;
}

#[tokio::test]
async fn token_file() {
    let (cluster, _guard) = alone().await;
    let token = json!({ "policies": ["vault-token-operator"], "no_default_policy": true, "period": "1h" });
    let made = cluster.vault().must(Method::POST, "auth/token/create", Some(&token)).await.expect("a token");
    let file = secret_file(cluster, "vault-token", &made["auth"]["client_token"]);
    let settings = [("VTO_VAULT_AUTH", "token-file"), ("VTO_VAULT_TOKEN_FILE", file.to_str().expect("a path"))];
    serves(cluster, "token-file", &settings).await;
}

#[tokio::test]
async fn a_login_is_renewed_and_redone_before_it_ends() {
    let (cluster, _guard) = alone().await;
    let role = "auth/kubernetes/role/short";
    let short = json!({
        "bound_service_account_names": ["vault-token-operator"],
        "bound_service_account_namespaces": ["vault-token-operator"],
        "token_policies": ["vault-token-operator"], "token_no_default_policy": true,
        "token_ttl": "2s", "token_max_ttl": "5s",
    });
    cluster.vault().must(Method::POST, role, Some(&short)).await.expect("a role");
    let settings = [("VTO_VAULT_AUTH_ROLE", "short")];
    serves(cluster, "short-login", &settings).await;
    let namespace = cluster.namespace("short-login-later").await;
    // Each delivery and revocation uses the login; in twelve seconds it must have been made anew twice at least.
    let start = std::time::Instant::now();
    for number in 0.. {
        let delivered = cluster.deliver(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h")).await;
        assert_eq!(delivered.status().attempts, 1, "an attempt failed for want of a login");
        if start.elapsed().as_secs() >= 12 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_login_that_was_revoked_is_made_anew() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("login-revoked").await;
    cluster.deliver(&PodSpec::new(&namespace, "before", "shop-read", "1h")).await;
    let prefix = "sys/leases/revoke-prefix/auth/kubernetes/login";
    cluster.vault().must(Method::PUT, prefix, None).await.expect("revoked");
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "after", "shop-read", "1h")).await;
    assert_eq!(delivered.request.phase(), Phase::Delivered);
    let log = cluster.system.operator_logs().pop().expect("a log");
    let log = std::fs::read_to_string(log).expect("a log");
    assert!(log.contains("Vault does not know the token any more"), "the login outlived its revocation");
}

#[tokio::test]
async fn a_token_role_that_makes_tokens_of_another_type_is_named() {
    let (cluster, _guard) = alone().await;
    let role = "auth/token/roles/vault-token-operator-main";
    let kept = cluster.vault().must(Method::GET, role, None).await.expect("a role")["data"].clone();
    let mut batch = kept.clone();
    batch["token_type"] = json!("batch");
    // Vault takes the type only so.
    batch["renewable"] = json!(false);
    cluster.vault().must(Method::POST, role, Some(&batch)).await.expect("changed");
    let namespace = cluster.namespace("batch").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let _init = cluster.init(&pod).await;
    let denied = cluster.until_phase(&pod, Phase::Denied).await;
    let (_, reason, message) = crate::support::condition(&denied, "Issued");
    cluster.vault().must(Method::POST, role, Some(&kept)).await.expect("changed back");
    assert_eq!(reason, "VaultRefused");
    assert!(message.contains("batch"), "{message}");
}

#[tokio::test]
async fn rights_that_are_missing_in_vault_are_named() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    let settings = [("VTO_TOKEN_ROLE", "no-such-role")];
    cluster.system.start_operator(&settings).await.expect("the operator starts");
    let namespace = cluster.namespace("no-rights").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let _init = cluster.init(&pod).await;
    let forbidden = |request: &vault_token_operator::api::VaultTokenRequest| {
        request.status.as_ref().is_some_and(|status| status.reason.as_deref() == Some("VaultForbids"))
    };
    let waiting = cluster.until(&pod, "complaint", forbidden).await;
    let (_, _, message) = crate::support::condition(&waiting, "Issued");
    assert!(message.contains("no-such-role") && message.contains("config/vault"), "{message}");
}

#[tokio::test]
async fn a_vault_namespace_has_all_that_the_operator_needs() {
    let (cluster, _guard) = alone().await;
    let vault = cluster.vault();
    let tenant = |path: &str| format!("tenant/{path}");
    let put = async |path: &str, body: Value| {
        vault.must(Method::POST, &tenant(path), Some(&body)).await.expect("set up");
    };
    if vault.kind() == VaultKind::Vault {
        // Only its enterprise edition has namespaces; this one does not look at the header.
        serves(cluster, "vault-namespace", &[("VAULT_NAMESPACE", "tenant")]).await;
        return;
    }
    vault.must(Method::POST, "sys/namespaces/tenant", None).await.expect("a namespace");
    let file = |name: &str| {
        let path = testbed::project::root().join("config/vault").join(name);
        std::fs::read_to_string(path).expect("a file")
    };
    for (name, policy) in [
        ("vault-token-operator", file("policy.hcl")),
        ("vault-token-base", file("base-policy.hcl")),
        ("shop-read", "path \"secret/data/shop/read\" { capabilities = [\"read\"] }".to_owned()),
    ] {
        put(&format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
    }
    let role = serde_json::from_str(&file("token-role.json")).expect("JSON");
    put("auth/token/roles/vault-token-operator-main", role).await;
    put("sys/mounts/secret", json!({ "type": "kv" })).await;
    put("secret/data/shop/read", json!({ "greeting": "hello" })).await;
    let token = json!({ "policies": ["vault-token-operator"], "no_default_policy": true, "period": "1h" });
    let made = vault.must(Method::POST, &tenant("auth/token/create"), Some(&token)).await.expect("a token");
    let file = secret_file(cluster, "tenant-token", &made["auth"]["client_token"]);

    cluster.system.kill_operator();
    let settings = [
        ("VTO_VAULT_AUTH", "token-file"),
        ("VTO_VAULT_TOKEN_FILE", file.to_str().expect("a path")),
        ("VAULT_NAMESPACE", "tenant"),
    ];
    cluster.system.start_operator(&settings).await.expect("the operator starts");
    let namespace = cluster.namespace("vault-namespace").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init_with(&pod, &[("VAULT_NAMESPACE", "tenant")]).await;
    cluster.ended_well(&pod, &init).await;
    let token = token_of(&pod);
    let reads = async || {
        let answer = vault.request_as(Some(&token), Method::GET, &tenant("secret/data/shop/read"), None).await;
        answer.expect("an answer").0
    };
    assert_eq!(reads().await, StatusCode::OK);
    assert!(!cluster.accepts(&token).await, "it is of no use outside of its namespace");
    cluster.kubelet.remove(cluster.plane(), &pod).await.expect("removed");
    cluster.until_phase(&pod, Phase::Revoked).await;
    assert_eq!(reads().await, StatusCode::FORBIDDEN);
}
