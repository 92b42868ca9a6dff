//! The whole system on real components: a real kube-apiserver and etcd, a real Vault (OpenBao, or HashiCorp Vault with
//! `TESTBED_VAULT=vault`), the operator and init containers as processes, with the rights that `config/` gives them.
//!
//! All tests share three control planes, each with a Vault and an operator; they end with this process.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod admission;
mod alerts;
mod answers;
mod api;
mod binding;
mod blast;
mod clusters;
mod delivery;
mod denial;
mod end;
mod fault;
mod ha;
mod injection;
mod killswitch;
mod life;
mod login;
mod outage;
mod push;
mod rights;
mod sealed;
mod secrecy;
mod standby;
mod stranger;
mod support;
mod sweep;
mod unseen;
mod waiting;
mod weight;
mod who;
