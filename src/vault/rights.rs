//! What the operator's login may do, by Vault's own word.

use super::error::Error;
use super::token::TokenStore;
use crate::domain::rights::Capabilities;
use rustify_derive::Endpoint;
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

impl TokenStore {
    /// What the present login may do at each of these paths.
    ///
    /// # Errors
    /// [`Error::is_forbidden`] where its policies do not let it ask.
    pub async fn capabilities(&self, paths: Vec<String>) -> Result<Capabilities, Error> {
        // A login is asked about as soon as it is made. If a refusal raised a doubt about it, a login without any right would be
        // followed by another, and so on.
        Ok(self.ask(&CapabilitiesRequest { paths }, None).await?.json::<CapabilitiesAnswer>()?.data)
    }
}
