//! I9: no token is in anything that a run produces.

use crate::push::waiting;
use crate::sealed::{Played, unwrap};
use crate::support::{Cluster, alone, ended, started};
use aho_corasick::AhoCorasick;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::json;
use std::path::{Path, PathBuf};
use testbed::kubelet::PodSpec;
use tokio::sync::Mutex;
use vault_token_operator::api::Phase;
use vault_token_operator::seal::Receipt;
use vault_token_operator::wire::{Outcome, Parcel};

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// What looks like a token of Vault's (`hvs.`, `hvb.`) or OpenBao's (`s.`, `b.`).
fn looks_like_a_token(text: &str) -> Option<&str> {
    for prefix in ["hvs.", "hvb.", "s.", "b."] {
        for (at, _) in text.match_indices(prefix) {
            let rest = &text[at + prefix.len()..];
            let starts = at == 0 || !text.as_bytes()[at - 1].is_ascii_alphanumeric();
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(rest.len());
            if starts && end >= 20 {
                return Some(&text[at..at + prefix.len() + end]);
            }
        }
    }
    None
}

#[test]
fn a_token_is_known_by_its_looks() {
    assert!(looks_like_a_token("\"s.0123456789abcdefghijklmn\"").is_some());
    assert!(looks_like_a_token("x hvs.CAESI0123456789abcdefghijklmn").is_some());
    assert!(looks_like_a_token("pods.default, vaulttokenrequests.vaultproject.io and s.o").is_none());
}

/// What is on its way to a pod in a delivery of which this test plays the init container: the wrapping token, the receipt, and the token
/// that was unwrapped with it.
async fn on_their_way(cluster: &Cluster, namespace: &str) -> Vec<String> {
    let played = Played::new(cluster, namespace).await;
    let seen = Mutex::new(Vec::new());
    let reply = async |parcel: Parcel, receipt: Receipt, attempt: u32| {
        let token = unwrap(cluster, &parcel).await["auth"]["client_token"].as_str().expect("a token").to_owned();
        let sent = [&parcel.wrapping_token, &parcel.receipt].map(|secret| secret.expose_secret().to_owned());
        seen.lock().await.extend(sent.into_iter().chain([token]));
        played.signed(&receipt, attempt, Outcome::Stored)
    };
    played.answer(reply).await;
    cluster.until_phase(&played.pod, Phase::Delivered).await;
    seen.into_inner()
}

/// What the operator tells over HTTP, with where.
async fn told(cluster: &Cluster) -> Vec<(String, String)> {
    let mut told = Vec::new();
    for path in ["metrics", "readyz", "healthz"] {
        // Those of tests that run meanwhile are started anew.
        if let Ok(Some(text)) = cluster.system.operator_answer(path).await {
            told.push((path.to_owned(), text));
        }
    }
    told
}

#[tokio::test]
async fn i9_no_token_is_in_a_log_an_event_a_status_or_an_error_at_trace_level() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("secrecy").await;
    // A run with everything in it: delivered, revoked, denied, refused, Vault away, the operator restarted.
    let kept = cluster.deliver(&PodSpec::new(&namespace, "kept", "shop-read", "1h")).await;
    let gone = cluster.deliver(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone.pod).await.expect("removed");
    cluster.until_phase(&gone.pod, Phase::Revoked).await;
    let on_their_way = on_their_way(cluster, &namespace).await;
    cluster.system.allow_status_delivery(&namespace).await.expect("a role");
    let by_status = PodSpec::new(&namespace, "by-status", "shop-read", "1h");
    let by_status = cluster.deliver_with(&by_status, &[("VTO_DELIVERY", "status")]).await;
    let denied = cluster.pod(&PodSpec::new(&namespace, "denied", "kv-admin", "1h")).await;
    let init = cluster.init(&denied).await;
    assert!(!ended(&init).await.success());
    let waits = cluster.pod(&PodSpec::new(&namespace, "waits", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &waits).await.expect("a status");
    cluster.ask(&waits, |_| ()).await;
    cluster.until_phase(&waits, Phase::Issued).await;
    cluster.vault().seal().await.expect("sealed");
    cluster.restart(&[]).await;
    cluster.until_healthy("not logged in to Vault").await;
    let told_meanwhile = told(cluster).await;
    cluster.vault().unseal().await.expect("unsealed");
    cluster.until(&waits, "second attempt", |request| request.status.as_ref().is_some_and(|s| s.attempts == 2)).await;

    // Of all systems that tests have had so far: what their parts wrote for others to read, and what must not be in it.
    let (mut texts, mut secrets) = (told_meanwhile, on_their_way.clone());
    for cluster in started() {
        for path in files(cluster.system.testbed().run().path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Pods of tests that run meanwhile come and go.
            let read = || std::fs::read_to_string(&path).unwrap_or_default();
            if name.ends_with(".log") || name.ends_with(".termination-log") {
                texts.push((path.display().to_string(), read()));
            } else if name == "token" || name.ends_with("secret-id") || name.ends_with("-token") {
                secrets.push(read().trim().to_owned());
            }
        }
        for kind in ["vtr", "vpb", "namespaces", "events", "pods", "configmaps", "leases"] {
            texts.push((kind.to_owned(), cluster.kubectl(&["get", kind, "-A", "-o", "yaml"]).await));
        }
        texts.extend(told(cluster).await);
        secrets.push(cluster.vault().root_token().expose_secret().to_owned());
    }
    let audit = std::fs::read_to_string(cluster.vault().audit_log()).expect("an audit log");
    assert!(audit.contains("auth/token/create/vault-token-operator-main"), "Vault's audit log is where it should be");
    secrets.retain(|secret| !secret.is_empty());
    for known in [kept.token.expose_secret(), gone.token.expose_secret(), by_status.token.expose_secret()] {
        assert!(secrets.iter().any(|secret| secret == known), "the pods' tokens are among what is looked for");
    }
    assert_eq!(on_their_way.len(), 3, "a wrapping token, a receipt and a token");
    assert!(texts.iter().filter(|(_, text)| !text.is_empty()).count() >= 5, "there is something to look at");
    for (path, words) in [("metrics", "tokens_delivered_total"), ("readyz", "lease: "), ("healthz", "ok")] {
        let there = |(place, text): &(String, String)| place == path && text.contains(words);
        assert!(texts.iter().any(there), "/{path} is among what is looked at");
    }
    for (part, level) in [("/operator/operator-", "\"level\":\"TRACE\""), ("/pods/", " TRACE ")] {
        let told =
            |(place, text): &(String, String)| place.contains(part) && place.ends_with(".log") && text.contains(level);
        assert!(texts.iter().any(told), "a log of {part} at trace level is among what is looked at");
    }
    let searched = AhoCorasick::new(&secrets).expect("a searcher");
    for (place, text) in &texts {
        assert!(!searched.is_match(text), "a token is in {place}");
        // The components' own logs are not ours to answer for, and name things that look like tokens.
        let ours = place.contains("operator") || place.contains("/pods/") || !place.contains('/');
        let found = looks_like_a_token(text).map(|found| &found[..8]);
        assert!(!ours || found.is_none(), "what looks like a token is in {place}: {found:?}...");
    }

    // The audit lines join Vault's audit log by accessor.
    cluster.until_audited("token_accessor", gone.accessor(), "Released").await;
    let lines = cluster.audit_lines("token_accessor", gone.accessor());
    let steps: Vec<_> = lines.iter().map(|line| line["step"].as_str().unwrap_or_default()).collect();
    assert_eq!(steps, ["Issued", "Delivered", "Revoked", "Released"]);
    let input = json!({ "input": gone.accessor() });
    let hashed = cluster.vault().must(Method::POST, "sys/audit-hash/file", Some(&input)).await.expect("a hash");
    let hash = hashed["hash"].as_str().or_else(|| hashed["data"]["hash"].as_str()).expect("a hash");
    assert!(audit.contains(hash), "Vault's audit log has no line of the accessor");
    let (status, _) = cluster.vault().request(Method::GET, "sys/health", None).await.expect("an answer");
    assert_eq!(status.as_u16(), 200);
}

#[tokio::test]
async fn i9_no_core_dump_is_ever_written() {
    let (cluster, _guard) = alone().await;
    let (_, init) = waiting(cluster, "no-core").await;
    let operator = cluster.system.operator_limits().expect("limits").expect("an operator");
    for limits in [operator, init.limits().expect("limits")] {
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
        let words: Vec<_> = core.split_whitespace().skip(4).collect();
        assert_eq!(words, ["0", "0", "bytes"], "{core}");
    }
}
