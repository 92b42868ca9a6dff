//! How many tokens live, and how many have lost their grants: beyond a limit a person has to look at it before they are revoked.
//! Nothing is counted anew within a second, however often it is asked for.

use super::pods::LivePods;
use super::rulebook::Edition;
use crate::api::VaultTokenRequest;
use crate::domain::tenure::granted;
use jiff::Timestamp;
use kube::runtime::reflector::Store;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a count is good, while the rules stay the same.
const FRESH: Duration = Duration::from_secs(1);

/// Counts them in what the watch shows.
pub struct Census {
    requests: Store<VaultTokenRequest>,
    pods: LivePods,
    limit: usize,
    last: Mutex<Option<Count>>,
    living: Mutex<Option<(Instant, Living)>>,
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
    /// Requests whose wrapping tokens somebody else used.
    pub compromised: usize,
}

#[derive(Clone, Copy)]
struct Count {
    edition: u64,
    at: Instant,
    number: usize,
}

impl Census {
    /// Counts among these; more than `limit` are too many.
    pub fn new(requests: Store<VaultTokenRequest>, pods: LivePods, limit: usize) -> Self {
        Self { requests, pods, limit, last: Mutex::default(), living: Mutex::default() }
    }

    /// What the watch shows of tokens.
    pub fn living(&self) -> Living {
        // A count is whole whatever a panicking holder of the lock was about.
        let mut last = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((at, living)) if at.elapsed() < FRESH => living,
            _ => {
                let living = self.look();
                *last = Some((Instant::now(), living));
                living
            }
        }
    }

    fn look(&self) -> Living {
        let now = Timestamp::now();
        let live = self.requests.state_filter(VaultTokenRequest::holds_token);
        let mut living = Living { tokens: live.len(), ..Living::default() };
        for request in live.iter().filter(|request| self.pods.lacks(&request.spec.pod_uid)) {
            living.outliving += 1;
            let since = self.pods.endings().seen(&request.spec.pod_uid).unwrap_or(now);
            living.longest = living.longest.max(now.duration_since(since).try_into().unwrap_or_default());
        }
        living.compromised = self.requests.state_filter(VaultTokenRequest::is_compromised).len();
        living
    }

    /// How many there are by these rules, if they are too many.
    pub fn held(&self, edition: &Edition) -> Option<usize> {
        Some(self.count(edition)).filter(|count| *count > self.limit)
    }

    /// How many there are by these rules.
    pub fn count(&self, edition: &Edition) -> usize {
        // A count is whole whatever a panicking holder of the lock was about.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some(Count { edition: of, at, number }) if of == edition.number && at.elapsed() < FRESH => number,
            _ => {
                let lost = |request: &VaultTokenRequest| request.holds_token() && !granted(request, &edition.rules);
                let number = self.requests.state_filter(lost).len();
                *last = Some(Count { edition: edition.number, at: Instant::now(), number });
                number
            }
        }
    }
}
