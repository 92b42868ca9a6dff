//! Wrapping tokens as the init container deals with them: looked at, then opened once.

use super::connection::Connection;
use super::error::Error;
use super::reply::Answer;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::collections::HashMap;
use vaultrs::api::sys::requests::{UnwrapRequest, WrappingLookupRequest};

/// The words for a wrapping token with anything else in it, or with a token that has no accessor.
pub const WRAPS_NO_TOKEN: &str = "it wraps no token";

/// What Vault says of a wrapping token without opening it.
#[derive(Clone, Debug, Deserialize)]
pub struct WrappingInfo {
    /// The path of the call whose answer is wrapped.
    pub creation_path: String,
}

/// A token out of its wrapping, and Vault's whole answer.
#[derive(Debug)]
pub struct Unwrapped {
    /// The token.
    pub token: SecretString,
    /// Its accessor.
    pub accessor: String,
    /// The metadata that it was made with.
    pub metadata: HashMap<String, String>,
    /// Vault's answer, byte for byte.
    pub answer: Answer,
}

#[derive(Deserialize)]
struct LookupAnswer {
    data: WrappingInfo,
}

#[derive(Deserialize)]
struct UnwrapAnswer {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    accessor: String,
    #[serde(default)]
    metadata: Option<HashMap<String, String>>,
}

impl Answer {
    /// What Vault says of a wrapping token that was looked up.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn wrapping_info(&self) -> Result<WrappingInfo, Error> {
        Ok(self.json::<LookupAnswer>()?.data)
    }

    /// The token that was wrapped.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn unwrapped(self) -> Result<Unwrapped, Error> {
        let UnwrapAnswer { auth } = self.json()?;
        if auth.client_token.is_empty() || auth.accessor.is_empty() {
            return Err(Error::Malformed(WRAPS_NO_TOKEN));
        }
        let metadata = auth.metadata.unwrap_or_default();
        Ok(Unwrapped { token: auth.client_token.into(), accessor: auth.accessor, metadata, answer: self })
    }
}

impl Connection {
    /// Looks a wrapping token up; it stays unused.
    ///
    /// # Errors
    /// [`Error::says_invalid_wrapping_token`] when it was used already, or has expired.
    pub async fn look_up_wrapping(&self, token: &SecretString) -> Result<WrappingInfo, Error> {
        let call = WrappingLookupRequest { token: token.expose_secret().to_owned() };
        self.call(&call, None, None).await?.wrapping_info()
    }

    /// Opens a wrapping token, which uses it up.
    ///
    /// # Errors
    /// [`Error::says_invalid_wrapping_token`] when it was used already, or has expired.
    pub async fn unwrap(&self, token: &SecretString) -> Result<Unwrapped, Error> {
        // The wrapping token authenticates the call itself, and needs no other.
        self.call(&UnwrapRequest { token: None }, Some(token), None).await?.unwrapped()
    }
}
