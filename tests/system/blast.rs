//! What a stolen credential is worth: the blast radius of docs/threat-model.md.

use crate::support::{Cluster, shared};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use testbed::kubelet::PodSpec;

/// What Vault answers to whoever has this token.
async fn asked(cluster: &Cluster, token: &SecretString, call: &(Method, &str, Value)) -> (StatusCode, Value) {
    let (method, path, body) = call;
    let body = (!body.is_null()).then_some(body);
    cluster.vault().request_as(Some(token), method.clone(), path, body).await.expect("an answer")
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
async fn the_operators_token_makes_tokens_within_its_roles_and_reads_no_secret() {
    let cluster = shared().await;
    let namespace = cluster.namespace("blast-operator").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    // Somebody's who has nothing to do with the operator.
    let body = json!({ "policies": ["shop-read"], "period": "1h" });
    let made = cluster.vault().must(Method::POST, "auth/token/create", Some(&body)).await.expect("a token");
    let others = json!({ "accessor": made["auth"]["accessor"] });
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
