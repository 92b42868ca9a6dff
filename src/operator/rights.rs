//! Sees what the operator's login may do in Vault, and says where that is less than it needs, or more.

use super::metrics::Metrics;
use crate::domain::rights::{Capabilities, Duties, Rights};
use crate::vault::{Session, TokenStore};
use std::time::Duration;
use tokio::sync::watch;

/// Time between two looks at one login: policies change under it.
const RECHECK: Duration = Duration::from_secs(60);

/// Looks at the rights.
pub struct Assessor {
    tokens: TokenStore,
    session: Session,
    duties: Duties,
    sweep: Option<Listing>,
    metrics: Metrics,
    sender: watch::Sender<Rights>,
}

/// What the login for the sweep is for, and what it was found to be able to do.
pub type Listing = (Duties, watch::Receiver<Option<Capabilities>>);

impl Assessor {
    /// Nothing is known yet. `sweep` is the login that lists tokens, if that is another.
    pub fn new(tokens: TokenStore, session: Session, duties: Duties, sweep: Option<Listing>, metrics: Metrics) -> Self {
        Self { tokens, session, duties, sweep, metrics, sender: watch::Sender::new(Rights::Unknown) }
    }

    /// What is known, as it changes.
    pub fn rights(&self) -> watch::Receiver<Rights> {
        self.sender.subscribe()
    }

    /// Looks for as long as it is polled: after each login, and now and then.
    pub async fn run(mut self) {
        loop {
            self.look().await;
            tokio::select! {
                () = self.session.changed() => {}
                () = listed(&mut self.sweep) => {}
                () = tokio::time::sleep(RECHECK) => {}
            }
        }
    }

    async fn look(&self) {
        let rights = match self.tokens.capabilities(self.duties.paths()).await {
            Ok(capabilities) => self.duties.judge(&capabilities),
            Err(error) if error.is_forbidden() => Rights::Hidden,
            // There is no login, or Vault is away, which is said elsewhere; what was seen last may well be true still.
            Err(error) => return tracing::debug!(%error, "cannot look at the operator's rights in Vault yet"),
        };
        let sweep = self.sweep.as_ref().and_then(|(duties, told)| Some(duties.judge(told.borrow().as_ref()?)));
        let rights = rights.and(&sweep.unwrap_or_default());
        if *self.sender.borrow() != rights {
            tell(&rights);
            self.metrics.rights(&rights);
            self.sender.send_replace(rights);
        }
    }
}

/// Ends when more is known of the login for the sweep.
async fn listed(sweep: &mut Option<Listing>) {
    // Its sender is there for as long as anybody sweeps.
    if let Some((_, told)) = sweep
        && told.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn tell(rights: &Rights) {
    let (narrower, wider) = (rights.narrower(), rights.wider());
    if narrower.is_none() && wider.is_none() {
        tracing::info!("the operator's rights in Vault: {}", rights.describe());
    }
    if let Some(why) = narrower {
        tracing::error!(why, "the operator has fewer rights in Vault than it needs: compare config/vault/");
    }
    if let Some(why) = wider {
        tracing::warn!(why, "the operator has more rights in Vault than it needs: compare config/vault/");
    }
}
