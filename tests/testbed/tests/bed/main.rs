//! One testbed of real components, and what everything that stands on it relies on.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod control_plane;
mod vault;

use testbed::Testbed;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Held by tests that use what runs (read), and by those that stop it for a while (write).
static RUNNING: RwLock<()> = RwLock::const_new(());

/// The testbed, with all of it running. Tests that hold this run side by side.
async fn shared() -> (&'static Testbed, RwLockReadGuard<'static, ()>) {
    let guard = RUNNING.read().await;
    (Testbed::shared().await.unwrap(), guard)
}

/// The testbed, for a test that is alone with it and leaves all of it running.
async fn alone() -> (&'static Testbed, RwLockWriteGuard<'static, ()>) {
    let guard = RUNNING.write().await;
    (Testbed::shared().await.unwrap(), guard)
}
