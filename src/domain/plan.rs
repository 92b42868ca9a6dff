//! The heart: from what was observed of one request to the one next step. Rules by number are those of
//! ARCHITECTURE.md ("The rules").

use super::backoff::Backoff;
use super::grant::{Grant, Limits, Verdict, Why, verify};
use super::pod::{Observation, PodFacts};
use super::token::{Hand, Intent, Wrapped};
use crate::api::{Phase, Reason, VaultTokenRequest, VaultTokenRequestStatus};
use crate::text::one_line;
use jiff::Timestamp;
use std::net::IpAddr;
use std::time::Duration;

/// How many times the operator sets out to make a token for one request.
pub const MAX_ATTEMPTS: u32 = 5;

/// How long after an attempt that came to nothing the next one may begin: whatever is wrong has some time to mend.
const SPACING: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

/// Everything that the next step of one request depends on.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The request, at a resourceVersion that guards whatever is written next.
    pub request: &'a VaultTokenRequest,
    /// A fresh read of its pod; `None` where [`wants_pod`] says that none is wanted, or where the watch shows the
    /// pod of a delivered token alive. Nothing ever ends for want of a look (rule 7).
    pub pod: Option<&'a Observation>,
    /// What is in memory for it.
    pub hand: &'a Hand,
    /// Why Vault cannot be asked at the moment, if it cannot.
    pub vault_away: Option<&'a str>,
    /// The operator's settings.
    pub limits: &'a Limits,
    /// The time of the observation.
    pub now: Timestamp,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Settle,
    /// Nothing yet: say why, and look again.
    Wait(Why),
    /// Nothing before this time: the status says why already.
    Later(Timestamp),
    /// Refuse the request, finally.
    Deny(Why),
    /// End the request without a token.
    Fail(Why),
    /// Write down the next attempt (rule 1).
    Intend(Intent),
    /// Ask Vault for the token of the attempt in hand (rule 2), and record it (rule 3).
    Mint(Intent),
    /// Hand the wrapping token over to one of these addresses (rule 4), and say so (rule 5).
    Push(Vec<IpAddr>),
    /// Revoke the token in hand: it has no record, and gets none (rule 3).
    RevokeUnrecorded,
    /// Write down that the attempt is given up (rule 6).
    Abandon(Why),
    /// Revoke the token of an attempt that was given up, then start over (rule 6).
    RevokeAbandoned(String),
    /// Revoke the token because its time has come, and record that (rule 7).
    RevokeFinally(String, Why),
    /// Let the request go: its token is dead, or there never was one (rule 7).
    Release,
}

/// Whether the next step of the request depends on its pod.
pub fn wants_pod(request: &VaultTokenRequest) -> bool {
    !(request.phase().is_final() || request.metadata.deletion_timestamp.is_some())
}

/// Decides the next step.
pub fn decide(observed: &Observed<'_>) -> Step {
    let request = observed.request;
    let status = request.status.clone().unwrap_or_default();
    if let Hand::Unconfirmed(wrapped) = observed.hand
        && !(request.phase() == Phase::Issued && belongs(wrapped, &status))
    {
        return Step::RevokeUnrecorded;
    }
    match request.phase() {
        phase if phase.is_final() => {
            if request.has_finalizer() {
                Step::Release
            } else {
                Step::Settle
            }
        }
        Phase::Issued | Phase::Delivered | Phase::Revoking => match status.token_accessor.clone() {
            Some(accessor) => with_token(observed, &status, accessor),
            // No operator writes this; somebody who may write the status did.
            None => Step::Fail(Why::new(Reason::AttemptsExhausted, "the status names no token accessor")),
        },
        _ => begin(observed, &status),
    }
}

/// A request that no token is recorded for.
fn begin(observed: &Observed<'_>, status: &VaultTokenRequestStatus) -> Step {
    if observed.request.metadata.deletion_timestamp.is_some() {
        return Step::Fail(Why::new(Reason::RequestDeleted, "the request was deleted before a token was issued"));
    }
    let Some(pod) = observed.pod else { return Step::Settle };
    match (verify(observed.request, pod, observed.limits), pod) {
        (Verdict::Denied(why), _) if status.attempts == 0 => Step::Deny(why),
        (Verdict::Denied(why) | Verdict::Ended(why), _) => Step::Fail(why),
        (Verdict::NotYet(why), _) => Step::Wait(why),
        (Verdict::Granted(grant), Observation::Present(facts)) => attempt(observed, status, grant, facts),
        (Verdict::Granted(_), Observation::Absent) => Step::Settle,
    }
}

/// A verified pod: goes on with the attempt in hand, or begins another one. An attempt may have waited for Vault since
/// it was written down: it is only minted for what the pod may have now.
fn attempt(observed: &Observed<'_>, status: &VaultTokenRequestStatus, grant: Grant, facts: &PodFacts) -> Step {
    let in_hand = match observed.hand {
        Hand::Intent(intent) if observed.request.phase() == Phase::Minting => Some(intent),
        _ => None,
    };
    match (in_hand, observed.vault_away) {
        // No attempt is spent on a Vault that is known to be away.
        (_, Some(why)) => Step::Wait(Why::new(Reason::VaultUnavailable, one_line(why))),
        (Some(intent), None) if intent.attempt == status.attempts && intent.grant == grant => {
            Step::Mint(Intent { attempt: intent.attempt, grant, pod: facts.clone() })
        }
        (_, None) if status.attempts >= MAX_ATTEMPTS => Step::Fail(exhausted(status)),
        (_, None) => match spaced(status) {
            Some(time) if time > observed.now => Step::Later(time),
            _ => Step::Intend(Intent { attempt: status.attempts + 1, grant, pod: facts.clone() }),
        },
    }
}

/// When the next attempt may begin, if the last one is known to have come to nothing.
fn spaced(status: &VaultTokenRequestStatus) -> Option<Timestamp> {
    let last = status.history.last().filter(|last| last.number == status.attempts)?;
    last.time.0.checked_add(SPACING.after(status.attempts, 1.0)).ok()
}

/// A request whose status records a token.
fn with_token(observed: &Observed<'_>, status: &VaultTokenRequestStatus, accessor: String) -> Step {
    if let Some(end) = end(observed) {
        return Step::RevokeFinally(accessor, end);
    }
    match observed.request.phase() {
        Phase::Delivered => Step::Settle,
        Phase::Revoking => Step::RevokeAbandoned(accessor),
        _ => match (observed.hand, observed.pod) {
            (Hand::Wrapped(wrapped) | Hand::Unconfirmed(wrapped), Some(Observation::Present(facts)))
                if belongs(wrapped, status) =>
            {
                push(observed, wrapped, facts)
            }
            _ => Step::Abandon(Why::new(
                Reason::AttemptAbandoned,
                "the operator restarted before the token was delivered; another one follows",
            )),
        },
    }
}

/// Whether the wrapping token in hand is that of the recorded token.
fn belongs(wrapped: &Wrapped, status: &VaultTokenRequestStatus) -> bool {
    wrapped.attempt == status.attempts && Some(&wrapped.minted.token_accessor) == status.token_accessor.as_ref()
}

fn push(observed: &Observed<'_>, wrapped: &Wrapped, facts: &PodFacts) -> Step {
    if observed.now >= wrapped.minted.wrapping_expires_at {
        let status = observed.request.status.as_ref();
        let last = status.and_then(|status| super::status::message(status, crate::api::ConditionType::Delivered));
        let last = last.map(|message| format!(" (last: {message})")).unwrap_or_default();
        return Step::Abandon(Why::new(
            Reason::AttemptAbandoned,
            format!("the wrapping token expired before it was delivered{last}; another one follows"),
        ));
    }
    let addresses: Vec<IpAddr> =
        facts.addresses.iter().copied().filter(|address| observed.limits.networks.contain(*address)).collect();
    if addresses.is_empty() {
        return Step::Wait(Why::new(Reason::PodHasNoAddress, "waiting for the pod to get an address"));
    }
    Step::Push(addresses)
}

/// Why the token's time has come, if it has (rule 7).
fn end(observed: &Observed<'_>) -> Option<Why> {
    let spec = &observed.request.spec;
    if observed.request.metadata.deletion_timestamp.is_some() {
        return Some(Why::new(
            Reason::RequestDeleted,
            "the request was deleted; if its pod still runs, restart it to get another token",
        ));
    }
    match observed.pod? {
        Observation::Absent => Some(Why::new(Reason::PodDeleted, format!("the pod {} is gone", spec.pod_name))),
        Observation::Present(facts) if facts.uid != spec.pod_uid => Some(Why::new(
            Reason::PodDeleted,
            format!("the pod {} is gone; another pod has its name now", spec.pod_name),
        )),
        Observation::Present(facts) if facts.finished => {
            Some(Why::new(Reason::PodFinished, format!("the pod {} has finished", spec.pod_name)))
        }
        Observation::Present(_) => None,
    }
}

/// Why a request ends that used up its attempts.
pub fn exhausted(status: &VaultTokenRequestStatus) -> Why {
    let last = super::status::message(status, crate::api::ConditionType::Delivered)
        .or_else(|| super::status::message(status, crate::api::ConditionType::Issued))
        .unwrap_or_default();
    Why::new(Reason::AttemptsExhausted, format!("all {MAX_ATTEMPTS} attempts failed; the last one: {last}"))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
