//! How many tokens live, and how many have lost their grants: beyond a limit a person has to look at it before they are revoked.

use super::pods::LivePods;
use super::rulebook::Edition;
use crate::api::VaultTokenRequest;
use crate::domain::tenure::granted;
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
        Self { requests, pods, limit, last: Mutex::default() }
    }

    /// How many tokens live by what their requests record, and how many of them have outlived their pods, by what the watch shows.
    pub fn living(&self) -> (usize, usize) {
        let live = self.requests.state_filter(VaultTokenRequest::holds_token);
        let outliving = live.iter().filter(|request| self.pods.lacks(&request.spec.pod_uid)).count();
        (live.len(), outliving)
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
