//! What the operator says of its rights in Vault: fewer than it needs, or more.

use crate::support::{Cluster, alone, shared};
use reqwest::Method;
use serde_json::{Value, json};
use testbed::kubelet::PodSpec;

const FEWER: &str = "fewer rights in Vault than it needs";
const MORE: &str = "more rights in Vault than it needs";

/// The policy of `config/vault/`.
pub fn policy() -> String {
    std::fs::read_to_string(testbed::project::root().join("config/vault/policy.hcl")).expect("a policy")
}

/// A policy without what it says of this path.
pub fn without(policy: &str, path: &str) -> String {
    let (before, rule) = policy.split_once(&format!("path \"{path}\"")).expect("a rule");
    let (_, after) = rule.split_once("}\n").expect("a whole rule");
    format!("{before}{after}")
}

/// Gives the operator this policy, and starts it anew.
pub async fn restart_with(cluster: &Cluster, policy: &str) {
    restart_set(cluster, policy, &[]).await;
}

/// With these settings.
async fn restart_set(cluster: &Cluster, policy: &str, settings: &[(&str, &str)]) {
    let body = json!({ "policy": policy });
    cluster.system.kill_operator();
    cluster.vault().must(Method::PUT, "sys/policies/acl/vault-token-operator", Some(&body)).await.expect("a policy");
    cluster.system.start_operator(settings).await.expect("the operator starts");
}

/// Has the running operator log in anew.
async fn revoke_login(cluster: &Cluster, namespace: &str, pod: &str) {
    let before = said(cluster, "INFO", "logged in to Vault").len();
    let prefix = "sys/leases/revoke-prefix/auth/kubernetes/login";
    cluster.vault().must(Method::PUT, prefix, None).await.expect("revoked");
    cluster.deliver(&PodSpec::new(namespace, pod, "shop-read", "1h")).await;
    assert_eq!(said(cluster, "INFO", "logged in to Vault").len(), before + 1);
}

/// The lines of the present operator's log that have this level and these words.
pub fn said(cluster: &Cluster, level: &str, words: &str) -> Vec<String> {
    let log = cluster.system.operator_logs().pop().expect("a log");
    let log = std::fs::read_to_string(log).expect("a log");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let wanted = |line: &Value| {
        line["level"] == level && line["message"].as_str().is_some_and(|message| message.contains(words))
    };
    lines.filter(wanted).map(|line| line.to_string()).collect()
}

#[tokio::test]
async fn usual_rights_are_as_needed() {
    let cluster = shared().await;
    cluster.until_healthy("vault rights: as needed").await;
    cluster.assert_counted(&["vault_rights{kind=\"missing\"} 0", "vault_rights{kind=\"excess\"} 0"]).await;
    assert_eq!(said(cluster, "INFO", "the operator's rights in Vault: as needed").len(), 1);
    assert_eq!((said(cluster, "ERROR", FEWER), said(cluster, "WARN", MORE)), (vec![], vec![]));
}

#[tokio::test]
async fn a_right_that_is_missing_is_said_once_and_the_operator_goes_on() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("fewer-rights").await;
    restart_with(cluster, &without(&policy(), "auth/token/revoke-accessor")).await;
    let health = cluster.until_healthy("cannot revoke tokens").await;
    assert!(health.starts_with("ok") && health.contains("needs update on auth/token/revoke-accessor"), "{health}");
    cluster.assert_counted(&["vault_rights{kind=\"missing\"} 1", "vault_rights{kind=\"excess\"} 0"]).await;
    revoke_login(cluster, &namespace, "unchanged").await;
    let lines = said(cluster, "ERROR", FEWER);
    assert!(lines.len() == 1 && lines[0].contains("cannot revoke tokens"), "{lines:?}");
    assert_eq!(said(cluster, "WARN", MORE), Vec::<String>::new());

    // It is seen that this was mended.
    cluster.system.tell_vault_again().await.expect("told");
    revoke_login(cluster, &namespace, "mended").await;
    cluster.until_healthy("vault rights: as needed").await;
    cluster.assert_counted(&["vault_rights{kind=\"missing\"} 0"]).await;
}

#[tokio::test]
async fn rights_that_are_too_many_are_said() {
    let (cluster, _guard) = alone().await;
    restart_with(cluster, &(policy() + "path \"auth/token/create\" { capabilities = [\"update\"] }")).await;
    let health = cluster.until_healthy("vault rights: the operator can make tokens that no token role bounds").await;
    assert!(health.starts_with("ok") && health.contains("it has update on auth/token/create"), "{health}");
    cluster.assert_counted(&["vault_rights{kind=\"missing\"} 0", "vault_rights{kind=\"excess\"} 1"]).await;
    let lines = said(cluster, "WARN", MORE);
    assert!(lines.len() == 1 && lines[0].contains("no token role bounds"), "{lines:?}");
    assert_eq!(said(cluster, "ERROR", FEWER), Vec::<String>::new());

    for path in ["auth/token/accessors", "auth/token/accessors/"] {
        let lists = format!("path \"{path}\" {{ capabilities = [\"list\", \"sudo\"] }}");
        restart_with(cluster, &(policy() + &lists)).await;
        cluster.until_healthy("can list all tokens").await;
        cluster.assert_counted(&["vault_rights{kind=\"excess\"} 1"]).await;
    }

    let all = "path \"*\" { capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\", \"sudo\"] }";
    restart_with(cluster, &(policy() + all)).await;
    // All tell-tale paths but the token role's, for which the policy has a rule that Vault prefers.
    let health = cluster.until_healthy("list all tokens").await;
    for words in ["read secrets", "change policies", "auth/kubernetes/role/vault-token-operator", "sys/raw"] {
        assert!(health.contains(words), "no {words}: {health}");
    }
    cluster.assert_counted(&["vault_rights{kind=\"missing\"} 0", "vault_rights{kind=\"excess\"} 9"]).await;
    cluster.system.tell_vault_again().await.expect("told");
}

#[tokio::test]
async fn rights_of_the_login_for_the_sweep_that_are_too_many_are_said() {
    let (cluster, _guard) = alone().await;
    let policy = std::fs::read_to_string(testbed::project::root().join("config/vault/sweep-policy.hcl"));
    let revokes = "path \"auth/token/revoke-accessor\" { capabilities = [\"update\"] }";
    let body = json!({ "policy": policy.expect("a policy") + revokes });
    let path = "sys/policies/acl/vault-token-operator-sweep";
    cluster.system.kill_operator();
    cluster.vault().must(Method::PUT, path, Some(&body)).await.expect("a policy");
    cluster.system.start_operator(&[]).await.expect("the operator starts");
    let health = cluster.until_healthy("can revoke tokens by its login for the sweep").await;
    assert!(health.starts_with("ok") && health.contains("it has update on auth/token/revoke-accessor"), "{health}");
    cluster.assert_counted(&["vault_rights{kind=\"missing\"} 0", "vault_rights{kind=\"excess\"} 1"]).await;
    let lines = said(cluster, "WARN", MORE);
    assert!(lines.len() == 1 && lines[0].contains("by its login for the sweep"), "{lines:?}");
}

#[tokio::test]
async fn a_root_token_is_said_in_one_sentence() {
    let (cluster, _guard) = alone().await;
    let token = json!({ "policies": ["root"], "ttl": "1h" });
    let made = cluster.vault().must(Method::POST, "auth/token/create", Some(&token)).await.expect("a token");
    let file = cluster.system.testbed().run().path().join("root-token");
    std::fs::write(&file, made["auth"]["client_token"].as_str().expect("a token")).expect("written");
    cluster.system.kill_operator();
    let settings = [("VTO_VAULT_AUTH", "token-file"), ("VTO_VAULT_TOKEN_FILE", file.to_str().expect("a path"))];
    cluster.system.start_operator(&settings).await.expect("the operator starts");
    cluster.until_healthy("can do everything, since it is logged in with a root token (").await;
    cluster.assert_counted(&["vault_rights{kind=\"missing\"} 0", "vault_rights{kind=\"excess\"} 1"]).await;
    let body = json!({ "token": made["auth"]["client_token"] });
    cluster.vault().must(Method::POST, "auth/token/revoke", Some(&body)).await.expect("revoked");
}

#[tokio::test]
async fn a_login_that_may_not_ask_is_no_worse_for_it() {
    // Of its own: what Vault says of tokens that other tests left would be a doubt, too.
    let cluster = &Cluster::start().await;
    // A doubt about the login, with no right to look at it either, would end in another login.
    let policy = without(&policy(), "auth/token/lookup-self");
    // And Vault forbids a sweep to look at tokens that have gone meanwhile, which would be a doubt, too.
    let no_sweep = [("VTO_VAULT_SWEEP_ROLE", "no-such-role")];
    restart_set(cluster, &without(&policy, "sys/capabilities-self"), &no_sweep).await;
    let health = cluster.until_healthy("vault rights: Vault does not tell").await;
    assert!(health.starts_with("ok"), "{health}");
    let namespace = cluster.namespace("hidden-rights").await;
    cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    assert_eq!(said(cluster, "INFO", "Vault does not tell").len(), 1);
    assert_eq!(said(cluster, "INFO", "logged in to Vault").len(), 1, "{}", cluster.operator_said());
    let metrics = cluster.system.operator_metrics().await.expect("an answer").expect("an operator");
    assert!(!metrics.contains("vault_rights{"), "{metrics}");
    cluster.system.tell_vault_again().await.expect("told");
}
