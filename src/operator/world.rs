//! Everything outside of the decisions that the operator acts on: one trait, so that the very code that runs in a cluster
//! also runs, call by call, in a simulation of all that can go wrong (`tests/simulation`).

use super::budget::Budget;
use super::census::Census;
use super::herald::Herald;
use super::ledger::Ledger;
use super::metrics::Metrics;
use super::observe::Pods;
use super::push::Pusher;
use super::reaper::Reaper;
use super::rulebook::Rulebook;
use super::vitals::Vitals;
use crate::api::{Reason, VaultTokenRequest, VaultTokenRequestStatus};
use crate::cluster;
use crate::domain::admission::Admission;
use crate::domain::announcement::Announcement;
use crate::domain::grant::Why;
use crate::domain::pod::Observation;
use crate::domain::rules::Rules;
use crate::domain::tenure::granted;
use crate::domain::token::Minted;
use crate::seal::{self, Subject};
use crate::vault::{self, TokenInfo, TokenLister, TokenOrder, TokenStore};
use crate::wire::{Answer, Parcel, Push};
use governor::DefaultDirectRateLimiter;
use jiff::Timestamp;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// What the operator reads and changes, each call one exchange that can fail before, in the midst of, and after it took
/// effect.
pub trait World: Send + Sync {
    /// The time.
    fn now(&self) -> Timestamp;

    /// Why Vault cannot be asked at the moment, if that is known.
    fn vault_away(&self) -> Option<Why>;

    /// Whether the API server checks who creates requests.
    fn admission(&self) -> Admission;

    /// What is granted to whom, for a decision about this request.
    fn grants(&self, request: &VaultTokenRequest) -> Grants;

    /// Takes one mint out of what the pod and its namespace may have.
    ///
    /// # Errors
    /// When there may be the next one.
    fn admit(&self, namespace: &str, pod_uid: &str) -> Result<(), Timestamp>;

    /// Reads a request fresh; `None` when it is gone.
    fn read(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<VaultTokenRequest>, cluster::Error>> + Send;

    /// Writes a request's status, guarded by its resourceVersion; gives the request as it is then.
    fn write(
        &self,
        request: &VaultTokenRequest,
        status: VaultTokenRequestStatus,
    ) -> impl Future<Output = Result<VaultTokenRequest, cluster::Error>> + Send;

    /// Takes the finalizer off a request, guarded by its resourceVersion.
    fn release(&self, request: &VaultTokenRequest) -> impl Future<Output = Result<(), cluster::Error>> + Send;

    /// Deletes a request, guarded by its UID and resourceVersion.
    fn delete(&self, request: &VaultTokenRequest) -> impl Future<Output = Result<(), cluster::Error>> + Send;

    /// Reads a pod fresh.
    fn pod(
        &self,
        namespace: &str,
        name: &str,
        init_container: &str,
    ) -> impl Future<Output = Result<Observation, cluster::Error>> + Send;

    /// Makes a wrapped token.
    fn mint(&self, order: &TokenOrder) -> impl Future<Output = Result<Minted, vault::Error>> + Send;

    /// Looks a token up; `None` when there is no such live token.
    fn look_up(&self, accessor: &str) -> impl Future<Output = Result<Option<TokenInfo>, vault::Error>> + Send;

    /// Waits until the sweep may go on to one more token.
    fn pace(&self) -> impl Future<Output = ()> + Send;

    /// The accessors of all live tokens.
    fn list(&self) -> impl Future<Output = Result<Vec<String>, vault::Error>> + Send;

    /// Renews a token; gives when it ends then, `None` when there is no such live token.
    fn renew(&self, accessor: &str) -> impl Future<Output = Result<Option<Timestamp>, vault::Error>> + Send;

    /// Revokes a token; it is dead when this returns.
    fn revoke(&self, accessor: &str) -> impl Future<Output = Result<(), vault::Error>> + Send;

    /// Sees to the death of a token that has no record, beside everything else.
    fn take_back(&self, request_uid: &str, accessor: String, period: Duration);

    /// Asks for a sweep soon: a token may be there that nobody knows of.
    fn sweep_soon(&self);

    /// Seals a parcel to a request's public key.
    ///
    /// # Errors
    /// When nothing can be sealed to that key.
    fn seal(&self, public_key: &str, subject: Subject<'_>, parcel: &Parcel) -> Result<String, String>;

    /// Hands a sealed wrapping token over. What answers may be anybody.
    fn push(&self, addresses: &[IpAddr], port: u16, push: &Push)
    -> impl Future<Output = Result<Answer, String>> + Send;

    /// Tells people of what looks like an attack.
    fn alarm(&self, request: &VaultTokenRequest, alarm: Alarm);
}

/// What is granted to whom at one moment.
pub struct Grants {
    /// The rules.
    pub rules: Arc<Rules>,
    /// How many tokens have no grant by these rules, if they are too many to be revoked without a person's word.
    pub held: Option<usize>,
}

/// What looks like an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Somebody else has used a pod's wrapping token.
    Compromised,
    /// An init container has refused so many pushes that were not the operator's.
    ForeignPushes(u32),
    /// What answered a push could not open it.
    AnswerUnconfirmed,
    /// An init container found its wrapping token used, and the token in it is gone.
    TokenGone,
}

/// The real one.
pub struct Live {
    /// Requests.
    pub ledger: Ledger,
    /// Pods.
    pub pods: Pods,
    /// Vault.
    pub tokens: TokenStore,
    /// Tokens without a record.
    pub reaper: Reaper,
    /// Init containers.
    pub pusher: Pusher,
    /// How many tokens may be made.
    pub budget: Budget,
    /// Whether requests are checked.
    pub admission: watch::Receiver<Admission>,
    /// What is granted.
    pub rulebook: Rulebook,
    /// How many have lost their grants.
    pub census: Arc<Census>,
    /// All tokens in Vault.
    pub lister: TokenLister,
    /// How fast the sweep may look at tokens.
    pub pace: DefaultDirectRateLimiter,
    /// That the sweep goes on is told there.
    pub vitals: Vitals,
    /// Wakes the sweep.
    pub sweeps: Arc<Notify>,
    /// Who tells people.
    pub herald: Herald,
    /// What counts.
    pub metrics: Metrics,
}

impl World for Live {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn vault_away(&self) -> Option<Why> {
        self.tokens.away().as_ref().map(vault::Error::why)
    }

    fn admission(&self) -> Admission {
        self.admission.borrow().clone()
    }

    fn grants(&self, request: &VaultTokenRequest) -> Grants {
        let edition = self.rulebook.edition();
        // All requests are counted only where a recorded token has lost its grant: no other decision asks for the number.
        let lost = request.holds_token() && !granted(request, &edition.rules);
        let held = if lost { self.census.held(&edition) } else { None };
        Grants { held, rules: edition.rules }
    }

    fn admit(&self, namespace: &str, pod_uid: &str) -> Result<(), Timestamp> {
        self.budget.take(namespace, pod_uid)
    }

    async fn read(&self, namespace: &str, name: &str) -> Result<Option<VaultTokenRequest>, cluster::Error> {
        self.ledger.read(namespace, name).await
    }

    async fn write(
        &self,
        request: &VaultTokenRequest,
        status: VaultTokenRequestStatus,
    ) -> Result<VaultTokenRequest, cluster::Error> {
        self.ledger.write(request, status).await
    }

    async fn release(&self, request: &VaultTokenRequest) -> Result<(), cluster::Error> {
        self.ledger.release(request).await
    }

    async fn delete(&self, request: &VaultTokenRequest) -> Result<(), cluster::Error> {
        self.ledger.delete(request).await
    }

    async fn pod(&self, namespace: &str, name: &str, init_container: &str) -> Result<Observation, cluster::Error> {
        self.pods.read(namespace, name, init_container).await
    }

    async fn mint(&self, order: &TokenOrder) -> Result<Minted, vault::Error> {
        self.tokens.mint(order).await
    }

    async fn look_up(&self, accessor: &str) -> Result<Option<TokenInfo>, vault::Error> {
        self.tokens.look_up(accessor).await
    }

    async fn pace(&self) {
        self.vitals.sweep_due(Some(Instant::now()));
        self.pace.until_ready().await;
    }

    async fn list(&self) -> Result<Vec<String>, vault::Error> {
        self.lister.list().await
    }

    async fn renew(&self, accessor: &str) -> Result<Option<Timestamp>, vault::Error> {
        self.tokens.renew(accessor).await
    }

    async fn revoke(&self, accessor: &str) -> Result<(), vault::Error> {
        self.tokens.revoke(accessor).await
    }

    fn take_back(&self, request_uid: &str, accessor: String, period: Duration) {
        self.reaper.take_back(request_uid.to_owned(), accessor, period);
    }

    fn sweep_soon(&self) {
        self.sweeps.notify_one();
    }

    fn seal(&self, public_key: &str, subject: Subject<'_>, parcel: &Parcel) -> Result<String, String> {
        seal::seal(public_key, subject, parcel)
    }

    async fn push(&self, addresses: &[IpAddr], port: u16, push: &Push) -> Result<Answer, String> {
        self.pusher.push(addresses, port, push).await
    }

    fn alarm(&self, request: &VaultTokenRequest, alarm: Alarm) {
        self.metrics.alarm(alarm);
        // The others change the request's status, which is told of anyhow.
        if let Alarm::ForeignPushes(count) = alarm {
            let note = format!(
                "the init container refused {count} pushes that were not the operator's; who else can reach its port?"
            );
            let reason = Reason::ForeignPushes.as_str().to_owned();
            self.herald.announce(request, Announcement { warning: true, reason, action: "Deliver", note });
        }
    }
}
