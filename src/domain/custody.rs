//! What an init container makes of its request: which token it may take, whether it keeps the one in its files, and when it is
//! done (I6).

use super::status::{current, message};
use crate::api::{ConditionType, Phase, Reason, VaultTokenRequest, VaultTokenRequestStatus};

/// The token in the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The attempt that it was made in.
    pub attempt: u32,
    /// Its accessor.
    pub accessor: String,
    /// Whether both files were written to their ends.
    pub whole: bool,
}

/// What a look at the request means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The token is delivered, and it is the one in the files.
    Done,
    /// There will be no token, and this is why.
    Over(String),
    /// The operator does not know whether the token has arrived, and it goes by a newer request alone; in words.
    Anew(String),
    /// Not yet; in words.
    Waiting(String),
}

/// Whether a request makes the token good that an init container, started again, finds in its files: it is Delivered with it, and not
/// being deleted, with which the token ends.
pub fn vouches(request: &VaultTokenRequest, accessor: &str) -> bool {
    request.phase() == Phase::Delivered
        && request.metadata.deletion_timestamp.is_none()
        && recorded(request) == Some(accessor)
}

/// The accessor of the token that may be taken in this attempt. Whoever knows the request's public key can seal, so a seal alone
/// proves nothing.
pub fn expected(request: &VaultTokenRequest, attempt: u32) -> Option<&str> {
    let issued =
        request.phase() == Phase::Issued && !is_forgotten(request) && request.status.as_ref()?.attempts == attempt;
    recorded(request).filter(|_| issued)
}

/// Whether a push of this attempt came before the request records its token: the operator sends none so early (rule 3), unless
/// etcd was restored meanwhile.
pub fn precedes_record(request: &VaultTokenRequest, attempt: u32) -> bool {
    let attempts = request.status.as_ref().map_or(0, |status| status.attempts);
    attempts < attempt || attempts == attempt && request.phase() == Phase::Minting
}

/// What the request says about the token that is held. An init container does not go by its own answer, which the operator may
/// never have heard.
pub fn judge(request: Option<&VaultTokenRequest>, held: Option<&Held>) -> Verdict {
    let Some(request) = request else {
        return Verdict::Over("the request was deleted, and the token with it".to_owned());
    };
    match request.phase() {
        // Its token is being revoked; what comes of that is worth waiting for.
        Phase::Delivered if request.metadata.deletion_timestamp.is_some() => Verdict::Waiting(words(request)),
        Phase::Delivered if records(request, held) => Verdict::Done,
        Phase::Delivered => Verdict::Over("the request is Delivered with a token that is not here".to_owned()),
        _ if request.is_over() => Verdict::Over(words(request)),
        _ if is_forgotten(request) => Verdict::Anew(words(request)),
        _ => Verdict::Waiting(words(request)),
    }
}

/// Whether the files stay as they are after a look that came to this.
pub fn keeps(verdict: &Verdict, request: Option<&VaultTokenRequest>, held: Option<&Held>) -> bool {
    match verdict {
        Verdict::Done => true,
        Verdict::Waiting(_) => request.is_some_and(|request| records(request, held)),
        Verdict::Over(_) | Verdict::Anew(_) => false,
    }
}

/// Whether the operator does not know whether the token was delivered, and hands it over to nobody any more.
fn is_forgotten(request: &VaultTokenRequest) -> bool {
    let reason = request.status.as_ref().and_then(|status| status.reason.as_deref());
    request.phase() == Phase::Issued && reason == Some(Reason::DeliveryForgotten.as_str())
}

/// Whether the held token is the one that the request records, and is not being revoked.
fn records(request: &VaultTokenRequest, held: Option<&Held>) -> bool {
    matches!(request.phase(), Phase::Issued | Phase::Delivered)
        && request.metadata.deletion_timestamp.is_none()
        && held.is_some_and(|held| held.whole && Some(held.accessor.as_str()) == recorded(request))
}

fn recorded(request: &VaultTokenRequest) -> Option<&str> {
    request.status.as_ref()?.token_accessor.as_deref()
}

/// The sentence that a request's status has for the pod's owner.
fn words(request: &VaultTokenRequest) -> String {
    let none = VaultTokenRequestStatus::default();
    let status = request.status.as_ref().unwrap_or(&none);
    let name = request.metadata.name.as_deref().unwrap_or_default();
    match request.phase() {
        Phase::Denied => {
            let why = message(status, ConditionType::Authorized).unwrap_or_default();
            format!("the request {name} was denied: {why}")
        }
        Phase::Failed => {
            let why = message(status, ConditionType::Issued).unwrap_or_default();
            format!("the request {name} failed: {why}")
        }
        Phase::Revoked => {
            let why = message(status, ConditionType::Revoked).unwrap_or_default();
            format!("the token of the request {name} was revoked: {why}")
        }
        _ if request.status.is_none() => {
            format!("the request {name} waits for the operator to see it; is vault-token-operator running?")
        }
        phase => format!("the request {name} is {phase}: {}", current(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::tests::request;
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn at(phase: Phase) -> VaultTokenRequest {
        let mut request = request();
        let token_accessor = Some("acc".to_owned());
        request.status =
            Some(VaultTokenRequestStatus { phase: Some(phase), attempts: 2, token_accessor, ..Default::default() });
        request
    }

    fn held(accessor: &str) -> Held {
        Held { attempt: 2, accessor: accessor.to_owned(), whole: true }
    }

    #[test]
    fn i6_a_token_is_taken_only_in_the_attempt_that_is_recorded_as_issued() {
        assert_eq!(expected(&at(Phase::Issued), 2), Some("acc"));
        assert_eq!(expected(&at(Phase::Issued), 1), None);
        for phase in [Phase::Pending, Phase::Minting, Phase::Delivered, Phase::Revoking, Phase::Revoked] {
            assert_eq!(expected(&at(phase), 2), None, "{phase}");
        }
        assert_eq!(expected(&request(), 2), None);
    }

    #[test]
    fn rule_3_a_push_that_comes_before_the_record_is_not_the_operators_and_one_that_comes_late_may_be() {
        assert!(precedes_record(&request(), 1), "nobody has seen it yet");
        assert!(precedes_record(&at(Phase::Minting), 2));
        for phase in [Phase::Pending, Phase::Issued, Phase::Delivered, Phase::Revoking, Phase::Revoked] {
            assert!(precedes_record(&at(phase), 3) && !precedes_record(&at(phase), 2), "{phase}");
        }
        assert!(!precedes_record(&at(Phase::Minting), 1), "that attempt was given up");
    }

    #[test]
    fn i6_only_a_delivered_request_makes_a_found_token_good() {
        assert!(vouches(&at(Phase::Delivered), "acc"));
        assert!(!vouches(&at(Phase::Delivered), "another"));
        assert!(!vouches(&at(Phase::Issued), "acc"), "it is on its way, and may be revoked yet");
        let mut deleted = at(Phase::Delivered);
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert!(!vouches(&deleted, "acc"));
    }

    #[test]
    fn rule_5_it_ends_well_only_once_its_request_is_delivered_with_what_it_holds() {
        let verdict = |phase, held: Option<&Held>| judge(Some(&at(phase)), held);
        assert_eq!(verdict(Phase::Delivered, Some(&held("acc"))), Verdict::Done);
        assert!(matches!(verdict(Phase::Issued, Some(&held("acc"))), Verdict::Waiting(_)), "its own answer is no word");
        for other in [None, Some(&held("another")), Some(&Held { whole: false, ..held("acc") })] {
            assert!(matches!(verdict(Phase::Delivered, other), Verdict::Over(_)), "{other:?}");
        }
        assert!(matches!(judge(None, Some(&held("acc"))), Verdict::Over(_)));
    }

    #[test]
    fn rule_10_a_token_that_the_operator_does_not_know_of_is_asked_for_anew() {
        let mut forgotten = at(Phase::Issued);
        let status = forgotten.status.as_mut().expect("a status");
        status.reason = Some(Reason::DeliveryForgotten.as_str().to_owned());
        assert_eq!(expected(&forgotten, 2), None, "nobody takes it any more");
        let held = held("acc");
        let verdict = judge(Some(&forgotten), Some(&held));
        assert!(matches!(verdict, Verdict::Anew(_)), "{verdict:?}");
        assert!(!keeps(&verdict, Some(&forgotten), Some(&held)));
        forgotten.status.as_mut().expect("a status").phase = Some(Phase::Delivered);
        assert_eq!(judge(Some(&forgotten), Some(&held)), Verdict::Done, "it has been delivered since");
    }

    #[test]
    fn i6_files_go_unless_the_request_records_what_is_in_them() {
        let stays = |phase, held: &Held| {
            let request = at(phase);
            keeps(&judge(Some(&request), Some(held)), Some(&request), Some(held))
        };
        assert!(stays(Phase::Issued, &held("acc")) && stays(Phase::Delivered, &held("acc")));
        assert!(!stays(Phase::Issued, &held("another")));
        for phase in [Phase::Revoking, Phase::Pending, Phase::Failed, Phase::Revoked] {
            assert!(!stays(phase, &held("acc")), "{phase}");
        }
    }
}
