//! What is left when everything has come to rest: tokens in Vault against records in requests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use super::Load;
use crate::error::Error;
use crate::kubelet::PodHandle;
use crate::report;
use crate::system::CLUSTER;
use crate::vault::LiveToken;

/// How often it is looked at.
const POLL: Duration = Duration::from_secs(2);

/// What does not fit together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Live tokens of ours that no request of a running pod records: their accessors, and when their attempts began.
    pub orphans: BTreeMap<String, Option<Timestamp>>,
    /// Requests that have come to their end, or should have, and stay.
    pub stuck: usize,
    /// Running pods whose token Vault does not accept.
    pub dead: usize,
    /// Requests of running pods that record a token which is not live.
    pub hollow: usize,
    /// Pods with more than one live token.
    pub doubled: usize,
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

/// What a request says.
#[derive(Clone, Debug, Default)]
struct Request {
    pod_uid: String,
    phase: String,
    accessor: String,
    finalizer: bool,
}

impl Request {
    fn read(request: &Value) -> Self {
        let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            pod_uid: text("/spec/podUID"),
            phase: text("/status/phase"),
            accessor: text("/status/tokenAccessor"),
            finalizer: !request["metadata"]["finalizers"].is_null(),
        }
    }
}

impl Outcome {
    /// Looks until everything fits together, or the time is over: first with `pods` running, then without any.
    pub async fn wait_for(load: &Load, pods: &[PodHandle], limit: Duration) -> Result<Self, Error> {
        let with_pods = settled(limit, || Self::look(load, pods)).await?;
        for pod in pods {
            load.remove(pod).await?;
        }
        let without = settled(limit, || Self::look(load, &[])).await?;
        Ok(with_pods.and(without))
    }

    /// How much does not.
    pub fn faults(&self) -> usize {
        self.orphans.len() + self.stuck + self.dead + self.hollow + self.doubled
    }

    /// What was wrong at the one look or the other.
    fn and(mut self, other: Self) -> Self {
        self.orphans.extend(other.orphans);
        self.stuck = self.stuck.max(other.stuck);
        self.dead = self.dead.max(other.dead);
        self.hollow = self.hollow.max(other.hollow);
        self.doubled = self.doubled.max(other.doubled);
        self
    }

    async fn look(load: &Load, pods: &[PodHandle]) -> Result<Self, Error> {
        let live = load.system.testbed().vault().live_tokens_where("cluster", CLUSTER).await?;
        let requests = requests(load).await?;
        let mut running = HashMap::new();
        for pod in pods {
            running.insert(pod.uid.as_str(), load.accepts(pod).await?);
        }
        Ok(judge(&live, &requests, &running))
    }
}

/// Holds the live tokens of ours against what requests say. Of each running pod, by its UID, it is told whether Vault accepts its token.
fn judge(live: &[LiveToken], requests: &[Request], running: &HashMap<&str, bool>) -> Outcome {
    let (mut recorded, mut stuck) = (HashSet::new(), 0);
    for request in requests {
        match request.phase.as_str() {
            "Delivered" if running.contains_key(request.pod_uid.as_str()) => {
                recorded.insert(request.accessor.as_str());
            }
            "Revoked" | "Denied" | "Failed" if !request.finalizer => {}
            _ => stuck += 1,
        }
    }
    let accessors: HashSet<&str> = live.iter().map(|token| token.accessor.as_str()).collect();
    let orphans = live.iter().filter(|token| !recorded.contains(token.accessor.as_str()));
    let mut of_pods: HashMap<Option<&String>, usize> = HashMap::new();
    for token in live {
        *of_pods.entry(token.meta.get("pod_uid")).or_default() += 1;
    }
    Outcome {
        orphans: orphans.map(|token| (token.accessor.clone(), began(token))).collect(),
        stuck,
        dead: running.values().filter(|accepted| !**accepted).count(),
        hollow: recorded.difference(&accessors).count(),
        doubled: of_pods.values().filter(|count| **count > 1).count(),
    }
}

/// When the attempt began that a token was made in.
fn began(token: &LiveToken) -> Option<Timestamp> {
    token.meta.get("attempt_started_at")?.parse().ok()
}

impl Left {
    /// Looks until nothing is left, or the time is over.
    pub async fn wait_for(load: &Load, limit: Duration) -> Result<Self, Error> {
        settled(limit, || Self::look(load)).await
    }

    async fn look(load: &Load) -> Result<Self, Error> {
        let tokens = load.system.testbed().vault().live_tokens_where("cluster", CLUSTER).await?.len();
        let requests = requests(load).await?;
        let finalizers = requests.iter().filter(|request| request.finalizer).count();
        Ok(Self { tokens, finalizers, requests: requests.len() })
    }
}

async fn requests(load: &Load) -> Result<Vec<Request>, Error> {
    let get = ["get", "vtr", "-n", load.plan.namespace, "-o", "json"];
    let output = load.system.testbed().control_plane().kubectl(&get).await?;
    let list: Value = serde_json::from_str(&output.stdout)
        .map_err(|error| Error::io("could not read the requests")(std::io::Error::other(error)))?;
    Ok(list["items"].as_array().into_iter().flatten().map(Request::read).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn token(accessor: &str, pod: &str) -> LiveToken {
        let meta = [("pod_uid", pod), ("attempt_started_at", "2026-11-26T10:00:00.5Z")];
        let meta = meta.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        LiveToken { accessor: accessor.to_owned(), meta }
    }

    fn request(pod: &str, phase: &str, accessor: &str) -> Request {
        let [pod_uid, phase, accessor] = [pod, phase, accessor].map(str::to_owned);
        let finalizer = phase == "Delivered";
        Request { pod_uid, phase, accessor, finalizer }
    }

    /// Two pods with a token each, and what is left of a third.
    fn at_rest() -> (Vec<LiveToken>, Vec<Request>, HashMap<&'static str, bool>) {
        let requests =
            [request("a", "Delivered", "of-a"), request("b", "Delivered", "of-b"), request("c", "Revoked", "of-c")];
        (vec![token("of-a", "a"), token("of-b", "b")], requests.into(), [("a", true), ("b", true)].into())
    }

    #[test]
    fn tokens_that_are_exactly_what_requests_record_are_no_fault() {
        let (live, requests, running) = at_rest();
        assert_eq!(judge(&live, &requests, &running), Outcome::default());
    }

    #[test]
    fn i1_a_live_token_that_no_request_of_a_running_pod_records_is_an_orphan() {
        let (mut live, requests, running) = at_rest();
        live.push(token("of-c", "c"));
        let outcome = judge(&live, &requests, &running);
        let began = "2026-11-26T10:00:00.5Z".parse().unwrap();
        let orphans = [("of-c".to_owned(), Some(began))].into();
        assert_eq!(outcome, Outcome { orphans, ..Outcome::default() });
        assert_eq!(outcome.faults(), 1);
    }

    #[test]
    fn i6_a_record_of_a_running_pod_that_vault_has_no_live_token_of_is_counted() {
        let (live, requests, running) = at_rest();
        let outcome = judge(&live[1..], &requests, &running);
        assert_eq!(outcome, Outcome { hollow: 1, ..Outcome::default() });
        assert_eq!(outcome.faults(), 1);
    }

    #[test]
    fn i1_a_pod_with_two_live_tokens_is_counted_though_both_are_recorded() {
        let (mut live, mut requests, running) = at_rest();
        live.push(token("second-of-a", "a"));
        requests.push(request("a", "Delivered", "second-of-a"));
        let outcome = judge(&live, &requests, &running);
        assert_eq!(outcome, Outcome { doubled: 1, ..Outcome::default() });
        assert_eq!(outcome.faults(), 1);
    }

    #[test]
    fn i7_a_running_pod_whose_token_vault_does_not_accept_is_counted() {
        let (live, requests, mut running) = at_rest();
        running.insert("b", false);
        let outcome = judge(&live, &requests, &running);
        assert_eq!(outcome, Outcome { dead: 1, ..Outcome::default() });
        assert_eq!(outcome.faults(), 1);
    }

    #[test]
    fn i8_requests_that_have_a_finalizer_or_no_end_are_stuck() {
        let (live, mut requests, running) = at_rest();
        requests.push(Request { finalizer: true, ..request("c", "Revoked", "") });
        requests.push(request("c", "Delivered", "of-c"));
        requests.push(request("c", "Minting", ""));
        let outcome = judge(&live, &requests, &running);
        assert_eq!(outcome, Outcome { stuck: 3, ..Outcome::default() });
        assert_eq!(outcome.faults(), 3);
    }

    #[test]
    fn what_was_wrong_at_either_look_is_wrong_in_the_end() {
        let wrong = |accessor: &str, stuck, doubled| Outcome {
            orphans: [(accessor.to_owned(), None)].into(),
            stuck,
            doubled,
            ..Outcome::default()
        };
        let both = wrong("a", 2, 0).and(wrong("b", 1, 1));
        assert_eq!((both.orphans.len(), both.stuck, both.doubled), (2, 2, 1));
    }
}
