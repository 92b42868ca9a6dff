//! The operator's own login: made, renewed and remade by one task, so that an outage of Vault never turns into
//! a flood of logins.

use super::connection::Connection;
use super::error::Error;
use super::login::{Lease, Login};
use crate::api::Reason;
use crate::domain::backoff::Backoff;
use secrecy::SecretString;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Waits between logins that failed.
const LOGIN_BACKOFF: Backoff = Backoff { first: Duration::from_millis(250), longest: Duration::from_secs(30) };

/// A login that lasted this long was a good one.
const LASTING: Duration = Duration::from_secs(10);

/// How often a doubt about the token is looked into.
const DOUBT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a login is relied on at most without being renewed, whatever Vault says of it.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The present login: what calls use, and the word that something is wrong with it.
#[derive(Clone, Debug)]
pub struct Session {
    token: watch::Receiver<Result<SecretString, Error>>,
    doubt: Arc<Notify>,
}

impl Session {
    /// Starts the task that keeps the login. It ends when the last [`Session`] is dropped.
    pub fn start(connection: Connection, login: Login) -> Self {
        let (sender, token) = watch::channel(Err(Error::not_logged_in("the first login is under way")));
        let doubt = Arc::new(Notify::new());
        tokio::spawn(keep(connection, login, sender, doubt.clone()));
        Self { token, doubt }
    }

    /// The token to make a call with.
    ///
    /// # Errors
    /// [`Error::NotLoggedIn`], with what the last login failed of.
    pub fn token(&self) -> Result<SecretString, Error> {
        if self.token.has_changed().is_err() {
            return Err(Error::not_logged_in("the task that keeps the login has ended"));
        }
        self.token.borrow().clone()
    }

    /// Waits until there is a login that was not there at the last call, or that was renewed or lost since.
    pub async fn changed(&mut self) {
        if self.token.changed().await.is_err() {
            // The task that keeps the login has ended: there will be none.
            std::future::pending().await
        }
    }

    /// Says that Vault did not accept the token for a call: it may have been revoked.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }
}

/// Logs in, renews while that works, and starts over when it does not.
async fn keep(
    connection: Connection,
    login: Login,
    sender: watch::Sender<Result<SecretString, Error>>,
    doubt: Arc<Notify>,
) {
    let mut failures = 0;
    while !sender.is_closed() {
        match login.log_in(&connection).await {
            Ok(lease) => {
                tracing::info!(login = login.describe(), ttl_seconds = lease.ttl.as_secs(), "logged in to Vault");
                offer(&sender, Ok(lease.token.clone()));
                let since = Instant::now();
                let why = hold(&connection, &login, lease, &sender, &doubt).await;
                // Logins that do not last are no better than logins that fail: each leaves a token in Vault.
                failures = if since.elapsed() < LASTING { failures + 1 } else { 1 };
                tracing::warn!(%why, failures, "logging in to Vault again");
            }
            Err(error) => {
                failures += 1;
                let refused = error.is_refusal() || error.reason() == Reason::VaultForbids;
                let why = match error {
                    Error::NotLoggedIn { cause, .. } => cause,
                    error => error.to_string(),
                };
                let cause = format!("{} failed: {why}", login.describe());
                tracing::error!(error = cause, failures, "cannot log in to Vault");
                offer(&sender, Err(Error::NotLoggedIn { cause, refused }));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOGIN_BACKOFF.after(failures, rand::random())) => {}
            () = sender.closed() => return,
        }
    }
}

/// Keeps one lease alive for as long as it goes; gives why it did not go on.
async fn hold(
    connection: &Connection,
    login: &Login,
    mut lease: Lease,
    sender: &watch::Sender<Result<SecretString, Error>>,
    doubt: &Notify,
) -> String {
    let mut ends = Instant::now() + life(&lease);
    let mut renew_at = renewal(&lease);
    let mut failures = 0;
    loop {
        tokio::select! {
            () = sender.closed() => return "nobody needs the login any more".to_owned(),
            () = doubt.notified() => {
                match connection.check(&lease.token).await {
                    Err(error) if error.is_forbidden() => return "Vault does not know the token any more".to_owned(),
                    // It is the policy, not the token; or Vault is away, which says nothing about the token.
                    Ok(()) | Err(_) => tokio::time::sleep(DOUBT_INTERVAL).await,
                }
            }
            () = tokio::time::sleep_until(renew_at) => {
                // A token at the end of its renewals, or one that has none, is replaced by a new login while the
                // old one still works; a failed login leaves the old one in use.
                let renewed = if lease.renewable { lease.renew(connection).await } else { Err(Error::Malformed("")) };
                let next = match renewed {
                    Ok(next) if next.ttl > lease.ttl / 2 => Ok(next),
                    _ => login.log_in(connection).await,
                };
                match next {
                    Ok(next) => {
                        failures = 0;
                        ends = Instant::now() + life(&next);
                        renew_at = renewal(&next);
                        offer(sender, Ok(next.token.clone()));
                        lease = next;
                    }
                    Err(error) if Instant::now() >= ends => return format!("the login ended: {error}"),
                    Err(error) => {
                        failures += 1;
                        renew_at = Instant::now() + LOGIN_BACKOFF.after(failures, rand::random());
                        tracing::warn!(%error, failures, "cannot renew the login to Vault yet");
                    }
                }
            }
        }
    }
}

/// When to renew: after about two thirds of the lease, and not with every other replica at once.
fn renewal(lease: &Lease) -> Instant {
    Instant::now() + life(lease).mul_f64(0.6 + 0.1 * rand::random::<f64>())
}

/// How long the lease is relied on. A token that never ends has the ttl 0.
fn life(lease: &Lease) -> Duration {
    if lease.ttl.is_zero() { LONGEST } else { lease.ttl.min(LONGEST) }
}

fn offer(sender: &watch::Sender<Result<SecretString, Error>>, token: Result<SecretString, Error>) {
    sender.send_modify(|current| *current = token);
}
