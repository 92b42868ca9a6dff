//! When the sweep runs, and who is told what it found.

use super::health::Health;
use super::herald::Herald;
use super::lease::Leadership;
use super::metrics::{Metrics, SweepResult};
use super::sweep::{Error, Report, Sweeper};
use super::world::World;
use crate::api::{Reason, VaultTokenRequest};
use crate::domain::announcement::Announcement;
use crate::domain::sweep::Claim;
use kube::runtime::reflector::Store;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long after the requests are listed, or after an attempt that may have left a token, the sweep runs: what is still on its
/// way to Vault lands meanwhile.
const SETTLING: Duration = Duration::from_secs(5);

/// How long after one that broke off the next sweep runs.
const AGAIN: Duration = Duration::from_secs(60);

/// What the sweeps need.
pub struct Sweeps<W> {
    /// Vault and the API server.
    pub world: Arc<W>,
    /// What sweeps.
    pub sweeper: Sweeper,
    /// What the watch shows.
    pub requests: Store<VaultTokenRequest>,
    /// Who is told.
    pub herald: Herald,
    /// Where the outcome is shown.
    pub health: Health,
    /// Where it is counted.
    pub metrics: Metrics,
    /// Whether this replica sweeps.
    pub leadership: Leadership,
    /// Wakes it.
    pub wanted: Arc<Notify>,
    /// The time between two sweeps.
    pub interval: Duration,
}

/// Sweeps for as long as it is polled and this replica leads: soon after it came to, whenever `wanted`, and every `interval`.
pub async fn run(sweeps: Sweeps<impl World>) {
    let Sweeps { world, mut sweeper, requests, herald, health, metrics, mut leadership, wanted, interval } = sweeps;
    let vitals = health.vitals();
    health.requests_listed().await;
    loop {
        vitals.sweep_due(None);
        let term = leadership.elected(0).await;
        vitals.sweep_due(Some(Instant::now() + SETTLING));
        tokio::time::sleep(SETTLING).await;
        let recorded = recorded(&requests);
        let began = Instant::now();
        // Spread, so that two clusters on one Vault do not always sweep together.
        let mut rest = interval.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        match sweeper.sweep(&*world, |accessor| recorded.contains(accessor)).await {
            Ok(report) => {
                let result = match report {
                    Report { stopped: Some(_), .. } => SweepResult::Stopped,
                    Report { broken_off: Some(_), .. } => SweepResult::Failed,
                    _ => SweepResult::Complete,
                };
                let revoked = report.revoked.len();
                metrics.swept(result, revoked, report.orphans - revoked);
                tell(&report, began.elapsed(), &herald, &health);
                if result == SweepResult::Failed {
                    rest = rest.min(AGAIN);
                }
            }
            Err(error) => {
                let (result, message) = complaint(&error);
                metrics.swept(result, 0, 0);
                if result == SweepResult::Failed {
                    rest = rest.min(AGAIN);
                }
                // Once, until something else is wrong.
                if health.sweep(message.clone()) {
                    tracing::warn!("{message}");
                }
            }
        }
        vitals.sweep_due(Some(Instant::now() + rest));
        tokio::select! {
            () = wanted.notified() => {}
            _ = leadership.elected(term) => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// The accessors of tokens whose requests record them, as far as the watch shows. It only spares a look.
fn recorded(requests: &Store<VaultTokenRequest>) -> HashSet<String> {
    let requests = requests.state();
    let live = requests.iter().filter(|request| !request.is_over());
    live.filter_map(|request| request.status.as_ref()?.token_accessor.clone()).collect()
}

fn tell(report: &Report, took: Duration, herald: &Herald, health: &Health) {
    let announce = |claim: &Claim, reason: Reason, note: String| {
        let reason = reason.as_str().to_owned();
        herald.announce_unrecorded(claim, Announcement { warning: true, reason, action: "Sweep", note });
    };
    for claim in &report.revoked {
        let note = format!("the token of attempt {} was recorded nowhere, and was revoked", claim.attempt);
        announce(claim, Reason::OrphanRevoked, format!("{note} (accessor {})", claim.accessor));
    }
    for (claim, why) in &report.kept {
        let note = format!("the token with the accessor {} {why}", claim.accessor);
        tracing::error!(namespace = claim.namespace, pod = claim.pod_name, request = claim.request_name, "{note}");
        announce(claim, Reason::OrphanKept, note);
    }
    if let Some(why) = &report.stopped {
        tracing::error!("{why}");
    }
    if let Some(error) = &report.broken_off {
        tracing::warn!(error, "the sweep broke off, and is repeated");
    }
    let Report { listed, examined, orphans, .. } = *report;
    let revoked = report.revoked.len();
    let kept = orphans - revoked;
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(listed, examined, revoked, kept, milliseconds, "swept Vault for tokens without a request");
    let stopped = report.stopped.as_deref().map(|why| format!("; stopped: {why}")).unwrap_or_default();
    let broken =
        report.broken_off.as_deref().map(|why| format!("; broke off, and is repeated: {why}")).unwrap_or_default();
    health
        .sweep(format!("{listed} tokens in Vault, {revoked} without a request revoked, {kept} kept{stopped}{broken}"));
}

fn complaint(error: &Error) -> (SweepResult, String) {
    match error {
        Error::NotPermitted(error) => {
            let message = format!(
                "tokens that a crash leaves without a request live until their ttl ends, since the operator may not list \
                 tokens ({error}); config/vault/ says how to allow it"
            );
            (SweepResult::Forbidden, message)
        }
        error => (SweepResult::Failed, format!("the sweep broke off, and is repeated: {error}")),
    }
}
