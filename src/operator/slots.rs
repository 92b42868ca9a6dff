//! Pushes under way. A pod that takes the connection and says nothing holds its push for as long as a push may last, so pushes are
//! counted apart from looks: for each pod, for each namespace, and in all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// In all: fewer than the places of the turnstile.
const PUSHES: usize = 96;

/// For one namespace: fewer than its places, so that renewals and revocations of its own go on beside.
const NAMESPACE_PUSHES: usize = 12;

/// For one pod: its init container has use for one token.
const POD_PUSHES: usize = 1;

/// Hands out slots; nobody waits for one.
#[derive(Clone, Default)]
pub struct Slots(Arc<Mutex<HashMap<Key, usize>>>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    All,
    Namespace(String),
    Pod(String),
}

/// A push's slot, until it is dropped.
pub struct Slot(Slots, [Key; 3]);

impl Slots {
    /// Takes a slot for a push to this pod, if there is one.
    pub fn take(&self, namespace: &str, pod_uid: &str) -> Option<Slot> {
        let keys = [Key::All, Key::Namespace(namespace.to_owned()), Key::Pod(pod_uid.to_owned())];
        let mut counts = self.counts();
        let full = |(key, most): (&Key, usize)| counts.get(key).is_some_and(|count| *count >= most);
        if keys.iter().zip([PUSHES, NAMESPACE_PUSHES, POD_PUSHES]).any(full) {
            return None;
        }
        for key in &keys {
            *counts.entry(key.clone()).or_default() += 1;
        }
        Some(Slot(self.clone(), keys))
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        // The map stays whole whatever a panicking holder of the lock was about.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        for key in &self.1 {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_one_push_at_a_time_and_a_namespace_leaves_slots_to_others() {
        let slots = Slots::default();
        let first = slots.take("flood", "0");
        assert!(first.is_some() && slots.take("flood", "0").is_none(), "one a pod");
        let mut held: Vec<_> = (1..).map_while(|pod| slots.take("flood", &pod.to_string())).collect();
        held.extend(first);
        assert_eq!(held.len(), NAMESPACE_PUSHES);
        assert!(slots.take("shop", "p").is_some(), "another namespace has its own");
        let others: Vec<_> = (0..2 * PUSHES).map_while(|n| slots.take(&n.to_string(), &format!("{n}/p"))).collect();
        assert_eq!(held.len() + others.len(), PUSHES);
        drop((held, others));
        assert!(slots.counts().is_empty(), "nothing is left of those that are over");
    }
}
