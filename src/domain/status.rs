//! What a step leaves in the request's status: each function takes the status before and gives the one after.

use super::duration;
use super::grant::Why;
use super::plan::{MAX_ATTEMPTS, exhausted};
use super::tenure::lost_grant;
use super::token::{Intent, Minted};
use crate::api::{Attempt, AttemptOutcome, ConditionType, Phase, Reason, VaultTokenRequestStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};

/// How long a call to Vault takes at most, and some more: what its answer gives is less by that.
const SLOWEST_CALL: SignedDuration = SignedDuration::from_secs(12);

/// How soon an operator sees to an attempt that another one has left, at the latest, unless none was there.
const TAKEOVER: SignedDuration = SignedDuration::from_secs(120);

/// How many ended attempts a status keeps.
const MAX_HISTORY: usize = 5;

/// A status in the making: the old one, and what every change stamps on it.
#[derive(Clone, Debug)]
pub struct Draft {
    status: VaultTokenRequestStatus,
    generation: Option<i64>,
    now: Timestamp,
}

impl Draft {
    /// Starts from `status` as it was seen on the request's `generation`.
    pub fn new(status: Option<&VaultTokenRequestStatus>, generation: Option<i64>, now: Timestamp) -> Self {
        Self { status: status.cloned().unwrap_or_default(), generation, now }
    }

    /// An attempt begins: the pod was verified, nothing is minted yet (rule 1).
    pub fn intended(mut self, intent: &Intent) -> VaultTokenRequestStatus {
        self.end_open_attempt();
        self.status.attempts = intent.attempt;
        self.status.attempt_started_at = Some(MicroTime(intent.started_at));
        self.status.policies = intent.grant.policies.clone();
        self.status.granted_by = Some(intent.grant.granted_by.clone());
        self.status.finished_at = None;
        self.status.ttl = Some(duration::format(intent.grant.ttl));
        self.status.self_renewal = intent.grant.self_renewal;
        self.status.service_account_name = Some(intent.pod.service_account.clone());
        self.status.node_name = intent.pod.node_name.clone();
        let verified = "the pod and its annotations were verified, and a binding grants what it asks for";
        self.set(ConditionType::Authorized, true, &Why::new(Reason::PodVerified, verified));
        let minting = Why::new(Reason::Minting, format!("attempt {} of {MAX_ATTEMPTS} is under way", intent.attempt));
        self.set(ConditionType::Issued, false, &minting);
        self.close(Phase::Minting, Reason::Minting)
    }

    /// Vault made the token: both accessors are recorded before anything is sent to the pod (rule 3, I5).
    pub fn issued(mut self, minted: &Minted) -> VaultTokenRequestStatus {
        self.status.wrapping_accessor = Some(minted.wrapping_accessor.clone());
        self.status.token_accessor = Some(minted.token_accessor.clone());
        self.status.wrapping_expires_at = Some(Time(minted.wrapping_expires_at));
        self.status.issued_at = Some(Time(self.now));
        let accessor = &minted.token_accessor;
        let issued = Why::new(Reason::TokenIssued, format!("Vault made the token with the accessor {accessor}"));
        self.set(ConditionType::Issued, true, &issued);
        self.close(Phase::Issued, Reason::TokenIssued)
    }

    /// The init container holds the token (rule 5); Vault says that it lives until `expires_at`.
    pub fn delivered(mut self, expires_at: Option<Timestamp>) -> VaultTokenRequestStatus {
        self.take_offer_back();
        self.status.delivered_at = Some(Time(self.now));
        self.status.expires_at = expires_at.map(Time);
        self.set(ConditionType::Delivered, true, &held());
        self.close(Phase::Delivered, Reason::TokenDelivered)
    }

    /// Vault renewed the token.
    pub fn renewed(mut self, expires_at: Timestamp) -> VaultTokenRequestStatus {
        self.status.renewed_at = Some(Time(self.now));
        self.status.expires_at = Some(Time(expires_at));
        // Whatever it was to be revoked for is not so any more, and the first try says nothing of a token that was renewed since.
        self.status.conditions.retain(|condition| condition.type_ != ConditionType::Revoked.as_str());
        let renewed = self.capped(expires_at).unwrap_or_else(held);
        self.set(ConditionType::Delivered, true, &renewed);
        let reason = match lost_grant(&self.status) {
            None => renewed.reason,
            // It is for a person to look at, and stays so.
            Some(lost) if lost.reason == Reason::RevocationHeld.as_str() => Reason::RevocationHeld,
            Some(_) => Reason::GrantLost,
        };
        self.close(Phase::Delivered, reason)
    }

    /// Vault has given the token less than its ttl once more: it is near the end of all that Vault lets it live.
    fn capped(&self, expires_at: Timestamp) -> Option<Why> {
        let ttl = SignedDuration::try_from(duration::parse(self.status.ttl.as_deref()?).ok()?).ok()?;
        let capped = expires_at.duration_since(self.now).checked_add(SLOWEST_CALL)? < ttl;
        capped.then(|| {
            Why::new(
                Reason::TokenEnding,
                format!(
                    "Vault lets the token live until {expires_at:.0}, however often it is renewed: restart the pod before that, to \
                     give it a new one; Vault's max_lease_ttl bounds how long a token lives in all"
                ),
            )
        })
    }

    /// The token has lost its grant. The condition's transition marks since when.
    pub fn grant_lost(mut self, why: &Why) -> VaultTokenRequestStatus {
        self.set(ConditionType::Authorized, false, why);
        let phase = self.status.phase.unwrap_or_default();
        self.close(phase, why.reason)
    }

    /// The token has its grant again.
    pub fn grant_regained(mut self) -> VaultTokenRequestStatus {
        let message = "a binding grants the token's policies again; it is not revoked";
        self.set(ConditionType::Authorized, true, &Why::new(Reason::GrantRegained, message));
        match self.status.phase.unwrap_or_default() {
            Phase::Delivered => self.close(Phase::Delivered, Reason::TokenDelivered),
            phase => self.close(phase, Reason::GrantRegained),
        }
    }

    /// Vault made another token than it was asked for: it is to be revoked next, and no other attempt follows.
    pub fn unfit(self, fault: &str) -> VaultTokenRequestStatus {
        let message = format!(
            "Vault made another token than it was asked for: {fault}; compare the token role with config/vault/. It is revoked"
        );
        self.abandoned(&Why::new(Reason::TokenUnfit, message))
    }

    /// Vault does not let the token be renewed; it is tried again.
    pub fn not_renewed(mut self, why: &Why) -> VaultTokenRequestStatus {
        let message = format!("the token cannot be renewed: {}", why.message);
        self.set(ConditionType::Delivered, true, &Why::new(Reason::RenewalFailed, message));
        self.close(Phase::Delivered, Reason::RenewalFailed)
    }

    /// The token is found dead under a pod that lives.
    pub fn expired(self) -> VaultTokenRequestStatus {
        let message = "Vault does not know the token any more: it expired, or somebody else revoked it. Restart the \
                       pod to get another one";
        self.dead(&Why::new(Reason::TokenExpired, message))
    }

    /// The request waits; the condition that is held up says for what.
    pub fn waiting(mut self, why: &Why) -> VaultTokenRequestStatus {
        // It is granted by now what it was denied for. One whose init container waits for it no more is over, and leaves its name.
        if self.status.awaits_grant() && why.reason != Reason::InitContainerNotRunning {
            self.status.conditions.retain(|condition| condition.reason != Reason::NotGranted.as_str());
            self.status.phase = Some(Phase::Pending);
        }
        let phase = self.status.phase.unwrap_or_default();
        let held_up = match phase {
            Phase::Pending
                if ![Reason::VaultUnavailable, Reason::VaultForbids, Reason::MintBudgetExhausted]
                    .contains(&why.reason) =>
            {
                ConditionType::Authorized
            }
            Phase::Pending | Phase::Minting => ConditionType::Issued,
            _ => ConditionType::Delivered,
        };
        self.set(held_up, false, why);
        self.close(phase, why.reason)
    }

    /// Vault's answer did not come: the attempt is over, and whether it made a token is unknown (rule 2).
    pub fn unclear(mut self, why: &Why) -> VaultTokenRequestStatus {
        self.end_open_attempt();
        let attempt = self.status.attempts;
        let message = format!("{}; what came of attempt {attempt} is unknown", why.message);
        self.set(ConditionType::Issued, false, &Why::new(why.reason, message));
        self.close(Phase::Pending, why.reason)
    }

    /// The token could not be revoked yet. The condition's first transition marks the first try (rule 8).
    pub fn not_revoked(mut self, why: &Why) -> VaultTokenRequestStatus {
        let phase = self.status.phase.unwrap_or_default();
        self.set(ConditionType::Revoked, false, why);
        self.close(phase, why.reason)
    }

    /// The sealed wrapping token is there for the init container to take.
    pub fn offered(mut self, sealed: String) -> VaultTokenRequestStatus {
        self.take_offer_back();
        self.status.sealed_token = Some(sealed);
        let why =
            Why::new(Reason::TokenOffered, "the init container can take its wrapping token from status.sealedToken");
        self.set(ConditionType::Delivered, false, &why);
        self.close(Phase::Issued, why.reason)
    }

    /// What the init container said of its token does not end its attempt; another try may go better.
    pub fn not_taken(mut self, why: &Why) -> VaultTokenRequestStatus {
        self.take_offer_back();
        self.waiting(why)
    }

    /// The attempt is given up; its token is to be revoked next (rule 6).
    pub fn abandoned(mut self, why: &Why) -> VaultTokenRequestStatus {
        self.take_offer_back();
        self.set(ConditionType::Delivered, false, why);
        self.close(Phase::Revoking, why.reason)
    }

    /// Somebody else has used the wrapping token: its token is to be revoked next, and no other attempt follows.
    pub fn compromised(mut self, why: &Why) -> VaultTokenRequestStatus {
        self.set(ConditionType::Compromised, true, why);
        self.abandoned(why)
    }

    fn take_offer_back(&mut self) {
        self.status.sealed_token = None;
        self.status.answer = None;
    }

    /// The token of an attempt that was given up is dead: the request starts over, or fails for good.
    pub fn cleared(mut self) -> VaultTokenRequestStatus {
        self.status.wrapping_accessor = None;
        let accessor = self.status.token_accessor.take();
        self.end_attempt(AttemptOutcome::Undelivered, accessor);
        // It was about that token; whatever comes next is another one.
        self.status.conditions.retain(|condition| condition.type_ != ConditionType::Revoked.as_str());
        self.status.wrapping_expires_at = None;
        self.status.issued_at = None;
        if self.status.is_compromised() {
            let message = message(&self.status, ConditionType::Compromised).unwrap_or_default().to_owned();
            return self.failed(&Why::new(Reason::WrappingTokenUsed, message));
        }
        let delivered = self.status.condition(ConditionType::Delivered);
        if let Some(unfit) = delivered.filter(|condition| condition.reason == Reason::TokenUnfit.as_str()) {
            let why = Why::new(Reason::TokenUnfit, unfit.message.clone());
            return self.failed(&why);
        }
        if self.status.attempts >= MAX_ATTEMPTS {
            let why = exhausted(message(&self.status, ConditionType::Delivered).unwrap_or_default());
            return self.failed(&why);
        }
        let attempt = self.status.attempts;
        let cleared = format!("the token of attempt {attempt} was revoked undelivered; another one follows");
        self.set(ConditionType::Issued, false, &Why::new(Reason::AttemptAbandoned, cleared));
        self.close(Phase::Pending, Reason::AttemptAbandoned)
    }

    /// The pod may not have what it asks for.
    pub fn denied(mut self, why: &Why) -> VaultTokenRequestStatus {
        self.end_open_attempt();
        self.set(ConditionType::Authorized, false, why);
        self.set(ConditionType::Issued, false, why);
        self.close(Phase::Denied, why.reason)
    }

    /// The request ends without a token.
    pub fn failed(mut self, why: &Why) -> VaultTokenRequestStatus {
        self.end_open_attempt();
        self.set(ConditionType::Issued, false, why);
        self.close(Phase::Failed, why.reason)
    }

    /// Vault confirmed that the token is dead (rule 7).
    pub fn revoked(self, why: &Why) -> VaultTokenRequestStatus {
        let message = format!("{}; Vault confirmed that its token is dead", why.message);
        self.dead(&Why::new(why.reason, message))
    }

    /// Vault could not be asked for longer than the token can have lived (rule 8).
    pub fn outlived(self, why: &Why) -> VaultTokenRequestStatus {
        let message =
            format!("{}; Vault could not be asked, and its token's last possible expiry is over", why.message);
        self.dead(&Why::new(why.reason, message))
    }

    fn dead(mut self, why: &Why) -> VaultTokenRequestStatus {
        self.take_offer_back();
        self.status.revoked_at = Some(Time(self.now));
        // It does not expire any more; what it would have done says nothing to an auditor.
        self.status.expires_at = None;
        self.set(ConditionType::Revoked, true, why);
        self.close(Phase::Revoked, why.reason)
    }

    /// An attempt that is open by the status has no record, and will get none: this write keeps any other out.
    fn end_open_attempt(&mut self) {
        if self.status.phase == Some(Phase::Minting) {
            self.end_attempt(AttemptOutcome::Unrecorded, None);
        }
    }

    fn end_attempt(&mut self, outcome: AttemptOutcome, token_accessor: Option<String>) {
        let ended = Attempt {
            number: self.status.attempts,
            started_at: self.status.attempt_started_at.clone(),
            outcome,
            token_accessor,
            time: Time(self.now),
        };
        self.status.history.push(ended);
        let excess = self.status.history.len().saturating_sub(MAX_HISTORY);
        self.status.history.drain(..excess);
    }

    fn set(&mut self, kind: ConditionType, holds: bool, why: &Why) {
        let value = if holds { "True" } else { "False" };
        let since = self.status.condition(kind).filter(|condition| condition.status == value);
        let condition = Condition {
            type_: kind.as_str().to_owned(),
            status: value.to_owned(),
            reason: why.reason.as_str().to_owned(),
            message: why.message.clone(),
            // It moves with the condition's status only (Kubernetes API conventions).
            last_transition_time: since.map_or(Time(self.now), |condition| condition.last_transition_time.clone()),
            observed_generation: self.generation,
        };
        match self.status.conditions.iter_mut().find(|condition| condition.type_ == kind.as_str()) {
            Some(place) => *place = condition,
            None => self.status.conditions.push(condition),
        }
    }

    fn close(mut self, phase: Phase, reason: Reason) -> VaultTokenRequestStatus {
        self.status.phase = Some(phase);
        self.status.reason = Some(reason.as_str().to_owned());
        if phase.is_final() && !self.status.awaits_grant() {
            self.status.finished_at = Some(Time(self.now));
        }
        self.status.observed_generation = self.generation;
        self.status
    }
}

/// Whether what was written down at this time has been left alone by now: either no operator was there for so long, or the request is
/// older than it was, as after a restore from a backup, and what came of the attempt is forgotten (rule 10).
pub fn is_left(since: Timestamp, now: Timestamp) -> bool {
    since.checked_add(TAKEOVER).is_ok_and(|late| late <= now)
}

/// Whether an attempt ended without a record after it had been left alone: it may have had one.
pub fn is_forgotten(ended: &Attempt) -> bool {
    let left = ended.started_at.as_ref().is_some_and(|started| is_left(started.0, ended.time.0));
    ended.outcome == AttemptOutcome::Unrecorded && left
}

fn held() -> Why {
    Why::new(Reason::TokenDelivered, "the init container confirmed that it holds the token")
}

/// The message of a condition, if the status has that condition.
pub fn message(status: &VaultTokenRequestStatus, kind: ConditionType) -> Option<&str> {
    status.condition(kind).map(|condition| condition.message.as_str())
}

/// The sentence that goes with the status's reason.
pub fn current(status: &VaultTokenRequestStatus) -> &str {
    let reason = status.reason.as_deref().unwrap_or_default();
    status.conditions.iter().rev().find(|condition| condition.reason == reason).map_or("", |it| it.message.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn draft(status: &VaultTokenRequestStatus, second: i64) -> Draft {
        Draft::new(Some(status), Some(1), at(second))
    }

    #[test]
    fn a_condition_keeps_its_transition_time_while_its_status_stays() {
        let wait = |message: &str| Why::new(Reason::VaultUnavailable, message);
        let first = Draft::new(None, Some(1), at(10)).waiting(&wait("sealed"));
        let second = draft(&first, 20).waiting(&wait("connection refused"));
        assert_eq!(second.conditions.len(), 1);
        assert_eq!(second.conditions[0].last_transition_time, Time(at(10)));
        assert_eq!(message(&second, ConditionType::Issued), Some("connection refused"));
        assert_eq!(second.phase, Some(Phase::Pending));
    }

    #[test]
    fn a_renewal_leaves_it_said_that_a_grant_is_lost_and_a_person_is_waited_for() {
        let delivered = Draft::new(None, Some(1), at(10)).delivered(None);
        assert_eq!(draft(&delivered, 20).renewed(at(90)).reason.as_deref(), Some("TokenDelivered"));
        for reason in [Reason::GrantLost, Reason::RevocationHeld] {
            let lost = draft(&delivered, 20).grant_lost(&Why::new(reason, "no binding"));
            assert_eq!(draft(&lost, 30).renewed(at(90)).reason.as_deref(), Some(reason.as_str()));
        }
    }

    #[test]
    fn a_renewal_that_gives_less_than_the_ttl_says_that_the_token_comes_to_its_end() {
        let mut delivered = Draft::new(None, Some(1), at(10)).delivered(Some(at(310)));
        delivered.ttl = Some("5m".to_owned());
        for (expires, reason) in [(420, "TokenDelivered"), (409, "TokenDelivered"), (407, "TokenEnding")] {
            let renewed = draft(&delivered, 120).renewed(at(expires));
            assert_eq!(renewed.reason.as_deref(), Some(reason), "{expires}");
            let told = message(&renewed, ConditionType::Delivered).expect("a message");
            assert_eq!(told.contains("1970-01-01T00:06:47Z"), reason == "TokenEnding", "{told}");
        }
        let ending = draft(&delivered, 120).renewed(at(200));
        assert_eq!(draft(&ending, 130).renewed(at(430)).reason.as_deref(), Some("TokenDelivered"), "it was raised");
        let lost = draft(&ending, 140).grant_lost(&Why::new(Reason::GrantLost, "no binding"));
        assert_eq!(draft(&lost, 150).renewed(at(200)).reason.as_deref(), Some("GrantLost"), "it has a nearer end");
    }

    #[test]
    fn nothing_changes_when_nothing_changed() {
        let why = Why::new(Reason::VaultUnavailable, "sealed");
        let first = Draft::new(None, Some(1), at(10)).waiting(&why);
        assert_eq!(draft(&first, 99).waiting(&why), first, "an identical status is not worth a write");
    }

    #[test]
    fn the_last_attempt_fails_the_request_and_says_what_was_seen() {
        let mut status = VaultTokenRequestStatus { attempts: MAX_ATTEMPTS, ..Default::default() };
        status.token_accessor = Some("a".to_owned());
        let status = draft(&status, 1).abandoned(&Why::new(Reason::AttemptAbandoned, "connection refused"));
        let status = draft(&status, 2).cleared();
        assert_eq!((status.phase, status.token_accessor.as_deref()), (Some(Phase::Failed), None));
        assert!(message(&status, ConditionType::Issued).expect("a message").contains("connection refused"));
    }
}
