//! Who leads: one of several replicas works, the others stand by with warm watches.
//!
//! Nothing depends on it for safety: two that think they lead do no harm (ARCHITECTURE.md, "The rules"). It keeps them out of each
//! other's way. The protocol is that of client-go's `leaderelection`: a Lease (coordination.k8s.io/v1) is held by who renews it,
//! others count the time since they saw it change by their own clocks, and whoever cannot renew steps down before they may
//! take it.

use crate::cluster::{Error, FIELD_MANAGER, bounded};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The Lease's name, in the operator's own namespace.
const NAME: &str = "vault-token-operator-leader";

/// How long a Lease is held that is not renewed.
const DURATION: Duration = Duration::from_secs(10);

/// How long a leader goes on that cannot renew: less than the others wait.
const DEADLINE: Duration = Duration::from_secs(6);

/// Time between two looks at the Lease.
const RETRY: Duration = Duration::from_secs(2);

/// Why a replica ends whose watches are worth nothing any more: they bring nothing until the API server has written as much again.
const REWOUND: &str = "what the API server stores is older than it was: etcd was restored from a backup. This replica ends, to start anew \
                       with what is there now";

/// A replica that leads or would like to.
pub struct Candidate {
    leases: Api<Lease>,
    identity: String,
    term: watch::Sender<Term>,
}

/// A time of leading without a gap.
#[derive(Clone, Copy, Debug, Default)]
struct Term {
    /// How many there have been.
    number: u64,
    /// Until when it lasts unless the Lease is renewed.
    until: Option<Instant>,
}

impl Term {
    fn lasts(&self) -> bool {
        self.until.is_some_and(|until| until > Instant::now())
    }
}

/// Whether this replica leads.
#[derive(Clone)]
pub struct Leadership(watch::Receiver<Term>);

/// What was seen of the Lease last, when by this replica's clock its holder wrote it, and its resourceVersion.
struct Sighting {
    spec: LeaseSpec,
    at: Instant,
    version: Option<u64>,
}

/// What came of asking for the Lease.
enum Campaign {
    /// This replica holds it.
    Held,
    /// Another one does.
    Lost,
    /// It is older than it was.
    Rewound,
}

impl Candidate {
    /// Takes part under this name, in the namespace that the client is at home in.
    pub fn new(client: Client, identity: String) -> Self {
        let leases = Api::default_namespaced(client);
        Self { leases, identity, term: watch::Sender::new(Term::default()) }
    }

    /// The outcome, as it changes.
    pub fn leadership(&self) -> Leadership {
        Leadership(self.term.subscribe())
    }

    /// Takes part for as long as it is polled, or until there is no use in it any more: a sentence that says why.
    pub async fn run(&self) -> String {
        tokio::select! {
            why = self.stand() => why,
            never = self.watch_the_clock() => match never {},
        }
    }

    async fn stand(&self) -> String {
        let mut seen = None;
        loop {
            let asked = Instant::now();
            match self.campaign(&mut seen).await {
                Ok(Campaign::Held) => self.lead(asked + DEADLINE),
                Ok(Campaign::Lost) => self.step_down("another replica leads"),
                Ok(Campaign::Rewound) => return REWOUND.to_owned(),
                Err(error) => tracing::warn!(%error, "cannot ask for the lease"),
            }
            tokio::time::sleep(RETRY.mul_f64(0.8 + 0.4 * rand::random::<f64>())).await;
        }
    }

    /// Says that a term is over when it is, and not when the call ends that was to renew it.
    async fn watch_the_clock(&self) -> Infallible {
        let mut terms = self.term.subscribe();
        loop {
            let Some(until) = terms.borrow_and_update().until else {
                // Its sender is this candidate.
                let _ = terms.changed().await;
                continue;
            };
            tokio::time::sleep_until(until).await;
            if !self.term.borrow().lasts() {
                self.step_down("the lease could not be renewed in time");
            }
        }
    }

    fn lead(&self, until: Instant) {
        let Term { number, .. } = *self.term.borrow();
        // What was left undone in a gap is taken up by a new term.
        let goes_on = self.term.borrow().lasts();
        if !goes_on {
            tracing::info!(identity = self.identity, "this replica leads");
        }
        self.term.send_replace(Term { number: if goes_on { number } else { number + 1 }, until: Some(until) });
    }

    fn step_down(&self, why: &str) {
        self.term.send_if_modified(|term| {
            let led = term.until.take().is_some();
            if led {
                tracing::warn!(identity = self.identity, "this replica does not lead any more: {why}");
            }
            led
        });
    }

    /// Gives the Lease back, so that another replica need not wait for its end.
    pub async fn release(&self) {
        if !self.term.borrow().lasts() {
            return;
        }
        self.step_down("it ends");
        let released = async {
            let Some(mut lease) = bounded(self.leases.get_opt(NAME)).await? else { return Ok(()) };
            match &mut lease.spec {
                Some(spec) if spec.holder_identity.as_ref() == Some(&self.identity) => spec.holder_identity = None,
                _ => return Ok(()),
            }
            bounded(self.leases.replace(NAME, &params(), &lease)).await.map(drop)
        };
        match released.await {
            Ok(()) => tracing::info!("the lease is given back"),
            Err::<_, Error>(error) => tracing::warn!(%error, "the lease was not given back; it ends by itself"),
        }
    }

    /// Takes or renews the Lease if it can be had.
    async fn campaign(&self, seen: &mut Option<Sighting>) -> Result<Campaign, Error> {
        let Some(mut lease) = bounded(self.leases.get_opt(NAME)).await? else {
            let spec = claim(&self.identity, &LeaseSpec::default());
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec) };
            return held(bounded(self.leases.create(&params(), &lease)).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let version = version_of(&lease);
        if seen.as_ref().is_some_and(|sighting| version.is_some() && version < sighting.version) {
            return Ok(Campaign::Rewound);
        }
        let at =
            seen.as_ref().filter(|sighting| sighting.spec == spec).map_or_else(Instant::now, |sighting| sighting.at);
        *seen = Some(Sighting { spec: spec.clone(), at, version });
        let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
        let held_by_another = holder.is_some_and(|holder| holder != self.identity);
        let life = spec.lease_duration_seconds.and_then(|seconds| seconds.try_into().ok()).map(Duration::from_secs);
        if held_by_another && at.elapsed() < life.unwrap_or(DURATION) {
            return Ok(Campaign::Lost);
        }
        lease.spec = Some(claim(&self.identity, &spec));
        // Guarded by the resourceVersion of what was seen: of two who try, one is refused.
        let written = bounded(self.leases.replace(NAME, &params(), &lease)).await;
        if let (Ok(lease), Some(sighting)) = (&written, seen) {
            sighting.version = version_of(lease);
        }
        held(written)
    }
}

impl Leadership {
    /// Whether this replica leads now.
    pub fn leads(&self) -> bool {
        self.0.borrow().lasts()
    }

    /// Waits until this replica leads in a later term than this; gives that term.
    pub async fn elected(&mut self, after: u64) -> u64 {
        let elected = self.0.wait_for(|term| term.number > after && term.lasts()).await.map(|term| term.number);
        match elected {
            Ok(number) => number,
            // There is no candidate any more.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Its resourceVersion. They are numbers, and comparable (KEP-5504); an object that is made anew has a higher one, too.
fn version_of(lease: &Lease) -> Option<u64> {
    lease.resource_version()?.parse().ok()
}

/// The Lease as its new or old holder writes it.
fn claim(identity: &str, before: &LeaseSpec) -> LeaseSpec {
    let now = Some(MicroTime(Timestamp::now()));
    let kept = before.holder_identity.as_deref() == Some(identity);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if kept { before.acquire_time.clone() } else { now.clone() },
        renew_time: now,
        lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!kept)),
        ..LeaseSpec::default()
    }
}

/// A write that came too late is no error: somebody else holds the Lease.
fn held(written: Result<Lease, Error>) -> Result<Campaign, Error> {
    match written {
        Ok(_) => Ok(Campaign::Held),
        Err(error) if error.status() == Some(409) => Ok(Campaign::Lost),
        Err(error) => Err(error),
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}
