//! vault-token-operator: every Kubernetes pod gets its own Vault token, and loses it when it goes.
//!
//! The modules depend on each other in one direction only:
//! [`wire`] <- [`api`] <- [`seal`] <- [`domain`] <- [`vault`] <- ([`operator`], [`init`]).
#![forbid(unsafe_code)]

pub mod api;
pub mod cluster;
pub mod domain;
pub mod http;
pub mod init;
pub mod operator;
pub mod seal;
pub mod text;
pub mod traffic;
pub mod vault;
pub mod wire;
pub mod yaml;
