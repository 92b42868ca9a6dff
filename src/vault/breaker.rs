//! The circuit breaker: while Vault is away nobody asks it anything but one task, which finds out when it is back. So
//! an outage costs one call at a time, spends no attempts, and does not end in a flood.

use super::connection::Connection;
use super::error::Error;
use super::session::Session;
use crate::domain::backoff::Backoff;
use std::time::Duration;
use tokio::sync::watch;

/// Waits between probes. The first comes at once: a single call that went wrong is no outage.
const PROBE: Backoff = Backoff { first: Duration::from_millis(250), longest: Duration::from_secs(5) };

/// Whether Vault is away, as far as is known.
#[derive(Clone, Debug)]
pub struct Breaker(watch::Sender<Option<String>>);

impl Breaker {
    /// Closed, with the task that closes it again.
    pub fn start(connection: Connection, session: Session) -> Self {
        let breaker = Self(watch::Sender::new(None));
        tokio::spawn(mend(breaker.clone(), connection, session));
        breaker
    }

    /// What went wrong, while it is open.
    pub fn open(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Opens it where the error is Vault's, and not the call's.
    pub fn note(&self, error: &Error) {
        if error.is_outage() {
            self.0.send_if_modified(|open| {
                let news = open.is_none();
                *open = Some(error.to_string());
                news
            });
        }
    }
}

/// Closes the breaker whenever Vault answers again.
async fn mend(breaker: Breaker, connection: Connection, session: Session) {
    let mut state = breaker.0.subscribe();
    while let Ok(open) = state.wait_for(Option::is_some).await.map(|open| open.clone().unwrap_or_default()) {
        tracing::warn!(error = open, "Vault is away: requests wait");
        let mut failures = 0;
        loop {
            match probe(&connection, &session).await {
                Err(error) if error.is_outage() => {
                    failures += 1;
                    breaker.0.send_modify(|open| *open = Some(error.to_string()));
                }
                // Without a login there is nobody to ask as; the session finds out by itself.
                Err(Error::NotLoggedIn { .. }) => failures += 1,
                Ok(()) | Err(_) => break,
            }
            tokio::time::sleep(PROBE.after(failures, rand::random())).await;
        }
        tracing::info!("Vault answers again");
        breaker.0.send_modify(|open| *open = None);
    }
}

/// Asks as the operator is logged in.
async fn probe(connection: &Connection, session: &Session) -> Result<(), Error> {
    connection.check(&session.token()?).await
}
