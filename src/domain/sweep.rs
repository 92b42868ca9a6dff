//! Tokens that Vault has and no request records: which of them are to die (rules 9 and 10).

use super::pod::{InitState, Observation};
use super::status::is_forgotten;
use crate::api::{Attempt, Phase, VaultTokenRequest};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use std::collections::HashMap;

/// What Vault says of a live token, as far as it tells whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// Its accessor.
    pub accessor: String,
    /// The path that it was made by.
    pub path: String,
    /// The metadata that it was made with.
    pub meta: HashMap<String, String>,
}

/// A token that this cluster's operator made, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its accessor.
    pub accessor: String,
    /// The request that it was made for.
    pub namespace: String,
    /// That request's name.
    pub request_name: String,
    /// That request's UID.
    pub request_uid: String,
    /// That request's `spec.sequence`.
    pub request_sequence: i64,
    /// The pod that it was made for.
    pub pod_name: String,
    /// That pod's UID.
    pub pod_uid: String,
    /// The init container that asked.
    pub init_container: String,
    /// The attempt that it was made in.
    pub attempt: u32,
    /// When that attempt began.
    pub attempt_started_at: Timestamp,
}

/// What is to become of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is recorded, or may be yet.
    Keep,
    /// Its request knows the attempt that it was made in, and that it is over: no request will ever record it.
    Revoke,
    /// Its request knows the attempt that it was made in, and perhaps not what became of it: the attempt had been left alone.
    Unknown,
    /// Its request is not there. It was deleted; or it is not there yet again, after a restore from a backup.
    Unclaimed,
    /// Its request is there and knows nothing of the attempt that it was made in: what the API server has is older than
    /// what it had.
    Forgotten,
}

impl Judgement {
    /// Whether the token's request knows the attempt that it was made in.
    pub fn is_explained(self) -> bool {
        !matches!(self, Self::Unclaimed | Self::Forgotten)
    }
}

impl Claim {
    /// Reads a token's metadata; `None` unless it proves that the token is this cluster's.
    pub fn read(token: &TokenFacts, cluster: &str, token_role: &str) -> Option<Self> {
        let get = |key: &str| token.meta.get(key).filter(|value| !value.is_empty()).cloned();
        let role = token.path.strip_prefix("auth/token/create/").and_then(|role| role.strip_prefix(token_role));
        // The operator's own role, or one of a binding, which extends its name.
        if !role.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            || get("cluster").as_deref() != Some(cluster)
        {
            return None;
        }
        Some(Self {
            accessor: token.accessor.clone(),
            namespace: get("namespace")?,
            request_name: get("request_name")?,
            request_uid: get("request_uid")?,
            request_sequence: get("request_sequence")?.parse().ok()?,
            pod_name: get("pod_name")?,
            pod_uid: get("pod_uid")?,
            init_container: get("init_container")?,
            attempt: get("attempt")?.parse().ok()?,
            attempt_started_at: get("attempt_started_at")?.parse().ok()?,
        })
    }
}

/// Judges a token by a read of its request that is newer than the list of tokens: what is recorded by then is seen, and an
/// attempt that is over by then records nothing any more (rule 9).
pub fn judge(claim: &Claim, request: Option<&VaultTokenRequest>) -> Judgement {
    let Some(request) = request.filter(|request| request.metadata.uid.as_ref() == Some(&claim.request_uid)) else {
        return Judgement::Unclaimed;
    };
    let Some(status) = &request.status else { return Judgement::Forgotten };
    let began = |started: Option<&MicroTime>| started.is_some_and(|started| started.0 == claim.attempt_started_at);
    let current = status.attempts == claim.attempt && began(status.attempt_started_at.as_ref());
    let of_claim = |ended: &&Attempt| ended.number == claim.attempt && began(ended.started_at.as_ref());
    let ended = status.history.iter().find(of_claim);
    let recorded = status.token_accessor.as_ref() == Some(&claim.accessor) && !request.phase().is_final();
    match request.phase() {
        _ if recorded => Judgement::Keep,
        Phase::Minting if current => Judgement::Keep,
        _ if ended.is_some_and(is_forgotten) => Judgement::Unknown,
        _ if current || ended.is_some() => Judgement::Revoke,
        _ => Judgement::Forgotten,
    }
}

/// Whether the token's pod is alive.
pub fn pod_lives(claim: &Claim, pod: &Observation) -> bool {
    matches!(pod, Observation::Present(facts) if facts.uid == claim.pod_uid && !facts.finished)
}

/// Why a token is kept that no request records, by a fresh read of its pod and of all of the pod's requests: the pod may well be using
/// it, and the requests are older than they were, as after a restore of etcd (rule 10).
pub fn kept(
    claim: &Claim,
    judgement: Judgement,
    pod: &Observation,
    requests: &[VaultTokenRequest],
) -> Option<&'static str> {
    let Observation::Present(facts) = pod else { return None };
    if !pod_lives(claim, pod) {
        return None;
    }
    // A request that is as new as this token's, and by which the pod has had a token, whatever has become of that since.
    let explains = |request: &VaultTokenRequest| {
        request.spec.pod_uid == claim.pod_uid
            && request.spec.sequence >= claim.request_sequence
            && request.status.as_ref().is_some_and(|status| status.delivered_at.is_some())
    };
    let explained = requests.iter().any(explains);
    match judgement {
        Judgement::Forgotten => Some("was made in an attempt that its request knows nothing of"),
        _ if explained => None,
        _ if facts.init == InitState::Ended => Some("may be in use: its pod has had a token, and no request says so"),
        // What the pod's status says may be as old as the requests, for as long as its kubelet says nothing else.
        Judgement::Unclaimed => Some("has no request, and its pod lives"),
        Judgement::Unknown => Some("may be in use: its request does not know what became of it, and its pod lives"),
        Judgement::Keep | Judgement::Revoke => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{AttemptOutcome, VaultTokenRequestStatus};
    use crate::domain::grant::tests::request;
    use crate::domain::pod::PodFacts;
    use crate::domain::pod::tests::{app, pod};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    fn facts() -> TokenFacts {
        let meta = [
            ("cluster", "main"),
            ("namespace", "shop"),
            ("request_name", "web-8f1c-0"),
            ("request_uid", "r"),
            ("request_sequence", "7"),
            ("pod_name", "web"),
            ("pod_uid", "p"),
            ("init_container", "vault-init"),
            ("attempt", "2"),
            ("attempt_started_at", "1970-01-01T00:00:20Z"),
        ];
        TokenFacts {
            accessor: "acc".to_owned(),
            path: "auth/token/create/role".to_owned(),
            meta: meta.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        }
    }

    fn claim() -> Claim {
        Claim::read(&facts(), "main", "role").expect("a claim")
    }

    #[test]
    fn what_cannot_be_proved_to_be_ours_is_not_touched() {
        assert_eq!(claim().attempt, 2);
        assert_eq!(Claim::read(&facts(), "other", "role"), None, "another cluster's");
        assert_eq!(Claim::read(&facts(), "main", "another"), None, "another role's");
        for (path, ours) in [("role-shop", true), ("role", true), ("role2", false), ("rol", false)] {
            let token = TokenFacts { path: format!("auth/token/create/{path}"), ..facts() };
            assert_eq!(Claim::read(&token, "main", "role").is_some(), ours, "{path}");
        }
        let orphan = TokenFacts { path: "auth/token/create".to_owned(), ..facts() };
        assert_eq!(Claim::read(&orphan, "main", "role"), None, "somebody else's, whatever it says of itself");
        for key in facts().meta.keys() {
            let mut lacking = facts();
            lacking.meta.remove(key);
            assert_eq!(Claim::read(&lacking, "main", "role"), None, "{key}");
        }
    }

    fn second(second: i64) -> MicroTime {
        MicroTime(Timestamp::from_second(second).expect("a time"))
    }

    #[test]
    fn rule_9_recorded_and_open_attempts_are_kept_and_closed_ones_are_not() {
        let ended = |time, phase, attempts, started, accessor: Option<&str>, history: &[(u32, i64)]| {
            let mut request = request();
            request.metadata.uid = Some("r".to_owned());
            let history = history.iter().map(|(number, started)| Attempt {
                number: *number,
                started_at: Some(second(*started)),
                outcome: AttemptOutcome::Unrecorded,
                token_accessor: None,
                time: Time(second(time).0),
            });
            request.status = Some(VaultTokenRequestStatus {
                phase: Some(phase),
                attempts,
                attempt_started_at: Some(second(started)),
                token_accessor: accessor.map(str::to_owned),
                history: history.collect(),
                ..Default::default()
            });
            judge(&claim(), Some(&request))
        };
        let with = |phase, attempts, started, accessor: Option<&str>, history: &[(u32, i64)]| {
            ended(30, phase, attempts, started, accessor, history)
        };
        assert_eq!(judge(&claim(), None), Judgement::Unclaimed);
        let mut another = request();
        another.metadata.uid = Some("another".to_owned());
        assert_eq!(judge(&claim(), Some(&another)), Judgement::Unclaimed, "a request of the same name");
        let known = [(2, 20)];
        for phase in [Phase::Issued, Phase::Delivered, Phase::Revoking] {
            assert_eq!(with(phase, 2, 20, Some("acc"), &[]), Judgement::Keep, "{phase}");
            assert_eq!(with(phase, 3, 30, Some("another"), &known), Judgement::Revoke, "{phase}");
            assert_eq!(with(phase, 3, 30, Some("another"), &[(2, 21)]), Judgement::Forgotten, "{phase}");
            assert_eq!(with(phase, 1, 10, Some("another"), &[]), Judgement::Forgotten, "{phase}");
            assert_eq!(
                with(phase, 2, 21, Some("another"), &[]),
                Judgement::Forgotten,
                "{phase}: another second attempt"
            );
        }
        assert_eq!(with(Phase::Minting, 2, 20, None, &[]), Judgement::Keep, "open");
        assert_eq!(with(Phase::Minting, 2, 21, None, &[]), Judgement::Forgotten, "open, and another one");
        assert_eq!(with(Phase::Minting, 3, 30, None, &known), Judgement::Revoke, "closed by the next one");
        assert_eq!(with(Phase::Minting, 1, 10, None, &[]), Judgement::Forgotten, "not begun, as the request sees it");
        assert_eq!(with(Phase::Pending, 2, 20, None, &known), Judgement::Revoke, "closed");
        assert_eq!(with(Phase::Denied, 2, 20, None, &[]), Judgement::Revoke, "over");
        assert_eq!(with(Phase::Revoked, 2, 20, Some("acc"), &[]), Judgement::Revoke, "a request that came to its end");
        for (time, expected) in [(139, Judgement::Revoke), (140, Judgement::Unknown)] {
            let left = |phase, attempts, started| ended(time, phase, attempts, started, None, &known);
            assert_eq!(left(Phase::Pending, 2, 20), expected, "its request was left alone");
            assert_eq!(left(Phase::Failed, 2, 20), expected, "the last one");
            assert_eq!(left(Phase::Delivered, 3, 30), expected, "another one has served");
        }
    }

    #[test]
    fn rule_10_a_token_that_the_pod_may_be_using_is_kept_until_a_request_says_what_became_of_it() {
        let seen = |patch| Observation::Present(PodFacts::read(&pod(patch), "vault-init"));
        let running = seen(json!({"metadata": {"uid": "p"}, "status": app(json!({"running": {}}))}));
        let initializing = seen(json!({"metadata": {"uid": "p"}}));
        let another = seen(json!({"metadata": {"uid": "another"}, "status": app(json!({"running": {}}))}));
        let finished = seen(json!({"metadata": {"uid": "p"}, "status": {"phase": "Succeeded"}}));
        let numbered = |sequence, phase| {
            let mut request = request();
            request.spec.pod_uid = "p".to_owned();
            request.spec.sequence = sequence;
            let delivered_at = (phase == Phase::Delivered).then_some(Time(Timestamp::UNIX_EPOCH));
            request.status = Some(VaultTokenRequestStatus { phase: Some(phase), delivered_at, ..Default::default() });
            request
        };
        let deleted = |mut request: VaultTokenRequest| {
            request.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            request
        };
        let keeps = |judgement, pod: &Observation, requests: &[VaultTokenRequest]| {
            kept(&claim(), judgement, pod, requests).is_some()
        };
        let explained = [numbered(7, Phase::Delivered)];
        let going = [deleted(numbered(8, Phase::Issued))];
        for unsaid in [&[][..], &[numbered(7, Phase::Issued)], &[numbered(6, Phase::Delivered)], &going] {
            assert!(keeps(Judgement::Revoke, &running, unsaid), "{unsaid:?}");
            assert!(!keeps(Judgement::Revoke, &initializing, unsaid), "its request says that the attempt is over");
            for pod in [&running, &initializing] {
                assert!(keeps(Judgement::Unclaimed, pod, unsaid), "{unsaid:?}");
                assert!(keeps(Judgement::Unknown, pod, unsaid), "{unsaid:?}");
            }
        }
        for pod in [&running, &initializing] {
            for judgement in [Judgement::Revoke, Judgement::Unclaimed, Judgement::Unknown] {
                assert!(!keeps(judgement, pod, &explained), "{judgement:?}");
            }
            assert!(keeps(Judgement::Forgotten, pod, &explained));
        }
        for gone in [&Observation::Absent, &another, &finished] {
            for judgement in [Judgement::Revoke, Judgement::Unclaimed, Judgement::Unknown, Judgement::Forgotten] {
                assert!(!keeps(judgement, gone, &[]), "{gone:?}");
            }
        }
    }
}
