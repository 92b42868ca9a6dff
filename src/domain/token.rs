//! What a decision knows of tokens. A wrapping token is held in memory only, and cannot be printed.

use super::grant::Grant;
use super::pod::PodFacts;
use crate::seal::Receipt;
use crate::text::one_line;
use jiff::Timestamp;
use secrecy::SecretString;
use std::collections::BTreeSet;
use std::time::Duration;

/// The policy that every token has beside those that its pod asks for: it denies renewing oneself, so that a token that
/// nobody records dies with its period (I3). It is in `config/vault/`.
pub const BASE_POLICY: &str = "vault-token-base";

/// What Vault answers to a wrapped creation of a token.
#[derive(Debug)]
pub struct Minted {
    /// The single-use wrapping token, the only secret in this answer: the token inside never comes our way.
    pub wrapping_token: SecretString,
    /// Accessor of the wrapping token.
    pub wrapping_accessor: String,
    /// Accessor of the token inside.
    pub token_accessor: String,
    /// The path that made the token, as Vault tells it to whoever looks the wrapping token up.
    pub creation_path: String,
    /// When the wrapping token ends.
    pub wrapping_expires_at: Timestamp,
}

/// What the operator holds of a request between two looks at it. It is in memory alone: a restart loses it, and
/// the attempt that it belonged to is then abandoned (rule 6).
#[derive(Debug, Default)]
pub enum Hand {
    /// Nothing.
    #[default]
    Empty,
    /// An attempt was written down (rule 1), and nothing was sent to Vault for it yet that could have had an effect.
    Intent(Intent),
    /// A token was minted, and whether it is recorded is open (rule 3); this opens it.
    Unconfirmed(Wrapped),
    /// A token was minted and recorded (rule 3); this opens it.
    Wrapped(Wrapped),
}

/// An attempt that is open, and what shall be minted for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Its number.
    pub attempt: u32,
    /// When it began, in whole microseconds: what an API server keeps of a time.
    pub started_at: Timestamp,
    /// What the pod gets.
    pub grant: Grant,
    /// The pod as it was when the attempt was written down.
    pub pod: PodFacts,
}

/// A wrapping token on its way to the init container.
#[derive(Debug)]
pub struct Wrapped {
    /// The attempt that it belongs to.
    pub attempt: u32,
    /// How long the token lives at most without being renewed.
    pub period: Duration,
    /// What Vault answered.
    pub minted: Minted,
    /// What marks the init container's answer as its own.
    pub receipt: Receipt,
    /// What the token inside must be like.
    pub ordered: Qualities,
    /// When the token ends, as Vault said once it was seen to be as it was asked for; nothing is handed over before.
    pub expires: Option<Expiry>,
}

/// When a token ends unless it is renewed; `None` if never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry(pub Option<Timestamp>);

/// What of a token is as it was asked for, or should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qualities {
    /// Its policies.
    pub policies: BTreeSet<String>,
    /// Its period, in seconds.
    pub period: u64,
    /// How long it was made to live at first, in seconds. A role that caps the period shows it here alone.
    pub life: u64,
    /// Whether it has no parent that it would die with.
    pub orphan: bool,
    /// Its type: `service` tokens can be revoked.
    pub kind: String,
}

impl Qualities {
    /// What a token must have that was ordered with these policies and this period.
    pub fn ordered(policies: &[String], period: Duration) -> Self {
        let policies = policies.iter().cloned().collect();
        let period = period.as_secs();
        Self { policies, period, life: period, orphan: true, kind: "service".to_owned() }
    }

    /// What is not as it was ordered, in words.
    pub fn fault(&self, ordered: &Self) -> Option<String> {
        let names = |policies: &BTreeSet<String>| policies.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        if self.policies != ordered.policies {
            let (asked, made) = (names(&ordered.policies), names(&self.policies));
            Some(format!("its policies are {}, not {}", one_line(&made), one_line(&asked)))
        } else if self.period != ordered.period {
            Some(format!("its period is {} s, not {} s", self.period, ordered.period))
        } else if self.life != ordered.life {
            Some(format!(
                "it lives for {} s, not {} s: Vault's max_lease_ttl, or the token role's limits, cap it",
                self.life, ordered.life
            ))
        } else if self.orphan != ordered.orphan {
            Some("it has a parent that it dies with".to_owned())
        } else if self.kind != ordered.kind {
            Some(format!("its type is {}, not {}", one_line(&self.kind), ordered.kind))
        } else {
            None
        }
    }
}
