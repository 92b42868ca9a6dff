//! How many tokens may be made: token buckets for each pod and each namespace, so that a pod that crashes in a loop, or one
//! tenant, never floods Vault.

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use jiff::{SignedDuration, Timestamp};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

/// After how many mints the buckets that are full again are forgotten.
const TIDY: u32 = 1000;

/// Mints a minute, which is also how many may come at once.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// For each pod.
    pub pod: NonZeroU32,
    /// For each namespace.
    pub namespace: NonZeroU32,
}

/// The buckets. They are in memory alone: a restart fills them.
pub struct Budget {
    pods: DefaultKeyedRateLimiter<String>,
    namespaces: DefaultKeyedRateLimiter<String>,
    clock: DefaultClock,
    taken: AtomicU32,
}

impl Budget {
    /// Full buckets.
    pub fn new(rates: Rates) -> Self {
        Self {
            pods: RateLimiter::keyed(Quota::per_minute(rates.pod)),
            namespaces: RateLimiter::keyed(Quota::per_minute(rates.namespace)),
            clock: DefaultClock::default(),
            taken: AtomicU32::new(0),
        }
    }

    /// Takes one mint.
    ///
    /// # Errors
    /// When there may be the next one.
    pub fn take(&self, namespace: &str, pod_uid: &str) -> Result<(), Timestamp> {
        if self.taken.fetch_add(1, Ordering::Relaxed) % TIDY == TIDY - 1 {
            self.pods.retain_recent();
            self.namespaces.retain_recent();
        }
        // The pod first: a pod over its own budget takes nothing from its namespace's. Where the namespace's is used up, the try costs
        // the pod all the same, so that many that wait for it do not all come at once again and again.
        self.pods
            .check_key(&pod_uid.to_owned())
            .and_then(|()| self.namespaces.check_key(&namespace.to_owned()))
            .map_err(|until| {
                let wait =
                    SignedDuration::try_from(until.wait_time_from(self.clock.now())).unwrap_or(SignedDuration::MAX);
                Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_and_a_namespace_have_budgets_of_their_own() {
        let rate = |n| NonZeroU32::new(n).expect("a number");
        let budget = Budget::new(Rates { pod: rate(2), namespace: rate(5) });
        assert!(budget.take("shop", "a").is_ok() && budget.take("shop", "a").is_ok());
        let until = budget.take("shop", "a").expect_err("a third one");
        let wait = until.duration_since(Timestamp::now()).as_secs();
        assert!((25..=30).contains(&wait), "{wait}");
        for pod in ["b", "c", "d"] {
            assert!(budget.take("shop", pod).is_ok());
        }
        assert!(budget.take("shop", "e").is_err(), "the namespace has had its five");
        assert!(budget.take("other", "f").is_ok());
    }
}
