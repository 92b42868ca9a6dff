//! What can go wrong between the operator and Vault. No variant ever holds a token, or text that could.

use crate::api::Reason;
use crate::domain::grant::Why;
use crate::text::one_line;

/// What stands for Vault's words where an answer has none: it may come from a proxy.
pub const WORDLESS: &str = "no further words";

/// Vault's words where it refuses to make a token, before it has done anything. Other answers of the same status, 400, come where its
/// storage fails in the midst: a server that loses its leadership says `failed to persist entry: leadership lost while committing log`, and
/// the token may be there.
const REFUSED_ORDERS: [&str; 6] = [
    "must be subset of",
    "is disallowed by this role",
    "cannot assign policy",
    "root or sudo privileges required",
    "root tokens may not be created",
    "batch tokens cannot",
];

/// Vault's words for a token role that it does not have, before it has done anything.
const UNKNOWN_ROLE: &str = "unknown role";

/// Vault's words where it answers 400 since its storage, or its leadership, went away in the midst: they say nothing of what was asked.
const FAILED_MIDWAY: [&str; 4] =
    ["leadership lost", "failed to persist", "context canceled", "context deadline exceeded"];

/// Vault's words for a wrapping token that was used, has expired, or never was.
const INVALID_WRAPPING_TOKEN: &str = "wrapping token is not valid or does not exist";

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
    #[error("not logged in to Vault: {cause}")]
    NotLoggedIn {
        /// What the last login failed of.
        cause: String,
        /// Whether Vault itself refused it.
        refused: bool,
    },
}

impl Error {
    /// Whether the call certainly had no effect, so that it may be made again as if it had never been made. Of an order that Vault
    /// refuses, see [`Error::refuses_order`].
    pub fn had_no_effect(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotLoggedIn { .. } | Self::Forbidden { .. } | Self::Away(_) => true,
            // 503: sealed or standby; 429: over a quota. Vault says these before it does anything, and says why; a proxy says the
            // like of an answer that it lost.
            Self::Answered { status, messages } => {
                messages != WORDLESS && ((401..500).contains(status) || *status == 503)
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

    /// Whether Vault refuses to make such a token, and has made none that could be of use.
    pub fn refuses_order(&self) -> bool {
        match self {
            Self::Unsupported(_) => true,
            Self::Answered { status: 400, messages } => REFUSED_ORDERS.iter().any(|words| messages.contains(words)),
            _ => false,
        }
    }

    /// Whether Vault says that it has no token role of the name that was asked for: nothing was made, and a person can mend it.
    pub(super) fn says_unknown_role(&self) -> bool {
        matches!(self, Self::Answered { status: 400, messages } if messages.contains(UNKNOWN_ROLE))
    }

    /// Whether a login is refused for what it is, and not for the state that Vault is in.
    pub(super) fn refuses_login(&self) -> bool {
        match self {
            // Without words it may be a proxy's.
            Self::Answered { status: 400 | 404, messages } => {
                messages != WORDLESS && !FAILED_MIDWAY.iter().any(|words| messages.contains(words))
            }
            error => error.reason() == Reason::VaultForbids,
        }
    }

    /// Whether Vault says of a wrapping token that it was used, or has expired.
    pub fn says_invalid_wrapping_token(&self) -> bool {
        matches!(self, Self::Answered { status: 400, messages } if messages.contains(INVALID_WRAPPING_TOKEN))
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

    /// That there is no login, of which Vault is not known to have refused one.
    pub(super) fn not_logged_in(cause: impl Into<String>) -> Self {
        Self::NotLoggedIn { cause: cause.into(), refused: false }
    }

    /// What it makes a request wait for.
    pub fn why(&self) -> Why {
        Why::new(self.reason(), one_line(&self.to_string()))
    }

    /// The reason that conditions and Events give for it.
    pub fn reason(&self) -> Reason {
        match self {
            _ if self.is_forbidden() => Reason::VaultForbids,
            _ if self.refuses_order() => Reason::VaultRefused,
            // A missing role, mount or namespace.
            Self::Answered { status: 404, .. } | Self::NotLoggedIn { refused: true, .. } => Reason::VaultForbids,
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
        for error in [answered(400), answered(404), Error::not_logged_in(""), Error::Away(String::new())] {
            assert!(!error.is_outage(), "{error}");
        }
    }

    #[test]
    fn a_login_that_vault_refused_is_no_outage() {
        let refused = Error::NotLoggedIn { cause: String::new(), refused: true };
        assert_eq!(refused.reason(), Reason::VaultForbids);
        assert_eq!(Error::not_logged_in("").reason(), Reason::VaultUnavailable);
    }

    #[test]
    fn a_login_is_refused_by_words_about_it_only() {
        let answered = |status, messages: &str| Error::Answered { status, messages: messages.to_owned() };
        for error in [
            answered(400, "invalid role name \"operator\""),
            answered(400, "invalid role or secret ID"),
            answered(404, "no handler for route"),
            Error::Forbidden { path: String::new(), messages: "permission denied".to_owned() },
        ] {
            assert!(error.refuses_login(), "{error}");
        }
        for error in [
            answered(400, "failed to persist accessor index entry: leadership lost while committing log"),
            answered(503, "Vault is sealed"),
            answered(400, WORDLESS),
            answered(404, WORDLESS),
            Error::Unanswered(String::new()),
        ] {
            assert!(!error.refuses_login(), "{error}");
        }
    }

    #[test]
    fn rule_2_a_storage_that_fails_refuses_nothing() {
        let answered = |messages: &str| Error::Answered { status: 400, messages: messages.to_owned() };
        let storage = answered("failed to persist accessor index entry: leadership lost while committing log");
        assert!(!storage.refuses_order() && !storage.had_no_effect() && !storage.says_invalid_wrapping_token());
        assert_eq!(storage.reason(), Reason::VaultUnavailable);
        let refusal = answered("token policy \"root\" is disallowed by this role");
        assert!(refusal.refuses_order());
        assert_eq!(refusal.reason(), Reason::VaultRefused);
        assert!(answered("wrapping token is not valid or does not exist").says_invalid_wrapping_token());
    }

    #[test]
    fn rule_2_an_unclear_answer_may_have_had_an_effect() {
        let answered = |status| Error::Answered { status, messages: String::new() };
        for error in
            [answered(400), answered(500), answered(502), Error::Unanswered(String::new()), Error::Malformed("")]
        {
            assert!(!error.had_no_effect(), "{error}");
        }
        for status in [408, 429, 503] {
            let error = Error::Answered { status, messages: WORDLESS.to_owned() };
            assert!(!error.had_no_effect(), "a proxy's {status}");
        }
        for error in [answered(404), answered(429), answered(503), Error::not_logged_in("")] {
            assert!(error.had_no_effect(), "{error}");
        }
    }
}
