//! What is left when everything has come to rest: tokens in Vault against records in requests.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Load;
use crate::error::Error;
use crate::kubelet::PodHandle;
use crate::report;
use crate::system::CLUSTER;

/// How often it is looked at.
const POLL: Duration = Duration::from_secs(2);

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

/// What is left of pods that are gone, once their requests' retention is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Live tokens of ours.
    pub tokens: usize,
    /// Requests with a finalizer.
    pub finalizers: usize,
    /// Requests.
    pub requests: usize,
}

impl Outcome {
    /// Looks until everything fits together, or the time is over: first with `pods` running, then without any.
    pub async fn wait_for(load: &Load, pods: &[PodHandle], limit: Duration) -> Result<Self, Error> {
        let with_pods = settled(limit, || Self::look(load, pods)).await?;
        for pod in pods {
            load.remove(pod).await?;
        }
        let without = settled(limit, || Self::look(load, &[])).await?;
        Ok(Self {
            orphans: with_pods.orphans.max(without.orphans),
            stuck: with_pods.stuck.max(without.stuck),
            dead: with_pods.dead,
        })
    }

    async fn look(load: &Load, pods: &[PodHandle]) -> Result<Self, Error> {
        let live = load.system.testbed().vault().live_tokens_where("cluster", CLUSTER).await?;
        let (mut recorded, mut stuck) = (HashSet::new(), 0);
        for request in requests(load).await? {
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

impl Left {
    /// Looks until nothing is left, or the time is over.
    pub async fn wait_for(load: &Load, limit: Duration) -> Result<Self, Error> {
        settled(limit, || Self::look(load)).await
    }

    async fn look(load: &Load) -> Result<Self, Error> {
        let tokens = load.system.testbed().vault().live_tokens_where("cluster", CLUSTER).await?.len();
        let requests = requests(load).await?;
        let finalizers = requests.iter().filter(|request| !request["metadata"]["finalizers"].is_null()).count();
        Ok(Self { tokens, finalizers, requests: requests.len() })
    }
}

async fn requests(load: &Load) -> Result<Vec<Value>, Error> {
    let get = ["get", "vtr", "-n", load.plan.namespace, "-o", "json"];
    let output = load.system.testbed().control_plane().kubectl(&get).await?;
    let list: Value = serde_json::from_str(&output.stdout)
        .map_err(|error| Error::io("could not read the requests")(std::io::Error::other(error)))?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// Looks until nothing is wrong, or the time is over.
async fn settled<T, F>(limit: Duration, look: impl Fn() -> F) -> Result<T, Error>
where
    T: Default + PartialEq + std::fmt::Debug,
    F: Future<Output = Result<T, Error>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let now = look().await?;
        if now == T::default() || Instant::now() > deadline {
            return Ok(now);
        }
        report::line(&format!("not at rest yet: {now:?}"));
        tokio::time::sleep(POLL).await;
    }
}
