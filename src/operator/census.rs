//! How many tokens have lost their grants: beyond a limit a person has to look at it before they are revoked.

use super::rulebook::Rulebook;
use crate::api::{Phase, VaultTokenRequest};
use crate::domain::plan::granted;
use kube::runtime::reflector::Store;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a count is good, while the rules stay the same.
const FRESH: Duration = Duration::from_secs(1);

/// Counts them in what the watch shows.
pub struct Census {
    requests: Store<VaultTokenRequest>,
    rulebook: Rulebook,
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
    /// Counts among these, by these rules; more than `limit` are too many.
    pub fn new(requests: Store<VaultTokenRequest>, rulebook: Rulebook, limit: usize) -> Self {
        Self { requests, rulebook, limit, last: Mutex::default() }
    }

    /// How many there are, if they are too many.
    pub fn held(&self) -> Option<usize> {
        Some(self.count()).filter(|count| *count > self.limit)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let edition = self.rulebook.edition();
        // A count is whole whatever a panicking holder of the lock was about.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some(Count { edition: of, at, number }) if of == edition.number && at.elapsed() < FRESH => number,
            _ => {
                let lost = |request: &VaultTokenRequest| {
                    request.phase() == Phase::Delivered && !granted(request, &edition.rules)
                };
                let number = self.requests.state_filter(lost).len();
                *last = Some(Count { edition: edition.number, at: Instant::now(), number });
                number
            }
        }
    }
}
