//! What is counted of a change of a request: each write of its status is counted by who made it, and so once.

use crate::api::{ConditionType, Phase, Reason, VaultTokenRequestStatus};
use jiff::Timestamp;
use std::time::Duration;

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// A token was made, and is recorded.
    Issued,
    /// An init container holds its token, so long after it asked.
    Delivered(Option<Duration>),
    /// A token is dead that was recorded.
    Revoked {
        /// Why it was revoked.
        cause: Option<Reason>,
        /// So long after its pod ended, if it was revoked for that.
        after: Option<Duration>,
    },
    /// A pod may not have what it asks for.
    Denied(Option<Reason>),
    /// A request came to its end without a token.
    Failed(Option<Reason>),
    /// Somebody else used a wrapping token.
    Compromised,
}

/// When things happened.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The request was made.
    pub created: Option<Timestamp>,
    /// The pod was first seen to have ended.
    pub pod_ended: Option<Timestamp>,
    /// The change was written.
    pub now: Timestamp,
}

/// What is to be counted of the change from one status to the next.
pub fn tally(before: &VaultTokenRequestStatus, after: &VaultTokenRequestStatus, times: Times) -> Vec<Count> {
    let since =
        |start: Option<Timestamp>| Some(Duration::try_from(times.now.duration_since(start?)).unwrap_or_default());
    let mut counts = Vec::new();
    if after.is_compromised() && !before.is_compromised() {
        counts.push(Count::Compromised);
    }
    if before.phase == after.phase {
        return counts;
    }
    // An attempt that was given up: only Vault's word that its token is dead takes the accessor out of the status.
    if before.phase == Some(Phase::Revoking) && before.token_accessor.is_some() && after.token_accessor.is_none() {
        let given_up = before.condition(ConditionType::Delivered);
        counts.push(Count::Revoked { cause: given_up.and_then(|it| Reason::parse(&it.reason)), after: None });
    }
    let reason = after.reason.as_deref().and_then(Reason::parse);
    match after.phase.unwrap_or_default() {
        Phase::Issued => counts.push(Count::Issued),
        Phase::Delivered => counts.push(Count::Delivered(since(times.created))),
        Phase::Revoked => {
            let ended = [Some(Reason::PodDeleted), Some(Reason::PodFinished)].contains(&reason);
            let end = [times.pod_ended, first_try(before)].into_iter().flatten().min();
            counts.push(Count::Revoked { cause: reason, after: since(end).filter(|_| ended) });
        }
        Phase::Denied => counts.push(Count::Denied(reason)),
        Phase::Failed => counts.push(Count::Failed(reason)),
        Phase::Pending | Phase::Minting | Phase::Revoking => {}
    }
    counts
}

/// When the token could not be revoked at first.
fn first_try(status: &VaultTokenRequestStatus) -> Option<Timestamp> {
    let tried = status.condition(ConditionType::Revoked).filter(|condition| condition.status == "False");
    tried.map(|condition| condition.last_transition_time.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::Why;
    use crate::domain::status::Draft;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn draft(status: &VaultTokenRequestStatus) -> Draft {
        Draft::new(Some(status), Some(1), at(20))
    }

    fn counted(before: &VaultTokenRequestStatus, after: &VaultTokenRequestStatus) -> Vec<Count> {
        tally(before, after, Times { created: Some(at(10)), pod_ended: Some(at(25)), now: at(30) })
    }

    fn issued() -> VaultTokenRequestStatus {
        let phase = Some(Phase::Issued);
        VaultTokenRequestStatus { phase, token_accessor: Some("a".into()), attempts: 1, ..Default::default() }
    }

    fn why(reason: Reason) -> Why {
        Why::new(reason, "a sentence")
    }

    #[test]
    fn a_delivery_takes_from_the_request_on_and_is_counted_once() {
        let delivered = draft(&issued()).delivered(None);
        assert_eq!(counted(&issued(), &delivered), [Count::Delivered(Some(Duration::from_secs(20)))]);
        assert_eq!(counted(&delivered, &draft(&delivered).renewed(at(90))), []);
        let unknown = Times { created: None, pod_ended: None, now: at(30) };
        assert_eq!(tally(&issued(), &delivered, unknown), [Count::Delivered(None)]);
    }

    #[test]
    fn a_revocation_takes_from_the_end_of_the_pod_on_and_only_if_that_is_its_cause() {
        let delivered = draft(&issued()).delivered(None);
        let revoked = |before: &VaultTokenRequestStatus, reason| counted(before, &draft(before).revoked(&why(reason)));
        let count = |cause, seconds: Option<u64>| Count::Revoked {
            cause: Some(cause),
            after: seconds.map(Duration::from_secs),
        };
        assert_eq!(revoked(&delivered, Reason::PodDeleted), [count(Reason::PodDeleted, Some(5))]);
        assert_eq!(revoked(&delivered, Reason::Superseded), [count(Reason::Superseded, None)]);
        // Since before the watch showed the end, or before this operator was there.
        let tried = draft(&delivered).not_revoked(&why(Reason::VaultUnavailable));
        assert_eq!(revoked(&tried, Reason::PodFinished), [count(Reason::PodFinished, Some(10))]);
    }

    #[test]
    fn a_token_of_an_attempt_that_was_given_up_is_revoked_for_that() {
        let abandoned = draft(&issued()).abandoned(&why(Reason::AttemptAbandoned));
        assert_eq!(counted(&issued(), &abandoned), []);
        let held_up = draft(&abandoned).not_revoked(&why(Reason::VaultUnavailable));
        let cause = Some(Reason::AttemptAbandoned);
        assert_eq!(counted(&held_up, &draft(&held_up).cleared()), [Count::Revoked { cause, after: None }]);
        // A token that is not the request's own is not revoked.
        let disowned = draft(&abandoned).failed(&why(Reason::StatusForged));
        assert_eq!(counted(&abandoned, &disowned), [Count::Failed(Some(Reason::StatusForged))]);
    }

    #[test]
    fn an_interception_is_counted_before_anything_is_revoked() {
        let compromised = draft(&issued()).compromised(&why(Reason::WrappingTokenUsed));
        assert_eq!(counted(&issued(), &compromised), [Count::Compromised]);
        let cause = Some(Reason::WrappingTokenUsed);
        let end = [Count::Revoked { cause, after: None }, Count::Failed(cause)];
        assert_eq!(counted(&compromised, &draft(&compromised).cleared()), end);
    }

    #[test]
    fn a_denial_has_its_reason() {
        let none = VaultTokenRequestStatus::default();
        let denied = draft(&none).denied(&why(Reason::NotGranted));
        assert_eq!(counted(&none, &denied), [Count::Denied(Some(Reason::NotGranted))]);
        assert_eq!(counted(&denied, &draft(&denied).denied(&why(Reason::NotGranted))), []);
    }
}
