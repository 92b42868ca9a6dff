//! Signs of life. A watch that nobody takes up any more, or a look at a request that does not end, would go unseen: requests would
//! wait, and tokens of pods that are gone live on. Only a new start mends it, so `/healthz` fails then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is watched, by its name in the API server's paths. Each watch ends by itself ([`crate::cluster::WATCH_SECONDS`]) and is taken
/// up again, also while the API server is away.
const WATCHED: [&str; 6] = [
    "vaulttokenrequests",
    "pods",
    "vaultpolicybindings",
    "namespaces",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
];

/// After how long without such an attempt a watch has stopped.
const SILENCE: Duration = Duration::from_secs(180);

/// No look takes as long: each call in it has a time limit, a push the longest.
const LONGEST_LOOK: Duration = Duration::from_secs(600);

/// What is known of them; a clone knows the same.
#[derive(Clone, Debug)]
pub struct Vitals(Arc<Mutex<Signs>>);

#[derive(Debug)]
struct Signs {
    watches: BTreeMap<&'static str, Instant>,
    looks: BTreeSet<(Instant, u64)>,
    begun: u64,
}

/// A look at a request that is under way, until it is dropped.
pub struct Looking {
    vitals: Vitals,
    sign: (Instant, u64),
}

impl Vitals {
    /// Everything begins now.
    pub fn new() -> Self {
        let watches = WATCHED.map(|name| (name, Instant::now())).into();
        Self(Arc::new(Mutex::new(Signs { watches, looks: BTreeSet::new(), begun: 0 })))
    }

    /// This path of the API server is being asked for: a sign of a watch, if it is that of a whole collection.
    pub fn asked(&self, path: &str) {
        let last = path.rsplit('/').next().unwrap_or_default();
        if let Some(seen) = self.signs().watches.get_mut(last) {
            *seen = Instant::now();
        }
    }

    /// A look begins.
    pub fn look(&self) -> Looking {
        let mut signs = self.signs();
        signs.begun += 1;
        let sign = (Instant::now(), signs.begun);
        signs.looks.insert(sign);
        Looking { vitals: self.clone(), sign }
    }

    /// For how long no watch of each kind was taken up, and how long the longest look under way has taken.
    pub fn silences(&self, now: Instant) -> (Vec<(&'static str, Duration)>, Duration) {
        let signs = self.signs();
        let watches = signs.watches.iter().map(|(name, seen)| (*name, now.saturating_duration_since(*seen))).collect();
        let look = signs.looks.first().map_or(Duration::ZERO, |(begun, _)| now.saturating_duration_since(*begun));
        (watches, look)
    }

    /// What has stopped, in a sentence.
    pub fn fault(&self, now: Instant) -> Option<String> {
        let (watches, look) = self.silences(now);
        let silent = watches.into_iter().find(|(_, silence)| *silence > SILENCE);
        match silent {
            Some((name, silence)) => Some(format!("the watch of {name} was not taken up for {} s", silence.as_secs())),
            None if look > LONGEST_LOOK => Some(format!("a look at a request has not ended for {} s", look.as_secs())),
            None => None,
        }
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        // The maps stay whole whatever a panicking holder of the lock was about.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.vitals.signs().looks.remove(&self.sign);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_is_not_taken_up_is_a_fault() {
        let vitals = Vitals::new();
        let later = Instant::now() + SILENCE + Duration::from_secs(1);
        let fault = vitals.fault(later).expect("a fault");
        assert!(fault.contains("was not taken up for 18"), "{fault}");
        assert_eq!(vitals.fault(Instant::now() + SILENCE / 2), None);
    }

    #[test]
    fn only_a_whole_collection_is_a_sign_of_its_watch() {
        let vitals = Vitals::new();
        let ages = |vitals: &Vitals| vitals.silences(Instant::now() + SILENCE).0;
        std::thread::sleep(Duration::from_millis(5));
        let before = ages(&vitals);
        vitals.asked("/api/v1/namespaces/shop/pods/web");
        assert!(ages(&vitals).iter().zip(&before).all(|(now, before)| now.1 >= before.1), "that was a read of one pod");
        vitals.asked("/api/v1/pods");
        let age = |ages: &[(&str, Duration)], name| ages.iter().find(|(known, _)| *known == name).expect("known").1;
        assert!(age(&ages(&vitals), "pods") < age(&before, "pods"));
        assert!(age(&ages(&vitals), "namespaces") >= age(&before, "namespaces"));
    }

    #[test]
    fn a_look_that_does_not_end_is_a_fault_and_one_that_ended_is_none() {
        let vitals = Vitals::new();
        let later = || Instant::now() + LONGEST_LOOK + Duration::from_secs(1);
        let ended = vitals.look();
        let looking = vitals.look();
        drop(ended);
        for name in WATCHED {
            // As if they had gone on until then.
            vitals.signs().watches.insert(name, later());
        }
        assert!(vitals.fault(later()).expect("a fault").contains("a look at a request has not ended for 60"));
        drop(looking);
        assert_eq!(vitals.fault(later()), None);
    }
}
