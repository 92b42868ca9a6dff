//! Tokens as the operator deals with them: made through a token role, looked up and revoked by accessor.

use super::breaker::Breaker;
use super::connection::Connection;
use super::error::Error;
use super::reply::Answer;
use super::session::Session;
use super::wrapping::WRAPS_NO_TOKEN;
use crate::domain::duration;
use crate::domain::token::{Minted, Qualities};
use jiff::{SignedDuration, Timestamp};
use rustify::Endpoint;
use secrecy::SecretString;
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;
use vaultrs::api::token::requests::{
    CreateRoleTokenRequest, LookupTokenAccessorRequest, ReadTokenRoleRequest, RenewTokenAccessorRequest,
    RevokeTokenAccessorRequest,
};

/// A token as it shall be.
#[derive(Clone, Debug)]
pub struct TokenOrder {
    /// The token role that it is made through.
    pub role: String,
    /// What Vault's audit log and lookups call it.
    pub display_name: String,
    /// Its policies. Never empty: Vault would give all that the role has.
    pub policies: Vec<String>,
    /// Its period.
    pub period: Duration,
    /// What it is for: cluster, pod, request, attempt.
    pub meta: HashMap<String, String>,
}

/// The token store of one Vault.
#[derive(Clone, Debug)]
pub struct TokenStore {
    connection: Connection,
    session: Session,
    breaker: Breaker,
    wrapping_ttl: Duration,
}

#[derive(Deserialize)]
struct WrappedAnswer {
    wrap_info: WrapInfo,
}

#[derive(Deserialize)]
struct WrapInfo {
    token: String,
    accessor: String,
    ttl: u64,
    creation_path: String,
    #[serde(default)]
    wrapped_accessor: String,
}

#[derive(Deserialize)]
struct LookupAnswer {
    data: TokenInfo,
}

#[derive(Deserialize)]
struct RenewAnswer {
    auth: RenewedAuth,
}

#[derive(Deserialize)]
struct RenewedAuth {
    lease_duration: u64,
}

/// An answer that has nothing but Vault's own mark.
#[derive(Deserialize)]
struct Acknowledged {
    #[serde(rename = "request_id")]
    _request_id: String,
}

/// What Vault says of a live token.
#[derive(Clone, Debug, Deserialize)]
pub struct TokenInfo {
    /// When Vault ends it unless it is renewed; `None` if never.
    pub expire_time: Option<Timestamp>,
    /// The path that it was made by.
    #[serde(default)]
    pub path: String,
    /// The metadata that it was made with.
    #[serde(default)]
    pub meta: Option<HashMap<String, String>>,
    /// Its policies.
    #[serde(default)]
    pub policies: Vec<String>,
    /// Its period in seconds; 0 without any.
    #[serde(default)]
    pub period: u64,
    /// How long it was made to live at first, in seconds.
    #[serde(default)]
    pub creation_ttl: u64,
    /// Whether it has no parent.
    #[serde(default)]
    pub orphan: bool,
    /// Its type.
    #[serde(default, rename = "type")]
    pub kind: String,
}

impl TokenInfo {
    /// What it is like.
    pub fn qualities(&self) -> Qualities {
        let policies = self.policies.iter().cloned().collect();
        let Self { period, creation_ttl: life, orphan, .. } = *self;
        Qualities { policies, period, life, orphan, kind: self.kind.clone() }
    }
}

impl Answer {
    /// What was minted by a call that was sent at this time. The token's accessor is empty where Vault did not say it.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn minted(&self, sent: Timestamp) -> Result<Minted, Error> {
        let info = self.json::<WrappedAnswer>()?.wrap_info;
        if info.token.is_empty() || info.accessor.is_empty() {
            return Err(Error::Malformed("it has no wrapping token"));
        }
        Ok(Minted {
            wrapping_token: info.token.into(),
            wrapping_accessor: info.accessor,
            token_accessor: info.wrapped_accessor,
            creation_path: info.creation_path,
            // Counted from before the call, so that it never ends later in our eyes than in Vault's.
            wrapping_expires_at: after(sent, info.ttl).ok_or(Error::Malformed("its wrapping TTL is out of bounds"))?,
        })
    }

    /// What Vault says of a token that was looked up.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn token_info(&self) -> Result<TokenInfo, Error> {
        Ok(self.json::<LookupAnswer>()?.data)
    }

    /// When a token ends that a call renewed that was sent at this time.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn renewed(&self, sent: Timestamp) -> Result<Timestamp, Error> {
        let life = self.json::<RenewAnswer>()?.auth.lease_duration;
        after(sent, life).ok_or(Error::Malformed("its lease is out of bounds"))
    }

    /// Whether the answer is Vault's, of whose words none are wanted: it is empty, or has Vault's mark.
    ///
    /// # Errors
    /// When it is not.
    pub fn acknowledged(&self) -> Result<(), Error> {
        if self.bytes().is_empty() { Ok(()) } else { self.json::<Acknowledged>().map(drop) }
    }
}

fn after(time: Timestamp, seconds: u64) -> Option<Timestamp> {
    time.checked_add(SignedDuration::from_secs(i64::try_from(seconds).ok()?)).ok()
}

impl TokenStore {
    /// Tokens are wrapped for `wrapping_ttl`. Starts the circuit breaker's task.
    pub fn new(connection: Connection, session: Session, wrapping_ttl: Duration) -> Self {
        let breaker = Breaker::start(connection.clone(), session.clone());
        Self { connection, session, breaker, wrapping_ttl }
    }

    /// The login that calls are made with.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Why no call can be made at the moment, if none can.
    pub fn away(&self) -> Option<Error> {
        self.token().err()
    }

    /// What calls are made with, while they can be made.
    fn token(&self) -> Result<SecretString, Error> {
        match self.breaker.open() {
            Some(why) => Err(Error::Away(why)),
            None => self.session.token(),
        }
    }

    /// Makes a wrapped token. The token inside never comes back, only its accessor.
    ///
    /// # Errors
    /// Where not [`Error::had_no_effect`], a token may be there that nobody will ever hold.
    pub async fn mint(&self, order: &TokenOrder) -> Result<Minted, Error> {
        let call = CreateRoleTokenRequest {
            role_name: order.role.clone(),
            display_name: Some(order.display_name.clone()),
            policies: Some(order.policies.clone()),
            period: Some(duration::format(order.period)),
            ttl: Some(duration::format(order.period)),
            meta: Some(order.meta.clone()),
            no_default_policy: Some(true),
            renewable: Some(true),
            ..CreateRoleTokenRequest::default()
        };
        let sent = Timestamp::now();
        let minted = match self.call(&call, Some(self.wrapping_ttl)).await {
            Ok(answer) => answer.minted(sent)?,
            Err(error) if error.says_unknown_role() => {
                let path = format!("auth/token/create/{}", order.role);
                return Err(Error::Forbidden { path, messages: format!("it has no such token role: {}", order.role) });
            }
            Err(error) => return Err(error),
        };
        if minted.token_accessor.is_empty() {
            return Err(self.take_back(minted.wrapping_token).await);
        }
        Ok(minted)
    }

    /// Revokes a token that came without its accessor, so far as that can be done.
    async fn take_back(&self, wrapping_token: SecretString) -> Error {
        let unsupported = Error::Unsupported(
            "it came without an accessor, so nobody could revoke it; Vault 1.21 or OpenBao 2.7 is needed at least, \
             and a token role of the type service",
        );
        // Whatever these calls say of themselves, their errors are none of the mint's, which has had an effect.
        let lives = |error: Error| {
            tracing::warn!(%error, "a token that came without an accessor could not be taken back, and may live for its ttl");
            Error::Malformed("the token came without an accessor, could not be taken back, and may live for its ttl")
        };
        match self.connection.unwrap(&wrapping_token).await {
            Ok(unwrapped) => self.revoke(&unwrapped.accessor).await.map_or_else(lives, |()| unsupported),
            // A token without any accessor is a batch token, which cannot be revoked at all.
            Err(Error::Malformed(WRAPS_NO_TOKEN)) => unsupported,
            Err(error) => lives(error),
        }
    }

    /// Looks a token up; `None` when Vault has no live token of this accessor.
    ///
    /// # Errors
    /// Whatever leaves it open whether there is one.
    pub async fn look_up(&self, accessor: &str) -> Result<Option<TokenInfo>, Error> {
        let call = LookupTokenAccessorRequest { accessor: accessor.to_owned() };
        match self.call(&call, None).await {
            Ok(answer) => answer.token_info().map(Some),
            Err(error) if error.says_unknown_accessor() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether Vault has a token role of this name.
    ///
    /// # Errors
    /// Whatever leaves it open.
    pub async fn has_role(&self, name: &str) -> Result<bool, Error> {
        match self.call(&ReadTokenRoleRequest { role_name: name.to_owned() }, None).await {
            Ok(_) => Ok(true),
            Err(Error::Answered { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renews a token by its accessor, for its period; gives when it ends then, `None` when Vault has no live token of this
    /// accessor.
    ///
    /// # Errors
    /// Whatever leaves it open whether it was renewed.
    pub async fn renew(&self, accessor: &str) -> Result<Option<Timestamp>, Error> {
        let call = RenewTokenAccessorRequest { accessor: accessor.to_owned(), increment: None };
        let sent = Timestamp::now();
        match self.call(&call, None).await {
            Ok(answer) => answer.renewed(sent).map(Some),
            Err(error) if error.says_unknown_accessor() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Revokes the token with all its children. When this returns, the token is dead. An accessor that Vault does
    /// not know is a token that is dead already: Vault answers 200 with a warning then, or says so in an error. An
    /// answer that Vault does not give, such as a proxy's page, is no word of its death (I8).
    ///
    /// # Errors
    /// Whatever leaves it open whether the token is dead.
    pub async fn revoke(&self, accessor: &str) -> Result<(), Error> {
        let call = RevokeTokenAccessorRequest { accessor: accessor.to_owned() };
        match self.call(&call, None).await {
            Ok(answer) => answer.acknowledged(),
            Err(error) if error.says_unknown_accessor() || error.says_token_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn call<E: Endpoint>(&self, endpoint: &E, wrap_ttl: Option<Duration>) -> Result<Answer, Error> {
        let answer = self.ask(endpoint, wrap_ttl).await;
        if answer.as_ref().is_err_and(Error::is_forbidden) {
            self.session.doubt();
        }
        answer
    }

    /// A call whose refusal says nothing of the login.
    pub(super) async fn ask<E: Endpoint>(&self, endpoint: &E, wrap_ttl: Option<Duration>) -> Result<Answer, Error> {
        let token = self.token()?;
        let answer = self.connection.call(endpoint, Some(&token), wrap_ttl).await;
        if let Err(error) = &answer {
            self.breaker.note(error);
        }
        answer
    }
}
