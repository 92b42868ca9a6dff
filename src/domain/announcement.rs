//! Which changes of a request people are told of, as Kubernetes Events on the request and on its pod.

use crate::api::{ConditionType, Phase, Reason, VaultTokenRequestStatus};
use crate::domain::status::{current, message};
use crate::domain::tenure::regained_grant;

/// One Event to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Whether somebody may have to do something.
    pub warning: bool,
    /// The Event's reason, out of the project's list.
    pub reason: String,
    /// What was done, in one word.
    pub action: &'static str,
    /// The sentence.
    pub note: String,
}

/// What to tell of the change from one status to the next, if anything.
pub fn announcement(before: &VaultTokenRequestStatus, after: &VaultTokenRequestStatus) -> Option<Announcement> {
    let phase = after.phase.unwrap_or_default();
    let entered = before.phase != after.phase;
    let mut reason = after.reason.clone().unwrap_or_default();
    let text = |kind| message(after, kind).unwrap_or_default().to_owned();
    let (warning, action, note) = match phase {
        Phase::Issued if entered => (false, "Issue", issued(after)),
        Phase::Delivered if entered => (false, "Deliver", text(ConditionType::Delivered)),
        // The pod may still run, with a token that is dead.
        Phase::Revoked if entered => {
            let alarming = [Reason::RequestDeleted, Reason::TokenExpired, Reason::GrantEnded].map(Reason::as_str);
            (alarming.contains(&reason.as_str()), "Revoke", text(ConditionType::Revoked))
        }
        Phase::Denied if entered => (true, "Authorize", text(ConditionType::Authorized)),
        Phase::Failed if entered => (true, "Issue", text(ConditionType::Issued)),
        Phase::Revoking if entered => (true, "Deliver", text(ConditionType::Delivered)),
        _ if !entered && regained_grant(before, after) => {
            // It goes on in the phase that it is in, and with the reason of that.
            reason = Reason::GrantRegained.as_str().to_owned();
            (false, "Authorize", text(ConditionType::Authorized))
        }
        _ if before.reason == after.reason => return None,
        _ => {
            let kind = held_up(&reason)?;
            (true, kind, current(after).to_owned())
        }
    };
    Some(Announcement { warning, reason, action, note })
}

/// The action that a waiting reason holds up, for those that somebody may have to do something about.
fn held_up(reason: &str) -> Option<&'static str> {
    [
        (Reason::VaultUnavailable, "Wait"),
        (Reason::VaultForbids, "Wait"),
        (Reason::MintBudgetExhausted, "Wait"),
        (Reason::AdmissionLacking, "Wait"),
        (Reason::PushFailed, "Deliver"),
        (Reason::RenewalFailed, "Renew"),
        (Reason::TokenEnding, "Renew"),
        (Reason::DeliveryForgotten, "Deliver"),
        (Reason::PodCompromised, "Wait"),
        (Reason::GrantLost, "Revoke"),
        (Reason::RevocationHeld, "Revoke"),
    ]
    .into_iter()
    .find(|(known, _)| known.as_str() == reason)
    .map(|(_, action)| action)
}

fn issued(status: &VaultTokenRequestStatus) -> String {
    format!(
        "issued a token with the policies {} and a ttl of {} (accessor {})",
        status.policies.join(", "),
        status.ttl.as_deref().unwrap_or_default(),
        status.token_accessor.as_deref().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::Why;
    use crate::domain::status::Draft;
    use jiff::Timestamp;

    fn wait(before: &VaultTokenRequestStatus, reason: Reason) -> VaultTokenRequestStatus {
        Draft::new(Some(before), Some(1), Timestamp::UNIX_EPOCH).waiting(&Why::new(reason, "a sentence"))
    }

    #[test]
    fn an_outage_is_told_once_and_a_pod_that_starts_not_at_all() {
        let none = VaultTokenRequestStatus::default();
        let starting = wait(&none, Reason::InitContainerNotRunning);
        assert_eq!(announcement(&none, &starting), None);
        let away = wait(&starting, Reason::VaultUnavailable);
        let told = announcement(&starting, &away).expect("an announcement");
        assert!(told.warning);
        assert_eq!((told.reason.as_str(), told.note.as_str()), ("VaultUnavailable", "a sentence"));
        assert_eq!(announcement(&away, &wait(&away, Reason::VaultUnavailable)), None);
        assert!(announcement(&none, &wait(&none, Reason::VaultUnavailable)).is_some(), "the first word of a request");
    }

    #[test]
    fn a_token_that_dies_under_a_pod_that_may_live_is_a_warning() {
        let delivered = VaultTokenRequestStatus { phase: Some(Phase::Delivered), ..Default::default() };
        let draft = || Draft::new(Some(&delivered), Some(1), Timestamp::UNIX_EPOCH);
        let warns = |after| announcement(&delivered, &after).expect("an announcement").warning;
        assert!(warns(draft().expired()));
        assert!(warns(draft().revoked(&Why::new(Reason::RequestDeleted, "the request was deleted"))));
        assert!(!warns(draft().revoked(&Why::new(Reason::PodDeleted, "the pod is gone"))));
    }

    #[test]
    fn the_loss_of_a_grant_its_return_and_its_end_are_told_apart() {
        let delivered = VaultTokenRequestStatus { phase: Some(Phase::Delivered), ..Default::default() };
        let draft = |before| Draft::new(Some(before), Some(1), Timestamp::UNIX_EPOCH);
        let told = |before, after: &VaultTokenRequestStatus| {
            announcement(before, after).map(|told| (told.warning, told.action, told.reason))
        };
        let lost = draft(&delivered).grant_lost(&Why::new(Reason::GrantLost, "none grants it"));
        assert_eq!(told(&delivered, &lost), Some((true, "Revoke", "GrantLost".to_owned())));
        let again = draft(&lost).grant_regained();
        assert_eq!(told(&lost, &again), Some((false, "Authorize", "GrantRegained".to_owned())));
        assert_eq!(told(&again, &draft(&again).renewed(Timestamp::UNIX_EPOCH)), None, "it is told once");
        let ended = draft(&lost).grant_lost(&Why::new(Reason::GrantEnded, "its time is over"));
        assert_eq!(told(&lost, &ended), None, "its death is told");
        let dead = draft(&ended).revoked(&Why::new(Reason::GrantEnded, "none grants it"));
        assert_eq!(told(&ended, &dead), Some((true, "Revoke", "GrantEnded".to_owned())));
    }

    #[test]
    fn a_denial_is_a_warning_in_the_words_of_its_condition() {
        let none = VaultTokenRequestStatus::default();
        let why = Why::new(Reason::PoliciesMissing, "the pod has no annotation");
        let denied = Draft::new(None, Some(1), Timestamp::UNIX_EPOCH).denied(&why);
        let told = announcement(&none, &denied).expect("an announcement");
        assert_eq!((told.warning, told.note.as_str()), (true, "the pod has no annotation"));
    }
}
