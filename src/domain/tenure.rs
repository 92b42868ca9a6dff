//! A delivered token while its pod lives: renewed (rule 8), and kept for as long as it is granted, and some time after (rule 7).

use super::grant::Why;
use super::plan::{Observed, Step};
use super::renewal::{renew_at, spread};
use super::rules::Rules;
use crate::api::{ConditionType, Reason, VaultTokenRequest, VaultTokenRequestStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use std::time::Duration;

/// How long between looks at a token that has lost its grant and waits for a person's word.
const HELD_RECHECK: SignedDuration = SignedDuration::from_secs(60);

/// The longest time between looks at a renewal that waits for Vault.
const RENEWAL_RETRY: SignedDuration = SignedDuration::from_secs(10);

/// The shortest.
const HASTY_RETRY: SignedDuration = SignedDuration::from_secs(1);

/// When the token is to be renewed.
pub(super) fn renewal_due(request: &VaultTokenRequest) -> Option<Timestamp> {
    let uid = request.metadata.uid.as_deref().unwrap_or_default();
    renew_at(request.status.as_ref()?, spread(uid))
}

/// What follows from the grant of a token that its pod has.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "it is taken apart where it is made")]
pub(super) enum Tenure {
    /// Nothing: it has its grant.
    Granted,
    /// Nothing before this time: it has lost its grant.
    Until(Timestamp),
    /// This.
    Now(Step),
}

/// A delivered token of a pod that lives: renewed while it is granted, and for some time after.
pub(super) fn delivered(observed: &Observed<'_>, status: &VaultTokenRequestStatus, accessor: String) -> Step {
    match tenure(observed, status, &accessor) {
        Tenure::Granted => renewal(observed, accessor),
        Tenure::Until(time) => sooner(renewal(observed, accessor), time),
        Tenure::Now(step) => step,
    }
}

/// What follows from the grant of a token that its pod has, whether the request says so or not.
pub(super) fn tenure(observed: &Observed<'_>, status: &VaultTokenRequestStatus, accessor: &str) -> Tenure {
    let granted = granted(observed.request, observed.rules);
    let lost = lost_grant(status);
    let is = |condition: &Condition, reason: Reason| condition.reason == reason.as_str();
    let (since, held) = match (granted, lost) {
        // Whoever wrote this may have revoked it by now: there is no way back.
        (_, Some(lost)) if is(lost, Reason::GrantEnded) => {
            let why = Why::new(Reason::GrantEnded, "no binding grants its policies any more");
            return Tenure::Now(Step::RevokeFinally(accessor.to_owned(), why));
        }
        (true, None) => return Tenure::Granted,
        (true, Some(_)) => return Tenure::Now(Step::RegainGrant),
        (false, None) => return Tenure::Now(Step::LoseGrant(grant_lost(observed))),
        (false, Some(lost)) => (lost.last_transition_time.0, is(lost, Reason::RevocationHeld)),
    };
    let due = since.checked_add(signed(observed.limits.grace)).unwrap_or(observed.now);
    match observed.held {
        _ if due > observed.now => Tenure::Until(due),
        // First it is written down, guarded: who sees it granted again writes that, and one of the two is refused.
        None => Tenure::Now(Step::LoseGrant(Why::new(
            Reason::GrantEnded,
            "no binding grants the token's policies any more, and its grace period is over; it is being revoked",
        ))),
        Some(count) if !held => Tenure::Now(Step::LoseGrant(Why::new(
            Reason::RevocationHeld,
            format!(
                "{count} tokens have lost their grants, more than go without a person's word: was a VaultPolicyBinding or a label \
                 of a namespace removed by mistake? They are kept until it is back, or until the operator is started with a \
                 higher --ungranted-limit"
            ),
        ))),
        Some(_) => Tenure::Until(observed.now.checked_add(HELD_RECHECK).unwrap_or(due)),
    }
}

/// Whether what the request's token can do is still granted.
pub fn granted(request: &VaultTokenRequest, rules: &Rules) -> bool {
    let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
    request.status.as_ref().is_some_and(|status| {
        let account = status.service_account_name.as_deref().unwrap_or_default();
        rules.still_grant(namespace, account, &status.policies)
    })
}

/// The condition that says since when the token has no grant.
pub fn lost_grant(status: &VaultTokenRequestStatus) -> Option<&Condition> {
    status.condition(ConditionType::Authorized).filter(|condition| condition.status == "False")
}

/// Whether a token that had lost its grant has it again.
pub fn regained_grant(before: &VaultTokenRequestStatus, after: &VaultTokenRequestStatus) -> bool {
    lost_grant(before).is_some() && lost_grant(after).is_none()
}

fn grant_lost(observed: &Observed<'_>) -> Why {
    let grace = super::duration::format(observed.limits.grace);
    let message = format!(
        "no binding grants the token's policies any more; it is revoked {grace} after that, unless one does again by then"
    );
    Why::new(Reason::GrantLost, message)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// The step, but with the next look no later than at this time.
fn sooner(step: Step, time: Timestamp) -> Step {
    match step {
        Step::Settle => Step::Later(time),
        Step::Later(later) => Step::Later(later.min(time)),
        step => step,
    }
}

/// When a delivered token is renewed.
fn renewal(observed: &Observed<'_>, accessor: String) -> Step {
    match renewal_due(observed.request) {
        None => Step::Settle,
        Some(due) if due > observed.now => Step::Later(due),
        Some(_) if observed.vault_away.is_some() => {
            let wait = renewal_retry(observed.request.status.as_ref(), observed.now);
            observed.now.checked_add(wait).map_or(Step::Settle, Step::Later)
        }
        // A look that began without the pod goes over to one with it.
        Some(_) if observed.pod.is_none() => Step::Later(observed.now),
        Some(_) => Step::Renew(accessor),
    }
}

/// How long a renewal waits for Vault until it is looked at again: the shorter the less life is left, so that a token does not die between
/// the end of an outage and the next look.
fn renewal_retry(status: Option<&VaultTokenRequestStatus>, now: Timestamp) -> SignedDuration {
    let expires = status.and_then(|status| status.expires_at.as_ref());
    expires.map_or(RENEWAL_RETRY, |expires| (expires.0.duration_since(now) / 8).clamp(HASTY_RETRY, RENEWAL_RETRY))
}
