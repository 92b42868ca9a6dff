//! Somebody wants more than is granted to him, or mischief with what he may write.

use crate::arena::{Arena, message, note};
use crate::support::{LIMIT, by_status, condition, reason};
use crate::who::Who;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use testbed::kubelet::{PodHandle, PodSpec};
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};

/// The policies of the token that a pod gets which asks for these; none, if it is refused.
async fn gets(arena: &Arena, namespace: &str, name: &str, policies: &str) -> Option<Vec<String>> {
    let pod = arena.initializing(namespace, name, policies).await;
    let who = arena.who(namespace, Some(&pod)).await;
    let asked = arena.ask(&who, &pod, |_| ()).await.expect("its own request");
    let token = arena.take(&asked).await?;
    Some(arena.policies(&token).await)
}

fn has(policies: Option<Vec<String>>, policy: &str) -> bool {
    policies.is_some_and(|policies| policies.iter().any(|one| one == policy))
}

pub async fn an_annotation_that_asks_for_more_than_is_granted(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    has(gets(arena, &namespace, "web", "shop-read,kv-admin").await, "kv-admin")
}

pub async fn an_annotation_that_asks_for_the_operators_own_policy(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["*"]).await;
    has(gets(arena, &namespace, "web", "vault-token-operator").await, "vault-token-operator")
}

pub async fn policies_of_several_bindings_added_up(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let subject = json!({ "namespaces": [namespace], "serviceAccounts": ["*"] });
    let spec = json!({ "subjects": [subject], "policies": ["shop-db"], "deliveries": ["Status"] });
    arena.bind(&arena.fresh("added-up"), &spec).await;
    has(gets(arena, &namespace, "web", "shop-read,shop-db").await, "shop-db")
}

pub async fn what_another_service_account_is_granted(arena: &Arena) -> bool {
    let namespace = arena.namespace(&[]).await;
    let subject = json!({ "namespaces": [namespace], "serviceAccounts": ["web"] });
    arena
        .bind(&namespace, &json!({ "subjects": [subject], "policies": ["shop-read"], "deliveries": ["Status"] }))
        .await;
    gets(arena, &namespace, "thief", "shop-read").await.is_some()
}

pub async fn a_longer_life_than_is_granted(arena: &Arena) -> bool {
    let namespace = arena.namespace(&[]).await;
    let subject = json!({ "namespaces": [namespace], "serviceAccounts": ["*"] });
    let spec = json!({ "subjects": [subject], "policies": ["shop-read"], "deliveries": ["Status"], "maxTTL": "30m" });
    arena.bind(&namespace, &spec).await;
    // Every pod of this suite asks for an hour.
    gets(arena, &namespace, "web", "shop-read").await.is_some()
}

/// A binding for namespaces by their labels, which the namespace of the asker has none of.
async fn selected(arena: &Arena, labels: Value) -> bool {
    let namespace = arena.namespace(&[]).await;
    let subject = json!({ "namespaceSelector": { "matchLabels": labels }, "serviceAccounts": ["*"] });
    let name = arena.fresh("selects");
    arena.bind(&name, &json!({ "subjects": [subject], "policies": ["shop-read"], "deliveries": ["Status"] })).await;
    let got = gets(arena, &namespace, "web", "shop-read").await;
    // Nothing of it is left for the next attack.
    arena.cluster.kubectl(&["delete", "vpb", &name, "--ignore-not-found"]).await;
    got.is_some()
}

pub async fn a_selector_that_selects_everything(arena: &Arena) -> bool {
    selected(arena, json!({})).await
}

pub async fn a_selector_that_selects_nothing(arena: &Arena) -> bool {
    selected(arena, json!({ "vaultproject.io/team": "nobody" })).await
}

/// Somebody who may change namespaces, as the operators of a platform's tenants may.
async fn labeller<'a>(arena: &'a Arena, namespace: &str) -> Who<'a> {
    let name = arena.fresh("labeller");
    let verbs = ["--verb=get,update,patch", "--resource=namespaces"];
    arena.cluster.kubectl(&["create", "clusterrole", &name, verbs[0], verbs[1]]).await;
    let account = format!("--serviceaccount={namespace}:default");
    arena.cluster.kubectl(&["create", "clusterrolebinding", &name, "--clusterrole", &name, &account]).await;
    arena.who(namespace, None).await
}

pub async fn a_label_that_a_binding_selects_by(arena: &Arena) -> bool {
    let namespace = arena.namespace(&[]).await;
    let label = json!({ "vaultproject.io/team": namespace });
    let subject = json!({ "namespaceSelector": { "matchLabels": label }, "serviceAccounts": ["*"] });
    let name = arena.fresh("selects");
    arena.bind(&name, &json!({ "subjects": [subject], "policies": ["shop-read"], "deliveries": ["Status"] })).await;
    let who = labeller(arena, &namespace).await;
    let label = format!("vaultproject.io/team={namespace}");
    arena.let_in("labeled", async || who.says(&["label", "namespace", &namespace, &label]).await).await
        && gets(arena, &namespace, "web", "shop-read").await.is_some()
}

/// A binding that an administrator writes in good faith, and a label that everybody can set who may change a namespace.
pub async fn a_binding_that_goes_by_a_tenants_label(arena: &Arena) -> bool {
    let namespace = arena.namespace(&[]).await;
    let subject = json!({ "namespaceSelector": { "matchLabels": { "team": namespace } }, "serviceAccounts": ["*"] });
    let name = arena.fresh("selects");
    arena.bind(&name, &json!({ "subjects": [subject], "policies": ["shop-read"], "deliveries": ["Status"] })).await;
    let who = labeller(arena, &namespace).await;
    let label = format!("team={namespace}");
    let said = who.says(&["label", "namespace", &namespace, &label]).await;
    assert!(said.contains("labeled"), "{said}");
    gets(arena, &namespace, "web", "shop-read").await.is_some()
}

pub async fn a_binding_removed_by_mistake(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let mut pods = Vec::new();
    for number in 0..3 {
        pods.push(arena.delivered(&namespace, &format!("web-{number}"), "shop-read").await);
    }
    let said = arena.cluster.kubectl(&["delete", "vpb", &namespace]).await;
    assert!(said.contains("deleted"), "{said}");
    let ended = async || {
        for (_, token) in &pods {
            if arena.cluster.accepts(token).await {
                return false;
            }
        }
        true
    };
    let kept = async || {
        let request = arena.request(&pods[0].0).await.expect("a request");
        reason(&request) == "RevocationHeld" || message(&request).contains("is revoked 1h after that")
    };
    assert!(arena.comes(async || ended().await || kept().await).await, "it is not noticed");
    ended().await
}

/// An init container that opens what it is sent, and says nothing of it: its request is not Delivered, and its pod runs.
pub async fn a_token_that_was_taken_and_never_confirmed(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let asked = arena.ask(&who, &pod, |_| ()).await.expect("its own request");
    let token = arena.take(&asked).await.expect("a token");
    arena.cluster.kubelet.report_running(arena.cluster.plane(), &pod).await.expect("a status");
    let said = arena.cluster.kubectl(&["delete", "vpb", &namespace]).await;
    assert!(said.contains("deleted"), "{said}");
    !arena.comes(async || !arena.cluster.accepts(&token).await).await
}

/// A pod that asks by several of its names, opens all that comes of it, and says nothing: whether it is left with more than one token.
pub async fn tokens_taken_by_every_name_and_never_confirmed(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let mut tokens = Vec::new();
    for digit in 0..3 {
        let numbered = |request: &mut Value| {
            request["metadata"]["name"] = json!(request_name(&pod.name, &pod.uid, digit));
            request["spec"]["sequence"] = json!(digit + 1);
        };
        let asked = arena.ask(&who, &pod, numbered).await.expect("its own request");
        tokens.push(arena.take(&asked).await.expect("a token"));
    }
    arena.cluster.kubelet.report_running(arena.cluster.plane(), &pod).await.expect("a status");
    let others_ended = async || {
        for token in &tokens[..2] {
            if arena.cluster.accepts(token).await {
                return false;
            }
        }
        true
    };
    let stopped = arena.comes(others_ended).await;
    assert!(arena.cluster.accepts(&tokens[2]).await, "the newest one, which the app may be using");
    !stopped
}

/// A pod that is denied for an annotation like this, and what people are shown of it.
async fn denied(arena: &Arena, annotation: &str) -> (PodHandle, String) {
    let namespace = arena.namespace(&["*"]).await;
    let pod = arena.pod_like(&PodSpec::new(&namespace, "web", annotation, "1h")).await;
    let init = arena.init(&pod, &[]).await;
    arena.report(&pod).await;
    let ended = init.wait(LIMIT).await.expect("init ends");
    assert!(!ended.success());
    let request = arena.until(&pod, "denial", |request| request.phase() == Phase::Denied).await;
    let shown = format!("{}\n{}", condition(&request, "Authorized").2, init.termination_message().trim_end());
    (pod, shown)
}

pub async fn an_annotation_that_steers_terminals_and_forges_lines(arena: &Arena) -> bool {
    let (pod, shown) = denied(arena, "shop-read\n2026 INFO all is well\u{1b}[2J\u{202e}").await;
    let log = std::fs::read_to_string(arena.cluster.kubelet.log(&pod)).expect("a log");
    let steers = |text: &str| text.contains('\u{1b}') || text.contains('\u{202e}');
    let lines = shown.lines().count();
    note(&format!("{lines} lines"));
    steers(&shown) || lines > 2 || log.lines().any(|line| line.starts_with("2026 INFO"))
}

pub async fn an_annotation_as_long_as_a_book(arena: &Arena) -> bool {
    let (_, shown) = denied(arena, &"x".repeat(8000)).await;
    shown.lines().any(|line| line.chars().count() > 1000)
}

pub async fn a_pod_that_asks_again_and_again(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    for digit in 0..3 {
        let mut request = crate::support::request_for(&pod, digit);
        by_status(&mut request);
        let request: VaultTokenRequest = serde_json::from_value(request).expect("a request");
        let requests = arena.cluster.requests(&namespace);
        requests.create(&PostParams::default(), &request).await.expect("created");
    }
    let are = async |wanted: fn(&VaultTokenRequest) -> bool| {
        let requests = arena.cluster.requests(&namespace).list(&ListParams::default()).await.expect("requests");
        requests.iter().filter(|request| wanted(request)).count()
    };
    let issued = async || are(|request| request.phase() == Phase::Issued).await == 3;
    let held = async || are(|request| reason(request) == "MintBudgetExhausted").await == 1;
    assert!(arena.comes(async || issued().await || held().await).await, "neither is it served nor held");
    issued().await
}

/// A pod that puts each token away and lets its init container run again: whether it has two in the end that Vault takes.
pub async fn a_token_beside_the_pods_newest_one(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let (pod, first) = arena.delivered(&namespace, "web", "shop-read").await;
    std::fs::remove_file(pod.volume.join("token")).expect("removed");
    arena.report(&pod).await;
    let init = arena.init(&pod, &[]).await;
    arena.cluster.ended_well(&pod, &init).await;
    assert!(arena.cluster.accepts(&crate::support::token_of(&pod)).await, "the newest one");
    !arena.comes(async || !arena.cluster.accepts(&first).await).await
}
