//! How long to wait before the next try: exponential, bounded, with full jitter from outside.

use std::time::Duration;

/// A schedule of waiting times.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// No wait is longer.
    pub longest: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (from 1), spread over the upper half of its span by `jitter`
    /// (from 0 to 1), so that many who failed together do not come back together.
    pub fn after(&self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_bound() {
        let backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };
        let waits: Vec<u128> = (1..=8).map(|n| backoff.after(n, 1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.after(1, 0.0), Duration::from_millis(50));
        assert_eq!(backoff.after(u32::MAX, 1.0), Duration::from_secs(5));
    }
}
