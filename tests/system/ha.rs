//! Two replicas: one works, the other takes over; and two that both think they lead do no harm (I7).

use crate::fault::{Proxied, minting};
use crate::support::{Cluster, LIMIT, alone, lines_of, token_of};
use crate::sweep::{ROLE_PATH, meta, token};
use futures::future::join_all;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use testbed::kubelet::{PodHandle, PodSpec};
use testbed::process::Process;
use testbed::proxy::{Break, Call, Fault};
use testbed::system::System;
use vault_token_operator::api::Phase;

/// A second replica that stands by. Stopped at the test's end, it gives the lease to the next test's operator at once.
async fn second(cluster: &Cluster) -> (Process, String) {
    cluster.until_healthy("this replica leads").await;
    let (process, health) = cluster.system.spawn_operator(&[("VTO_IDENTITY", "second")]).expect("it starts");
    until(&health, "this replica stands by").await;
    (process, health)
}

/// Waits until a replica's health says these words; gives the time that it took.
pub async fn until(health: &str, words: &str) -> Duration {
    let start = Instant::now();
    loop {
        let text = System::health_of(health).await.unwrap_or_default();
        if text.starts_with("ok") && text.contains(words) {
            return start.elapsed();
        }
        assert!(start.elapsed() < LIMIT, "it does not say {words:?}: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_second_replica_takes_over_from_one_that_is_killed() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("killed-leader").await;
    let gone = cluster.deliver(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    let alive = cluster.deliver(&PodSpec::new(&namespace, "alive", "shop-read", "1h")).await;
    let (second, health) = second(cluster).await;
    cluster.system.kill_operator();
    cluster.kubelet.remove(cluster.plane(), &gone.pod).await.expect("removed");
    let orphan = token(cluster, ROLE_PATH, &meta(&gone.pod, "no-such-request", "2026-01-01T00:00:01Z")).await;
    let took = until(&health, "this replica leads").await;
    assert!(took < Duration::from_secs(20), "{took:?}");
    cluster.until_phase(&gone.pod, Phase::Revoked).await;
    assert!(!cluster.accepts(&gone.token).await);
    assert!(cluster.accepts(&alive.token).await, "I7: the token of a living pod stays");
    // I2: it sweeps as soon as it leads.
    cluster.until_dead(&orphan).await;
    cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    second.stop(LIMIT).await;
}

#[tokio::test]
async fn a_leader_that_ends_hands_over_at_once() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("ended-leader").await;
    let (second, health) = second(cluster).await;
    let status = cluster.system.stop_operator().await.expect("it ran");
    assert!(status.success(), "{status}");
    let took = until(&health, "this replica leads").await;
    assert!(took < Duration::from_secs(6), "the lease was not given back: {took:?}");
    cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    second.stop(LIMIT).await;
}

#[tokio::test]
async fn a_leader_that_ends_finishes_what_it_has_begun() {
    let (cluster, _guard) = alone().await;
    let (_proxied, traps) = Proxied::trapped(cluster, |proxied| &proxied.vault).await;
    let namespace = cluster.namespace("ended-midway").await;
    let (second, health) = second(cluster).await;
    let (pod, init, _) = minting(cluster, &traps, &namespace).await;
    let status = cluster.system.stop_operator().await.expect("it ran");
    assert!(status.success(), "{status}");
    traps.assert_sprung();
    // By the one that has ended: the other would have begun again.
    let delivered = cluster.request(&pod, 0).await.expect("a request");
    assert_eq!((delivered.phase(), delivered.status.expect("a status").attempts), (Phase::Delivered, 1));
    cluster.ended_well(&pod, &init).await;
    until(&health, "this replica leads").await;
    assert!(cluster.accepts(&token_of(&pod)).await, "I7");
    second.stop(LIMIT).await;
}

#[tokio::test]
async fn i7_a_leader_that_was_paused_past_its_lease_does_no_harm_when_it_wakes() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("paused-leader").await;
    let before = cluster.deliver(&PodSpec::new(&namespace, "before", "shop-read", "1h")).await;
    // In the midst of an attempt: recorded, and nobody there to take it yet.
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    cluster.until_phase(&pod, Phase::Issued).await;
    let (second, health) = second(cluster).await;
    cluster.system.pause_operator();
    until(&health, "this replica leads").await;
    // The new leader gives the attempt up, and makes another.
    let again = |request: &vault_token_operator::api::VaultTokenRequest| {
        request.status.as_ref().is_some_and(|status| status.attempts == 2 && status.phase == Some(Phase::Issued))
    };
    cluster.until(&pod, "second attempt", again).await;
    let init = cluster.init(&pod).await;
    cluster.ended_well(&pod, &init).await;
    let gone = cluster.deliver(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone.pod).await.expect("removed");
    cluster.until_phase(&gone.pod, Phase::Revoked).await;

    cluster.system.resume_operator();
    cluster.until_healthy("this replica stands by").await;
    let after = cluster.deliver(&PodSpec::new(&namespace, "after", "shop-read", "1h")).await;
    for token in [&before.token, &token_of(&pod), &after.token] {
        assert!(cluster.accepts(token).await, "I7: the token of a living pod is dead");
    }
    assert!(!cluster.accepts(&gone.token).await);
    // The request that was made by hand ends, since init's own is newer.
    cluster.until_phase(&pod, Phase::Revoked).await;
    assert_eq!(cluster.live_tokens(&pod).await, 1);
    second.stop(LIMIT).await;
}

#[tokio::test]
async fn a_leader_that_cannot_renew_its_lease_stops_before_another_takes_it() {
    /// Well before the ten seconds are over for which the others wait.
    const STOPS_WITHIN: Duration = Duration::from_secs(8);
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("lapsed-leader").await;
    let proxied = Proxied::new(cluster).await;
    proxied.start(cluster).await;
    let (second, health) = second(cluster).await;
    let logs = cluster.system.operator_logs();
    let [.., first_log, second_log] = &logs[..] else { panic!("two operators have logs: {logs:?}") };
    // Nobody tells it that it has lost the lease: all that it has is its own clock.
    proxied.api.follow(|call| match call.path.contains("/leases/") {
        true => Fault::Before(Break::Silence),
        false => Fault::None,
    });
    let silent = Instant::now();
    let (mut stopped, mut took_over) = (None, None);
    while took_over.is_none() {
        // In this order: of two that lead at once, the second still does when the first is asked.
        let second_leads = System::health_of(&health).await.expect("an answer").contains("this replica leads");
        let first_leads = cluster.system.operator_health().await.expect("an answer").expect("an operator");
        let first_leads = first_leads.contains("this replica leads");
        assert!(!(first_leads && second_leads), "both lead after {:?}", silent.elapsed());
        if !first_leads && stopped.is_none() {
            cluster.assert_counted(&["leader 0"]).await;
            stopped = Some(silent.elapsed());
        }
        if second_leads {
            took_over = Some(silent.elapsed());
        }
        assert!(silent.elapsed() < LIMIT, "nobody took over; the first stopped after {stopped:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(stopped.is_some_and(|stopped| stopped < STOPS_WITHIN), "{stopped:?}");

    // Who reads the logs sees the same order.
    let said = |log: &Path, words: &str| {
        let said = |line: &Value| line["message"].as_str().is_some_and(|message| message.contains(words));
        let line = lines_of(log).into_iter().rfind(said)?;
        line["timestamp"].as_str().expect("a time").parse::<Timestamp>().ok()
    };
    let (stopped, leads) =
        (said(first_log, "this replica does not lead any more"), said(second_log, "this replica leads"));
    assert!(stopped.is_some() && leads.is_some() && stopped < leads, "{stopped:?}, {leads:?}");

    // All else that it asks of the API server is answered, and it leaves everything to the other.
    cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let wrote = |log: &Path| {
        lines_of(log).iter().filter(|line| line["target"] == "audit" && line["namespace"] == namespace.as_str()).count()
    };
    assert_eq!(wrote(first_log), 0);
    assert!(wrote(second_log) > 0);
    second.stop(LIMIT).await;
}

/// A Lease that nobody holds, and that everybody gets who asks for it.
const LEASE: &str =
    r#"{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"vault-token-operator-leader"}}"#;

/// Lets the replica behind the proxy lead whoever else does. It is now and then slower than the other.
fn crowned() -> impl FnMut(&Call) -> Fault + Send + 'static {
    let mut writes = 0;
    move |call| match call.method {
        _ if call.path.contains("/leases/") => Fault::Before(Break::Says(StatusCode::OK, LEASE)),
        Method::PUT => {
            writes += 1;
            if writes % 3 == 0 { Fault::Delay(Duration::from_millis(40)) } else { Fault::None }
        }
        _ => Fault::None,
    }
}

/// Gets a pod its token as the kubelet does: its init container is started again after each failure.
async fn serve(cluster: &Cluster, pod: &PodHandle, settings: &[(&str, &str)]) {
    let began = Instant::now();
    loop {
        let init = cluster.init_with(pod, settings).await;
        if init.wait(3 * LIMIT).await.expect("init ends").success() {
            return cluster.kubelet.report_running(cluster.plane(), pod).await.expect("a status");
        }
        assert!(began.elapsed() < 3 * LIMIT, "{}: {}", pod.name, init.termination_message());
    }
}

/// The sweeps that an operator has ended.
fn sweeps(log: &Path) -> usize {
    let swept = |line: &Value| line["message"] == "swept Vault for tokens without a request";
    lines_of(log).into_iter().filter(swept).count()
}

#[tokio::test]
async fn i7_two_replicas_that_both_lead_and_act_at_once_do_no_harm() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("two-leaders").await;
    cluster.system.allow_status_delivery(&namespace).await.expect("a role");
    let (first, other) = (Proxied::new(cluster).await, Proxied::new(cluster).await);
    first.api.follow(crowned());
    other.api.follow(crowned());
    let settings = [("VTO_SWEEP_INTERVAL", "10s"), ("VTO_POD_MINTS_PER_MINUTE", "100")];
    first.start_with(cluster, &settings).await;
    let (second, health) = other.spawn(cluster, &[&settings[..], &[("VTO_IDENTITY", "second")]].concat());
    until(&health, "this replica leads").await;
    cluster.until_healthy("this replica leads").await;
    let logs = cluster.system.operator_logs();
    let [.., log, second_log] = &logs[..] else { panic!("two operators have logs: {logs:?}") };

    // Tokens that both renew, and that die where neither does; and some by the other way of delivery.
    let by_status = [("VTO_DELIVERY", "status")];
    let pods = join_all((0..9).map(async |number| {
        let (ttl, settings) = if number < 6 { ("20s", &by_status[..0]) } else { ("1h", &by_status[..]) };
        let pod = cluster.pod(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", ttl)).await;
        serve(cluster, &pod, settings).await;
        pod
    }))
    .await;
    let ([gone, again, ..], [.., gone_too]) = (&pods[..], &pods[..]) else { panic!("some pods") };
    let replaced = token_of(again);
    // Its volume was lost with its sandbox: its init container runs again.
    std::fs::remove_file(again.volume.join("token")).expect("removed");
    let remove = async |pod| cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
    tokio::join!(remove(gone), remove(gone_too), serve(cluster, again, &[]));
    let alive: Vec<_> = pods.iter().filter(|pod| pod.uid != gone.uid && pod.uid != gone_too.uid).collect();

    // All that is over is let go, by whichever of the two.
    let requests = cluster.requests(&namespace);
    let deadline = Instant::now() + 2 * LIMIT;
    let delivered = loop {
        let requests = requests.list(&ListParams::default()).await.expect("a list").items;
        let (delivered, over): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|request| request.phase() == Phase::Delivered);
        let settled = over.iter().all(|request| request.is_over() && request.finalizers().is_empty());
        if settled && delivered.len() == alive.len() {
            break delivered;
        }
        assert!(
            Instant::now() < deadline,
            "not one Delivered for each pod, and all others over:\n{delivered:#?} {over:#?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    // And each has seen Vault through once more.
    let before = [sweeps(log), sweeps(second_log)];
    while sweeps(log) <= before[0] + 1 || sweeps(second_log) <= before[1] + 1 {
        assert!(Instant::now() < deadline + 2 * LIMIT, "they do not sweep");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    cluster.until_live(&namespace, alive.len()).await;
    for pod in &alive {
        assert!(cluster.accepts(&token_of(pod)).await, "I7: the token of {} is dead", pod.name);
        let of_pod = delivered.iter().filter(|request| request.spec.pod_uid == pod.uid).count();
        assert_eq!(of_pod, 1, "{} has so many requests that are Delivered", pod.name);
    }
    assert!(!cluster.accepts(&replaced).await && !cluster.accepts(&token_of(gone)).await);
    // Otherwise nothing was shown: each wrote some of it, and each was refused some.
    for log in [log, second_log] {
        let lines = lines_of(log);
        let wrote = |line: &&Value| line["target"] == "audit" && line["namespace"] == namespace.as_str();
        let refused = |line: &&Value| line["message"] == "a look at a request failed; it is repeated";
        let (wrote, refused) = (lines.iter().filter(wrote).count(), lines.iter().filter(refused).count());
        assert!(wrote > 0 && refused > 0, "{}: {wrote} written, {refused} refused", log.display());
    }
    second.stop(LIMIT).await;
}
