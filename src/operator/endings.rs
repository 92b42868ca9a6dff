//! When pods were first seen to have ended, for as long as their tokens are not seen to be dead.

use jiff::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// How many ends are remembered; older ones are forgotten. A replica that stands by sees ends, and revokes nothing.
const MOST: usize = 10_000;

/// The ends of pods, by their UIDs.
#[derive(Clone, Debug, Default)]
pub struct Endings(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    times: HashMap<String, Timestamp>,
    order: VecDeque<String>,
}

impl Endings {
    /// The pod has ended by now.
    pub fn saw(&self, uid: &str, now: Timestamp) {
        // The two stay fit for use whatever a panicking holder of the lock was about.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.times.contains_key(uid) {
            return;
        }
        seen.times.insert(uid.to_owned(), now);
        seen.order.push_back(uid.to_owned());
        if seen.order.len() > MOST
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.times.remove(&oldest);
        }
    }

    /// When the pod was first seen to have ended.
    pub fn seen(&self, uid: &str) -> Option<Timestamp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).times.get(uid).copied()
    }

    /// When the pod was first seen to have ended. It is not asked for again.
    pub fn take(&self, uid: &str) -> Option<Timestamp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).times.remove(uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sight_counts_and_the_oldest_ones_are_forgotten() {
        let endings = Endings::default();
        let at = |second| Timestamp::from_second(second).expect("a time");
        for second in 0..=10_000 {
            endings.saw(&second.to_string(), at(second));
            endings.saw(&second.to_string(), at(second + 1));
        }
        assert_eq!(endings.take("0"), None);
        assert_eq!(endings.seen("7"), Some(at(7)));
        assert_eq!(endings.take("7"), Some(at(7)));
        assert_eq!(endings.take("7"), None);
    }
}
