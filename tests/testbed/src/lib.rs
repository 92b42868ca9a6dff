//! A real control plane and a real Vault on loopback, for the demo and the tests.
//!
//! [`Testbed::start`] gets the real components ([`components`]), starts them with TLS from an authority of its own
//! ([`control_plane`], [`vault`]), and [`guard`] sees to it that nothing is left of them, however the process ends.

#![forbid(unsafe_code)]

pub mod bed;
pub mod churn;
pub mod components;
pub mod control_plane;
pub mod crash;
pub mod demo;
pub mod error;
pub mod foreign;
pub mod guard;
pub mod helm;
pub mod image;
pub mod kubectl;
pub mod kubelet;
pub mod load;
pub mod node;
pub mod pki;
pub mod port;
pub mod process;
pub mod project;
pub mod proxy;
pub mod report;
pub mod run;
pub mod settings;
pub mod suite;
pub mod system;
pub mod vault;
pub mod workdir;
pub mod world;

pub use bed::Testbed;
pub use error::Error;
