//! The heart: from what was observed of one request to the one next step. Rules by number are those of
//! ARCHITECTURE.md ("The rules").

use super::admission::Admission;
use super::backoff::Backoff;
use super::grant::{Grant, Limits, Verdict, Why, verify};
use super::pod::{InitState, Observation, PodFacts};
use super::rules::Rules;
use super::status::is_left;
use super::tenure::{Tenure, delivered, renewal_due, tenure};
use super::token::{Hand, Intent, Wrapped};
use crate::api::{ConditionType, Delivery, Phase, Reason, VaultTokenRequest, VaultTokenRequestStatus};
use crate::seal::Subject;
use crate::wire::Answer;
use jiff::{SignedDuration, Timestamp};
use std::net::IpAddr;
use std::time::Duration;

/// How many times the operator sets out to make a token for one request.
pub const MAX_ATTEMPTS: u32 = 5;

/// How long after an attempt that came to nothing the next one may begin: whatever is wrong has some time to mend.
const SPACING: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };

/// How long requests are kept that say little (denied, failed, superseded): a pod has ten names for its requests at most.
const SHORT_RETENTION: Duration = Duration::from_secs(15 * 60);

/// How long after it was sent a renewal can take effect, and by how much the clocks of Vault and the operator can differ.
const CALL_DEADLINE: SignedDuration = SignedDuration::from_secs(60);

/// How long after it could have been deleted a compromised request is looked at again whose pod still lives.
const WARNING_RECHECK: SignedDuration = SignedDuration::from_secs(600);

/// How long a kubelet may take to say that an init container runs, which has asked by then, and how soon it is looked whether it has.
const KUBELET_LAG: SignedDuration = SignedDuration::from_secs(30);
const KUBELET_RECHECK: SignedDuration = SignedDuration::from_secs(1);

/// Everything that the next step of one request depends on.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The request, at a resourceVersion that guards whatever is written next.
    pub request: &'a VaultTokenRequest,
    /// A fresh read of its pod; `None` where [`wants_pod`] says that none is wanted, or where the watch shows the
    /// pod of a delivered token alive. Nothing ever ends for want of a look (rule 7).
    pub pod: Option<&'a Observation>,
    /// What its pod's other requests mean for it.
    pub siblings: &'a Siblings,
    /// What is in memory for it.
    pub hand: &'a Hand,
    /// Why Vault cannot be asked at the moment, if it cannot.
    pub vault_away: Option<&'a Why>,
    /// Whether the API server checks who creates requests.
    pub admission: &'a Admission,
    /// What is granted to whom.
    pub rules: &'a Rules,
    /// How many tokens have lost their grants, if they are too many to be revoked without a person's word.
    pub held: Option<usize>,
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
    /// Write the sealed wrapping token into the status, for the init container to take (rule 4).
    Offer,
    /// Go by what the init container said in the status of what it took there (rule 5).
    Hear(Answer),
    /// Take the offer back that somebody answered who had not opened it, and make it again a little later.
    Disbelieve,
    /// Revoke the token in hand: it has no record, and gets none (rule 3).
    RevokeUnrecorded,
    /// Write down that the attempt is given up (rule 6).
    Abandon(Why),
    /// Revoke the token of an attempt that was given up, then start over (rule 6).
    RevokeAbandoned(String),
    /// Revoke the token because its time has come, and record that (rule 7); also once it is dead for want of time, if Vault
    /// cannot be asked (rule 8).
    RevokeFinally(String, Why),
    /// Renew the token (rule 8).
    Renew(String),
    /// See whether Vault made the token as it was asked to, before it is handed over.
    Check(String),
    /// Write down that the token has lost its grant: it has some time left.
    LoseGrant(Why),
    /// Write down that the token has its grant again.
    RegainGrant,
    /// Let the request go: its token is dead, or there never was one (rule 7).
    Release,
    /// Delete the request: it was kept for long enough.
    Delete,
}

impl Step {
    /// The token that is renewed or revoked by what the status says, if any is.
    pub fn accessor(&self) -> Option<&str> {
        match self {
            Self::RevokeAbandoned(accessor) | Self::RevokeFinally(accessor, _) | Self::Renew(accessor) => {
                Some(accessor)
            }
            _ => None,
        }
    }
}

/// Whether the next step of the request depends on its pod. That of a delivered token is not looked at while the watch shows it
/// alive and Vault has nothing to do for it: a cache may keep a token alive, and never end it.
pub fn wants_pod(request: &VaultTokenRequest, lives: bool, vault_away: bool, now: Timestamp) -> bool {
    if request.metadata.deletion_timestamp.is_some() {
        return false;
    }
    if request.is_over() {
        return request.is_compromised();
    }
    let rests = request.phase() == Phase::Delivered && (vault_away || renewal_due(request).is_none_or(|due| due > now));
    !(lives && rests)
}

/// What the other requests of the same pod mean for one of them, each by a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Siblings {
    /// A newer one that is Delivered.
    pub superseded_by: Option<String>,
    /// A newer one that records a token.
    pub outdone_by: Option<String>,
    /// One that is compromised.
    pub compromised_by: Option<String>,
}

impl Siblings {
    /// Of `request`, among the `others` of its pod.
    pub fn of<'a>(request: &VaultTokenRequest, others: impl Iterator<Item = &'a VaultTokenRequest> + Clone) -> Self {
        let first = |means: &dyn Fn(&VaultTokenRequest) -> bool| {
            others.clone().find(|other| means(other)).and_then(|other| other.metadata.name.clone())
        };
        Self {
            superseded_by: first(&|other| supersedes(other, request)),
            outdone_by: first(&|other| other.holds_token() && is_newer(other, request)),
            compromised_by: first(&VaultTokenRequest::is_compromised),
        }
    }
}

/// Whether one request of a pod makes an older one of the same pod end: only once it is Delivered, so that no pod is ever
/// without a token because it asked for another.
pub fn supersedes(newer: &VaultTokenRequest, older: &VaultTokenRequest) -> bool {
    newer.phase() == Phase::Delivered && is_newer(newer, older)
}

fn is_newer(newer: &VaultTokenRequest, older: &VaultTokenRequest) -> bool {
    newer.spec.pod_uid == older.spec.pod_uid && order(newer) > order(older)
}

/// The order of a pod's requests. Only a hostile init container gives two the same number; then, too, one of them ends.
fn order(request: &VaultTokenRequest) -> (i64, Option<Timestamp>, Option<&str>) {
    let created = request.metadata.creation_timestamp.as_ref().map(|created| created.0);
    (request.spec.sequence, created, request.metadata.uid.as_deref())
}

/// What is in hand once the request was read fresh: a record that stands is confirmed, and what has served is put away. Of a token
/// that is delivered nothing is left to be taken back.
pub fn confirmed(hand: Hand, request: &VaultTokenRequest) -> Hand {
    match (hand, &request.status) {
        (Hand::Unconfirmed(wrapped) | Hand::Wrapped(wrapped), Some(status)) if belongs(&wrapped, status) => {
            match request.phase() {
                Phase::Issued => Hand::Wrapped(wrapped),
                _ => Hand::Empty,
            }
        }
        (hand, _) => hand,
    }
}

/// Decides the next step.
pub fn decide(observed: &Observed<'_>) -> Step {
    let request = observed.request;
    let status = request.status.clone().unwrap_or_default();
    if let Hand::Unconfirmed(wrapped) = observed.hand
        && !belongs(wrapped, &status)
    {
        return Step::RevokeUnrecorded;
    }
    match request.phase() {
        _ if request.is_over() => finished(observed, &status),
        Phase::Issued | Phase::Delivered | Phase::Revoking => match status.token_accessor.clone() {
            Some(accessor) => with_token(observed, &status, accessor),
            // No operator writes this; somebody who may write the status did.
            None => Step::Fail(Why::new(Reason::AttemptsExhausted, "the status names no token accessor")),
        },
        _ => begin(observed, &status),
    }
}

/// A request that came to its end.
fn finished(observed: &Observed<'_>, status: &VaultTokenRequestStatus) -> Step {
    let request = observed.request;
    if request.has_finalizer() {
        return Step::Release;
    }
    if request.metadata.deletion_timestamp.is_some() {
        return Step::Settle;
    }
    let told = status.is_compromised()
        || request.phase() == Phase::Revoked && status.reason.as_deref() != Some(Reason::Superseded.as_str());
    let kept = observed.limits.retention.min(if told { Duration::MAX } else { SHORT_RETENTION });
    let created = request.metadata.creation_timestamp.as_ref();
    let due = status.finished_at.as_ref().or(created).and_then(|since| since.0.checked_add(kept).ok());
    // It keeps its pod from being served until a person has deleted the one or the other.
    let warns = status.is_compromised() && end(observed).is_none();
    match due {
        Some(due) if due <= observed.now && warns => {
            Step::Later(observed.now.checked_add(WARNING_RECHECK).unwrap_or(due))
        }
        Some(due) if due <= observed.now => Step::Delete,
        Some(due) => Step::Later(due),
        None => Step::Settle,
    }
}

/// A request that no token is recorded for.
fn begin(observed: &Observed<'_>, status: &VaultTokenRequestStatus) -> Step {
    if observed.request.metadata.deletion_timestamp.is_some() {
        return Step::Fail(Why::new(Reason::RequestDeleted, "the request was deleted before a token was issued"));
    }
    if let Some(newer) = &observed.siblings.superseded_by {
        return Step::Fail(superseded(newer));
    }
    let Some(pod) = observed.pod else { return Step::Settle };
    match (held_back(observed, verify(observed.request, pod, observed.rules, observed.limits)), pod) {
        // It was said before, and nothing has changed.
        (Verdict::Denied(why), _) if status.awaits_grant() && super::status::current(status) == why.message => {
            Step::Settle
        }
        (Verdict::Denied(why), _) if status.attempts == 0 => Step::Deny(why),
        (Verdict::Denied(why) | Verdict::Ended(why), _) => Step::Fail(why),
        // Whoever has just asked may be granted it by now, and its kubelet about to say that it runs: it is not over yet.
        (Verdict::NotYet(why), _)
            if why.reason == Reason::InitContainerNotRunning && status.awaits_grant() && is_new(observed) =>
        {
            Step::Later(observed.now.checked_add(KUBELET_RECHECK).unwrap_or(observed.now))
        }
        (Verdict::NotYet(why), _) => Step::Wait(why),
        (Verdict::Granted(grant), Observation::Present(facts)) => attempt(observed, status, grant, facts),
        (Verdict::Granted(_), Observation::Absent) => Step::Settle,
    }
}

/// Whether the request was made so short a time ago that its kubelet may not have said yet that its init container runs.
fn is_new(observed: &Observed<'_>) -> bool {
    let created = observed.request.metadata.creation_timestamp.as_ref();
    created.and_then(|created| created.0.checked_add(KUBELET_LAG).ok()).is_some_and(|until| observed.now < until)
}

/// Nothing is made for a request that nothing has checked, nor for a pod whose wrapping token somebody else has used: whoever did could
/// do it again.
fn held_back(observed: &Observed<'_>, verdict: Verdict) -> Verdict {
    if let (Verdict::Granted(_), Some(objection)) = (&verdict, observed.admission.objection(observed.request)) {
        return objection;
    }
    match (verdict, &observed.siblings.compromised_by) {
        (Verdict::Granted(_), Some(name)) => Verdict::NotYet(Why::new(
            Reason::PodCompromised,
            format!(
                "somebody else used a wrapping token of this pod, as the request {name} says; find out who, then delete that \
                 request, or the pod, to go on"
            ),
        )),
        (verdict, _) => verdict,
    }
}

/// A verified pod: goes on with the attempt in hand, or begins another one. An attempt may have waited for Vault since
/// it was written down: it is only minted for what the pod may have now.
fn attempt(observed: &Observed<'_>, status: &VaultTokenRequestStatus, grant: Grant, facts: &PodFacts) -> Step {
    let in_hand = match observed.hand {
        // One that has waited for long would look as if nobody had seen to it.
        Hand::Intent(intent)
            if observed.request.phase() == Phase::Minting && !is_left(intent.started_at, observed.now) =>
        {
            Some(intent)
        }
        _ => None,
    };
    match (in_hand, observed.vault_away) {
        // No attempt is spent on a Vault that is known to be away.
        (_, Some(why)) => Step::Wait(why.clone()),
        (Some(intent), None) if intent.attempt == status.attempts && intent.grant == grant => {
            Step::Mint(Intent { grant, pod: facts.clone(), ..intent.clone() })
        }
        (_, None) if status.attempts >= MAX_ATTEMPTS => Step::Fail(exhausted(unrecorded(status))),
        (_, None) => match spaced(status) {
            Some(time) if time > observed.now => Step::Later(time),
            _ => {
                let started_at = Timestamp::from_microsecond(observed.now.as_microsecond()).unwrap_or(observed.now);
                Step::Intend(Intent { attempt: status.attempts + 1, started_at, grant, pod: facts.clone() })
            }
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
    if let Some(why) = contradiction(observed, status) {
        // It may be a pod that says nothing on purpose: it keeps one token, however often it has asked, and no longer than one that
        // is delivered. The app has the newest, since an init container that asks clears away what was there.
        if let Some(newer) = observed.siblings.outdone_by.as_ref().filter(|_| has_initialized(observed)) {
            return Step::RevokeFinally(accessor, superseded(newer));
        }
        return match tenure(observed, status, &accessor) {
            Tenure::Granted | Tenure::Until(_) => Step::Wait(why),
            Tenure::Now(step) => step,
        };
    }
    match observed.request.phase() {
        Phase::Delivered => delivered(observed, status, accessor),
        Phase::Revoking => Step::RevokeAbandoned(accessor),
        _ => match (in_hand(observed.hand, status), observed.pod) {
            (Some(wrapped), Some(Observation::Present(facts))) => hand_over(observed, status, wrapped, facts),
            _ => Step::Abandon(Why::new(
                Reason::AttemptAbandoned,
                "the operator restarted before the token was delivered",
            )),
        },
    }
}

/// Rule 10: where the pod may be using this very token though the request does not say that it has it. (A newer request that is
/// Delivered has ended this one.)
fn contradiction(observed: &Observed<'_>, status: &VaultTokenRequestStatus) -> Option<Why> {
    let words = match observed.request.phase() {
        Phase::Delivered => return None,
        // An init container ends well only once its request is Delivered: the requests are older than they were.
        _ if has_initialized(observed) => {
            "the pod has had its token, and no request says so; were the requests restored from a backup? The token is kept \
             while the pod lives; restart the pod to give it a new one"
        }
        // What is said of the pod may be as old as the request. An init container that still waits asks anew when it reads this.
        Phase::Issued if was_left(status, observed.now) && in_hand(observed.hand, status).is_none() => {
            "nobody saw to it for so long that it is not known whether the pod has had its token; was the operator away, or were the \
             requests restored from a backup? The token is kept until the pod has a newer one; an init container that waits asks for one"
        }
        _ => return None,
    };
    Some(Why::new(Reason::DeliveryForgotten, words))
}

fn has_initialized(observed: &Observed<'_>) -> bool {
    matches!(observed.pod, Some(Observation::Present(facts)) if facts.init == InitState::Ended)
}

/// Whether a recorded token has been left alone.
fn was_left(status: &VaultTokenRequestStatus, now: Timestamp) -> bool {
    status.issued_at.as_ref().is_some_and(|issued| is_left(issued.0, now))
}

/// The wrapping token of the recorded token, if it is in memory: then it has been there ever since it was made.
fn in_hand<'a>(hand: &'a Hand, status: &VaultTokenRequestStatus) -> Option<&'a Wrapped> {
    match hand {
        Hand::Wrapped(wrapped) | Hand::Unconfirmed(wrapped) => Some(wrapped).filter(|it| belongs(it, status)),
        Hand::Empty | Hand::Intent(_) => None,
    }
}

/// When the token is dead for certain, even if nobody can be asked: nobody renews it after the first try to revoke it, which
/// the condition Revoked marks (rule 8). Never, where it may renew itself.
fn last_expiry(status: &VaultTokenRequestStatus) -> Option<Timestamp> {
    if status.self_renewal {
        return None;
    }
    let tried = status.condition(ConditionType::Revoked)?;
    let period = super::duration::parse(status.ttl.as_deref()?).ok()?;
    let renewed_until = tried.last_transition_time.0.checked_add(period).ok()?;
    let last = status.expires_at.as_ref().map_or(renewed_until, |expires| renewed_until.max(expires.0));
    last.checked_add(CALL_DEADLINE).ok()
}

/// Whether the token is dead by now whatever Vault would say, which cannot be asked (rule 8).
pub fn surely_outlived(request: &VaultTokenRequest, now: Timestamp) -> bool {
    request.status.as_ref().and_then(last_expiry).is_some_and(|last| last <= now)
}

/// Whether the token has been dead for some time by what Vault said of it last.
pub fn surely_expired(request: &VaultTokenRequest, now: Timestamp) -> bool {
    let expires = request.status.as_ref().and_then(|status| status.expires_at.as_ref());
    expires.and_then(|expires| expires.0.checked_add(CALL_DEADLINE).ok()).is_some_and(|sure| sure <= now)
}

/// Whether the wrapping token in hand is that of the recorded token.
fn belongs(wrapped: &Wrapped, status: &VaultTokenRequestStatus) -> bool {
    wrapped.attempt == status.attempts && Some(&wrapped.minted.token_accessor) == status.token_accessor.as_ref()
}

/// A recorded token whose wrapping token is in hand: on its way to the init container.
fn hand_over(observed: &Observed<'_>, status: &VaultTokenRequestStatus, wrapped: &Wrapped, facts: &PodFacts) -> Step {
    if wrapped.expires.is_none()
        && let Some(accessor) = status.token_accessor.clone()
    {
        return Step::Check(accessor);
    }
    // Before its time is over is asked for: an answer that came in time counts.
    if let (Some(answer), true) = (&status.answer, status.sealed_token.is_some()) {
        let confirmed = answer.attempt == wrapped.attempt
            && wrapped.receipt.confirms(subject(observed.request, wrapped.attempt), answer);
        return if confirmed { Step::Hear(answer.clone()) } else { Step::Disbelieve };
    }
    if observed.now >= wrapped.minted.wrapping_expires_at {
        // Of this attempt: what came of the one before has its own words.
        let pushed = status.condition(ConditionType::Delivered);
        let pushed = pushed.filter(|condition| condition.reason == Reason::PushFailed.as_str());
        let last = pushed.map(|condition| format!(" (last: {})", condition.message)).unwrap_or_default();
        return Step::Abandon(Why::new(
            Reason::AttemptAbandoned,
            format!("the wrapping token expired before it was delivered{last}"),
        ));
    }
    if observed.request.spec.delivery == Delivery::Status {
        return match status.sealed_token {
            Some(_) => Step::Later(wrapped.minted.wrapping_expires_at),
            None => Step::Offer,
        };
    }
    let addresses: Vec<IpAddr> =
        facts.addresses.iter().copied().filter(|address| observed.limits.networks.contain(*address)).collect();
    if addresses.is_empty() {
        return Step::Wait(Why::new(Reason::PodHasNoAddress, "waiting for the pod to get an address"));
    }
    Step::Push(addresses)
}

/// What the seal and the answer of an attempt are about.
pub fn subject(request: &VaultTokenRequest, attempt: u32) -> Subject<'_> {
    let request_uid = request.metadata.uid.as_deref().unwrap_or_default();
    Subject { request_uid, pod_uid: &request.spec.pod_uid, attempt }
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
    if let Some(newer) = &observed.siblings.superseded_by {
        return Some(superseded(newer));
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

fn superseded(newer: &str) -> Why {
    Why::new(Reason::Superseded, format!("the pod has a newer token, by the request {newer}"))
}

/// What is known of the last attempt, which came to no record. While it is open, the condition says at most what is waited for since then.
fn unrecorded(status: &VaultTokenRequestStatus) -> &str {
    let closed = status.phase == Some(Phase::Pending);
    let told = closed.then(|| super::status::message(status, ConditionType::Issued)).flatten();
    told.unwrap_or("its token was not recorded: the API server did not answer, or the operator restarted")
}

/// Why a request ends that used up its attempts; `last` says what became of the last one.
pub fn exhausted(last: &str) -> Why {
    Why::new(Reason::AttemptsExhausted, format!("all {MAX_ATTEMPTS} attempts failed; the last one: {last}"))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
