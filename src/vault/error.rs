//! What can go wrong between the operator and Vault. No variant ever holds a token, or text that could.

use crate::api::Reason;

/// What stands for Vault's words where an answer has none: it may come from a proxy.
pub const WORDLESS: &str = "no further words";

/// A call to Vault that did not end well.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nothing reached Vault.
    #[error("cannot reach Vault at {address} (VAULT_ADDR, VAULT_CACERT, VAULT_TLS_SERVER_NAME): {cause}")]
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
    /// Vault is known to be away, and nothing was sent: see `breaker.rs`.
    #[error("{0}")]
    Away(String),
    /// Vault makes tokens that cannot be recorded, and so not be revoked either.
    #[error("Vault's token is of no use here: {0}")]
    Unsupported(&'static str),
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
            Self::Unreachable { .. } | Self::NotLoggedIn(_) | Self::Forbidden { .. } | Self::Away(_) => true,
            // 503: sealed or standby; 429: over a quota. Vault says these before it does anything, and says why; a proxy says the
            // like of an answer that it lost.
            Self::Answered { status, messages } => {
                messages != WORDLESS && ((400..500).contains(status) || *status == 503)
            }
            Self::Unanswered(_) | Self::Malformed(_) | Self::Unsupported(_) => false,
        }
    }

    /// Whether it says more of Vault's state than of the one call: the next call would hardly go better.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unanswered(_) => true,
            Self::Answered { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    /// Whether Vault itself refuses what was asked, so that asking again is of no use.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Answered { status: 400, .. } | Self::Unsupported(_))
    }

    /// Whether Vault does not accept the operator's token for what was asked.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }

    /// Whether Vault says that it has no token of the accessor that was named. A bare 404 or 403 is no such word:
    /// it may come from a proxy, a wrong path or a missing right.
    pub fn says_unknown_accessor(&self) -> bool {
        match self {
            Self::Answered { messages, .. } | Self::Forbidden { messages, .. } => messages.contains("invalid accessor"),
            _ => false,
        }
    }

    /// Whether Vault says of a token that was to be revoked by accessor that it is gone, its accessor's entry being
    /// all that is left of it.
    pub fn says_token_not_found(&self) -> bool {
        matches!(self, Self::Answered { status: 400, messages } if messages == "token not found")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i8_only_vaults_own_word_makes_a_token_dead() {
        let answered = |status, messages: &str| Error::Answered { status, messages: messages.to_owned() };
        assert!(answered(400, "1 error occurred:  * invalid accessor").says_unknown_accessor());
        assert!(!answered(404, "no further words").says_unknown_accessor());
        let forbidden = Error::Forbidden { path: "p".to_owned(), messages: "permission denied".to_owned() };
        assert!(!forbidden.says_unknown_accessor());
        assert!(answered(400, "token not found").says_token_not_found());
        assert!(!answered(404, "token not found").says_token_not_found());
        assert!(!answered(400, "the route to this token not found").says_token_not_found());
    }

    #[test]
    fn an_outage_is_vaults_and_not_the_calls() {
        let answered = |status| Error::Answered { status, messages: String::new() };
        for error in [answered(500), answered(503), answered(429), Error::Unanswered(String::new())] {
            assert!(error.is_outage(), "{error}");
        }
        for error in [answered(400), answered(404), Error::NotLoggedIn(String::new()), Error::Away(String::new())] {
            assert!(!error.is_outage(), "{error}");
        }
    }

    #[test]
    fn rule_2_an_unclear_answer_may_have_had_an_effect() {
        let answered = |status| Error::Answered { status, messages: String::new() };
        for error in [answered(500), answered(502), Error::Unanswered(String::new()), Error::Malformed("")] {
            assert!(!error.had_no_effect(), "{error}");
        }
        for status in [408, 429, 503] {
            let error = Error::Answered { status, messages: WORDLESS.to_owned() };
            assert!(!error.had_no_effect(), "a proxy's {status}");
        }
        for error in [answered(400), answered(429), answered(503), Error::NotLoggedIn(String::new())] {
            assert!(error.had_no_effect(), "{error}");
        }
    }
}
