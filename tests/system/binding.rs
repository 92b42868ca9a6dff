//! I4: nobody has a policy that no binding grants; and what a change of bindings does.

use crate::fault::Proxied;
use crate::rights::policy;
use crate::support::{Cluster, LIMIT, alone, condition, reason, shared, token_of};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Instant;
use testbed::kubelet::{IMAGE, INIT_CONTAINER, PodHandle, PodSpec};
use testbed::proxy::Fault;
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};

/// A token role of a binding's own.
pub const OWN_ROLE: &str = "vault-token-operator-main-own";

/// Lets the operator make tokens through that role, as config/vault/README.md says.
pub async fn permit_own_role(cluster: &Cluster) {
    let paths = policy().replace("vault-token-operator-main\"", &format!("{OWN_ROLE}\""));
    let wider = json!({ "policy": policy() + &paths });
    cluster.vault().must(Method::PUT, "sys/policies/acl/vault-token-operator", Some(&wider)).await.expect("written");
}

/// Makes that role.
pub async fn make_own_role(cluster: &Cluster) {
    let role = json!({ "allowed_policies_glob": ["vault-token-base", "shop-read"], "orphan": true, "renewable": true,
        "token_no_default_policy": true, "token_type": "service" });
    let path = format!("auth/token/roles/{OWN_ROLE}");
    cluster.vault().must(Method::POST, &path, Some(&role)).await.expect("a role");
}

/// Has the pods of a namespace get their tokens through that role, by a binding of this name.
pub async fn bind_own_role(cluster: &Cluster, name: &str, namespace: &str) {
    let mut spec = grant(namespace, &["shop-read"]);
    spec["tokenRole"] = json!(OWN_ROLE);
    bind(cluster, name, spec).await;
}

/// A namespace whose pods may ask, and are granted nothing.
pub async fn ungranted(cluster: &Cluster, name: &str) -> String {
    let namespace = cluster.namespace(name).await;
    let text = cluster.kubectl(&["delete", "vpb", name]).await;
    assert!(text.contains("deleted"), "{text}");
    namespace
}

async fn bind(cluster: &Cluster, name: &str, spec: Value) {
    cluster.system.bind_policies(name, &spec).await.expect("a binding");
}

/// All service accounts of the namespace, and these policies.
fn grant(namespace: &str, policies: &[&str]) -> Value {
    json!({ "subjects": [{ "namespaces": [namespace], "serviceAccounts": ["*"] }], "policies": policies })
}

/// What the API server says of a binding with this specification.
async fn refused(cluster: &Cluster, spec: Value) -> String {
    match cluster.system.bind_policies("refused", &spec).await {
        Ok(()) => panic!("it was taken: {spec}"),
        Err(error) => format!("{error:?}"),
    }
}

#[tokio::test]
async fn i4_without_a_binding_nobody_gets_anything_and_with_one_the_waiting_pod_is_served() {
    let cluster = shared().await;
    let namespace = ungranted(cluster, "default-deny").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    let denied = cluster.until_phase(&pod, Phase::Denied).await;
    let (_, why, message) = condition(&denied, "Authorized");
    assert_eq!(why, "NotGranted");
    assert!(message.contains("the policy \"shop-read\" is not granted to the service account default"), "{message}");
    cluster.until_described("pod", "web", &namespace, "NotGranted").await;
    assert_eq!(init.exit_status(), None, "it waits");
    // One that grants something else, or to somebody else, is none.
    bind(cluster, "default-deny-2", grant(&namespace, &["shop-db"])).await;
    bind(cluster, "default-deny-3", grant("elsewhere", &["shop-read"])).await;
    bind(cluster, "default-deny", grant(&namespace, &["shop-r*"])).await;
    cluster.ended_well(&pod, &init).await;
    let request = cluster.request(&pod, 0).await.expect("a request");
    assert_eq!(request.status.expect("a status").granted_by.as_deref(), Some("default-deny"));
    cluster.until_said(&["get", "vtr", "-n", &namespace, "-o", "wide"], "default-deny").await;
    assert!(cluster.accepts(&token_of(&pod)).await);
}

#[tokio::test]
async fn i4_one_binding_grants_the_whole_request_within_its_bounds() {
    let cluster = shared().await;
    let namespace = ungranted(cluster, "whole").await;
    let mut spec = grant(&namespace, &["shop-read"]);
    (spec["maxTTL"], spec["defaultTTL"]) = (json!("30m"), json!("10m"));
    bind(cluster, "whole-read", spec).await;
    bind(cluster, "whole-db", grant(&namespace, &["shop-db"])).await;
    let asked = async |name: &str, policies: &str, ttl: Option<&str>| {
        let mut spec = PodSpec::new(&namespace, name, policies, ttl.unwrap_or_default());
        spec.annotations.retain(|(_, value)| !value.is_empty());
        let pod = cluster.pod(&spec).await;
        let init = cluster.init(&pod).await;
        (pod, init)
    };
    let (pod, _init) = asked("both", "shop-read,shop-db", None).await;
    let denied = cluster.until_phase(&pod, Phase::Denied).await;
    let message = condition(&denied, "Authorized").2;
    assert!(message.contains("no one VaultPolicyBinding grants all of them"), "{message}");
    assert!(!message.contains("whole-read"), "bindings are not named: {message}");
    let (pod, _init) = asked("long", "shop-read", Some("1h")).await;
    let denied = cluster.until_phase(&pod, Phase::Denied).await;
    let (_, why, message) = condition(&denied, "Authorized");
    assert_eq!(why, "TTLInvalid");
    assert!(message.contains("at most 30m is granted"), "{message}");
    let (pod, init) = asked("unsaid", "shop-read", None).await;
    cluster.ended_well(&pod, &init).await;
    let status = cluster.request(&pod, 0).await.expect("a request").status.expect("a status");
    assert_eq!(status.ttl.as_deref(), Some("10m"));
    // The way of delivery is granted, too.
    let pod = cluster.pod(&PodSpec::new(&namespace, "status", "shop-read", "10m")).await;
    let _init = cluster.init_with(&pod, &[("VTO_DELIVERY", "status")]).await;
    let denied = cluster.until_phase(&pod, Phase::Denied).await;
    assert!(condition(&denied, "Authorized").2.contains("the delivery Status is not granted"), "{denied:#?}");
}

/// How the pods of a namespace can lose their grant. Each is tried in a namespace, and with a binding, of that name.
const LOSSES: [&str; 3] = ["binding-deleted", "policies-narrowed", "label-taken"];

/// Gives the pods of such a namespace their grant, or takes it.
async fn set_grant(cluster: &Cluster, way: &str, granted: bool) {
    match (way, granted) {
        ("binding-deleted", false) => drop(cluster.kubectl(&["delete", "vpb", way]).await),
        ("binding-deleted", true) => bind(cluster, way, grant(way, &["shop-read"])).await,
        ("policies-narrowed", _) => bind(cluster, way, grant(way, &[if granted { "shop-*" } else { "shop-db" }])).await,
        (_, _) => {
            let label = if granted { "vaultproject.io/granted=yes" } else { "vaultproject.io/granted-" };
            cluster.kubectl(&["label", "namespace", way, label]).await;
        }
    }
}

/// Waits until an Event of this reason says these words of a pod, and another one of its first request.
async fn until_told(cluster: &Cluster, pod: &PodHandle, reason: &str, words: &str) {
    for name in [&pod.name, &request_name(&pod.name, &pod.uid, 0)] {
        let about = format!("involvedObject.name={name},reason={reason}");
        let get =
            ["get", "events", "-n", &pod.namespace, "--field-selector", &about, "-o", "jsonpath={.items[*].message}"];
        cluster.until_said(&get, words).await;
    }
}

#[tokio::test]
async fn a_token_that_loses_its_grant_is_revoked_after_its_grace_period_unless_it_has_it_back() {
    let (cluster, _guard) = alone().await;
    cluster.restart(&[("VTO_GRANT_GRACE", "6s")]).await;
    let lost = |request: &VaultTokenRequest| reason(request) == "GrantLost";
    let mut losing = Vec::new();
    for way in LOSSES {
        let namespace = cluster.namespace(way).await;
        if way == "label-taken" {
            let selector = json!({ "matchLabels": { "vaultproject.io/granted": "yes" } });
            let subject = json!({ "namespaceSelector": selector, "serviceAccounts": ["*"] });
            bind(cluster, way, json!({ "subjects": [subject], "policies": ["shop-read"] })).await;
        }
        set_grant(cluster, way, true).await;
        let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
        let pod = &delivered.pod;
        set_grant(cluster, way, false).await;
        cluster.until(pod, "word of the loss", lost).await;
        set_grant(cluster, way, true).await;
        let kept = cluster.until(pod, "grant", |request| reason(request) == "TokenDelivered").await;
        assert_eq!(condition(&kept, "Authorized").1, "GrantRegained", "{way}");
        until_told(cluster, pod, "GrantLost", "it is revoked 6s after that").await;
        until_told(cluster, pod, "GrantRegained", "again; it is not revoked").await;
        assert!(cluster.accepts(&delivered.token).await, "{way}: it has its grant again");

        set_grant(cluster, way, false).await;
        cluster.until(pod, "word of the loss", lost).await;
        assert!(cluster.accepts(&delivered.token).await, "{way}: it has some time left");
        losing.push(delivered);
    }
    for delivered in losing {
        let revoked = cluster.until_phase(&delivered.pod, Phase::Revoked).await;
        assert_eq!(condition(&revoked, "Revoked").1, "GrantEnded");
        assert!(!cluster.accepts(&delivered.token).await);
        until_told(cluster, &delivered.pod, "GrantEnded", "its token is dead").await;
    }
}

#[tokio::test]
async fn many_tokens_that_lose_their_grants_at_once_are_kept_until_a_person_says_so() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    let (grace, limit) = (("VTO_GRANT_GRACE", "1s"), ("VTO_UNGRANTED_LIMIT", "2"));
    cluster.system.start_operator(&[grace, limit]).await.expect("the operator starts");
    let namespace = cluster.namespace("many-grants").await;
    let mut delivered = Vec::new();
    for number in 0..3 {
        delivered.push(cluster.deliver(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h")).await);
    }
    cluster.kubectl(&["delete", "vpb", "many-grants"]).await;
    for pod in &delivered {
        let held = cluster.until(&pod.pod, "hold", |request| reason(request) == "RevocationHeld").await;
        assert!(condition(&held, "Authorized").2.contains("--ungranted-limit"), "{held:#?}");
        assert!(cluster.accepts(&pod.token).await);
    }
    cluster.assert_counted(&["tokens_ungranted 3"]).await;
    cluster.restart(&[grace]).await;
    for pod in &delivered {
        cluster.until_phase(&pod.pod, Phase::Revoked).await;
    }
}

#[tokio::test]
async fn labels_that_no_tenant_can_set_select_namespaces_and_others_are_refused() {
    let cluster = shared().await;
    let namespace = ungranted(cluster, "labelled").await;
    let selector = json!({ "matchLabels": { "vaultproject.io/team": "labelled" } });
    let by_label = |selector: &Value| json!({ "subjects": [{ "namespaceSelector": selector, "serviceAccounts": ["default"] }], "policies": ["shop-*"] });
    bind(cluster, "labelled", by_label(&selector)).await;
    cluster.until_said(&["get", "vpb", "labelled", "-o", "wide"], "NoNamespaceMatches").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    cluster.until_phase(&pod, Phase::Denied).await;
    cluster.kubectl(&["label", "namespace", &namespace, "vaultproject.io/team=labelled"]).await;
    cluster.ended_well(&pod, &init).await;
    cluster.until_said(&["get", "vpb", "labelled", "-o", "wide"], "Accepted").await;
    let columns = async |arguments: &[&str]| {
        let text = cluster.kubectl(&[&["get", "vpb", "labelled"], arguments].concat()).await;
        text.lines().next().unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let usual = ["NAME", "POLICIES", "MAXTTL", "NAMESPACES", "READY", "AGE"];
    assert_eq!(columns(&[]).await, usual);
    assert_eq!(columns(&["-o", "wide"]).await, [&usual[..], &["REASON"]].concat());
    // The other label that no tenant can set.
    let named = ungranted(cluster, "by-its-name").await;
    bind(cluster, "by-its-name", by_label(&json!({ "matchLabels": { "kubernetes.io/metadata.name": named } }))).await;
    cluster.deliver(&PodSpec::new(&named, "web", "shop-read", "1h")).await;

    for (selector, words) in [
        (json!({ "matchLabels": {} }), "should have at least 1 properties"),
        (json!({}), "matchLabels: Required value"),
        (json!({ "matchLabels": { "team": "a" } }), "a tenant could set others itself"),
    ] {
        let text = refused(cluster, by_label(&selector)).await;
        assert!(text.contains(words), "{text}");
    }
    for (subject, words) in [
        (json!({ "serviceAccounts": ["*"] }), "give either namespaces or a namespaceSelector"),
        (json!({ "namespaces": [], "serviceAccounts": ["*"] }), "should have at least 1 items"),
        (json!({ "namespaces": ["a"] }), "serviceAccounts: Required value"),
        (json!({ "namespaces": ["*"], "serviceAccounts": ["*"] }), "should match"),
        (json!({ "namespaces": ["a"], "serviceAccounts": ["web-*"] }), "should match"),
    ] {
        let text = refused(cluster, json!({ "subjects": [subject], "policies": ["shop-*"] })).await;
        assert!(text.contains(words), "{text}");
    }
    for (field, value, words) in [
        ("subjects", json!([]), "should have at least 1 items"),
        ("policies", json!([]), "should have at least 1 items"),
        ("policies", json!(["Shop-*"]), "should match"),
        ("deliveries", json!([]), "should have at least 1 items"),
        ("deliveries", json!(["Mail"]), "Unsupported value"),
        ("selfRenewal", json!("Maybe"), "Unsupported value"),
        ("tokenRole", json!("a/b"), "should match"),
    ] {
        let mut spec = grant(&namespace, &["shop-*"]);
        spec[field] = value;
        let text = refused(cluster, spec).await;
        assert!(text.contains(words), "{field}: {text}");
    }
}

#[tokio::test]
async fn a_binding_says_of_itself_what_keeps_it_from_granting() {
    let cluster = shared().await;
    let namespace = cluster.namespace("says-so").await;
    for (field, value, reason, words) in [
        ("maxTTL", "1y", "Invalid", "there is no unit"),
        ("tokenRole", "another", "Invalid", "begin with vault-token-operator-main-"),
        ("defaultTTL", "24h", "Accepted", "service accounts of 1 namespaces"),
    ] {
        let mut spec = grant(&namespace, &["shop-*"]);
        spec[field] = json!(value);
        let name = format!("says-{}", field.to_lowercase());
        bind(cluster, &name, spec).await;
        cluster.until_said(&["get", "vpb", &name, "-o", "wide"], reason).await;
        cluster.until_said(&["describe", "vpb", &name], words).await;
    }
}

#[tokio::test]
async fn a_binding_names_the_subjects_that_match_no_namespace() {
    let cluster = shared().await;
    let namespace = cluster.namespace("matched").await;
    let selector = json!({ "matchLabels": { "vaultproject.io/team": "matched" } });
    let misspelt = json!([
        { "namespaces": ["mached"], "serviceAccounts": ["*"] },
        { "namespaceSelector": selector, "serviceAccounts": ["*"] },
    ]);
    let said =
        ["get", "vpb", "matched", "-o", "jsonpath={.status.conditions[0].reason}: {.status.conditions[0].message}"];
    let until = async |words: &str| cluster.until_said(&said, words).await;
    bind(cluster, "matched", json!({ "subjects": misspelt, "policies": ["shop-*"] })).await;
    until(
        "NoNamespaceMatches: none of its subjects matches a namespace; what matches nothing: subjects[0]: there is no namespace \
         mached; subjects[1]: no namespace has vaultproject.io/team=matched",
    )
    .await;
    let mut spec = grant(&namespace, &["shop-*"]);
    spec["subjects"].as_array_mut().expect("subjects").extend(misspelt.as_array().expect("subjects").clone());
    bind(cluster, "matched", spec).await;
    until(
        "Accepted: it is for service accounts of 1 namespaces; what matches nothing: subjects[1]: there is no namespace mached; \
         subjects[2]: no namespace has vaultproject.io/team=matched",
    )
    .await;
    // Each is seen when it is mended.
    cluster.namespace("mached").await;
    until("of 2 namespaces; what matches nothing: subjects[2]: no namespace").await;
    cluster.kubectl(&["label", "namespace", &namespace, "vaultproject.io/team=matched"]).await;
    let all = "Accepted: it is for service accounts of 2 namespaces";
    cluster.until_says(&said, all, |text| text == all).await;
}

#[tokio::test]
async fn a_pod_that_is_granted_its_policies_while_vault_is_away_is_served_once_it_is_back() {
    let (cluster, _guard) = alone().await;
    let namespace = ungranted(cluster, "granted-late").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    cluster.until_phase(&pod, Phase::Denied).await;
    let granted = cluster.namespace("granted-early").await;
    cluster.vault().seal().await.expect("sealed");
    // By another pod the operator finds out that Vault is away.
    let other = cluster.pod(&PodSpec::new(&granted, "other", "shop-read", "1h")).await;
    let others_init = cluster.init(&other).await;
    cluster.until(&other, "wait for Vault", |request| reason(request) == "VaultUnavailable").await;
    bind(cluster, "granted-late", grant(&namespace, &["shop-read"])).await;
    let waiting = cluster.until(&pod, "wait for Vault", |request| reason(request) == "VaultUnavailable").await;
    assert_eq!(waiting.phase(), Phase::Pending);
    cluster.vault().unseal().await.expect("unsealed");
    cluster.ended_well(&pod, &init).await;
    cluster.ended_well(&other, &others_init).await;
    assert_eq!(cluster.request(&pod, 0).await.expect("a request").phase(), Phase::Delivered, "the same request");
}

#[tokio::test]
async fn a_service_account_that_a_binding_names_and_nobody_has_is_told() {
    let cluster = shared().await;
    let namespace = cluster.namespace("accounts").await;
    let other = cluster.namespace("accounts-other").await;
    let subjects = json!([
        { "namespaces": [namespace], "serviceAccounts": ["default", "wbe", "dbb"] },
        { "namespaces": [other, namespace], "serviceAccounts": ["web"] },
        { "namespaces": [namespace], "serviceAccounts": ["*"] },
    ]);
    let said =
        ["get", "vpb", "accounts", "-o", "jsonpath={.status.conditions[0].reason}: {.status.conditions[0].message}"];
    // One of a subject's namespaces has it, and that is enough.
    cluster.kubectl(&["create", "serviceaccount", "web", "--namespace", &namespace]).await;
    bind(cluster, "accounts", json!({ "subjects": subjects, "policies": ["shop-*"] })).await;
    let some = "Accepted: it is for service accounts of 2 namespaces; what matches nothing: subjects[0]: there is no service \
                account wbe and no dbb";
    cluster.until_says(&said, some, |text| text == some).await;
    for account in ["wbe", "dbb"] {
        cluster.kubectl(&["create", "serviceaccount", account, "--namespace", &namespace]).await;
    }
    // Whatever changes of what is granted brings another look.
    cluster.kubectl(&["label", "namespace", &namespace, "vaultproject.io/looked-at=again"]).await;
    let all = "Accepted: it is for service accounts of 2 namespaces";
    cluster.until_says(&said, all, |text| text == all).await;
}

#[tokio::test]
async fn a_binding_can_have_a_token_role_of_its_own() {
    let (cluster, _guard) = alone().await;
    let namespace = ungranted(cluster, "own-role").await;
    bind_own_role(cluster, "own-role", &namespace).await;
    cluster.until_said(&["get", "vpb", "own-role", "-o", "wide"], "TokenRoleUnreadable").await;
    permit_own_role(cluster).await;
    // Whatever changes of what is granted brings another look.
    cluster.kubectl(&["label", "namespace", &namespace, "vaultproject.io/looked-at=again"]).await;
    cluster.until_said(&["get", "vpb", "own-role", "-o", "wide"], "TokenRoleMissing").await;
    // A pod that asks meanwhile waits for the role, and is not denied for want of it.
    let early = cluster.pod(&PodSpec::new(&namespace, "early", "shop-read", "1h")).await;
    let init = cluster.init(&early).await;
    let waits = |request: &VaultTokenRequest| {
        let words = "it has no such token role: vault-token-operator-main-own";
        let mut conditions = request.status.iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.reason == "VaultForbids" && condition.message.contains(words))
    };
    cluster.until(&early, "word of the missing role", waits).await;
    make_own_role(cluster).await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let known = cluster.look_up(delivered.accessor()).await.expect("a live token");
    assert_eq!(known["path"], "auth/token/create/vault-token-operator-main-own");
    cluster.ended_well(&early, &init).await;
    // Tenants are apart in Vault, too, whatever a binding of this role grants.
    let mut wide = grant(&namespace, &["shop-*"]);
    wide["tokenRole"] = json!(OWN_ROLE);
    bind(cluster, "own-role", wide).await;
    let other = cluster.pod(&PodSpec::new(&namespace, "other", "shop-db", "1h")).await;
    let init = cluster.init(&other).await;
    let refused = cluster.until_phase(&other, Phase::Denied).await;
    assert_eq!(reason(&refused), "VaultRefused", "{refused:#?}");
    assert!(!crate::support::ended(&init).await.success());
    // A pod says neither through which role its token is made, nor in which Vault.
    let elsewhere = cluster.namespace("usual-role").await;
    let mut spec = PodSpec::new(&elsewhere, "web", "shop-read", "1h");
    for (name, value) in [("token-role", OWN_ROLE), ("vault-addr", "https://127.0.0.1:1"), ("role", OWN_ROLE)] {
        spec.annotations.push((format!("vaultproject.io/{name}"), value.to_owned()));
    }
    let delivered = cluster.deliver(&spec).await;
    let known = cluster.look_up(delivered.accessor()).await.expect("a live token");
    assert_eq!(known["path"], "auth/token/create/vault-token-operator-main");
}

#[tokio::test]
async fn a_token_that_vault_made_otherwise_than_asked_is_revoked_and_never_handed_over() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("unfit").await;
    for (name, setting, words) in [
        ("short", json!({ "token_period": 300 }), "it lives for 300 s, not 3600 s"),
        ("child", json!({ "token_period": 0, "orphan": false }), "it has a parent that it dies with"),
    ] {
        let role = "auth/token/roles/vault-token-operator-main";
        cluster.vault().must(Method::POST, role, Some(&setting)).await.expect("written");
        let pod = cluster.pod(&PodSpec::new(&namespace, name, "shop-read", "1h")).await;
        let init = cluster.init(&pod).await;
        let failed = cluster.until_phase(&pod, Phase::Failed).await;
        let (_, why, message) = condition(&failed, "Issued");
        assert_eq!(why, "TokenUnfit", "{message}");
        assert!(message.contains(words) && message.contains("config/vault/"), "{message}");
        assert!(!crate::support::ended(&init).await.success());
        assert_eq!(cluster.live_tokens(&pod).await, 0, "{name}");
    }
}

/// What no Vault does by itself: something before it asks it for another token, or says of the token what is not so.
#[tokio::test]
async fn a_token_of_another_period_or_type_than_asked_is_revoked_and_never_handed_over() {
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    proxied.start(cluster).await;
    let namespace = cluster.namespace("misquoted").await;
    for (name, path, fault, words) in [
        (
            "period",
            "auth/token/create/",
            Fault::Rewritten(r#""period":"1h""#, r#""period":"30m""#),
            "its period is 1800 s, not 3600 s",
        ),
        (
            "type",
            "auth/token/lookup-accessor",
            Fault::Misquoted(r#""type":"service""#, r#""type":"batch""#),
            "its type is batch, not service",
        ),
    ] {
        proxied.vault.follow(move |call| if call.path.contains(path) { fault } else { Fault::None });
        let pod = cluster.pod(&PodSpec::new(&namespace, name, "shop-read", "1h")).await;
        let init = cluster.init(&pod).await;
        let failed = cluster.until_phase(&pod, Phase::Failed).await;
        let (_, why, message) = condition(&failed, "Issued");
        assert_eq!(why, "TokenUnfit", "{message}");
        assert!(message.contains(words), "{message}");
        assert!(!crate::support::ended(&init).await.success());
        assert!(!pod.volume.join("token").exists());
        assert_eq!(cluster.live_tokens(&pod).await, 0, "{name}");
    }
}

#[tokio::test]
async fn a_binding_that_allows_it_lets_tokens_renew_themselves() {
    let cluster = shared().await;
    let namespace = ungranted(cluster, "self-renewal").await;
    let body = json!({ "policy": "path \"auth/token/renew-self\" { capabilities = [\"update\"] }" });
    cluster.vault().must(Method::PUT, "sys/policies/acl/shop-renews", Some(&body)).await.expect("a policy");
    let mut spec = grant(&namespace, &["shop-*"]);
    let renews = async |name: &str| {
        let delivered = cluster.deliver(&PodSpec::new(&namespace, name, "shop-read,shop-renews", "1h")).await;
        let path = "auth/token/renew-self";
        cluster.vault().request_as(Some(&delivered.token), Method::POST, path, None).await.expect("an answer").0
    };
    bind(cluster, "self-renewal", spec.clone()).await;
    assert_eq!(renews("denied").await.as_u16(), 403);
    spec["selfRenewal"] = json!("Allow");
    bind(cluster, "self-renewal", spec).await;
    let deadline = Instant::now() + LIMIT;
    for number in 0.. {
        // The operator sees the change a moment later.
        if renews(&format!("allowed-{number}")).await.as_u16() == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "it cannot renew itself");
    }
}

/// What `vault-token-operator explain` says with these settings of the operator's, and whether it ended well.
async fn explain(cluster: &Cluster, settings: &[(&str, &str)], arguments: &[&str]) -> (String, bool) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_vault-token-operator"));
    let kubeconfig = ("KUBECONFIG", &*cluster.plane().admin_kubeconfig().to_string_lossy());
    command.arg("explain").args(arguments).envs(settings.iter().copied().chain([kubeconfig])).kill_on_drop(true);
    let output = command.output().await.expect("it runs");
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}

/// What is said of such a pod before it is there and once it is, which is what the operator does that has these settings.
async fn explained(cluster: &Cluster, settings: &[(&str, &str)], spec: &PodSpec) -> String {
    let PodSpec { namespace, name, .. } = spec;
    let annotations: serde_json::Map<_, _> =
        spec.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut manifest = json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "annotations": annotations },
        "spec": { "containers": [], "initContainers": [{ "name": INIT_CONTAINER }] } });
    json_patch::merge(&mut manifest, &spec.patch);
    let file = cluster.system.testbed().run().path().join(format!("{name}.pod.json"));
    std::fs::write(&file, manifest.to_string()).expect("written");
    let foretold = explain(cluster, settings, &["-f", &file.to_string_lossy()]).await;
    let pod = cluster.pod(spec).await;
    let _init = cluster.init(&pod).await;
    let settled = |request: &VaultTokenRequest| matches!(request.phase(), Phase::Delivered | Phase::Denied);
    let request = cluster.until(&pod, "end", settled).await;
    let told = explain(cluster, settings, &[name, "-n", namespace]).await;
    assert_eq!(foretold, told);
    let (text, granted) = told;
    assert_eq!(granted, request.phase() == Phase::Delivered, "{name}: {text}");
    match granted {
        true => {
            let status = request.status.as_ref().expect("a status");
            let (by, ttl) = (status.granted_by.as_deref().expect("a binding"), status.ttl.as_deref().expect("a ttl"));
            assert!(text.contains(&format!("ttl:        {ttl}\n  by:         VaultPolicyBinding {by}\n")), "{text}");
        }
        false => {
            let (_, why, message) = condition(&request, "Authorized");
            assert!(text.contains(&format!("{why}: {message}")), "{text}\n{message}");
        }
    }
    text
}

#[tokio::test]
async fn explain_says_what_the_operator_does() {
    let cluster = shared().await;
    let namespace = ungranted(cluster, "explained-grants").await;
    let mut read = grant(&namespace, &["shop-read"]);
    read["maxTTL"] = json!("30m");
    bind(cluster, "explained-read", read).await;
    bind(cluster, "explained-db", grant(&namespace, &["shop-db"])).await;
    for (name, policies, ttl) in [
        ("granted", "shop-read", "10m"),
        ("long", "shop-read", "1h"),
        ("both", "shop-read,shop-db", "10m"),
        ("none", "shop-write", "10m"),
        ("wrong", "Shop-Read", "10m"),
        ("never", "shop-read", "never"),
        ("host", "shop-read", "10m"),
    ] {
        let mut spec = PodSpec::new(&namespace, name, policies, ttl);
        spec.patch = json!({ "spec": { "hostNetwork": name == "host" } });
        let text = explained(cluster, &[], &spec).await;
        assert_eq!(text.contains("VaultPolicyBinding explained-read"), name == "granted", "{text}");
    }
    let (text, granted) = explain(cluster, &[], &["no-such-pod", "-n", &namespace]).await;
    assert!(text.is_empty() && !granted);
}

#[tokio::test]
async fn explain_reads_the_way_of_delivery_from_a_pods_manifest() {
    let cluster = shared().await;
    let namespace = ungranted(cluster, "explained-ways").await;
    cluster.system.allow_status_delivery(&namespace).await.expect("a role");
    bind(cluster, "explained-push", grant(&namespace, &["shop-read"])).await;
    let mut db = grant(&namespace, &["shop-db"]);
    db["deliveries"] = json!(["Status"]);
    bind(cluster, "explained-status", db).await;
    for (name, way) in [
        ("variable", json!({ "env": [{ "name": "VTO_DELIVERY", "value": "status" }] })),
        ("argument", json!({ "args": ["init", "--delivery=status"] })),
        ("arguments", json!({ "args": ["init", "--delivery", "status"] })),
    ] {
        let mut container = json!({ "name": INIT_CONTAINER, "image": IMAGE });
        json_patch::merge(&mut container, &way);
        for (policy, granted) in [("shop-read", false), ("shop-db", true)] {
            let mut spec = PodSpec::new(&namespace, &format!("{name}-{policy}"), policy, "10m");
            spec.patch = json!({ "spec": { "initContainers": [container] } });
            let text = explained(cluster, &[], &spec).await;
            assert_eq!(!text.contains("the delivery Status is not granted"), granted, "{text}");
        }
    }
}

#[tokio::test]
async fn explain_goes_by_the_operators_settings() {
    let (cluster, _guard) = alone().await;
    let settings = [("VTO_DEFAULT_TTL", "5m"), ("VTO_MAX_TTL", "20m")];
    cluster.restart(&settings).await;
    let namespace = cluster.namespace("explained-settings").await;
    let mut spec = PodSpec::new(&namespace, "long", "shop-read", "1h");
    let text = explained(cluster, &settings, &spec).await;
    assert!(text.contains("it must be from 10s to 20m"), "{text}");
    spec.name = "unsaid".to_owned();
    spec.annotations.truncate(1);
    let text = explained(cluster, &settings, &spec).await;
    assert!(text.contains("ttl:        5m\n"), "{text}");
}

#[tokio::test]
async fn i4_the_token_role_never_gives_the_operators_own_policies_however_wide_it_is() {
    let cluster = shared().await;
    let role = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/vault/token-role.json"));
    let mut role: Value = serde_json::from_str(&role.expect("a file")).expect("JSON");
    role["allowed_policies_glob"] = json!(["*"]);
    cluster.vault().must(Method::POST, "auth/token/roles/wide", Some(&role)).await.expect("a role");
    let make = async |policy: &str| {
        let order = json!({ "policies": [policy] });
        cluster.vault().request(Method::POST, "auth/token/create/wide", Some(&order)).await.expect("an answer").0
    };
    assert_eq!(make("shop-read").await.as_u16(), 200);
    for policy in ["root", "vault-token-operator", "vault-token-operator-sweep"] {
        assert_eq!(make(policy).await.as_u16(), 400, "{policy}");
    }
}
