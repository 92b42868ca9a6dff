//! How many tokens have lost their grants: beyond a limit a person has to look at it before they are revoked.

use crate::api::{Phase, VaultTokenRequest};
use crate::domain::plan::lost_grant;
use kube::runtime::reflector::Store;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a count is good.
const FRESH: Duration = Duration::from_secs(1);

/// Counts them in what the watch shows.
pub struct Census {
    requests: Store<VaultTokenRequest>,
    limit: usize,
    last: Mutex<Option<(Instant, usize)>>,
}

impl Census {
    /// Counts among these; more than `limit` are too many.
    pub fn new(requests: Store<VaultTokenRequest>, limit: usize) -> Self {
        Self { requests, limit, last: Mutex::default() }
    }

    /// How many there are, if they are too many.
    pub fn held(&self) -> Option<usize> {
        Some(self.count()).filter(|count| *count > self.limit)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        // A pair is whole whatever a panicking holder of the lock was about.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((at, count)) if at.elapsed() < FRESH => count,
            _ => {
                let lost = |request: &VaultTokenRequest| {
                    request.phase() == Phase::Delivered && request.status.as_ref().and_then(lost_grant).is_some()
                };
                let count = self.requests.state_filter(lost).len();
                *last = Some((Instant::now(), count));
                count
            }
        }
    }
}
