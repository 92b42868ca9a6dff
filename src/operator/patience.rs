//! How long a watch that broke waits before it is taken up again.

use crate::domain::backoff::Backoff;
use kube::runtime::utils;
use std::time::Duration;

/// Short, since a pod that goes meanwhile keeps its token until then; jittered, since every watch of the cluster
/// breaks together when the API server restarts.
const WATCH: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) };

/// Endless waits by the schedule above.
#[derive(Default)]
pub struct Patience {
    failures: u32,
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures += 1;
        Some(WATCH.after(self.failures, rand::random()))
    }
}

impl utils::Backoff for Patience {
    fn reset(&mut self) {
        self.failures = 0;
    }
}
