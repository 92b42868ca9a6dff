//! What a stolen credential is worth: the blast radius of docs/threat-model.md.

use crate::support::{Cluster, LIMIT, alone, name, shared};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use vault_token_operator::api::Phase;

/// What Vault answers to whoever has this token.
async fn asked(cluster: &Cluster, token: &SecretString, call: &(Method, &str, Value)) -> (StatusCode, Value) {
    let (method, path, body) = call;
    let body = (!body.is_null()).then_some(body);
    cluster.vault().request_as(Some(token), method.clone(), path, body).await.expect("an answer")
}

/// A token of somebody's who has nothing to do with the operator; gives its accessor.
async fn strangers_token(cluster: &Cluster) -> String {
    let body = json!({ "policies": ["shop-read"], "period": "1h" });
    let made = cluster.vault().must(Method::POST, "auth/token/create", Some(&body)).await.expect("a token");
    made["auth"]["accessor"].as_str().expect("an accessor").to_owned()
}

#[tokio::test]
async fn a_workloads_token_does_what_its_policies_say_and_nothing_else() {
    let cluster = shared().await;
    let namespace = cluster.namespace("blast-workload").await;
    let other = cluster.deliver(&PodSpec::new(&namespace, "other", "shop-read", "1h")).await;
    let stolen = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let accessor = json!({ "accessor": other.accessor() });
    let children = json!({ "policies": ["shop-read"] });
    let anew = json!({ "policies": ["vault-token-operator"] });
    for call in [
        (Method::POST, "auth/token/renew-self", Value::Null),
        (Method::POST, "auth/token/create", children.clone()),
        (Method::POST, "auth/token/create-orphan", children.clone()),
        (Method::POST, "auth/token/create/vault-token-operator-main", children),
        (Method::POST, "auth/token/create", anew),
        (Method::POST, "auth/token/lookup-accessor", accessor.clone()),
        (Method::POST, "auth/token/revoke-accessor", accessor),
        (Method::GET, "auth/token/accessors?list=true", Value::Null),
        (Method::GET, "sys/policies/acl/shop-read", Value::Null),
        (Method::GET, "auth/token/roles/vault-token-operator-main", Value::Null),
        (Method::GET, "secret/data/shop/db", Value::Null),
    ] {
        let (status, answer) = asked(cluster, &stolen.token, &call).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{call:?}: {answer}");
    }
    assert!(cluster.accepts(&other.token).await, "others' tokens are none of its business");
    let (status, _) = asked(cluster, &stolen.token, &(Method::GET, "secret/data/shop/read", Value::Null)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_workloads_token_whose_policy_names_the_making_of_tokens_has_children_that_die_with_it() {
    let cluster = shared().await;
    let namespace = cluster.namespace("blast-children").await;
    let makes = json!({ "policy": "path \"auth/token/create\" { capabilities = [\"update\"] }" });
    cluster.vault().must(Method::PUT, "sys/policies/acl/shop-makes", Some(&makes)).await.expect("a policy");
    let stolen = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read,shop-makes", "1h")).await;
    let order = json!({ "policies": ["shop-read"] });
    let (status, made) = asked(cluster, &stolen.token, &(Method::POST, "auth/token/create", order.clone())).await;
    assert_eq!(status, StatusCode::OK, "what is named in full goes before a wildcard of the base policy: {made}");
    let child: SecretString = made["auth"]["client_token"].as_str().expect("a token").to_owned().into();
    assert!(cluster.accepts(&child).await);
    let itself = (Method::POST, "auth/token/renew-self", Value::Null);
    assert_eq!(asked(cluster, &child, &itself).await.0, StatusCode::FORBIDDEN);
    for path in ["auth/token/create-orphan", "auth/token/create/vault-token-operator-main"] {
        let (status, answer) = asked(cluster, &stolen.token, &(Method::POST, path, order.clone())).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}: {answer}");
    }
    cluster.kubelet.remove(cluster.plane(), &stolen.pod).await.expect("removed");
    cluster.until_dead(stolen.accessor()).await;
    cluster.until_dead(made["auth"]["accessor"].as_str().expect("an accessor")).await;
}

#[tokio::test]
async fn the_operators_token_makes_tokens_within_its_roles_and_reads_no_secret() {
    let cluster = shared().await;
    let namespace = cluster.namespace("blast-operator").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let others = json!({ "accessor": strangers_token(cluster).await });
    let stolen = cluster.operators_login().await;
    let role = "auth/token/create/vault-token-operator-main";
    for (call, expected) in [
        ((Method::POST, role, json!({ "policies": ["vault-token-operator"] })), StatusCode::BAD_REQUEST),
        ((Method::POST, role, json!({ "policies": ["root"] })), StatusCode::BAD_REQUEST),
        ((Method::POST, "auth/token/create", json!({ "policies": ["shop-read"] })), StatusCode::FORBIDDEN),
        ((Method::POST, "auth/token/create-orphan", json!({ "policies": ["shop-read"] })), StatusCode::FORBIDDEN),
        ((Method::GET, "auth/token/accessors?list=true", Value::Null), StatusCode::FORBIDDEN),
        ((Method::POST, "sys/policies/acl/shop-read", json!({ "policy": "" })), StatusCode::FORBIDDEN),
        ((Method::POST, "auth/token/roles/vault-token-operator-main", json!({})), StatusCode::FORBIDDEN),
        ((Method::POST, "auth/kubernetes/role/vault-token-operator", json!({})), StatusCode::FORBIDDEN),
        ((Method::GET, "secret/data/shop/read", Value::Null), StatusCode::FORBIDDEN),
        // What it is for; and, for whoever knows an accessor, what it takes to revoke.
        ((Method::POST, role, json!({ "policies": ["shop-read"], "ttl": "10s" })), StatusCode::OK),
        ((Method::POST, "auth/token/lookup-accessor", json!({ "accessor": delivered.accessor() })), StatusCode::OK),
        ((Method::POST, "auth/token/lookup-accessor", others.clone()), StatusCode::OK),
        ((Method::POST, "auth/token/renew-accessor", others.clone()), StatusCode::OK),
        ((Method::POST, "auth/token/revoke-accessor", others), StatusCode::NO_CONTENT),
        ((Method::POST, "auth/token/renew-self", Value::Null), StatusCode::OK),
    ] {
        let (status, answer) = asked(cluster, &stolen, &call).await;
        assert_eq!(status, expected, "{call:?}: {}", answer["errors"]);
    }
    // With any period, up to the `max_lease_ttl` that config/vault/README.md sets.
    let forever = (Method::POST, role, json!({ "policies": ["shop-read"], "period": "87600h" }));
    let (_, made) = asked(cluster, &stolen, &forever).await;
    assert_eq!(made["auth"]["lease_duration"], 8760 * 3600, "{}", made["warnings"]);
    let made: SecretString = made["auth"]["client_token"].as_str().expect("a token").to_owned().into();
    assert!(cluster.accepts(&made).await, "so it reads what the policies of its token roles read");
    let (status, _) = asked(cluster, &made, &(Method::POST, "auth/token/renew-self", Value::Null)).await;
    assert_eq!(
        status,
        StatusCode::FORBIDDEN,
        "no policy of shop-read's lets it renew itself, nor does one called default"
    );
}

#[tokio::test]
async fn the_sweeps_login_lists_accessors_and_does_nothing_else() {
    let cluster = shared().await;
    let namespace = cluster.namespace("blast-sweep").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let stolen = cluster.sweeps_login().await;
    let accessor = json!({ "accessor": delivered.accessor() });
    let role = "auth/token/create/vault-token-operator-main";
    for call in [
        (Method::POST, "auth/token/lookup-accessor", accessor.clone()),
        (Method::POST, "auth/token/renew-accessor", accessor.clone()),
        (Method::POST, "auth/token/revoke-accessor", accessor),
        (Method::POST, role, json!({ "policies": ["shop-read"] })),
        (Method::POST, "auth/token/create", json!({ "policies": ["vault-token-operator-sweep"] })),
        (Method::POST, "auth/token/create-orphan", json!({ "policies": ["vault-token-operator-sweep"] })),
        (Method::POST, "auth/token/renew-self", Value::Null),
        (Method::POST, "auth/token/roles/vault-token-operator-main", json!({})),
        (Method::POST, "auth/kubernetes/role/vault-token-operator-sweep", json!({})),
        (Method::POST, "sys/policies/acl/vault-token-operator-sweep", json!({ "policy": "" })),
        (Method::PUT, "sys/leases/revoke-prefix/auth/token/create", Value::Null),
        (Method::GET, "secret/data/shop/read", Value::Null),
    ] {
        let (status, answer) = asked(cluster, &stolen, &call).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{call:?}: {answer}");
    }
    assert!(cluster.accepts(&delivered.token).await, "a list of accessors is the death of no token");
    let (status, listed) = asked(cluster, &stolen, &(Method::GET, "auth/token/accessors?list=true", Value::Null)).await;
    assert_eq!(status, StatusCode::OK);
    let accessors = listed["data"]["keys"].as_array().expect("accessors");
    assert!(accessors.contains(&json!(delivered.accessor())), "everybody's are in it");
    // It ends with its search, and soon in any case, since it cannot be renewed.
    let (status, _) = asked(cluster, &stolen, &(Method::POST, "auth/token/revoke-self", Value::Null)).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = asked(cluster, &stolen, &(Method::GET, "auth/token/accessors?list=true", Value::Null)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_operators_pod_finds_and_revokes_everybodys_tokens_by_both_logins_together() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("blast-pod").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let others = strangers_token(cluster).await;
    // Both logins are made with what is in the pod. What the one finds, the other has revoked.
    let (daily, sweep) = (cluster.operators_login().await, cluster.sweeps_login().await);
    let (_, listed) = asked(cluster, &sweep, &(Method::GET, "auth/token/accessors?list=true", Value::Null)).await;
    let accessors = listed["data"]["keys"].as_array().expect("accessors");
    for accessor in [delivered.accessor(), &others] {
        assert!(accessors.contains(&json!(accessor)), "{accessor} is not listed");
        let by = json!({ "accessor": accessor });
        let (status, known) = asked(cluster, &daily, &(Method::POST, "auth/token/lookup-accessor", by.clone())).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(known["data"]["id"], "", "an accessor shows no token");
        let (status, _) = asked(cluster, &daily, &(Method::POST, "auth/token/revoke-accessor", by)).await;
        assert!(status.is_success(), "{status}");
        assert!(!cluster.lives(accessor).await);
    }
    // Neither reads a secret, and together they are no more.
    for token in [&daily, &sweep] {
        let (status, _) = asked(cluster, token, &(Method::GET, "secret/data/shop/read", Value::Null)).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn a_status_that_the_operators_identity_forges_has_the_operator_renew_and_revoke_anybodys_token() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("blast-forged").await;
    let others = strangers_token(cluster).await;
    let expiry = async || {
        let known = cluster.look_up(&others).await?;
        known["expire_time"].as_str().expect("a time").parse::<jiff::Timestamp>().ok()
    };
    let first = expiry().await.expect("a living token");
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "10s")).await;
    // By whoever has the operator's identity and nothing else: not its process, and not its login to Vault.
    let deadline = Instant::now() + LIMIT;
    let forge = async || {
        let mut forged =
            serde_json::to_value(cluster.request(&delivered.pod, 0).await.expect("a request")).expect("JSON");
        forged["status"]["tokenAccessor"] = json!(others);
        let file = cluster.system.testbed().run().path().join("forged-status.json");
        std::fs::write(&file, forged.to_string()).expect("written");
        let replace = ["replace", "--subresource=status", "-f", &file.to_string_lossy()];
        cluster.plane().kubectl_as(cluster.system.operator_kubeconfig(), &replace).await.expect("kubectl runs")
    };
    loop {
        let said = forge().await;
        if said.status.success() {
            break;
        }
        // The operator itself was faster.
        assert!(said.stderr.contains("Conflict") && Instant::now() < deadline, "{}", said.stderr);
    }
    while expiry().await.expect("a living token") <= first {
        assert!(Instant::now() < deadline, "it is not renewed: {}", cluster.operator_said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    let request = cluster.until_phase(&delivered.pod, Phase::Revoked).await;
    assert!(!cluster.lives(&others).await, "{}: {}", name(&request), cluster.operator_said());
}

#[tokio::test]
async fn the_operators_identity_reaches_requests_and_reads_no_secret_of_kubernetes() {
    let cluster = shared().await;
    let operator = cluster.system.operator_kubeconfig();
    let may = async |arguments: &[&str]| {
        let all = [&["auth", "can-i"], arguments, &["-A"]].concat();
        let output = cluster.plane().kubectl_as(operator, &all).await.expect("kubectl runs");
        output.stdout.trim() == "yes"
    };
    for allowed in [
        ["get", "pods"],
        ["list", "vaulttokenrequests.vaultproject.io"],
        ["delete", "vaulttokenrequests.vaultproject.io"],
        ["list", "vaultpolicybindings.vaultproject.io"],
        ["get", "serviceaccounts"],
    ] {
        assert!(may(&allowed).await, "{allowed:?}");
    }
    for forbidden in [
        ["get", "secrets"],
        ["list", "configmaps"],
        ["create", "pods"],
        ["patch", "pods"],
        ["create", "pods/exec"],
        ["create", "serviceaccounts/token"],
        ["create", "vaultpolicybindings.vaultproject.io"],
        ["update", "vaultpolicybindings.vaultproject.io"],
        ["update", "namespaces"],
        ["patch", "validatingadmissionpolicies.admissionregistration.k8s.io"],
        ["delete", "validatingadmissionpolicybindings.admissionregistration.k8s.io"],
        ["create", "clusterrolebindings.rbac.authorization.k8s.io"],
        ["impersonate", "serviceaccounts"],
        ["break-glass", "vaulttokenrequests.vaultproject.io"],
        ["grant", "vaultpolicybindings.vaultproject.io"],
    ] {
        assert!(!may(&forbidden).await, "{forbidden:?}");
    }
}
