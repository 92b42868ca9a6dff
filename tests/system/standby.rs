//! A Vault of two servers, of which the standby is asked: it passes calls on, and becomes the active one when the other goes.

use crate::support::{Cluster, LIMIT, reason, token_of};
use reqwest::Method;
use std::time::{Duration, Instant};
use testbed::kubelet::{Init, PodHandle, PodSpec};
use testbed::vault::VaultServer;
use vault_token_operator::api::{Phase, VaultTokenRequest};

struct Pair {
    cluster: Cluster,
    standby: VaultServer,
    namespace: String,
}

impl Pair {
    /// Operator and init containers know no other server than the standby.
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let standby = cluster.vault().join(cluster.system.testbed().run()).await.expect("a standby");
        cluster.system.start_operator(&[("VAULT_ADDR", standby.address())]).await.expect("the operator starts");
        let namespace = cluster.namespace("standby").await;
        Self { cluster, standby, namespace }
    }

    async fn pod(&self, name: &str) -> (PodHandle, Init) {
        let pod = self.cluster.pod(&PodSpec::new(&self.namespace, name, "shop-read", "1h")).await;
        let init = self.cluster.init_with(&pod, &[("VAULT_ADDR", self.standby.address())]).await;
        (pod, init)
    }

    async fn delivered(&self, (pod, init): &(PodHandle, Init)) {
        self.cluster.ended_well(pod, init).await;
        self.cluster.kubelet.report_running(self.cluster.plane(), pod).await.expect("a status");
        assert!(self.cluster.accepts(&token_of(pod)).await);
    }

    async fn until_active(&self, server: &VaultServer) {
        let deadline = Instant::now() + LIMIT;
        while !server.is_active().await {
            assert!(Instant::now() < deadline, "{} does not become active", server.address());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_standby_passes_calls_on_and_takes_over_from_the_active_server() {
    let pair = Pair::start().await;
    let (cluster, first) = (&pair.cluster, pair.cluster.vault());
    assert!(first.is_active().await && !pair.standby.is_active().await);
    let before = pair.pod("before").await;
    pair.delivered(&before).await;

    // The active server gives its place up while requests come in.
    let stream: Vec<_> = futures::future::join_all((0..5).map(async |number| {
        if number == 2 {
            first.must(Method::PUT, "sys/step-down", None).await.expect("stepped down");
        }
        pair.pod(&format!("during-{number}")).await
    }))
    .await;
    pair.until_active(&pair.standby).await;
    for pod in &stream {
        pair.delivered(pod).await;
    }

    // Without the other there is no active server at all, though the one that is asked answers.
    first.kill();
    let waiting = pair.pod("waiting").await;
    let unavailable = |request: &VaultTokenRequest| reason(request) == "VaultUnavailable";
    cluster.until(&waiting.0, "wait for Vault", unavailable).await;
    cluster.kubelet.remove(cluster.plane(), &before.0).await.expect("removed");
    cluster.until(&before.0, "revocation held up", unavailable).await;
    first.start_again().await.expect("started");
    pair.delivered(&waiting).await;
    cluster.until_phase(&before.0, Phase::Revoked).await;
    // What calls without an answer made is swept.
    let wanted = stream.len() + 1;
    cluster.until_live(&pair.namespace, wanted).await;
    for pod in stream.iter().chain([&waiting]) {
        assert!(cluster.accepts(&token_of(&pod.0)).await, "{}", pod.0.name);
    }
}
