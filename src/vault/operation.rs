//! What Vault is asked for, as it is counted.

use super::error::Error;
use crate::traffic::Outcome;
use std::fmt::Debug;
use std::time::Duration;

/// Declares the operations with their names, so that the list is whole.
macro_rules! operations {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What a call is for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Operation { $($(#[doc = $doc])+ $variant,)+ }

        impl Operation {
            /// Every operation there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The operation as it stands in metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

operations! {
    /// Make a wrapped token.
    Mint = "mint",
    /// Look a token up by its accessor.
    LookUp = "look_up",
    /// Renew a token.
    Renew = "renew",
    /// Revoke a token.
    Revoke = "revoke",
    /// List all accessors.
    List = "list",
    /// Log in.
    LogIn = "log_in",
    /// Look the own login up, to see whether it and Vault are there.
    Check = "check",
    /// Renew the own login.
    RenewLogin = "renew_login",
    /// Give a login back.
    EndLogin = "end_login",
    /// Ask what the login may do.
    Capabilities = "capabilities",
    /// Read a token role.
    ReadRole = "read_role",
    /// Open a wrapping token.
    Unwrap = "unwrap",
    /// Look a wrapping token up.
    LookUpWrapping = "look_up_wrapping",
    /// Anything else.
    Other = "other",
}

impl Operation {
    /// What a call to this path is for.
    pub fn of(path: &str) -> Self {
        // One of vaultrs' paths begins with a tab, which no URL has.
        let path = path.trim().trim_matches('/');
        match path.strip_prefix("auth/token/").unwrap_or(path) {
            "lookup-accessor" => Self::LookUp,
            "renew-accessor" => Self::Renew,
            "revoke-accessor" => Self::Revoke,
            "accessors" => Self::List,
            "lookup-self" => Self::Check,
            "renew-self" => Self::RenewLogin,
            "revoke-self" => Self::EndLogin,
            "sys/capabilities-self" => Self::Capabilities,
            "sys/wrapping/unwrap" => Self::Unwrap,
            "sys/wrapping/lookup" => Self::LookUpWrapping,
            role if role.starts_with("create/") => Self::Mint,
            role if role.starts_with("roles/") => Self::ReadRole,
            login if login.starts_with("auth/") && login.ends_with("/login") => Self::LogIn,
            _ => Self::Other,
        }
    }
}

impl Error {
    /// How a call went that ended in this.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Answered { status, .. } => Outcome::of_status(*status),
            Self::Forbidden { .. } => Outcome::Refused,
            _ => Outcome::Unavailable,
        }
    }
}

/// Counts calls.
pub trait Recorder: Debug + Send + Sync {
    /// A call has ended.
    fn record(&self, operation: Operation, outcome: Outcome, took: Duration);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustify::Endpoint;
    use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;
    use vaultrs::api::auth::kubernetes::requests::LoginWithKubernetesRequest;
    use vaultrs::api::sys::requests::{UnwrapRequest, WrappingLookupRequest};
    use vaultrs::api::token::requests::{
        CreateRoleTokenRequest, ListAccessorRequest, LookupTokenAccessorRequest, LookupTokenSelfRequest,
        ReadTokenRoleRequest, RenewTokenAccessorRequest, RenewTokenSelfRequest, RevokeTokenAccessorRequest,
        RevokeTokenSelfRequest,
    };

    #[test]
    fn every_call_that_is_made_has_a_name() {
        let text = || "x".to_owned();
        let (mount, role_name, accessor) = ("kubernetes/main".to_owned(), text(), text());
        let login = LoginWithKubernetesRequest { mount: mount.clone(), role: text(), jwt: text() };
        let approle = LoginWithApproleRequest { mount, role_id: text(), secret_id: text() };
        for (path, operation) in [
            (CreateRoleTokenRequest { role_name: text(), ..Default::default() }.path(), Operation::Mint),
            (LookupTokenAccessorRequest { accessor: accessor.clone() }.path(), Operation::LookUp),
            (RenewTokenAccessorRequest { accessor: accessor.clone(), increment: None }.path(), Operation::Renew),
            (RevokeTokenAccessorRequest { accessor }.path(), Operation::Revoke),
            (ListAccessorRequest {}.path(), Operation::List),
            (login.path(), Operation::LogIn),
            (approle.path(), Operation::LogIn),
            (LookupTokenSelfRequest {}.path(), Operation::Check),
            (RenewTokenSelfRequest::default().path(), Operation::RenewLogin),
            (RevokeTokenSelfRequest {}.path(), Operation::EndLogin),
            ("/sys/capabilities-self".to_owned(), Operation::Capabilities),
            (ReadTokenRoleRequest { role_name }.path(), Operation::ReadRole),
            (UnwrapRequest { token: None }.path(), Operation::Unwrap),
            (WrappingLookupRequest { token: text() }.path(), Operation::LookUpWrapping),
        ] {
            assert_eq!(Operation::of(&path), operation, "{path}");
        }
        assert_eq!(Operation::of("secret/data/shop"), Operation::Other);
    }

    #[test]
    fn a_refusal_is_no_outage() {
        let answered = |status| Error::Answered { status, messages: String::new() }.outcome();
        assert_eq!(
            [400, 404, 429, 503].map(answered).map(Outcome::as_str),
            ["refused", "refused", "unavailable", "unavailable"]
        );
        assert_eq!(Error::Unanswered(String::new()).outcome(), Outcome::Unavailable);
    }
}
