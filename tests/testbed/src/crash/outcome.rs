//! What is left when everything has come to rest: tokens in Vault against records in requests.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::load::{Load, NAMESPACE};
use crate::error::Error;
use crate::kubelet::PodHandle;
use crate::report;
use crate::system::CLUSTER;

/// What does not fit together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Live tokens of ours that no request records.
    pub orphans: usize,
    /// Requests that have come to their end, or should have, and stay.
    pub stuck: usize,
    /// Running pods without a live token that their request records.
    pub dead: usize,
}

impl Outcome {
    /// Looks until everything fits together, or the time is over: first with `pods` running, then without any.
    pub async fn wait_for(load: &Load, pods: &[PodHandle], limit: Duration) -> Result<Self, Error> {
        let with_pods = Self::settled(load, pods, limit).await?;
        for pod in pods {
            load.kubelet.remove(load.system.testbed().control_plane(), pod).await?;
        }
        let without = Self::settled(load, &[], limit).await?;
        Ok(Self {
            orphans: with_pods.orphans.max(without.orphans),
            stuck: with_pods.stuck.max(without.stuck),
            dead: with_pods.dead,
        })
    }

    async fn settled(load: &Load, pods: &[PodHandle], limit: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + limit;
        loop {
            let now = Self::look(load, pods).await?;
            if now == Self::default() || Instant::now() > deadline {
                return Ok(now);
            }
            report::line(&format!("not at rest yet: {now:?}"));
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    async fn look(load: &Load, pods: &[PodHandle]) -> Result<Self, Error> {
        let live = load.system.testbed().vault().live_tokens_where("cluster", CLUSTER).await?;
        let output =
            load.system.testbed().control_plane().kubectl(&["get", "vtr", "-n", NAMESPACE, "-o", "json"]).await?;
        let requests: Value = serde_json::from_str(&output.stdout)
            .map_err(|error| Error::io("could not read the requests")(std::io::Error::other(error)))?;
        let (mut recorded, mut stuck) = (HashSet::new(), 0);
        for request in requests["items"].as_array().into_iter().flatten() {
            let status = &request["status"];
            let phase = status["phase"].as_str().unwrap_or_default();
            let running = pods.iter().any(|pod| request["spec"]["podUID"] == json!(pod.uid));
            match phase {
                "Delivered" if running => {
                    recorded.insert(status["tokenAccessor"].as_str().unwrap_or_default().to_owned());
                }
                "Revoked" | "Denied" | "Failed" if request["metadata"]["finalizers"].is_null() => {}
                _ => stuck += 1,
            }
        }
        let mut dead = 0;
        for pod in pods {
            dead += usize::from(!load.accepts(pod).await?);
        }
        Ok(Self { orphans: live.difference(&recorded).count(), stuck, dead })
    }
}
