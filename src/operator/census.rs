//! How many tokens live, and how many have lost their grants: beyond a limit a person has to look at it before they are revoked.
//! Nothing is counted anew within a second, however often it is asked for.

use super::pods::LivePods;
use super::rulebook::Edition;
use crate::api::{Reason, VaultTokenRequest, VaultTokenRequestStatus};
use crate::domain::tenure::granted;
use jiff::Timestamp;
use kube::runtime::reflector::Store;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a count is good, while the rules stay the same.
const FRESH: Duration = Duration::from_secs(1);

/// Counts them in what the watch shows.
pub struct Census {
    requests: Store<VaultTokenRequest>,
    pods: LivePods,
    limit: usize,
    ungranted: Fresh<u64, usize>,
    living: Fresh<(), Living>,
    /// Since when tokens are known to have outlived their pods, by the UIDs of their requests. Where the pod's end was not seen, it
    /// is counted from the first look.
    outliving: Mutex<HashMap<String, Timestamp>>,
}

/// What the watch shows of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Living {
    /// Those that live by what their requests record.
    pub tokens: usize,
    /// Those of them that have outlived their pods.
    pub outliving: usize,
    /// For how long the longest of these has.
    pub longest: Duration,
    /// Those that Vault does not let live for much longer.
    pub ending: usize,
    /// Requests whose wrapping tokens somebody else used.
    pub compromised: usize,
}

/// What was counted last, of what, and when.
struct Fresh<K, V>(Mutex<Option<(K, Instant, V)>>);

impl<K, V> Default for Fresh<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, V: Copy> Fresh<K, V> {
    /// What was counted of the same less than [`FRESH`] ago, or what is counted now.
    fn get(&self, of: K, count: impl FnOnce() -> V) -> V {
        // A count is whole whatever a panicking holder of the lock was about.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((before, at, counted)) if *before == of && at.elapsed() < FRESH => *counted,
            _ => {
                let counted = count();
                *last = Some((of, Instant::now(), counted));
                counted
            }
        }
    }
}

impl Census {
    /// Counts among these; more than `limit` are too many.
    pub fn new(requests: Store<VaultTokenRequest>, pods: LivePods, limit: usize) -> Self {
        let (ungranted, living, outliving) = (Fresh::default(), Fresh::default(), Mutex::default());
        Self { requests, pods, limit, ungranted, living, outliving }
    }

    /// What the watch shows of tokens.
    pub fn living(&self) -> Living {
        self.living.get((), || self.look())
    }

    fn look(&self) -> Living {
        let (now, endings) = (Timestamp::now(), self.pods.endings());
        let live = self.requests.state_filter(VaultTokenRequest::holds_token);
        let ending = |status: &VaultTokenRequestStatus| status.reason.as_deref() == Some(Reason::TokenEnding.as_str());
        let ending = live.iter().filter(|request| request.status.as_ref().is_some_and(ending)).count();
        let mut living = Living { tokens: live.len(), ending, ..Living::default() };
        let mut outliving = self.outliving.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *outliving);
        for request in live.iter().filter(|request| self.pods.lacks(&request.spec.pod_uid)) {
            let uid = request.metadata.uid.clone().unwrap_or_default();
            let known = before.get(&uid).copied().or_else(|| endings.seen(&request.spec.pod_uid));
            let since = known.unwrap_or(now);
            outliving.insert(uid, since);
            living.longest = living.longest.max(now.duration_since(since).try_into().unwrap_or_default());
        }
        living.outliving = outliving.len();
        living.compromised = self.requests.state_filter(VaultTokenRequest::is_compromised).len();
        living
    }

    /// How many there are by these rules, if they are too many.
    pub fn held(&self, edition: &Edition) -> Option<usize> {
        Some(self.count(edition)).filter(|count| *count > self.limit)
    }

    /// How many there are by these rules.
    pub fn count(&self, edition: &Edition) -> usize {
        let lost = |request: &VaultTokenRequest| request.holds_token() && !granted(request, &edition.rules);
        self.ungranted.get(edition.number, || self.requests.state_filter(lost).len())
    }
}
