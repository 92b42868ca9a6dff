//! All accessors in Vault: a right that the operator's everyday login does not have. A login of its own is made for each list,
//! and given back.

use super::connection::Connection;
use super::error::Error;
use super::login::Login;
use super::reply::Answer;
use crate::domain::rights::Capabilities;
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::watch;
use vaultrs::api::token::requests::ListAccessorRequest;

/// Vault drops a token that is looked up after it was stored and before its lease is registered. Nothing is looked up that
/// was not there for as long as this.
const SETTLING: Duration = Duration::from_secs(2);

/// Lists tokens.
#[derive(Clone, Debug)]
pub struct TokenLister {
    connection: Connection,
    login: Login,
    paths: Vec<String>,
    capabilities: watch::Sender<Option<Capabilities>>,
}

#[derive(Deserialize)]
struct ListAnswer {
    data: Keys,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<String>,
}

impl Answer {
    /// The accessors that were listed.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn accessors(&self) -> Result<Vec<String>, Error> {
        Ok(self.json::<ListAnswer>()?.data.keys)
    }
}

impl TokenLister {
    /// Lists with this login, and asks what it may do at these paths.
    pub fn new(connection: Connection, login: Login, paths: Vec<String>) -> Self {
        Self { connection, login, paths, capabilities: watch::Sender::new(None) }
    }

    /// What the login was found to be able to do, each time that it was asked about.
    pub fn capabilities(&self) -> watch::Receiver<Option<Capabilities>> {
        self.capabilities.subscribe()
    }

    /// The accessors of all live tokens of Vault (of its namespace, where it has any), each old enough to be looked up.
    ///
    /// # Errors
    /// Of the reason [`Reason::VaultForbids`](crate::api::Reason::VaultForbids) where the operator was not given the right: see
    /// `config/vault/`.
    pub async fn list(&self) -> Result<Vec<String>, Error> {
        let lease = self.login.log_in(&self.connection).await?;
        let listed = self.connection.list(&ListAccessorRequest {}, &lease.token).await;
        match self.connection.capabilities(&lease.token, self.paths.clone()).await {
            Ok(capabilities) => drop(self.capabilities.send_replace(Some(capabilities))),
            Err(error) => tracing::debug!(%error, "cannot look at what the login for the list may do"),
        }
        if let Err(error) = self.login.give_back(&self.connection, &lease.token).await {
            tracing::debug!(%error, "the login for the list was not given back; it ends by itself");
        }
        let accessors = listed?.accessors()?;
        tokio::time::sleep(SETTLING).await;
        Ok(accessors)
    }
}
