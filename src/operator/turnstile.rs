//! Who is looked at when many wait: each namespace has a few places, so that one tenant's flood does not delay another's
//! requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many requests are in work at a time.
const PLACES: usize = 128;

/// How many of them can be of one namespace.
const NAMESPACE_PLACES: usize = 16;

/// How many more of one namespace can wait in line; the others come again later.
const LINE: usize = 256;

/// Hands out places, to those of a namespace in the order in which they came.
pub struct Turnstile {
    places: Arc<Semaphore>,
    namespaces: Mutex<HashMap<String, Arc<Namespace>>>,
    waiting: AtomicUsize,
}

struct Namespace {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A place, until it is dropped.
pub struct Pass {
    _namespace: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

/// One that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    /// One more in this line, and how many were in it before.
    fn behind(line: &'a AtomicUsize) -> (Self, usize) {
        let before = line.fetch_add(1, Ordering::Relaxed);
        (Self(line), before)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turnstile {
    /// All places free.
    pub fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(PLACES)), namespaces: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    /// Waits for a place; `None` where too many of the namespace do already.
    pub async fn enter(&self, namespace: &str) -> Option<Pass> {
        let own = self.namespace(namespace);
        let (in_line, before) = Waiting::behind(&own.waiting);
        if before >= LINE {
            return None;
        }
        let (_waiting, _) = Waiting::behind(&self.waiting);
        let within = own.places.clone().acquire_owned().await;
        drop(in_line);
        // No semaphore is ever closed.
        Some(Pass { _namespace: within.ok()?, _place: self.places.clone().acquire_owned().await.ok()? })
    }

    /// How many wait for a place.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn namespace(&self, name: &str) -> Arc<Namespace> {
        // The map stays whole whatever a panicking holder of the lock was about.
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = namespaces.get(name) {
            return known.clone();
        }
        // Those that nobody uses are forgotten; it is done where the map grows, and so not often.
        namespaces
            .retain(|_, known| Arc::strong_count(known) > 1 || known.places.available_permits() < NAMESPACE_PLACES);
        let new = Namespace { places: Arc::new(Semaphore::new(NAMESPACE_PLACES)), waiting: AtomicUsize::new(0) };
        namespaces.entry(name.to_owned()).or_insert(Arc::new(new)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_namespace_that_floods_leaves_places_to_others() {
        let turnstile = Turnstile::new();
        let mut held = Vec::new();
        while let Some(Some(pass)) = turnstile.enter("flood").now_or_never() {
            held.push(pass);
        }
        assert_eq!(held.len(), NAMESPACE_PLACES);
        assert!(turnstile.enter("shop").now_or_never().flatten().is_some(), "another namespace waits");
        held.pop();
        assert!(turnstile.enter("flood").now_or_never().flatten().is_some(), "a place is free again");
    }

    #[tokio::test]
    async fn the_line_has_an_end() {
        let turnstile = Turnstile::new();
        let _held: Vec<_> = (0..NAMESPACE_PLACES).map(|_| turnstile.enter("flood").now_or_never()).collect();
        let mut line: Vec<_> = (0..LINE).map(|_| Box::pin(turnstile.enter("flood"))).collect();
        for waiting in &mut line {
            assert!(waiting.now_or_never().is_none());
        }
        assert!(turnstile.enter("flood").now_or_never().expect("no wait").is_none());
        assert_eq!(turnstile.waiting(), LINE);
        drop(line);
        assert_eq!(turnstile.waiting(), 0);
    }
}
