//! Tokens that were minted and have no record: taken back beside everything else, so that no request waits for it.

use super::controller::RETRY;
use crate::vault::TokenStore;
use std::time::Duration;
use tokio::time::Instant;

/// Revokes tokens until Vault confirms that they are dead.
#[derive(Clone)]
pub struct Reaper(TokenStore);

impl Reaper {
    /// Revokes through `tokens`.
    pub fn new(tokens: TokenStore) -> Self {
        Self(tokens)
    }

    /// Sees to the death of a token that nobody renews: until Vault confirms it, or its period is over. A restart of the
    /// operator ends the effort; what is left then lives for its period.
    pub fn take_back(&self, request_uid: String, accessor: String, period: Duration) {
        let tokens = self.0.clone();
        tokio::spawn(async move {
            let end = Instant::now() + period;
            let mut failures = 0;
            while let Err(error) = tokens.revoke(&accessor).await {
                failures += 1;
                tracing::warn!(%error, failures, token_accessor = accessor, "cannot revoke an unrecorded token yet");
                if Instant::now() >= end {
                    tracing::error!(target: "audit", step = "UnrecordedExpired", request_uid,
                        token_accessor = accessor, "a token could be neither recorded nor revoked; its period is over");
                    return;
                }
                tokio::time::sleep(RETRY.after(failures, rand::random())).await;
            }
            tracing::info!(target: "audit", step = "UnrecordedRevoked", request_uid, token_accessor = accessor,
                "a token that could not be recorded was revoked");
        });
    }
}
