//! The machine, phase by phase. Its states and steps are the table in ARCHITECTURE.md.

use super::super::rules::Rules;
use super::*;
use crate::api::AttemptOutcome;
use crate::domain::grant::tests::{limits, request, rules};
use crate::domain::pod::tests::{app, pod};
use crate::domain::status::{Draft, is_forgotten};
use crate::domain::token::{Expiry, Minted, Qualities};
use crate::seal::Receipt;
use crate::wire::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::LazyLock;

const NOW: i64 = 1_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn living(patch: Value) -> Observation {
    Observation::Present(PodFacts::read(&pod(patch), "vault-init"))
}

const ALONE: Siblings = Siblings { superseded_by: None, outdone_by: None, compromised_by: None };

fn observed<'a>(
    request: &'a VaultTokenRequest,
    pod: Option<&'a Observation>,
    hand: &'a Hand,
    limits: &'a Limits,
) -> Observed<'a> {
    static RULES: LazyLock<Rules> = LazyLock::new(rules);
    Observed {
        request,
        pod,
        siblings: &ALONE,
        hand,
        vault_away: None,
        admission: &Admission::Waived,
        rules: &RULES,
        held: None,
        limits,
        now: at(NOW),
    }
}

fn decided(request: &VaultTokenRequest, pod: Option<&Observation>, hand: &Hand, vault_away: Option<&str>) -> Step {
    let vault_away = vault_away.map(|why| Why::new(Reason::VaultUnavailable, why));
    decide(&Observed { vault_away: vault_away.as_ref(), ..observed(request, pod, hand, &limits()) })
}

/// With nothing in hand, and nothing granted to anybody.
fn decided_ungranted(request: &VaultTokenRequest, pod: &Observation) -> Step {
    decide(&Observed { rules: &Rules::default(), ..observed(request, Some(pod), &Hand::Empty, &limits()) })
}

/// With nothing in hand, at this second.
fn decided_at(
    request: &VaultTokenRequest,
    pod: Option<&Observation>,
    superseded_by: Option<&str>,
    second: i64,
) -> Step {
    let siblings = Siblings { superseded_by: superseded_by.map(str::to_owned), ..ALONE };
    decide(&Observed { siblings: &siblings, now: at(second), ..observed(request, pod, &Hand::Empty, &limits()) })
}

fn wants(request: &VaultTokenRequest, lives: bool) -> bool {
    wants_pod(request, lives, false, at(NOW))
}

fn minted(wrapping_expires: i64) -> Minted {
    Minted {
        wrapping_token: "hvs.wrapping".into(),
        wrapping_accessor: "wrapping-accessor".to_owned(),
        token_accessor: "token-accessor".to_owned(),
        creation_path: "auth/token/create/role".to_owned(),
        wrapping_expires_at: at(wrapping_expires),
    }
}

fn intent(attempt: u32) -> Intent {
    let Step::Intend(intent) = decided(&request(), Some(&living(json!({}))), &Hand::Empty, None) else {
        panic!("a good request is not begun")
    };
    Intent { attempt, ..intent }
}

/// A request as it is after `attempt` was written down, and perhaps recorded and delivered.
fn in_phase(phase: Phase, attempt: u32) -> VaultTokenRequest {
    let mut request = request();
    let draft = |status: &VaultTokenRequestStatus| Draft::new(Some(status), Some(1), at(NOW));
    let mut status = draft(&VaultTokenRequestStatus::default()).intended(&intent(attempt));
    if phase != Phase::Minting {
        status = draft(&status).issued(&minted(NOW + 60));
    }
    match phase {
        Phase::Delivered => status = draft(&status).delivered(None),
        Phase::Revoking => status = draft(&status).abandoned(&Why::new(Reason::AttemptAbandoned, "why")),
        Phase::Revoked => status = draft(&status).revoked(&Why::new(Reason::PodDeleted, "why")),
        _ => {}
    }
    request.status = Some(status);
    request
}

fn deleted(mut request: VaultTokenRequest) -> VaultTokenRequest {
    request.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW)));
    request
}

fn wrapped(attempt: u32, expires: i64) -> Hand {
    let (receipt, period) = (Receipt::generate().expect("a receipt"), Duration::from_secs(60));
    let ordered = Qualities::ordered(&["shop-read".to_owned()], period);
    let checked = Some(Expiry(None));
    Hand::Wrapped(Wrapped { attempt, period, minted: minted(expires), receipt, ordered, expires: checked })
}

#[test]
fn rule_1_nothing_is_minted_before_the_attempt_is_written_down() {
    let step = decided(&request(), Some(&living(json!({}))), &Hand::Empty, None);
    let Step::Intend(intent) = step else { panic!("{step:?}") };
    assert_eq!(intent.attempt, 1);
    assert_eq!(intent.grant.policies, ["shop-read"]);
}

#[test]
fn rule_2_the_attempt_in_hand_is_minted_once_and_a_lost_one_is_followed_by_another() {
    let minting = in_phase(Phase::Minting, 1);
    let alive = living(json!({}));
    assert_eq!(decided(&minting, Some(&alive), &Hand::Intent(intent(1)), None), Step::Mint(intent(1)));
    assert_eq!(decided(&minting, Some(&alive), &Hand::Empty, None), Step::Intend(intent(2)));
    // Another replica has written down the second attempt: the first one in hand is void.
    let second = in_phase(Phase::Minting, 2);
    assert_eq!(decided(&second, Some(&alive), &Hand::Intent(intent(1)), None), Step::Intend(intent(3)));
}

#[test]
fn an_attempt_that_waited_for_vault_is_minted_only_for_what_the_pod_may_have_now() {
    let minting = in_phase(Phase::Minting, 1);
    let hand = Hand::Intent(intent(1));
    let step = |pod: &Observation| decided(&minting, Some(pod), &hand, None);
    let gone = step(&Observation::Absent);
    assert!(matches!(gone, Step::Fail(why) if why.reason == Reason::PodNotFound));
    let ended = json!({"status": app(json!({"running": {}}))});
    assert!(matches!(step(&living(ended)), Step::Fail(why) if why.reason == Reason::InitContainerEnded));
    let root = json!({"metadata": {"annotations": {"vaultproject.io/policies": "root"}}});
    assert!(matches!(step(&living(root)), Step::Fail(why) if why.reason == Reason::PoliciesInvalid));
    let other = json!({"metadata": {"annotations": {"vaultproject.io/policies": "shop-db"}}});
    let step_for_other = step(&living(other));
    assert!(matches!(&step_for_other, Step::Intend(intent) if intent.attempt == 2), "{step_for_other:?}");
    let moved = step(&living(json!({"status": {"podIP": "10.1.0.8", "podIPs": null}})));
    assert!(matches!(&moved, Step::Mint(intent) if intent.pod.addresses.len() == 1), "{moved:?}");
    let deletion = decided(&deleted(in_phase(Phase::Minting, 1)), None, &hand, None);
    assert!(matches!(deletion, Step::Fail(why) if why.reason == Reason::RequestDeleted));
}

#[test]
fn no_attempt_is_spent_on_a_vault_that_is_away() {
    let step = decided(&request(), Some(&living(json!({}))), &Hand::Empty, Some("sealed"));
    assert_eq!(step, Step::Wait(Why::new(Reason::VaultUnavailable, "sealed")));
}

#[test]
fn attempts_are_bounded() {
    let minting = in_phase(Phase::Minting, MAX_ATTEMPTS);
    let draft = || Draft::new(minting.status.as_ref(), Some(1), at(NOW));
    let admission = Why::new(Reason::AdmissionLacking, "waiting to see whether the admission policy is in force");
    let unclear = draft().unclear(&Why::new(Reason::VaultUnavailable, "cannot reach Vault"));
    let restarted = "its token was not recorded: the API server did not answer, or the operator restarted";
    for (status, words) in [
        (minting.status.clone(), restarted),
        // What it waits for since then is not why the attempt came to nothing.
        (Some(draft().waiting(&admission)), restarted),
        (Some(Draft::new(Some(&unclear), Some(1), at(NOW)).waiting(&admission)), "cannot reach Vault"),
        (Some(unclear.clone()), "cannot reach Vault"),
    ] {
        let request = VaultTokenRequest { status, ..minting.clone() };
        let step = decided(&request, Some(&living(json!({}))), &Hand::Empty, None);
        let Step::Fail(why) = step else { panic!("{step:?}") };
        assert_eq!(why.reason, Reason::AttemptsExhausted);
        let words = format!("all {MAX_ATTEMPTS} attempts failed; the last one: {words}");
        assert!(why.message.starts_with(&words), "{}", why.message);
    }
}

#[test]
fn i5_a_wrapping_token_goes_to_the_pod_whose_record_it_is_and_to_no_other() {
    let issued = in_phase(Phase::Issued, 1);
    let alive = living(json!({}));
    let step = decided(&issued, Some(&alive), &wrapped(1, NOW + 60), None);
    assert_eq!(step, Step::Push(["10.1.0.7", "fd00::7"].map(|ip| ip.parse().expect("an address")).to_vec()));
    let another = living(json!({"metadata": {"uid": "another"}}));
    let step = decided(&issued, Some(&another), &wrapped(1, NOW + 60), None);
    assert!(matches!(step, Step::RevokeFinally(_, why) if why.reason == Reason::PodDeleted));
    // An attempt that is not the recorded one, or nothing in hand after a restart.
    for hand in [wrapped(2, NOW + 60), Hand::Empty, Hand::Intent(intent(1))] {
        assert!(matches!(decided(&issued, Some(&alive), &hand, None), Step::Abandon(_)), "{hand:?}");
    }
    let moved = living(json!({"status": {"podIP": "169.254.169.254", "podIPs": null}}));
    assert!(matches!(decided(&issued, Some(&moved), &wrapped(1, NOW + 60), None), Step::Wait(_)));
}

#[test]
fn rule_6_an_expired_wrapping_token_is_written_off_before_its_token_is_revoked() {
    let alive = living(json!({}));
    let step = decided(&in_phase(Phase::Issued, 1), Some(&alive), &wrapped(1, NOW), None);
    assert!(matches!(&step, Step::Abandon(why) if why.message.contains("expired")), "{step:?}");
    let step = decided(&in_phase(Phase::Revoking, 1), Some(&alive), &Hand::Empty, None);
    assert_eq!(step, Step::RevokeAbandoned("token-accessor".to_owned()));
}

#[test]
fn rule_10_what_came_of_an_attempt_that_was_left_alone_is_not_guessed() {
    let alive = living(json!({}));
    let mut issued = in_phase(Phase::Issued, 1);
    let step = |request: &VaultTokenRequest, second| decided_at(request, Some(&alive), None, second);
    // Another operator takes over in less than two minutes.
    let late = NOW + 120;
    assert!(matches!(step(&issued, late - 1), Step::Abandon(_)));
    let Step::Wait(why) = step(&issued, late) else { panic!("{:?}", step(&issued, late)) };
    assert_eq!(why.reason, Reason::DeliveryForgotten);
    // Who has the wrapping token in hand has been there all the time.
    let (limits, hand) = (limits(), wrapped(1, NOW + 60));
    let there = decide(&Observed { now: at(late), ..observed(&issued, Some(&alive), &hand, &limits) });
    assert!(matches!(there, Step::Abandon(_)), "{there:?}");
    // Its token is kept, and ends as any other.
    issued.status = Some(Draft::new(issued.status.as_ref(), Some(1), at(late)).waiting(&why));
    assert_eq!(issued.phase(), Phase::Issued);
    assert!(matches!(step(&issued, late), Step::Wait(again) if again == why));
    let outdone = Siblings { outdone_by: Some("newer".to_owned()), ..ALONE };
    let asked =
        Observed { siblings: &outdone, now: at(late), ..observed(&issued, Some(&alive), &Hand::Empty, &limits) };
    assert!(matches!(decide(&asked), Step::Wait(_)), "it has asked, and has not got it yet");
    let newer = decided_at(&issued, Some(&alive), Some("newer"), late);
    assert!(matches!(newer, Step::RevokeFinally(_, why) if why.reason == Reason::Superseded));
    let gone = decided_at(&issued, Some(&Observation::Absent), None, late);
    assert!(matches!(gone, Step::RevokeFinally(_, why) if why.reason == Reason::PodDeleted));
    let deletion = decided_at(&deleted(issued), None, None, late);
    assert!(matches!(deletion, Step::RevokeFinally(_, why) if why.reason == Reason::RequestDeleted));

    let minting = in_phase(Phase::Minting, 1);
    let waited = Hand::Intent(Intent { started_at: at(NOW), ..intent(1) });
    for (second, forgotten) in [(late - 1, false), (late, true)] {
        let observed = observed(&minting, Some(&alive), &waited, &limits);
        let mints = matches!(decide(&Observed { now: at(second), ..observed }), Step::Mint(_));
        assert_eq!(mints, !forgotten, "{second}");
        let step = step(&minting, second);
        let Step::Intend(next) = step else { panic!("{step:?}") };
        let status = Draft::new(minting.status.as_ref(), Some(1), at(second)).intended(&next);
        assert_eq!(status.history.iter().map(is_forgotten).collect::<Vec<_>>(), [forgotten]);
    }
}

#[test]
fn rule_7_only_a_fresh_look_a_deletion_or_an_end_revokes() {
    let delivered = in_phase(Phase::Delivered, 1);
    let reason = |pod: Option<&Observation>| match decided(&delivered, pod, &Hand::Empty, None) {
        Step::RevokeFinally(accessor, why) if accessor == "token-accessor" => Some(why.reason),
        Step::Settle => None,
        step => panic!("{step:?}"),
    };
    assert_eq!(reason(None), None, "I7: not having looked is no reason");
    assert_eq!(reason(Some(&living(json!({})))), None);
    let terminating = living(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert_eq!(reason(Some(&terminating)), None, "it may need its token to end well");
    assert_eq!(reason(Some(&Observation::Absent)), Some(Reason::PodDeleted));
    assert_eq!(reason(Some(&living(json!({"metadata": {"uid": "another"}})))), Some(Reason::PodDeleted));
    assert_eq!(reason(Some(&living(json!({"status": {"phase": "Succeeded"}})))), Some(Reason::PodFinished));
    let step = decided(&deleted(in_phase(Phase::Delivered, 1)), None, &Hand::Empty, None);
    assert!(matches!(step, Step::RevokeFinally(_, why) if why.reason == Reason::RequestDeleted));
}

#[test]
fn i8_the_finalizer_goes_in_a_final_phase_only() {
    for phase in [Phase::Minting, Phase::Issued, Phase::Delivered, Phase::Revoking] {
        for hand in [Hand::Empty, Hand::Intent(intent(1)), wrapped(1, NOW + 60)] {
            let step = decided(&deleted(in_phase(phase, 1)), None, &hand, None);
            assert!(matches!(step, Step::Fail(_) | Step::RevokeFinally(..)), "{phase}: {step:?}");
        }
    }
    let mut revoked = in_phase(Phase::Revoked, 1);
    assert_eq!(decided(&revoked, None, &Hand::Empty, None), Step::Release);
    revoked.metadata.finalizers = None;
    assert!(matches!(decided(&revoked, None, &Hand::Empty, None), Step::Later(_)), "it is kept for a while");
}

#[test]
fn i4_a_bad_annotation_is_denied_at_first_and_ends_what_had_begun() {
    let bad = living(json!({"metadata": {"annotations": {"vaultproject.io/policies": "root"}}}));
    assert!(matches!(decided(&request(), Some(&bad), &Hand::Empty, None), Step::Deny(_)));
    let step = decided(&in_phase(Phase::Minting, 1), Some(&bad), &Hand::Empty, None);
    assert!(matches!(step, Step::Fail(why) if why.reason == Reason::PoliciesInvalid));
}

#[test]
fn the_pod_is_looked_at_whenever_it_matters() {
    for phase in [Phase::Minting, Phase::Issued, Phase::Delivered, Phase::Revoking] {
        assert!(wants(&in_phase(phase, 1), false), "{phase}");
    }
    assert!(wants(&request(), true));
    assert!(!wants(&in_phase(Phase::Revoked, 1), false));
    assert!(!wants(&deleted(request()), false));
}

#[test]
fn rule_2_attempts_that_came_to_nothing_are_spaced() {
    let alive = living(json!({}));
    let unclear = |attempt, time| {
        let mut request = in_phase(Phase::Minting, attempt);
        let why = Why::new(Reason::VaultUnavailable, "Vault did not answer");
        let status = Draft::new(request.status.as_ref(), Some(1), at(time)).unclear(&why);
        assert_eq!(
            status.history.last().map(|last| (last.number, last.outcome)),
            Some((attempt, AttemptOutcome::Unrecorded))
        );
        request.status = Some(status);
        assert_eq!(request.phase(), Phase::Pending);
        request
    };
    for (attempt, spacing) in [(1, 1), (2, 2), (3, 4), (4, 8)] {
        let step = decided(&unclear(attempt, NOW), Some(&alive), &Hand::Empty, None);
        assert_eq!(step, Step::Later(at(NOW + spacing)));
        let step = decided(&unclear(attempt, NOW - spacing), Some(&alive), &Hand::Empty, None);
        assert_eq!(step, Step::Intend(intent(attempt + 1)));
    }
    // An end does not wait for the next attempt's time, and neither does the word that Vault is away.
    let step = decided(&deleted(unclear(1, NOW)), None, &Hand::Empty, None);
    assert!(matches!(step, Step::Fail(_)), "{step:?}");
    let step = decided(&unclear(1, NOW), Some(&alive), &Hand::Empty, Some("sealed"));
    assert!(matches!(step, Step::Wait(_)), "{step:?}");
    let step = decided(&unclear(MAX_ATTEMPTS, NOW), Some(&alive), &Hand::Empty, None);
    assert!(matches!(step, Step::Fail(_)), "{step:?}");
}

#[test]
fn rule_3_an_unconfirmed_record_counts_only_if_it_stands() {
    let alive = living(json!({}));
    let unconfirmed = |attempt| {
        let Hand::Wrapped(wrapped) = wrapped(attempt, NOW + 60) else { unreachable!() };
        Hand::Unconfirmed(wrapped)
    };
    let stands = in_phase(Phase::Issued, 1);
    let step = decided(&stands, Some(&alive), &unconfirmed(1), None);
    assert!(matches!(step, Step::Push(_)), "{step:?}");
    for other in [in_phase(Phase::Minting, 1), in_phase(Phase::Issued, 2), deleted(in_phase(Phase::Minting, 1))] {
        assert_eq!(decided(&other, Some(&alive), &unconfirmed(1), Some("sealed")), Step::RevokeUnrecorded);
    }
    assert!(matches!(confirmed(unconfirmed(1), &stands), Hand::Wrapped(_)));
    assert!(matches!(confirmed(unconfirmed(1), &in_phase(Phase::Minting, 1)), Hand::Unconfirmed(_)));
}

#[test]
fn i7_a_token_that_was_delivered_without_an_answer_to_its_record_is_not_taken_back() {
    let hand = || {
        let Hand::Wrapped(wrapped) = wrapped(1, NOW + 60) else { unreachable!() };
        Hand::Unconfirmed(wrapped)
    };
    for request in [delivered(), in_phase(Phase::Revoking, 1), deleted(delivered())] {
        let step = decided(&request, Some(&living(json!({}))), &hand(), None);
        assert_ne!(step, Step::RevokeUnrecorded, "{:?}", request.phase());
        assert!(matches!(confirmed(hand(), &request), Hand::Empty), "the wrapping token has served");
    }
}

#[test]
fn an_attempt_ends_with_its_request() {
    let request = in_phase(Phase::Minting, 1);
    let draft = || Draft::new(request.status.as_ref(), Some(1), at(NOW));
    let next = draft().intended(&intent(2));
    assert_eq!((next.attempts, next.history.len(), next.history[0].number), (2, 1, 1));
    assert_eq!(draft().failed(&Why::new(Reason::PodDeleted, "gone")).history.len(), 1);
    let cleared = Draft::new(in_phase(Phase::Revoking, 3).status.as_ref(), Some(1), at(NOW)).cleared();
    let last = cleared.history.last().expect("an attempt");
    assert_eq!((last.number, last.outcome), (3, AttemptOutcome::Undelivered));
    assert_eq!(last.token_accessor.as_deref(), Some("token-accessor"));
}

/// Delivered at 0, to end at 300 unless it is renewed.
fn delivered() -> VaultTokenRequest {
    let mut request = in_phase(Phase::Issued, 1);
    request.status = Some(Draft::new(request.status.as_ref(), Some(1), at(0)).delivered(Some(at(300))));
    request
}

#[test]
fn rule_8_a_delivered_token_is_renewed_in_time_and_never_after_its_end() {
    let (request, alive) = (delivered(), living(json!({})));
    let Step::Later(due) = decided_at(&request, None, None, 100) else { panic!("not yet") };
    assert!((120..=150).contains(&due.as_second()), "{due}");
    assert!(!wants_pod(&request, true, false, at(100)), "nothing to look at before");
    assert!(wants_pod(&request, true, false, at(151)), "a renewal sees the pod fresh");
    assert!(!wants_pod(&request, true, true, at(151)), "Vault is away: nothing to look at either");
    assert_eq!(decided_at(&request, None, None, 151), Step::Later(at(151)));
    assert_eq!(decided_at(&request, Some(&alive), None, 151), Step::Renew("token-accessor".to_owned()));
    for (request, pod) in [(deleted(delivered()), None), (delivered(), Some(&Observation::Absent))] {
        let step = decided_at(&request, pod, None, 151);
        assert!(matches!(step, Step::RevokeFinally(..)), "{step:?}");
    }
    let renewed = Draft::new(request.status.as_ref(), Some(1), at(151)).renewed(at(451));
    let again = VaultTokenRequest { status: Some(renewed), ..request };
    let Step::Later(due) = decided_at(&again, None, None, 152) else { panic!("not yet") };
    assert!((151 + 120..=151 + 150).contains(&due.as_second()), "{due}");
}

#[test]
fn rule_8_tokens_that_were_delivered_together_are_not_renewed_together() {
    let due = |uid: &str| {
        let mut request = delivered();
        request.metadata.uid = Some(uid.to_owned());
        let Step::Later(due) = decided_at(&request, None, None, 100) else { panic!("not yet") };
        due.as_second()
    };
    let [early, late] = ["00000002-0000-4000-8000-000000000000", "00000006-0000-4000-8000-000000000000"].map(due);
    assert!(late - early > 20, "{early} {late}");
}

#[test]
fn rule_8_a_renewal_that_waits_for_vault_is_looked_at_again_the_sooner_the_less_life_is_left() {
    let (request, away) = (delivered(), Why::new(Reason::VaultUnavailable, "connection refused"));
    for (second, next) in [(151, 161), (260, 265), (298, 299), (400, 401)] {
        let (hand, limits) = (Hand::Empty, limits());
        let observed = observed(&request, None, &hand, &limits);
        let step = decide(&Observed { vault_away: Some(&away), now: at(second), ..observed });
        assert_eq!(step, Step::Later(at(next)), "{second}");
    }
}

#[test]
fn rule_8_a_finalizer_goes_by_time_only_past_the_last_possible_expiry() {
    let away = Why::new(Reason::VaultUnavailable, "connection refused");
    let mut request = deleted(delivered());
    request.status.as_mut().expect("a status").ttl = Some("5m".to_owned());
    assert!(!surely_outlived(&request, at(100_000)), "nobody has tried yet");
    // A renewal that was sent just before the first try may have made it live for a period from then.
    request.status = Some(Draft::new(request.status.as_ref(), Some(1), at(290)).not_revoked(&away));
    for second in [300, 590, 649, 650] {
        assert!(matches!(decided_at(&request, None, None, second), Step::RevokeFinally(..)), "Vault is asked first");
        assert_eq!(surely_outlived(&request, at(second)), second == 650, "{second}");
    }
    // What was to be revoked once, and was renewed since, has not been tried to be revoked.
    let renewed = Draft::new(request.status.as_ref(), Some(1), at(600)).renewed(at(900));
    assert!(!surely_outlived(&VaultTokenRequest { status: Some(renewed), ..request.clone() }, at(2000)));
    // Nobody but Vault knows how long a token lives that renews itself.
    let mut itself = request.clone();
    itself.status.as_mut().expect("a status").self_renewal = true;
    assert!(!surely_outlived(&itself, at(100_000)));
    // The mark of an earlier attempt's token says nothing of this one.
    let cleared = Draft::new(request.status.as_ref(), Some(1), at(300)).cleared();
    assert!(super::super::status::message(&cleared, ConditionType::Revoked).is_none());
}

#[test]
fn rule_7_an_older_request_ends_once_a_newer_one_of_its_pod_is_delivered() {
    let alive = living(json!({}));
    for phase in [Phase::Issued, Phase::Delivered, Phase::Revoking] {
        let step = decided_at(&in_phase(phase, 1), Some(&alive), Some("web-8f1c-1"), 1);
        assert!(matches!(&step, Step::RevokeFinally(_, why) if why.reason == Reason::Superseded), "{step:?}");
    }
    for request in [request(), in_phase(Phase::Minting, 1)] {
        let step = decided_at(&request, Some(&alive), Some("web-8f1c-1"), 1);
        assert!(matches!(&step, Step::Fail(why) if why.reason == Reason::Superseded), "{step:?}");
    }
    let mut newer = delivered();
    newer.spec.sequence += 1;
    assert!(supersedes(&newer, &delivered()) && !supersedes(&delivered(), &newer));
    newer.status = in_phase(Phase::Issued, 1).status;
    assert!(!supersedes(&newer, &delivered()), "not before its pod has it");
    newer = delivered();
    newer.spec.sequence += 1;
    newer.spec.pod_uid = "another".to_owned();
    assert!(!supersedes(&newer, &delivered()));
}

#[test]
fn finished_requests_are_kept_for_a_while() {
    let released = |mut request: VaultTokenRequest| {
        request.metadata.finalizers = None;
        request
    };
    let finished = |reason| {
        let request = in_phase(Phase::Delivered, 1);
        let status = Draft::new(request.status.as_ref(), Some(1), at(NOW)).revoked(&Why::new(reason, "why"));
        released(VaultTokenRequest { status: Some(status), ..request })
    };
    let day = NOW + 24 * 3600;
    assert_eq!(decided_at(&finished(Reason::PodDeleted), None, None, NOW), Step::Later(at(day)));
    assert_eq!(decided_at(&finished(Reason::PodDeleted), None, None, day), Step::Delete);
    let denied = Draft::new(None, Some(1), at(NOW)).denied(&Why::new(Reason::PoliciesMissing, "why"));
    let denied = released(VaultTokenRequest { status: Some(denied), ..request() });
    let failed = Draft::new(None, Some(1), at(NOW)).failed(&Why::new(Reason::AttemptsExhausted, "why"));
    let failed = released(VaultTokenRequest { status: Some(failed), ..request() });
    for brief in [denied, failed, finished(Reason::Superseded)] {
        assert_eq!(decided_at(&brief, None, None, NOW + 899), Step::Later(at(NOW + 900)));
        assert_eq!(decided_at(&brief, None, None, NOW + 900), Step::Delete);
    }
    let mut held = finished(Reason::PodDeleted);
    held.metadata.finalizers = Some(vec![crate::api::FINALIZER.to_owned()]);
    assert_eq!(decided_at(&held, None, None, day), Step::Release, "the finalizer goes first");
    assert_eq!(
        decided_at(&deleted(finished(Reason::PodDeleted)), None, None, day),
        Step::Settle,
        "it is going already"
    );
}

#[test]
fn rule_10_a_token_that_the_pod_may_be_using_is_not_abandoned() {
    let running = living(json!({"status": app(json!({"running": {}}))}));
    for phase in [Phase::Issued, Phase::Revoking] {
        let step = decided(&in_phase(phase, 1), Some(&running), &Hand::Empty, None);
        assert!(matches!(&step, Step::Wait(why) if why.reason == Reason::DeliveryForgotten), "{phase}: {step:?}");
        let step = decided_at(&in_phase(phase, 1), Some(&Observation::Absent), None, NOW);
        assert!(matches!(step, Step::RevokeFinally(..)), "{phase}: {step:?}");
    }
    assert!(!matches!(decided(&delivered(), Some(&running), &Hand::Empty, None), Step::Wait(_)));
}

#[test]
fn rule_10_a_pod_that_keeps_quiet_about_its_tokens_keeps_the_newest_alone() {
    let running = living(json!({"status": app(json!({"running": {}}))}));
    let numbered = |name: &str, sequence| {
        let mut request = in_phase(Phase::Issued, 1);
        request.metadata.name = Some(name.to_owned());
        request.spec.sequence = sequence;
        request
    };
    let pod = [numbered("first", 1), numbered("second", 2), numbered("third", 3)];
    let limits = limits();
    let step = |request: &VaultTokenRequest, running: &Observation| {
        let siblings = Siblings::of(request, pod.iter().filter(|other| other.metadata.name != request.metadata.name));
        decide(&Observed { siblings: &siblings, ..observed(request, Some(running), &Hand::Empty, &limits) })
    };
    for older in &pod[..2] {
        let ended = step(older, &running);
        assert!(
            matches!(&ended, Step::RevokeFinally(_, why) if why.reason == Reason::Superseded),
            "{:?}: {ended:?}",
            older.metadata.name
        );
        // Before that, the newer one may yet come to nothing.
        let initializing = step(older, &living(json!({})));
        assert!(!matches!(initializing, Step::RevokeFinally(..)), "{initializing:?}");
    }
    let newest = step(&pod[2], &running);
    assert!(matches!(&newest, Step::Wait(why) if why.reason == Reason::DeliveryForgotten), "{newest:?}");
}

#[test]
fn i4_a_pod_that_keeps_quiet_about_its_token_keeps_it_no_longer_than_it_is_granted() {
    let running = living(json!({"status": app(json!({"running": {}}))}));
    for phase in [Phase::Issued, Phase::Revoking] {
        let request = in_phase(phase, 1);
        let step = decided_ungranted(&request, &running);
        assert!(matches!(&step, Step::LoseGrant(why) if why.reason == Reason::GrantLost), "{phase}: {step:?}");
        let Step::LoseGrant(why) = step else { return };
        let mut lost = request.clone();
        lost.status = Some(Draft::new(request.status.as_ref(), Some(1), at(NOW)).grant_lost(&why));
        assert_eq!(lost.phase(), phase, "what it says of the delivery stays");
        assert!(matches!(decided_ungranted(&lost, &running), Step::Wait(_)), "{phase}: it has some time");
        lost.status = Some(Draft::new(request.status.as_ref(), Some(1), at(NOW - 7200)).grant_lost(&why));
        let step = decided_ungranted(&lost, &running);
        assert!(matches!(&step, Step::LoseGrant(why) if why.reason == Reason::GrantEnded), "{phase}: {step:?}");
    }
}

#[test]
fn a_token_is_surely_dead_only_some_time_after_its_expiry() {
    assert!(!surely_expired(&delivered(), at(300)) && !surely_expired(&delivered(), at(359)));
    assert!(surely_expired(&delivered(), at(360)));
    assert!(!surely_expired(&in_phase(Phase::Issued, 1), at(100_000)), "Vault has not said when it ends");
}

#[test]
fn a_sealed_token_in_the_status_is_offered_once_and_its_answer_counts_only_under_the_receipt() {
    let alive = living(json!({"spec": {"hostNetwork": true}, "status": {"podIP": null, "podIPs": null}}));
    let mut issued = in_phase(Phase::Issued, 1);
    issued.spec.delivery = Delivery::Status;
    let hand = wrapped(1, NOW + 60);
    assert_eq!(decided(&issued, Some(&alive), &hand, None), Step::Offer);
    let offered = Draft::new(issued.status.as_ref(), Some(1), at(NOW)).offered("sealed".to_owned());
    issued.status = Some(offered);
    assert_eq!(
        decided(&issued, Some(&alive), &hand, None),
        Step::Later(at(NOW + 60)),
        "nothing more until it is answered"
    );

    let Hand::Wrapped(Wrapped { receipt, .. }) = &hand else { panic!("{hand:?}") };
    let plain = Answer { attempt: 1, outcome: Outcome::Stored, message: String::new(), refused: 0, mac: String::new() };
    let signed = receipt.sign(subject(&issued, 1), plain.clone());
    let answered = |answer: &Answer| {
        let mut request = issued.clone();
        request.status.as_mut().expect("a status").answer = Some(answer.clone());
        decided(&request, Some(&alive), &hand, None)
    };
    assert_eq!(answered(&plain), Step::Disbelieve, "anybody's");
    assert_eq!(answered(&signed), Step::Hear(signed.clone()));
    let status = Draft::new(issued.status.as_ref(), Some(1), at(NOW)).delivered(None);
    assert_eq!((status.sealed_token, status.answer), (None, None), "the blob goes once it is delivered");
    assert!(matches!(decided(&issued, Some(&alive), &Hand::Empty, None), Step::Abandon(_)), "after a restart");
}

#[test]
fn a_pod_whose_wrapping_token_was_used_by_somebody_else_waits_for_a_person() {
    let alive = living(json!({}));
    let why = Why::new(Reason::WrappingTokenUsed, "somebody else");
    let mut request = in_phase(Phase::Issued, 1);
    let status = Draft::new(request.status.as_ref(), Some(1), at(NOW)).compromised(&why);
    assert_eq!(status.phase, Some(Phase::Revoking));
    let status = Draft::new(Some(&status), Some(1), at(NOW)).cleared();
    assert_eq!(status.phase, Some(Phase::Failed), "no further attempt");
    request.status = Some(status);
    request.metadata.finalizers = None;
    let later = NOW + 48 * 3600;
    assert!(wants(&request, true));
    assert!(matches!(decided_at(&request, Some(&alive), None, later), Step::Later(_)), "it stays while its pod lives");
    let gone = decided_at(&request, Some(&Observation::Absent), None, NOW + 3600);
    assert!(matches!(gone, Step::Later(_)), "it stays for the retention, longer than what says little: {gone:?}");
    assert_eq!(decided_at(&request, Some(&Observation::Absent), None, later), Step::Delete);

    let next = super::super::grant::tests::request();
    let limits = limits();
    let siblings = Siblings { compromised_by: Some("web-0".to_owned()), ..ALONE };
    let held = Observed { siblings: &siblings, ..observed(&next, Some(&alive), &Hand::Empty, &limits) };
    let Step::Wait(why) = decide(&held) else { panic!("it was served") };
    assert_eq!(why.reason, Reason::PodCompromised);
    assert!(why.message.contains("web-0"), "{}", why.message);
}

#[test]
fn i5_nothing_is_handed_over_before_the_token_was_seen_to_be_what_was_asked_for() {
    let alive = living(json!({}));
    let issued = in_phase(Phase::Issued, 1);
    let Hand::Wrapped(wrapped) = wrapped(1, NOW + 60) else { unreachable!() };
    let unchecked = Hand::Wrapped(Wrapped { expires: None, ..wrapped });
    assert_eq!(decided(&issued, Some(&alive), &unchecked, None), Step::Check("token-accessor".to_owned()));
    let ordered = Qualities::ordered(&["a".to_owned(), "b".to_owned()], Duration::from_secs(60));
    assert_eq!(ordered.fault(&ordered), None);
    let policies = ["a", "b", "root"].map(str::to_owned).into();
    for (made, words) in [
        (Qualities { policies, ..ordered.clone() }, "its policies are a, b, root, not a, b"),
        (Qualities { period: 0, ..ordered.clone() }, "its period is 0 s, not 60 s"),
        (Qualities { life: 30, ..ordered.clone() }, "it lives for 30 s, not 60 s"),
        (Qualities { orphan: false, ..ordered.clone() }, "a parent"),
        (Qualities { kind: "batch".to_owned(), ..ordered.clone() }, "its type is batch"),
    ] {
        assert!(made.fault(&ordered).is_some_and(|fault| fault.contains(words)), "{words}");
    }
    let status = Draft::new(issued.status.as_ref(), Some(1), at(NOW)).unfit("its policies are root, not a");
    assert_eq!(status.phase, Some(Phase::Revoking));
    let status = Draft::new(Some(&status), Some(1), at(NOW)).cleared();
    assert_eq!((status.phase, status.reason.as_deref()), (Some(Phase::Failed), Some("TokenUnfit")));
}

#[test]
fn a_token_that_loses_its_grant_has_a_grace_period_and_many_at_once_wait_for_a_person() {
    let limits = Limits { grace: Duration::from_secs(100), ..limits() };
    let none = Rules::default();
    let delivered = in_phase(Phase::Delivered, 1);
    let step = |request: &VaultTokenRequest, rules: Option<&Rules>, held: Option<usize>, second: i64| {
        let observed = observed(request, None, &Hand::Empty, &limits);
        decide(&Observed { rules: rules.unwrap_or(observed.rules), held, now: at(second), ..observed })
    };
    let noted = |request: &VaultTokenRequest, step: Step, second: i64| {
        let Step::LoseGrant(why) = step else { panic!("{step:?}") };
        let status = Draft::new(request.status.as_ref(), Some(1), at(second)).grant_lost(&why);
        (VaultTokenRequest { status: Some(status), ..request.clone() }, why.reason)
    };
    let (lost, reason) = noted(&delivered, step(&delivered, Some(&none), None, NOW), NOW);
    assert_eq!(reason, Reason::GrantLost);
    assert_eq!(step(&lost, Some(&none), None, NOW + 50), Step::Later(at(NOW + 100)));
    assert_eq!(step(&lost, None, None, NOW + 50), Step::RegainGrant);
    let (held, reason) = noted(&lost, step(&lost, Some(&none), Some(30), NOW + 100), NOW + 100);
    assert_eq!(reason, Reason::RevocationHeld);
    assert_eq!(step(&held, Some(&none), Some(30), NOW + 101), Step::Later(at(NOW + 161)), "it waits");
    assert_eq!(step(&held, None, Some(30), NOW + 101), Step::RegainGrant);
    let (ended, reason) = noted(&held, step(&held, Some(&none), None, NOW + 102), NOW + 102);
    assert_eq!(reason, Reason::GrantEnded);
    for rules in [Some(&none), None] {
        assert!(matches!(step(&ended, rules, None, NOW + 103), Step::RevokeFinally(..)), "there is no way back");
    }
}

#[test]
fn a_request_that_is_denied_for_want_of_a_grant_is_served_once_it_is_granted() {
    let alive = living(json!({}));
    let (none, limits) = (Rules::default(), limits());
    let mut denied = request();
    let ungranted = |request: &VaultTokenRequest| {
        decide(&Observed { rules: &none, ..observed(request, Some(&alive), &Hand::Empty, &limits) })
    };
    let Step::Deny(why) = ungranted(&denied) else { panic!("it was not denied") };
    denied.status = Some(Draft::new(None, Some(1), at(NOW)).denied(&why));
    assert_eq!((denied.phase(), denied.is_over()), (Phase::Denied, false));
    assert_eq!(ungranted(&denied), Step::Settle, "it is said once");
    let Step::Intend(intent) = decided(&denied, Some(&alive), &Hand::Empty, None) else { panic!("it is not served") };
    let minting = Draft::new(denied.status.as_ref(), Some(1), at(NOW)).intended(&intent);
    assert_eq!((minting.phase, minting.granted_by.as_deref()), (Some(Phase::Minting), Some("all")));
    let gone = decided(&denied, Some(&Observation::Absent), &Hand::Empty, None);
    assert!(matches!(gone, Step::Deny(Why { reason: Reason::PodNotFound, .. })), "{gone:?}");

    // Whatever holds it up once it is granted, it waits as any other request that is granted.
    let away = decided(&denied, Some(&alive), &Hand::Empty, Some("away"));
    assert!(matches!(away, Step::Wait(_)), "{away:?}");
    let held_up = |reason| {
        let status = Draft::new(denied.status.as_ref(), Some(1), at(NOW)).waiting(&Why::new(reason, "held up"));
        VaultTokenRequest { status: Some(status), ..denied.clone() }
    };
    for reason in [Reason::VaultUnavailable, Reason::MintBudgetExhausted, Reason::AdmissionLacking] {
        let waiting = held_up(reason);
        assert_eq!((waiting.phase(), waiting.is_over()), (Phase::Pending, false), "{reason}");
        let conditions = &waiting.status.as_ref().expect("a status").conditions;
        assert!(conditions.iter().all(|it| it.reason != Reason::NotGranted.as_str()), "{reason}: {conditions:?}");
        let next = decided(&waiting, Some(&alive), &Hand::Empty, None);
        assert!(matches!(next, Step::Intend(_)), "{reason}: {next:?}");
    }
    // Where its kubelet has not said yet that its init container runs, it is not over.
    let late = living(json!({"status": {"initContainerStatuses": null}}));
    let mut young = denied.clone();
    young.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(NOW)));
    let step = |second| decide(&Observed { now: at(second), ..observed(&young, Some(&late), &Hand::Empty, &limits) });
    assert_eq!(step(NOW + 5), Step::Later(at(NOW + 6)));
    let waits = step(NOW + 31);
    assert!(matches!(&waits, Step::Wait(why) if why.reason == Reason::InitContainerNotRunning), "{waits:?}");
    // Where nobody waits for it any more, it is over, and leaves its name to others.
    assert!(held_up(Reason::InitContainerNotRunning).is_over());
}

/// The names of all steps. A step that is not among them does not compile here.
macro_rules! names {
    ($($name:ident)*) => {{
        let _ = |step: Step| match step { $(Step::$name { .. } => {})* };
        [$(stringify!($name)),*]
    }};
}

#[test]
fn the_table_of_the_architecture_has_every_step_and_no_other() {
    let document = include_str!("../../ARCHITECTURE.md");
    let (_, states) = document.split_once("## The states").expect("the states");
    let (states, _) = states.split_once("\n## ").expect("another heading");
    let table = states.lines().filter(|line| line.starts_with('|'));
    // What is between two pairs of asterisks.
    let told: BTreeSet<&str> = table.flat_map(|line| line.split("**").skip(1).step_by(2)).collect();
    let steps = names! {
        Settle Wait Later Deny Fail Intend Mint Push Offer Hear Disbelieve RevokeUnrecorded Abandon RevokeAbandoned RevokeFinally
        Renew Check LoseGrant RegainGrant Release Delete
    };
    assert_eq!(told, BTreeSet::from(steps));
}
