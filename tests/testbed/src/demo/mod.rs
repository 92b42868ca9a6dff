//! `cargo demo`: the main job on real components, shown as it happens. Whatever does not come true ends it with an
//! error.

mod existing;
mod node;
mod pods;
mod processes;
mod show;

use std::time::Duration;

pub use existing::{Existing, Images};
pub use node::{outside, tell};
pub use processes::Demo;

/// How long anything in the story may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The example workload, and what it makes.
const MANIFEST: &str = "examples/shop.yaml";
const NAMESPACE: &str = "shop";
const POD: &str = "web";
