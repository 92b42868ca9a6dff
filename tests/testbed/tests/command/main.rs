//! The command line of the testbed: what it leaves, what it builds, and what it says.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod building;
mod choosing;
mod ending;
mod world;
