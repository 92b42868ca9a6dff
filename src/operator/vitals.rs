//! Signs of life. A watch that nobody takes up any more, a look at a request that does not end, or a sweep that does not come would go
//! unseen: requests would wait, and tokens live on. Only a new start mends it, so `/healthz` fails then.

use crate::cluster::Call;
use crate::traffic::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is watched, as RBAC names it. Each watch ends by itself ([`crate::cluster::watch`]) and is taken up again, also while
/// the API server is away. One that has not begun is no fault: not all are needed with all settings, and `/readyz` knows the others.
const WATCHED: [&str; 6] = [
    "vaulttokenrequests",
    "pods",
    "vaultpolicybindings",
    "namespaces",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
];

/// After how long a watch has stopped that is not taken up, or does not bring what it owes.
const SILENCE: Duration = Duration::from_secs(180);

/// No look takes as long: each call in it has a time limit, a push the longest.
const LONGEST_LOOK: Duration = Duration::from_secs(600);

/// After how long the sweep has stopped that is to go on: the calls for one token take minutes at most.
const OVERDUE: Duration = Duration::from_secs(3600);

/// What is known of them; a clone knows the same.
#[derive(Clone, Debug)]
pub struct Vitals(Arc<Mutex<Signs>>);

#[derive(Debug)]
struct Signs {
    watches: BTreeMap<&'static str, Instant>,
    /// Of each watch the object that it is to bring news of for longest, and since when.
    owed: BTreeMap<&'static str, (String, Instant)>,
    looks: BTreeSet<(Instant, u64)>,
    begun: u64,
    /// When the sweep is to go on, if this replica sweeps.
    sweep: Option<Instant>,
}

/// A look at a request that is under way, until it is dropped.
pub struct Looking {
    vitals: Vitals,
    sign: (Instant, u64),
}

impl Vitals {
    /// Nothing has begun.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Signs {
            watches: BTreeMap::new(),
            owed: BTreeMap::new(),
            looks: BTreeSet::new(),
            begun: 0,
            sweep: None,
        })))
    }

    /// A call to the API server has ended, however; of a list or a watch, its beginning.
    pub fn called(&self, call: Call) {
        if ["list", "watch"].contains(&call.verb) && WATCHED.contains(&call.resource) {
            let (now, mut signs) = (Instant::now(), self.signs());
            signs.watches.insert(call.resource, now);
            // What is listed is not watched meanwhile, and an API server that is away brings nothing: no new start mends that.
            if (call.verb == "list" || call.outcome != Outcome::Ok)
                && let Some((_, since)) = signs.owed.get_mut(call.resource)
            {
                *since = now;
            }
        }
    }

    /// It is known that an object changes: its watch is to bring it. Gives whether that is what the watch owes from now on; otherwise it owes
    /// something older.
    pub fn owe(&self, resource: &'static str, uid: &str) -> bool {
        let mut signs = self.signs();
        let first = !signs.owed.contains_key(resource);
        if first {
            signs.owed.insert(resource, (uid.to_owned(), Instant::now()));
        }
        first
    }

    /// A watch has brought news of an object, or none is to come.
    pub fn brought(&self, resource: &'static str, uid: &str) {
        let mut signs = self.signs();
        if signs.owed.get(resource).is_some_and(|(owed, _)| owed == uid) {
            signs.owed.remove(resource);
        }
    }

    /// A list has brought everything there is.
    pub fn listed(&self, resource: &'static str) {
        self.signs().owed.remove(resource);
    }

    /// A look begins.
    pub fn look(&self) -> Looking {
        let mut signs = self.signs();
        signs.begun += 1;
        let sign = (Instant::now(), signs.begun);
        signs.looks.insert(sign);
        Looking { vitals: self.clone(), sign }
    }

    /// The sweep is to go on by then; with `None`, never.
    pub fn sweep_due(&self, due: Option<Instant>) {
        self.signs().sweep = due;
    }

    /// For how long the sweep has not gone on that was to.
    pub fn sweep_overdue(&self, now: Instant) -> Duration {
        self.signs().sweep.map_or(Duration::ZERO, |due| now.saturating_duration_since(due))
    }

    /// The watch that has been silent for longest, how, and for how long.
    pub fn silence(&self, now: Instant) -> (&'static str, &'static str, Duration) {
        let signs = self.signs();
        let idle = signs.watches.iter().map(|(name, seen)| (*seen, *name, "was not taken up"));
        let owing = signs.owed.iter().map(|(name, (_, since))| (*since, *name, "does not bring what has changed"));
        let first = idle.chain(owing).min_by_key(|(since, ..)| *since);
        first.map_or(("none", "", Duration::ZERO), |(since, name, how)| {
            (name, how, now.saturating_duration_since(since))
        })
    }

    /// How long the longest look under way has taken.
    pub fn longest_look(&self, now: Instant) -> Duration {
        self.signs().looks.first().map_or(Duration::ZERO, |(begun, _)| now.saturating_duration_since(*begun))
    }

    /// What has stopped, in a sentence.
    pub fn fault(&self, now: Instant) -> Option<String> {
        let ((name, how, silence), look) = (self.silence(now), self.longest_look(now));
        let sweep = self.sweep_overdue(now);
        if silence > SILENCE {
            Some(format!("the watch of {name} {how} for {} s", silence.as_secs()))
        } else if look > LONGEST_LOOK {
            Some(format!("a look at a request has not ended for {} s", look.as_secs()))
        } else if sweep > OVERDUE {
            Some(format!("the sweep has not gone on for {} s", sweep.as_secs()))
        } else {
            None
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

    fn call(verb: &'static str, resource: &'static str) -> Call {
        // As while the API server is away.
        Call { verb, resource, outcome: Outcome::Unavailable }
    }

    #[test]
    fn a_watch_that_is_not_taken_up_any_more_is_a_fault_and_one_that_never_began_is_none() {
        let vitals = Vitals::new();
        let later = Instant::now() + SILENCE + Duration::from_secs(1);
        assert_eq!(vitals.fault(later), None);
        vitals.called(call("list", "pods"));
        let fault = vitals.fault(later).expect("a fault");
        assert!(fault.contains("the watch of pods was not taken up for 18"), "{fault}");
        assert_eq!(vitals.fault(Instant::now() + SILENCE / 2), None);
    }

    #[test]
    fn only_its_own_lists_and_watches_are_signs_of_a_watch() {
        let vitals = Vitals::new();
        let past = Instant::now().checked_sub(SILENCE).expect("a time before");
        let silent = |vitals: &Vitals| vitals.silence(Instant::now()).0;
        vitals.signs().watches.insert("pods", past);
        vitals.called(call("get", "pods"));
        vitals.called(call("watch", "namespaces"));
        vitals.called(call("list", "secrets"));
        assert_eq!(silent(&vitals), "pods");
        vitals.called(call("watch", "pods"));
        assert_ne!(silent(&vitals), "pods");
    }

    #[test]
    fn a_watch_that_does_not_bring_what_is_known_to_have_changed_is_a_fault() {
        let vitals = Vitals::new();
        let taken_up = |verb, outcome| vitals.called(Call { verb, resource: "pods", outcome });
        let age = |uid| {
            let past = Instant::now().checked_sub(SILENCE + Duration::from_secs(1)).expect("a time before");
            vitals.signs().owed.insert("pods", (String::from(uid), past));
            taken_up("watch", Outcome::Ok);
            let fault = vitals.fault(Instant::now()).expect("a fault");
            assert!(fault.starts_with("the watch of pods does not bring what has changed for 18"), "{fault}");
        };
        let mended = || vitals.fault(Instant::now()).is_none();
        assert!(vitals.owe("pods", "1") && !vitals.owe("pods", "2") && vitals.owe("vaulttokenrequests", "2"));
        age("1");
        vitals.brought("pods", "2");
        assert!(!mended(), "it was something else");
        vitals.brought("pods", "1");
        assert!(mended());
        age("1");
        vitals.listed("pods");
        assert!(mended());
        for (verb, outcome) in [("list", Outcome::Ok), ("watch", Outcome::Unavailable), ("watch", Outcome::Refused)] {
            age("1");
            taken_up(verb, outcome);
            assert!(mended(), "{verb} {outcome:?}");
        }
    }

    #[test]
    fn a_sweep_that_does_not_go_on_is_a_fault_and_one_that_is_not_due_is_none() {
        let vitals = Vitals::new();
        let (now, later) = (Instant::now(), Instant::now() + OVERDUE + Duration::from_secs(1));
        assert_eq!((vitals.fault(later), vitals.sweep_overdue(later)), (None, Duration::ZERO), "another replica's");
        vitals.sweep_due(Some(now));
        assert_eq!(vitals.fault(later), Some("the sweep has not gone on for 3601 s".to_owned()));
        assert_eq!(vitals.fault(now + OVERDUE), None);
        vitals.sweep_due(Some(later));
        assert_eq!((vitals.fault(later), vitals.sweep_overdue(now)), (None, Duration::ZERO));
        vitals.sweep_due(None);
        assert_eq!(vitals.fault(later + 2 * OVERDUE), None);
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
