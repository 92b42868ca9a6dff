//! Two replicas: one works, the other takes over; and two that both think they lead do no harm (I7).

use crate::support::{Cluster, LIMIT, alone, token_of};
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use testbed::process::Process;
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
    let took = until(&health, "this replica leads").await;
    assert!(took < Duration::from_secs(20), "{took:?}");
    cluster.until_phase(&gone.pod, Phase::Revoked).await;
    assert!(!cluster.accepts(&gone.token).await);
    assert!(cluster.accepts(&alive.token).await, "I7: the token of a living pod stays");
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
