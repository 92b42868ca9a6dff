//! What can go wrong between the operator and Vault. No variant ever holds a token, or text that could.

use crate::api::Reason;

/// A call to Vault that did not end well.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nothing reached Vault.
    #[error("cannot reach Vault at {address}: {cause}")]
    Unreachable {
        /// The address as configured.
        address: String,
        /// What the network or TLS said.
        cause: String,
    },
    /// The call may have reached Vault and taken effect, or not: its answer did not come.
    #[error("Vault did not answer: {0}")]
    Unanswered(String),
    /// Vault does not accept the token, or what was tried with it.
    #[error("Vault forbids {path} ({messages}); compare its policies and roles with config/vault/")]
    Forbidden {
        /// The path that was called.
        path: String,
        /// Vault's own words, on one line.
        messages: String,
    },
    /// Vault answered with another error.
    #[error("Vault answered {status}: {messages}")]
    Answered {
        /// The HTTP status.
        status: u16,
        /// Vault's own words, on one line.
        messages: String,
    },
    /// The answer is not what Vault's API promises.
    #[error("Vault's answer cannot be used: {0}")]
    Malformed(&'static str),
    /// The operator holds no valid Vault token at the moment.
    #[error("not logged in to Vault: {0}")]
    NotLoggedIn(String),
}

impl Error {
    /// Whether the call certainly had no effect, so that it may be made again as if it had never been made.
    pub fn had_no_effect(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotLoggedIn(_) | Self::Forbidden { .. } => true,
            // 503: sealed or standby; 429: over a quota. Vault says these before it does anything.
            Self::Answered { status, .. } => (400..500).contains(status) || *status == 503,
            Self::Unanswered(_) | Self::Malformed(_) => false,
        }
    }

    /// Whether Vault itself refuses what was asked, so that asking again is of no use.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Answered { status: 400, .. })
    }

    /// Whether Vault does not accept the operator's token for what was asked.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }

    /// The reason that conditions and Events give for it.
    pub fn reason(&self) -> Reason {
        match self {
            _ if self.is_forbidden() => Reason::VaultForbids,
            _ if self.is_refusal() => Reason::VaultRefused,
            // A missing role, mount or namespace.
            Self::Answered { status: 404, .. } => Reason::VaultForbids,
            _ => Reason::VaultUnavailable,
        }
    }
}
