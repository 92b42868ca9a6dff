//! Somebody with a token of Vault's, or with Vault's part of the work.

use crate::arena::{Arena, note};
use crate::support::LIMIT;
use aho_corasick::AhoCorasick;
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use testbed::proxy::{Fault, Proxy};
use testbed::run::Run;
use vault_token_operator::api::{Phase, VaultTokenRequest};

/// What no Vault does by itself: something before it adds a policy to what it is asked for.
pub async fn a_vault_that_gives_other_policies_than_asked(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let run = arena.cluster.system.testbed().run();
    let before = Proxy::before_server(run, arena.cluster.vault().address()).await.expect("a proxy");
    before.follow(|call| match call.path.contains("auth/token/create") {
        true => Fault::Rewritten("\"shop-read\"", "\"shop-read\",\"shop-db\""),
        false => Fault::None,
    });
    arena.restart(&[("VAULT_ADDR", &before.url())]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let asked = arena.ask(&who, &pod, |_| ()).await.expect("its own request");
    let more = match arena.take(&asked).await {
        Some(token) => arena.policies(&token).await.iter().any(|policy| policy == "shop-db"),
        None => false,
    };
    arena.restart(&[]).await;
    more
}

/// What is done to an answer: blanks after it without end, so many at a time.
const FLOOD: Fault = Fault::Endless(64 * 1024, Duration::ZERO);
const DRIP: Fault = Fault::Endless(1, Duration::from_secs(1));
/// More than anybody has use for, in bytes; less than would harm this machine.
const TOO_MUCH: usize = 64 << 20;
/// Longer than any call may take, and shorter than the operator waits for a pod's answer.
const TOO_LONG: Duration = Duration::from_secs(15);

pub async fn a_new_token_whose_answer_has_no_end(arena: &Arena) -> bool {
    endless(arena, "auth/token/create", FLOOD).await
}

pub async fn a_look_up_whose_answer_has_no_end(arena: &Arena) -> bool {
    endless(arena, "auth/token/lookup-accessor", FLOOD).await
}

pub async fn an_unwrapped_token_whose_answer_has_no_end(arena: &Arena) -> bool {
    endless(arena, "sys/wrapping/unwrap", FLOOD).await
}

pub async fn a_new_token_whose_answer_drips(arena: &Arena) -> bool {
    endless(arena, "auth/token/create", DRIP).await
}

pub async fn a_look_up_whose_answer_drips(arena: &Arena) -> bool {
    endless(arena, "auth/token/lookup-accessor", DRIP).await
}

pub async fn an_unwrapped_token_whose_answer_drips(arena: &Arena) -> bool {
    endless(arena, "sys/wrapping/unwrap", DRIP).await
}

/// Whether the operator, or the pod's init container, takes more than anybody has use for, or waits longer than any call may take, when
/// the answer to its call of this path has no end.
async fn endless(arena: &Arena, path: &'static str, fault: Fault) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let run = arena.cluster.system.testbed().run();
    let before = Proxy::before_server(run, arena.cluster.vault().address()).await.expect("a proxy");
    arena.restart(&[("VAULT_ADDR", &before.url())]).await;
    let pod = arena.pod(&namespace, "web", "shop-read").await;
    let init = arena.init(&pod, &[("VAULT_ADDR", &before.url())]).await;
    // What the operator looks up before it has made a token for this pod is none of this.
    let mut minted = false;
    before.follow(move |call| {
        minted |= call.path.contains("auth/token/create");
        if minted && call.path.contains(path) { fault } else { Fault::None }
    });
    arena.report(&pod).await;
    let began = async || before.endless().is_some();
    assert!(arena.comes(began).await, "nobody calls {path}");
    let ended = loop {
        let answer = before.endless().expect("an answer");
        let (taken, lasted) = (answer.taken, answer.until.unwrap_or_else(Instant::now).duration_since(answer.since));
        if taken >= TOO_MUCH || lasted >= TOO_LONG {
            note(&format!("{taken} bytes in {lasted:?}"));
            break None;
        }
        if answer.until.is_some() {
            break Some(lasted);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    if let Some(lasted) = ended {
        let words = ["Vault's answer cannot be used", "Vault did not answer"];
        let said =
            |request: &VaultTokenRequest| words.iter().any(|words| crate::arena::message(request).contains(words));
        note(&crate::arena::message(&arena.until(&pod, "word of it", said).await));
        assert!(fault == FLOOD || lasted > Duration::from_secs(9), "it hung up for another reason");
        // It is no harm but a wait.
        before.follow(|_| Fault::None);
        arena.cluster.ended_well(&pod, &init).await;
    }
    init.kill();
    init.wait(LIMIT).await.expect("it ends");
    arena.restart(&[]).await;
    ended.is_none()
}

pub async fn a_token_that_renews_itself(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-*"]).await;
    // A policy that reaches more than its maker thought of.
    let body = json!({ "policy": "path \"auth/token/*\" { capabilities = [\"create\", \"update\", \"sudo\"] }" });
    arena.cluster.vault().must(Method::PUT, "sys/policies/acl/shop-tokens", Some(&body)).await.expect("a policy");
    let (pod, token) = arena.delivered(&namespace, "web", "shop-read,shop-tokens").await;
    let asks = async |by: &SecretString, path: &str, body: &Value| {
        let path = format!("auth/token/{path}");
        let answer = arena.cluster.vault().request_as(Some(by), Method::POST, &path, Some(body)).await;
        let (status, answer) = answer.expect("an answer");
        note(&format!("{path}: {status}"));
        (status == StatusCode::OK).then_some(answer)
    };
    let secret = std::fs::read_to_string(pod.volume.join("secret.json")).expect("a file");
    let secret: Value = serde_json::from_str(&secret).expect("JSON");
    let accessor = json!({ "accessor": secret["auth"]["accessor"] });
    let itself = json!({ "token": token.expose_secret() });
    for (path, body) in [("renew-self", &json!({})), ("renew", &itself), ("renew-accessor", &accessor)] {
        if asks(&token, path, body).await.is_some() {
            return true;
        }
    }
    // By way of another token, which has no other policy than this one: a child, or an orphan.
    for path in ["create", "create-orphan", "create/vault-token-operator-main"] {
        let Some(made) = asks(&token, path, &json!({ "policies": ["shop-tokens"] })).await else { continue };
        let other = made["auth"]["client_token"].as_str().expect("a token").to_owned().into();
        if asks(&other, "renew-accessor", &accessor).await.is_some() {
            return true;
        }
    }
    false
}

async fn operator_may(arena: &Arena, method: Method, path: &str, body: Option<&Value>) -> bool {
    let token = arena.cluster.operators_login().await;
    let (status, answer) = arena.cluster.vault().request_as(Some(&token), method, path, body).await.expect("an answer");
    note(&format!("{status}: {}", answer["errors"]));
    status == StatusCode::OK
}

pub async fn tokens_beside_the_token_roles(arena: &Arena) -> bool {
    let body = json!({ "policies": ["kv-admin"], "no_parent": true });
    operator_may(arena, Method::POST, "auth/token/create", Some(&body)).await
}

pub async fn the_operators_own_rights_for_a_token_that_outlives_its_login(arena: &Arena) -> bool {
    let body = json!({ "policies": ["vault-token-operator"] });
    operator_may(arena, Method::POST, "auth/token/create/vault-token-operator-main", Some(&body)).await
}

pub async fn a_list_of_everybodys_accessors(arena: &Arena) -> bool {
    operator_may(arena, Method::GET, "auth/token/accessors?list=true", None).await
}

/// A Vault whose certificate is of another authority than the one that init was told to trust.
pub async fn a_vault_that_is_another_one(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.pod_like(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let another = Run::new(Ipv4Addr::LOCALHOST).expect("another authority");
    let trusted = another.pki().ca().path.to_string_lossy().into_owned();
    let init = arena.init(&pod, &[("VAULT_CACERT", &trusted)]).await;
    arena.report(&pod).await;
    let told = |request: &VaultTokenRequest| {
        request.phase() == Phase::Delivered || crate::support::reason(request) == "PushFailed"
    };
    let request = arena.until(&pod, "word of init", told).await;
    note(&crate::arena::message(&request));
    init.kill();
    init.wait(LIMIT).await.expect("it ends");
    request.phase() == Phase::Delivered
}

/// Whoever reads the logs of the operator at its most talkative.
pub async fn a_wrapping_token_in_the_logs(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let asked = arena.ask(&who, &pod, |_| ()).await.expect("its own request");
    let parcel = arena.offered(&asked).await.expect("an offer");
    let token = arena.unwrap(&parcel.wrapping_token).await.expect("a token");
    let searched =
        AhoCorasick::new([parcel.wrapping_token.expose_secret(), token.expose_secret()]).expect("a searcher");
    let logs = arena.cluster.system.operator_logs();
    let log = std::fs::read_to_string(logs.last().expect("a log")).expect("a log");
    assert!(log.contains("decided"), "it says something");
    searched.is_match(&log)
}
