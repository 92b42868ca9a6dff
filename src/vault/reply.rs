//! What Vault answers, or whoever answers in its place: success told from failure, and nothing printed that could be a token.

use super::error::{Error, WORDLESS};
use crate::text::one_line;
use secrecy::{ExposeSecret, SecretSlice};
use serde::Deserialize;

/// The body of an answer. It may hold tokens, so it cannot be printed and is zeroed when dropped.
///
/// What is read of an answer stands with the call that it answers: pure functions, which can be tried with any bytes.
#[derive(Debug)]
pub struct Answer(SecretSlice<u8>);

impl Answer {
    /// Takes the status and the whole body of what was answered to a call of this path.
    ///
    /// # Errors
    /// Whatever is no answer of success.
    pub fn read(status: u16, path: &str, body: Vec<u8>) -> Result<Self, Error> {
        match status {
            200..300 => Ok(Self(body.into())),
            401 | 403 => {
                Err(Error::Forbidden { path: path.trim_start_matches('/').to_owned(), messages: messages(&body) })
            }
            status => Err(Error::Answered { status, messages: messages(&body) }),
        }
    }

    /// Reads the answer as JSON.
    ///
    /// # Errors
    /// [`Error::Malformed`], without a word of the body: a parser's message quotes what it could not read.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Error> {
        serde_json::from_slice(self.0.expose_secret()).map_err(|_| Error::Malformed("it is not the JSON it should be"))
    }

    /// The bytes as Vault sent them.
    pub fn bytes(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

/// Vault's own words out of an answer of failure (`{"errors": [...]}`).
fn messages(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Failure {
        #[serde(default)]
        errors: Vec<String>,
    }
    match serde_json::from_slice::<Failure>(body) {
        Ok(failure) if failure.errors.iter().any(|error| !error.trim().is_empty()) => {
            one_line(&failure.errors.join("; "))
        }
        _ => WORDLESS.to_owned(),
    }
}
