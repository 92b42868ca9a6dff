//! What the operator's login may do, by Vault's own word.

use super::connection::Connection;
use super::error::Error;
use super::reply::Answer;
use super::token::TokenStore;
use crate::domain::rights::Capabilities;
use rustify_derive::Endpoint;
use secrecy::SecretString;
use serde::Deserialize;

#[derive(Debug, Endpoint)]
#[endpoint(path = "/sys/capabilities-self", method = "POST")]
struct CapabilitiesRequest {
    paths: Vec<String>,
}

#[derive(Deserialize)]
struct CapabilitiesAnswer {
    data: Capabilities,
}

impl Answer {
    /// What may be done, by path.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn capabilities(&self) -> Result<Capabilities, Error> {
        Ok(self.json::<CapabilitiesAnswer>()?.data)
    }
}

impl Connection {
    /// What may be done with this token at each of these paths.
    ///
    /// # Errors
    /// [`Error::is_forbidden`] where its policies do not let it ask.
    pub async fn capabilities(&self, token: &SecretString, paths: Vec<String>) -> Result<Capabilities, Error> {
        self.call(&CapabilitiesRequest { paths }, Some(token), None).await?.capabilities()
    }
}

impl TokenStore {
    /// What the present login may do at each of these paths.
    ///
    /// # Errors
    /// [`Error::is_forbidden`] where its policies do not let it ask.
    pub async fn capabilities(&self, paths: Vec<String>) -> Result<Capabilities, Error> {
        // A login is asked about as soon as it is made. If a refusal raised a doubt about it, a login without any right would be
        // followed by another, and so on.
        self.ask(&CapabilitiesRequest { paths }, None).await?.capabilities()
    }
}
