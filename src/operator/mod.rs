//! The operator: one way through the code for every request.
//!
//! observe -> [`decide`](crate::domain::plan::decide) -> execute -> [`Draft`](crate::domain::status::Draft) -> ledger

mod controller;
mod execute;
mod health;
mod herald;
mod ledger;
mod observe;
mod patience;
mod pods;
mod push;
mod reaper;
mod settings;

pub use settings::{Arguments, Settings};

use crate::cluster;
use crate::vault::{Session, TokenStore};
use execute::Executor;
use health::Health;
use herald::Herald;
use ledger::Ledger;
use std::future::Future;

/// Runs the operator until `stop` resolves; what is in work then is brought to an end first.
///
/// # Errors
/// A sentence that says what is missing to run at all.
pub async fn run(settings: Settings, stop: impl Future<Output = ()> + Send + Sync + 'static) -> Result<(), String> {
    let listener = health::listen(settings.health_address).await?;
    let client = cluster::connect().await?;
    let session = Session::start(settings.vault.clone(), settings.login.clone());
    let health = Health::new(session.clone());
    let tokens = TokenStore::new(settings.vault, session, settings.token_role, settings.wrapping_ttl);
    let pods = observe::Pods::new(client.clone());
    let ledger = Ledger::new(client.clone(), Herald::start(client.clone()));
    let executor = Executor::new(settings.cluster, settings.limits, ledger, pods, tokens)?;
    tokio::select! {
        () = controller::run(client, executor, health.clone(), stop) => Ok(()),
        () = health::serve(listener, health) => Err("the health endpoint ended".to_owned()),
    }
}
