//! What the audit log calls a change of a request.

use super::tenure::regained_grant;
use crate::api::VaultTokenRequestStatus;

/// The step that leads from one status to the next, if it is worth a line: the phase that it enters, what befell a token that
/// stays where it is, or the reason why it waits.
pub fn step(before: &VaultTokenRequestStatus, after: &VaultTokenRequestStatus) -> Option<String> {
    // An attempt that ended without a record is followed by the next one in the same phase.
    if (before.phase, before.attempts) != (after.phase, after.attempts) {
        return Some(after.phase.unwrap_or_default().to_string());
    }
    let name = match after.reason.as_deref() {
        _ if before.renewed_at != after.renewed_at => "Renewed",
        _ if regained_grant(before, after) => "GrantRegained",
        // The same as the condition's: a grant that is lost is told by the reason.
        reason if before.reason.as_deref() != reason => reason?,
        _ => return None,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Phase, Reason};
    use crate::domain::grant::Why;
    use crate::domain::status::Draft;
    use jiff::Timestamp;

    fn draft(status: &VaultTokenRequestStatus, second: i64) -> Draft {
        Draft::new(Some(status), Some(1), Timestamp::from_second(second).expect("a time"))
    }

    #[test]
    fn each_step_of_a_life_has_its_line() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let none = VaultTokenRequestStatus::default();
        let delivered = draft(&none, 1).delivered(Some(at(60)));
        let renewed = draft(&delivered, 2).renewed(at(90));
        let again = draft(&renewed, 3).renewed(at(120));
        let refused = draft(&again, 4).not_renewed(&Why::new(Reason::VaultForbids, "no"));
        let lost = draft(&again, 5).grant_lost(&Why::new(Reason::GrantLost, "no binding"));
        let regained = draft(&lost, 6).grant_regained();
        let revoked = draft(&regained, 7).revoked(&Why::new(Reason::PodDeleted, "gone"));
        let steps = |life: &[&VaultTokenRequestStatus]| -> Vec<String> {
            life.windows(2).filter_map(|two| step(two[0], two[1])).collect()
        };
        let life = [&none, &delivered, &renewed, &again, &refused];
        assert_eq!(steps(&life), ["Delivered", "Renewed", "Renewed", "RenewalFailed"]);
        let life = [&again, &lost, &regained, &revoked];
        assert_eq!(steps(&life), ["GrantLost", "GrantRegained", "Revoked"]);
        assert_eq!(revoked.phase, Some(Phase::Revoked));
        let minting = |attempts| VaultTokenRequestStatus {
            phase: Some(Phase::Minting),
            reason: Some("Minting".to_owned()),
            attempts,
            ..Default::default()
        };
        assert_eq!(steps(&[&minting(1), &minting(2)]), ["Minting"]);
        assert_eq!(step(&revoked, &revoked), None);
    }

    #[test]
    fn what_a_request_waits_for_is_said_once() {
        let none = VaultTokenRequestStatus::default();
        let wait =
            |status, second, words: &str| draft(status, second).waiting(&Why::new(Reason::VaultUnavailable, words));
        let first = wait(&none, 1, "sealed");
        assert_eq!(step(&none, &first).as_deref(), Some("Pending"));
        assert_eq!(step(&first, &wait(&first, 2, "connection refused")), None);
        let unchecked = draft(&first, 3).waiting(&Why::new(Reason::AdmissionLacking, "nothing checks who asks"));
        assert_eq!(step(&first, &unchecked).as_deref(), Some("AdmissionLacking"), "no grant was lost");
    }
}
