//! How the operator proves to Vault who it is.

use super::connection::Connection;
use super::error::Error;
use super::reply::Answer;
use rustify_derive::Endpoint;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;
use vaultrs::api::auth::kubernetes::requests::LoginWithKubernetesRequest;
use vaultrs::api::auth::oidc::requests::JWTLoginRequest;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest};

/// A way to log in. Files are read anew at each login, since they are rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// The pod's own ServiceAccount token, by Vault's Kubernetes auth method.
    Kubernetes {
        /// Where the auth method is mounted.
        mount: String,
        /// The role to log in with.
        role: String,
        /// File with the ServiceAccount token.
        token_file: PathBuf,
    },
    /// A JWT that somebody else keeps in a file, by Vault's JWT auth method.
    Jwt {
        /// Where the auth method is mounted.
        mount: String,
        /// The role to log in with.
        role: String,
        /// File with the JWT.
        token_file: PathBuf,
    },
    /// The connection's client certificate, by Vault's TLS certificate auth method.
    Cert {
        /// Where the auth method is mounted.
        mount: String,
        /// The role to log in with; Vault calls it a certificate.
        role: String,
    },
    /// AppRole.
    AppRole {
        /// Where the auth method is mounted.
        mount: String,
        /// The role ID; it is no secret.
        role_id: String,
        /// File with the secret ID.
        secret_id_file: PathBuf,
    },
    /// A token that somebody else keeps in a file, a Vault agent for example.
    TokenFile {
        /// The file.
        path: PathBuf,
    },
}

/// A token of the operator's own, and for how long Vault says that it lives.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The token.
    pub token: SecretString,
    /// Its remaining life; zero when it never ends.
    pub ttl: Duration,
    /// Whether it can be renewed.
    pub renewable: bool,
}

/// vaultrs calls the field `cert_name`, which Vault does not read: any role would do then.
#[derive(Debug, Endpoint)]
#[endpoint(path = "/auth/{self.mount}/login", method = "POST")]
struct CertLoginRequest {
    #[endpoint(skip)]
    mount: String,
    name: String,
}

#[derive(Deserialize)]
struct AuthAnswer {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct SelfAnswer {
    data: SelfData,
}

#[derive(Deserialize)]
struct SelfData {
    ttl: u64,
    /// Missing where the token never ends.
    expire_time: Option<String>,
    #[serde(default)]
    renewable: bool,
}

impl Answer {
    /// What a login, or the renewal of one, gave.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn lease(&self) -> Result<Lease, Error> {
        let AuthAnswer { auth } = self.json()?;
        if auth.client_token.is_empty() {
            return Err(Error::Malformed("it has no token"));
        }
        let ttl = Duration::from_secs(auth.lease_duration);
        Ok(Lease { token: auth.client_token.into(), ttl, renewable: auth.renewable })
    }

    /// What Vault says of this token, which looked itself up.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn lease_of(&self, token: SecretString) -> Result<Lease, Error> {
        let SelfAnswer { data } = self.json()?;
        // In whole seconds, so that the last one is none, too.
        let ttl = if data.expire_time.is_some() { data.ttl.max(1) } else { data.ttl };
        Ok(Lease { token, ttl: Duration::from_secs(ttl), renewable: data.renewable })
    }
}

impl Login {
    /// Logs in.
    ///
    /// # Errors
    /// [`Error::NotLoggedIn`]: a file that cannot be read, or what Vault answered.
    pub async fn log_in(&self, connection: &Connection) -> Result<Lease, Error> {
        self.ask(connection).await.map_err(|error| {
            let refused = error.refuses_login();
            let cause = match error {
                Error::NotLoggedIn { cause, .. } => cause,
                error => error.to_string(),
            };
            Error::NotLoggedIn { cause: format!("{} failed: {cause}", self.describe()), refused }
        })
    }

    /// Gives back what a login of this kind gave: it is worth nothing from then on. A token that somebody else keeps stays.
    ///
    /// # Errors
    /// What Vault answered, or that it did not.
    pub async fn give_back(&self, connection: &Connection, token: &SecretString) -> Result<(), Error> {
        match self {
            Self::TokenFile { .. } => Ok(()),
            _ => connection.call(&RevokeTokenSelfRequest {}, Some(token), None).await.map(drop),
        }
    }

    async fn ask(&self, connection: &Connection) -> Result<Lease, Error> {
        match self {
            Self::Kubernetes { mount, role, token_file } => {
                let jwt = read(token_file, "the ServiceAccount token").await?.expose_secret().to_owned();
                let call = LoginWithKubernetesRequest { mount: mount.clone(), role: role.clone(), jwt };
                connection.call(&call, None, None).await?.lease()
            }
            Self::Jwt { mount, role, token_file } => {
                let jwt = read(token_file, "the JWT").await?.expose_secret().to_owned();
                let call = JWTLoginRequest { mount: mount.clone(), role: Some(role.clone()), jwt };
                connection.call(&call, None, None).await?.lease()
            }
            Self::Cert { mount, role } => {
                let call = CertLoginRequest { mount: mount.clone(), name: role.clone() };
                connection.call(&call, None, None).await?.lease()
            }
            Self::AppRole { mount, role_id, secret_id_file } => {
                let secret_id = read(secret_id_file, "the AppRole secret ID").await?.expose_secret().to_owned();
                let call = LoginWithApproleRequest { mount: mount.clone(), role_id: role_id.clone(), secret_id };
                connection.call(&call, None, None).await?.lease()
            }
            Self::TokenFile { path } => {
                let token = read(path, "the token file").await?;
                match connection.call(&LookupTokenSelfRequest {}, Some(&token), None).await {
                    Err(Error::Forbidden { messages, .. }) => Err(Error::NotLoggedIn {
                        cause: format!(
                            "Vault does not know it, or lets it do nothing ({messages}); write another one into the file, made as \
                             config/vault/README.md says"
                        ),
                        refused: true,
                    }),
                    answer => answer?.lease_of(token),
                }
            }
        }
    }

    /// The path of the role that it is made by; `None` where the method has none, or none that is known here.
    pub fn role_path(&self) -> Option<String> {
        match self {
            Self::Kubernetes { mount, role, .. } | Self::Jwt { mount, role, .. } => {
                Some(format!("auth/{mount}/role/{role}"))
            }
            Self::Cert { mount, role } => Some(format!("auth/{mount}/certs/{role}")),
            Self::AppRole { .. } | Self::TokenFile { .. } => None,
        }
    }

    /// What the login is, for people: method, role, mount.
    pub fn describe(&self) -> String {
        match self {
            Self::Kubernetes { mount, role, .. } => format!("Kubernetes auth at {mount:?} with the role {role:?}"),
            Self::Jwt { mount, role, .. } => format!("JWT auth at {mount:?} with the role {role:?}"),
            Self::Cert { mount, role } => format!("TLS certificate auth at {mount:?} with the role {role:?}"),
            Self::AppRole { mount, .. } => format!("AppRole auth at {mount:?}"),
            Self::TokenFile { path } => format!("the token in {}", path.display()),
        }
    }
}

impl Lease {
    /// Renews the token.
    ///
    /// # Errors
    /// What Vault answered.
    pub async fn renew(&self, connection: &Connection) -> Result<Lease, Error> {
        let call = RenewTokenSelfRequest::default();
        connection.call(&call, Some(&self.token), None).await?.lease()
    }
}

impl Connection {
    /// Whether Vault knows a token: a call that takes the way of all others, forwarding to the active server included.
    ///
    /// # Errors
    /// What Vault answered; [`Error::is_forbidden`] means that the token is dead.
    pub async fn check(&self, token: &SecretString) -> Result<(), Error> {
        self.call(&LookupTokenSelfRequest {}, Some(token), None).await.map(drop)
    }
}

/// Reads a secret from a file, without the line end that editors leave.
async fn read(path: &Path, what: &str) -> Result<SecretString, Error> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| Error::not_logged_in(format!("cannot read {what} from {}: {error}", path.display())))?;
    match text.trim() {
        "" => Err(Error::not_logged_in(format!("{what} in {} is empty", path.display()))),
        secret => Ok(secret.to_owned().into()),
    }
}
