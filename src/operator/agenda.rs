//! What is remembered of requests from one look to the next, so that a look that would see nothing new is left out, and one that
//! would never is.

use crate::api::VaultTokenRequest;
use crate::domain::token::Hand;
use kube::ResourceExt;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A request's namespace and name.
pub type Key = (Option<String>, String);

/// What is remembered of one request.
#[derive(Default)]
pub struct Work {
    /// The request's UID: what is remembered of one is nothing to another of the same name.
    uid: Option<String>,
    /// What the last look had in its hand.
    pub hand: Hand,
    /// Looks in a row that did not get on.
    pub failures: u32,
    echo: Option<Echo>,
    /// Something happened around the request since the last look began.
    hurried: bool,
}

/// What the last look saw and left behind. The same again before the next look is due is no reason to look earlier: most often
/// it is the echo of the look's own write.
struct Echo {
    version: String,
    around: Around,
    due: Instant,
}

/// What a look takes from the watches beside the request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// Whether its pod is alive.
    pub pod_lives: bool,
    /// Whether a newer request of its pod is Delivered.
    pub superseded: bool,
    /// The edition of the rules.
    pub edition: u64,
}

/// What is remembered of all requests. Only what waits for another look, or is being looked at, has an entry.
#[derive(Default)]
pub struct Agenda(Mutex<HashMap<Key, Work>>);

impl Work {
    /// How long the next look can wait, if this would be one at what the last has left behind.
    pub fn rest(&self, version: Option<&str>, around: Around) -> Option<Duration> {
        let echo = self.echo.as_ref().filter(|echo| Some(&*echo.version) == version && echo.around == around)?;
        echo.due.checked_duration_since(Instant::now())
    }

    /// A look has seen this around the request and left this version of it; the next one is due after `wait`.
    pub fn looked(&mut self, version: Option<String>, around: Around, wait: Duration) {
        self.echo = version.map(|version| Echo { version, around, due: Instant::now() + wait });
    }
}

impl Agenda {
    /// A look at the request begins. What happens from now on is not seen by it, perhaps, and makes another one follow.
    pub fn take(&self, request: &VaultTokenRequest) -> Work {
        let uid = request.uid();
        let begun = Work { uid: uid.clone(), ..Work::default() };
        let found = self.works().insert(key(request), begun).filter(|work| work.uid == uid);
        found.map_or_else(
            || Work { uid, ..Work::default() },
            |mut work| {
                if std::mem::take(&mut work.hurried) {
                    work.echo = None;
                }
                work
            },
        )
    }

    /// The look has ended, and there will be another.
    pub fn keep(&self, request: &VaultTokenRequest, mut work: Work) {
        let mut works = self.works();
        let key = key(request);
        work.hurried = works.get(&key).is_some_and(|begun| begun.hurried);
        works.insert(key, work);
    }

    /// The look has ended, and no other is due: the next thing that happens brings one.
    pub fn rest(&self, request: &VaultTokenRequest) {
        self.works().remove(&key(request));
    }

    /// The request is gone; gives what was remembered of it.
    pub fn forget(&self, key: &Key) -> Option<(String, Hand)> {
        let work = self.works().remove(key)?;
        Some((work.uid.unwrap_or_default(), work.hand))
    }

    /// Something happened around the request: the next look is due at once.
    pub fn hurry(&self, key: &Key) {
        if let Some(work) = self.works().get_mut(key) {
            work.hurried = true;
        }
    }

    /// How many looks in a row did not get on.
    pub fn failures(&self, request: &VaultTokenRequest) -> Option<u32> {
        self.works().get(&key(request)).map(|work| work.failures)
    }

    fn works(&self) -> MutexGuard<'_, HashMap<Key, Work>> {
        // The map stays whole whatever a panicking holder of the lock was about.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(request: &VaultTokenRequest) -> Key {
    (request.namespace(), request.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Delivery, VaultTokenRequestSpec};

    const ALIVE: Around = Around { pod_lives: true, superseded: false, edition: 1 };
    const GONE: Around = Around { pod_lives: false, superseded: false, edition: 1 };

    fn request(uid: &str) -> VaultTokenRequest {
        let spec = VaultTokenRequestSpec {
            pod_name: "web".into(),
            pod_uid: "1".into(),
            sequence: 1,
            init_container: "vault-init".into(),
            public_key: String::new(),
            delivery: Delivery::Push,
            port: Some(8200),
        };
        let mut request = VaultTokenRequest::new("web-1-0", spec);
        request.metadata.namespace = Some("shop".into());
        request.metadata.uid = Some(uid.into());
        request
    }

    /// One look that sees this, and leaves version 7 for an hour.
    fn look(agenda: &Agenda, around: Around) {
        let mut work = agenda.take(&request("a"));
        work.looked(Some("7".into()), around, Duration::from_secs(3600));
        agenda.keep(&request("a"), work);
    }

    fn rests(agenda: &Agenda, version: &str, around: Around) -> bool {
        let work = agenda.take(&request("a"));
        let rests = work.rest(Some(version), around).is_some();
        agenda.keep(&request("a"), work);
        rests
    }

    #[test]
    fn the_echo_of_a_look_is_left_out() {
        let agenda = Agenda::default();
        look(&agenda, ALIVE);
        assert!(rests(&agenda, "7", ALIVE));
        assert!(rests(&agenda, "7", ALIVE), "and again");
        assert!(!rests(&agenda, "8", ALIVE), "another version is news");
    }

    #[test]
    fn i3_what_happens_after_a_look_makes_another_one() {
        let agenda = Agenda::default();
        look(&agenda, ALIVE);
        agenda.hurry(&key(&request("a")));
        assert!(!rests(&agenda, "7", ALIVE));
    }

    #[test]
    fn i3_what_happens_during_a_look_makes_another_one() {
        let agenda = Agenda::default();
        let mut work = agenda.take(&request("a"));
        agenda.hurry(&key(&request("a")));
        work.looked(Some("7".into()), ALIVE, Duration::from_secs(3600));
        agenda.keep(&request("a"), work);
        assert!(!rests(&agenda, "7", ALIVE));
    }

    #[test]
    fn i3_what_happened_while_the_request_was_not_in_sight_makes_another_look() {
        let agenda = Agenda::default();
        look(&agenda, ALIVE);
        assert!(!rests(&agenda, "7", GONE));
        assert!(!rests(&agenda, "7", Around { superseded: true, ..ALIVE }));
    }

    #[test]
    fn what_is_remembered_of_one_request_is_nothing_to_another_of_its_name() {
        let agenda = Agenda::default();
        look(&agenda, ALIVE);
        assert!(agenda.take(&request("b")).rest(Some("7"), ALIVE).is_none());
    }

    #[test]
    fn what_rests_or_is_gone_has_no_entry() {
        let agenda = Agenda::default();
        look(&agenda, ALIVE);
        agenda.take(&request("a"));
        agenda.rest(&request("a"));
        assert_eq!(agenda.failures(&request("a")), None);
        look(&agenda, ALIVE);
        assert_eq!(agenda.forget(&key(&request("a"))).map(|(uid, _)| uid), Some("a".into()));
        assert!(agenda.forget(&key(&request("a"))).is_none());
    }
}
