//! A delivered token's life: renewed while its pod lives, and only by the operator; replaced by a newer one; forgotten.

use crate::rights::{policy, without};
use crate::support::{Cluster, Delivered, LIMIT, alone, condition, reason, request_for, shared, token_of};
use futures::stream::{self, StreamExt};
use jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams, PostParams};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};

#[tokio::test]
async fn rule_8_a_token_outlives_its_ttl_while_its_pod_lives() {
    let cluster = shared().await;
    let namespace = cluster.namespace("renewed").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "10s")).await;
    let first = delivered.status().expires_at.clone().expect("an expiry").0;
    let later = |request: &VaultTokenRequest| {
        let expires = request.status.as_ref().and_then(|status| status.expires_at.as_ref());
        expires.is_some_and(|expires| expires.0 > first + Duration::from_secs(6))
    };
    let renewed = cluster.until(&delivered.pod, "second renewal", later).await;
    assert_eq!(renewed.phase(), Phase::Delivered);
    assert!(cluster.accepts(&delivered.token).await);
    let known = cluster.look_up(delivered.accessor()).await.expect("a live token");
    let vaults: jiff::Timestamp = known["expire_time"].as_str().expect("a time").parse().expect("a time");
    let recorded = renewed.status.expect("a status").expires_at.expect("an expiry").0;
    assert!(vaults.duration_since(recorded).abs() < jiff::SignedDuration::from_secs(6), "{vaults} {recorded}");
    let renewals = || {
        let lines = cluster.audit_lines("token_accessor", delivered.accessor());
        lines.iter().filter(|line| line["step"] == "Renewed" && line["answered"] == true).count()
    };
    // A line is written after the status that it is about.
    let deadline = Instant::now() + LIMIT;
    while renewals() < 2 {
        assert!(Instant::now() < deadline, "{} renewals are in the audit log", renewals());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn i3_a_token_cannot_renew_itself() {
    let cluster = shared().await;
    let namespace = cluster.namespace("no-self-renewal").await;
    // An administrator's mistakes: a policy that reaches all that has to do with tokens, and one that names what is not to be had.
    let all = "{ capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\", \"sudo\"] }";
    let named = ["renew-self", "renew", "renew-accessor", "create/*", "create-orphan"];
    let named: String = named.iter().map(|path| format!("path \"auth/token/{path}\" {all}\n")).collect();
    for (name, policy) in [("shop-tokens", format!("path \"auth/token/*\" {all}")), ("shop-renews", named)] {
        let path = format!("sys/policies/acl/{name}");
        cluster.vault().must(Method::PUT, &path, Some(&json!({ "policy": policy }))).await.expect("a policy");
    }
    let policies = "shop-read,shop-tokens,shop-renews";
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", policies, "1h")).await;
    let ask = async |method: Method, path: &str, body: Value| {
        let answer = cluster.vault().request_as(Some(&delivered.token), method, path, Some(&body)).await;
        answer.expect("an answer").0
    };
    let itself = json!({ "token": delivered.token.expose_secret() });
    let accessor = json!({ "accessor": delivered.accessor() });
    let child = json!({ "policies": ["shop-tokens"] });
    for (path, body) in [
        ("renew-self", json!({})),
        ("renew", itself),
        ("renew-accessor", accessor.clone()),
        // A child has the policies that it asks for, and could renew its parent; an orphan would outlive it.
        ("create", child.clone()),
        ("create-orphan", child),
        ("create/vault-token-operator-main", json!({ "policies": ["shop-tokens"] })),
    ] {
        let status = ask(Method::POST, &format!("auth/token/{path}"), body).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "I3: {path}");
    }
    assert_eq!(ask(Method::GET, "auth/token/lookup-self", json!({})).await, StatusCode::OK);
    let looked = ask(Method::POST, "auth/token/lookup-accessor", accessor).await;
    assert_eq!(looked, StatusCode::OK, "the policy reaches what is not denied");
}

/// Vault renews what a token role has made only so long, where the role has no `token_period`: config/vault/README.md.
#[tokio::test]
async fn a_token_lives_no_longer_in_all_than_vaults_max_lease_ttl_and_its_end_is_told() {
    // Of its own: all tokens of this Vault are bounded.
    let cluster = &Cluster::start().await;
    let tune = json!({ "max_lease_ttl": "20s" });
    cluster.vault().must(Method::POST, "sys/auth/token/tune", Some(&tune)).await.expect("tuned");
    cluster.system.start_operator(&[]).await.expect("the operator starts");
    let namespace = cluster.namespace("bounded").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "10s")).await;
    let request = cluster.until_phase(&delivered.pod, Phase::Revoked).await;
    assert_eq!(condition(&request, "Revoked").1, "TokenExpired");
    assert!(!cluster.accepts(&delivered.token).await);
    let renewed = cluster.audit_lines("token_accessor", delivered.accessor());
    assert!(renewed.iter().any(|line| line["step"] == "Renewed"), "{renewed:#?}");
    let issued = delivered.status().issued_at.clone().expect("a time").0;
    let noticed = request.status.and_then(|status| status.revoked_at).expect("a time").0;
    // It had ten seconds more each time, and a look that fails of it comes soon after the last of them; on a busy machine, later.
    let life = noticed.duration_since(issued);
    assert!((16..40).contains(&life.as_secs()), "it lived for {life:#}");
}

#[tokio::test]
async fn rule_10_a_pod_that_says_nothing_of_its_tokens_keeps_the_newest_alone() {
    const REQUESTS: u8 = 3;
    let cluster = shared().await;
    let namespace = cluster.namespace("quiet").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    // Nobody says what becomes of their wrapping tokens.
    for digit in 0..REQUESTS {
        let mut request = request_for(&pod, digit);
        request["spec"]["sequence"] = json!(digit + 1);
        let request = serde_json::from_value(request).expect("a request");
        cluster.requests(&namespace).create(&PostParams::default(), &request).await.expect("created");
    }
    cluster.until_live(&namespace, REQUESTS.into()).await;
    // An init container that ends well has had a token, as far as anybody can tell.
    cluster.kubelet.report_running(cluster.plane(), &pod).await.expect("a status");
    cluster.until_live(&namespace, 1).await;
    let newest = cluster.request(&pod, REQUESTS - 1).await.expect("a request").status.expect("a status");
    assert!(cluster.lives(&newest.token_accessor.expect("an accessor")).await, "an older one is left");
    cluster.kubelet.remove(cluster.plane(), &pod).await.expect("removed");
    cluster.until_live(&namespace, 0).await;
    for digit in 0..REQUESTS - 1 {
        let older = cluster.request(&pod, digit).await;
        assert!(older.is_none_or(|older| reason(&older) == "Superseded"), "request {digit}");
    }
}

#[tokio::test]
async fn a_token_that_is_dead_under_a_living_pod_is_told() {
    let cluster = shared().await;
    let namespace = cluster.namespace("expired").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "10s")).await;
    let accessor = json!({ "accessor": delivered.accessor() });
    cluster.vault().must(Method::POST, "auth/token/revoke-accessor", Some(&accessor)).await.expect("revoked");
    let request = cluster.until_phase(&delivered.pod, Phase::Revoked).await;
    let (_, reason, message) = condition(&request, "Revoked");
    assert_eq!(reason, "TokenExpired");
    assert!(message.contains("Restart the pod"), "{message}");
    cluster.until_described("pod", "web", &namespace, "TokenExpired").await;
}

#[tokio::test]
async fn rule_7_a_pod_whose_init_container_runs_again_keeps_its_newest_token_only() {
    let cluster = shared().await;
    let namespace = cluster.namespace("superseded").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    cluster.ended_well(&pod, &init).await;
    let first = token_of(&pod);
    // Its volume was lost with its sandbox: the kubelet runs the init container again.
    std::fs::remove_file(pod.volume.join("token")).expect("removed");
    let init = cluster.init(&pod).await;
    cluster.ended_well(&pod, &init).await;
    let second = token_of(&pod);
    let older = cluster.until_phase(&pod, Phase::Revoked).await;
    let newer = cluster.request(&pod, 1).await.expect("a request");
    assert_ne!(older.spec.public_key, newer.spec.public_key, "each request has a key of its own");
    assert_eq!(reason(&older), "Superseded");
    assert!(!cluster.accepts(&first).await);
    assert!(cluster.accepts(&second).await, "I7: the newest token of a living pod stays");
    assert_eq!(newer.phase(), Phase::Delivered);
}

#[tokio::test]
async fn finished_requests_are_deleted_after_their_retention() {
    let (cluster, _guard) = alone().await;
    cluster.restart(&[("VTO_RETENTION", "2s")]).await;
    let namespace = cluster.namespace("retention").await;
    let gone = cluster.deliver(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    let alive = cluster.deliver(&PodSpec::new(&namespace, "alive", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone.pod).await.expect("removed");
    let revoked = cluster.until_phase(&gone.pod, Phase::Revoked).await;
    let finished = revoked.status.and_then(|status| status.finished_at).expect("a time").0;
    let deadline = Instant::now() + LIMIT;
    while cluster.request(&gone.pod, 0).await.is_some() {
        assert!(Instant::now() < deadline, "it is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(jiff::Timestamp::now().duration_since(finished) >= jiff::SignedDuration::from_secs(2), "too soon");
    cluster.until_audited("token_accessor", gone.accessor(), "Deleted").await;
    assert_eq!(cluster.request(&alive.pod, 0).await.expect("a request").phase(), Phase::Delivered);
}

/// Requests that say little are kept for a quarter of an hour, `SHORT_RETENTION` of `domain/plan.rs`: a pod has ten names for them at most.
#[tokio::test]
async fn requests_without_a_token_and_superseded_ones_are_deleted_sooner_than_others() {
    const SHORT: SignedDuration = SignedDuration::from_mins(15);
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("short-retention").await;
    let spec = |name: &str, policies: &str| PodSpec::new(&namespace, name, policies, "1h");
    let revoked = cluster.deliver(&spec("revoked", "shop-read")).await.pod;
    cluster.kubelet.remove(cluster.plane(), &revoked).await.expect("removed");
    let denied = cluster.pod(&spec("denied", "root")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &denied).await.expect("a status");
    cluster.ask(&denied, |_| ()).await;
    let superseded = cluster.pod(&spec("superseded", "shop-read")).await;
    for _run in 0..2 {
        let init = cluster.init(&superseded).await;
        cluster.ended_well(&superseded, &init).await;
        std::fs::remove_file(superseded.volume.join("token")).expect("removed");
    }
    let role = "auth/token/roles/vault-token-operator-main";
    cluster.vault().must(Method::POST, role, Some(&json!({ "orphan": false }))).await.expect("written");
    let failed = cluster.pod(&spec("failed", "shop-read")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &failed).await.expect("a status");
    cluster.ask(&failed, |_| ()).await;
    let ended =
        [(&revoked, "PodDeleted"), (&denied, "PoliciesInvalid"), (&superseded, "Superseded"), (&failed, "TokenUnfit")];
    for (pod, why) in ended {
        let over = |request: &VaultTokenRequest| request.is_over() && request.metadata.finalizers.is_none();
        let request = cluster.until(pod, "end", over).await;
        assert_eq!(reason(&request), why);
    }

    // As if it had been so for almost as long.
    let finished = Timestamp::now() - (SHORT - SignedDuration::from_secs(5));
    let finished = Timestamp::from_second(finished.as_second()).expect("a time");
    let due = finished + SHORT;
    let requests = cluster.requests(&namespace);
    for (pod, _) in ended {
        let patch = Patch::Merge(json!({ "status": { "finishedAt": finished.to_string() } }));
        requests
            .patch_status(&request_name(&pod.name, &pod.uid, 0), &PatchParams::default(), &patch)
            .await
            .expect("a status");
    }
    let deadline = Instant::now() + LIMIT;
    let mut left = vec![&denied, &superseded, &failed];
    while !left.is_empty() {
        assert!(Instant::now() < deadline, "{} are still there", left.len());
        for pod in std::mem::take(&mut left) {
            match cluster.request(pod, 0).await {
                Some(_) => left.push(pod),
                None => assert!(Timestamp::now() >= due, "{}: too soon", pod.name),
            }
        }
    }
    assert_eq!(cluster.request(&revoked, 0).await.expect("it is kept").phase(), Phase::Revoked);
    assert_eq!(cluster.request(&superseded, 1).await.expect("it is kept").phase(), Phase::Delivered);
}

/// As of the right to revoke, which somebody has taken away.
#[tokio::test]
async fn a_revocation_that_fails_is_tried_again_ever_later_and_many_are_not_tried_together() {
    const PODS: usize = 6;
    const TRIES: usize = 7;
    // `RETRY` of `operator/controller.rs`: the first wait, which doubles each time; each is spread over its upper half.
    const FIRST: f64 = 0.2;
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("tried-again").await;
    let mut delivered = Vec::new();
    for number in 0..PODS {
        delivered.push(cluster.deliver(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h")).await);
    }
    let body = json!({ "policy": without(&policy(), "auth/token/revoke-accessor") });
    let path = "sys/policies/acl/vault-token-operator";
    cluster.vault().must(Method::PUT, path, Some(&body)).await.expect("a policy");
    for Delivered { pod, .. } in &delivered {
        cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
    }
    let mut waits: Vec<[f64; TRIES - 1]> = Vec::new();
    for Delivered { pod, .. } in &delivered {
        let deadline = Instant::now() + 2 * LIMIT;
        let times = loop {
            let times = cluster.decided(pod, "RevokeFinally");
            if times.len() >= TRIES {
                break times;
            }
            assert!(Instant::now() < deadline, "{}: {} tries", pod.name, times.len());
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        waits.push(std::array::from_fn(|n| times[n + 1].duration_since(times[n]).as_secs_f64()));
    }
    // Of the first ones a busy machine makes what it likes.
    let spread: Vec<_> = (3..TRIES - 1)
        .map(|n| {
            let span = FIRST * f64::from(1 << n);
            let shares = || waits.iter().map(|waits| waits[n] / span);
            let (least, most) = (shares().fold(f64::MAX, f64::min), shares().fold(0.0, f64::max));
            assert!(least >= 0.5, "{waits:?}");
            most - least
        })
        .collect();
    // By chance six are close together once, and not twice.
    assert!(spread.iter().any(|spread| *spread > 0.1), "{spread:?}: {waits:?}");
    assert!(waits.iter().all(|waits| waits[5] > waits[3]), "{waits:?}");
    cluster.system.tell_vault_again().await.expect("told");
    cluster.until_live(&namespace, 0).await;
}

#[tokio::test]
async fn a_pod_that_asks_too_often_waits_and_delays_nobody_else() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    let settings = [("VTO_POD_MINTS_PER_MINUTE", "1"), ("VTO_WRAPPING_TTL", "1s")];
    cluster.system.start_operator(&settings).await.expect("the operator starts");
    let namespace = cluster.namespace("budget").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    let waits = cluster.until(&pod, "word of the budget", |request| reason(request) == "MintBudgetExhausted").await;
    let (_, _, message) = condition(&waits, "Issued");
    let (_, told) = message.split_once("the next one can be made at ").expect("until when");
    let told: Timestamp = told.parse().expect("a time");
    let left = told.duration_since(Timestamp::now());
    assert!(left > SignedDuration::ZERO && left <= SignedDuration::from_secs(60), "{message}");
    assert_eq!(waits.status.expect("a status").attempts, 1);
    cluster.deliver(&PodSpec::new(&namespace, "other", "shop-read", "1h")).await;
    // Its time comes, and not before.
    let deadline = Instant::now() + 3 * LIMIT;
    let begun = loop {
        let status = cluster.request(&pod, 0).await.and_then(|request| request.status).expect("a status");
        match status.attempts {
            1 => assert!(Instant::now() < deadline, "{status:#?}"),
            _ => break status.attempt_started_at.expect("a time"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(begun.0.duration_since(told) > SignedDuration::from_secs(-1), "told {told}, begun {begun:?}");
    cluster.kubelet.remove(cluster.plane(), &pod).await.expect("removed");
    // With a token to revoke, or none.
    cluster.until(&pod, "end", |request| [Phase::Failed, Phase::Revoked].contains(&request.phase())).await;
}

#[tokio::test]
async fn a_namespace_that_asks_too_often_waits_and_delays_no_other() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    let settings = [("VTO_NAMESPACE_MINTS_PER_MINUTE", "2")];
    cluster.system.start_operator(&settings).await.expect("the operator starts");
    let (loud, quiet) = (cluster.namespace("loud").await, cluster.namespace("quiet").await);
    for name in ["first", "second"] {
        cluster.deliver(&PodSpec::new(&loud, name, "shop-read", "1h")).await;
    }
    // Far more than it may have; each is a pod that asks for the first time.
    let crowd = async |number: usize| {
        let pod = cluster.pod(&PodSpec::new(&loud, &format!("web-{number}"), "shop-read", "1h")).await;
        cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
        cluster.ask(&pod, |_| ()).await;
        pod
    };
    let crowd: Vec<_> = stream::iter(0..40).map(crowd).buffer_unordered(8).collect().await;
    for pod in &crowd {
        let waits = cluster.until(pod, "word of the budget", |request| reason(request) == "MintBudgetExhausted").await;
        assert_eq!(waits.status.expect("a status").attempts, 0);
    }
    let asked = Instant::now();
    cluster.deliver(&PodSpec::new(&quiet, "web", "shop-read", "1h")).await;
    let took = asked.elapsed();
    let waiting: Vec<_> = stream::iter(&crowd).then(|pod| cluster.request(pod, 0)).collect().await;
    // In half a minute one of them gets its turn; the other namespace's pod had its own at once.
    let unserved = waiting.iter().flatten().filter(|request| reason(request) == "MintBudgetExhausted").count();
    assert!(unserved >= crowd.len() - 1, "{unserved} still wait");
    assert!(took < Duration::from_secs(10), "the other namespace waited {took:?}");
    for pod in &crowd {
        cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
    }
}
