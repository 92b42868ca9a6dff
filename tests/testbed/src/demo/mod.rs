//! `cargo demo`: the main job on real components, shown as it happens. Whatever does not come true ends it with an
//! error.

mod node;
mod processes;
mod show;

use std::time::Duration;

use crate::error::Error;
use crate::settings::{KubernetesVersion, Settings};
use crate::world;
pub use node::{outside, tell};
pub use processes::Demo;

/// How long anything in the story may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The example workload, and what it makes.
const MANIFEST: &str = "examples/shop.yaml";
const NAMESPACE: &str = "shop";
const POD: &str = "web";

/// Why the demo cannot have a real node here, if it cannot.
pub fn no_node() -> Result<Option<String>, Error> {
    match Settings::from_env()?.kubernetes {
        KubernetesVersion::V1_37 => Ok(world::lacking()),
        older => Ok(Some(format!("nodes are of 1.37 here, and not of 1.{}", older.minor()))),
    }
}
