//! Whether a pod may have what it asks for, and what exactly that is.

use super::address::PodNetworks;
use super::pod::{InitState, Observation, PodFacts};
use super::{duration, policies};
use crate::api::{Delivery, POLICIES_ANNOTATION, Reason, TTL_ANNOTATION, VaultTokenRequest};
use crate::seal::is_public_key;
use crate::text::quote;
use std::time::Duration;

/// The shortest period that a token can have; it must outlive the hiccups of a busy cluster.
pub const MIN_TTL: Duration = Duration::from_secs(10);

/// What the operator's own settings say about every token.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Period of a token whose pod does not ask for one.
    pub default_ttl: Duration,
    /// The longest period that a pod can ask for.
    pub max_ttl: Duration,
    /// Where pods live.
    pub networks: PodNetworks,
    /// How long a request is kept once its token is dead.
    pub retention: Duration,
}

/// What a verified pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Vault policies of the token.
    pub policies: Vec<String>,
    /// Period of the token, in whole seconds.
    pub ttl: Duration,
}

/// Why something is so: a reason for machines, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// One word out of the project's list.
    pub reason: Reason,
    /// A sentence that says what to do where there is something to do.
    pub message: String,
}

impl Why {
    /// Puts the two together.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pod gets this.
    Granted(Grant),
    /// Not yet; a change of the pod will tell.
    NotYet(Why),
    /// Not this pod, or not what it asks for.
    Denied(Why),
    /// The pod has come to its end: there is nobody to serve.
    Ended(Why),
}

/// Verifies the pod of a request from a fresh read of it, and reads what it asks for from its annotations.
pub fn verify(request: &VaultTokenRequest, pod: &Observation, limits: &Limits) -> Verdict {
    let name = &request.spec.pod_name;
    let facts = match pod {
        Observation::Present(facts) => facts,
        Observation::Absent => {
            let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
            return denied(Reason::PodNotFound, format!("there is no pod {name} in namespace {namespace}"));
        }
    };
    if facts.uid != request.spec.pod_uid {
        let (asked, found) = (&request.spec.pod_uid, &facts.uid);
        return denied(
            Reason::PodUIDMismatch,
            format!("the pod {name} has the UID {found}, not {asked}: it is another pod of the same name"),
        );
    }
    if facts.finished {
        return ended(Reason::PodFinished, format!("the pod {name} has finished"));
    }
    if facts.terminating {
        return ended(Reason::PodTerminating, format!("the pod {name} is being deleted"));
    }
    if !request.has_finalizer() {
        let finalizer = crate::api::FINALIZER;
        return denied(
            Reason::FinalizerMissing,
            format!("the request was created without the finalizer {finalizer}; let the init container create it"),
        );
    }
    if !is_public_key(&request.spec.public_key) {
        return denied(Reason::PublicKeyInvalid, "the request's publicKey is no X25519 public key".to_owned());
    }
    if facts.host_network && request.spec.delivery == Delivery::Push {
        return denied(
            Reason::PodHostNetwork,
            format!(
                "the pod {name} uses hostNetwork: its address is its node's, where others listen, too; have the init \
                 container ask with --delivery status"
            ),
        );
    }
    match grant(facts, limits) {
        Ok(grant) => readiness(request, facts, limits).map_or(Verdict::Granted(grant), |verdict| verdict),
        Err(why) => Verdict::Denied(why),
    }
}

/// What still keeps a pod from being served that is otherwise fine.
fn readiness(request: &VaultTokenRequest, facts: &PodFacts, limits: &Limits) -> Option<Verdict> {
    let (name, container) = (&request.spec.pod_name, &request.spec.init_container);
    match facts.init {
        InitState::Unknown => {
            return Some(denied(
                Reason::InitContainerNotFound,
                format!("the pod {name} has no init container {container}; set VTO_CONTAINER_NAME to the name it has"),
            ));
        }
        InitState::Ended => {
            return Some(denied(
                Reason::InitContainerEnded,
                format!("the init container {container} of the pod {name} has ended; tokens go to it alone"),
            ));
        }
        InitState::Waiting => {
            return Some(not_yet(
                Reason::InitContainerNotRunning,
                format!("waiting for the kubelet to report the init container {container} as running"),
            ));
        }
        InitState::Running => {}
    }
    if request.spec.delivery == Delivery::Status {
        return None;
    }
    if facts.addresses.is_empty() {
        return Some(not_yet(Reason::PodHasNoAddress, format!("waiting for the pod {name} to get an address")));
    }
    let forbidden = facts.addresses.iter().find(|address| !limits.networks.contain(**address))?;
    Some(denied(
        Reason::PodAddressForbidden,
        format!("the pod {name} has the address {forbidden}, which no pod can have here; see --pod-network"),
    ))
}

/// Reads the annotations.
fn grant(facts: &PodFacts, limits: &Limits) -> Result<Grant, Why> {
    let Some(annotation) = &facts.policies else {
        return Err(Why::new(
            Reason::PoliciesMissing,
            format!(
                "the pod has no annotation {POLICIES_ANNOTATION}; set it to the policies that its token shall have, \
                 as in \"shop-read,shop-db\""
            ),
        ));
    };
    let policies = policies::parse(annotation).map_err(|why| {
        Why::new(Reason::PoliciesInvalid, format!("the pod's annotation {POLICIES_ANNOTATION} {why}"))
    })?;
    let ttl = match &facts.ttl {
        Some(annotation) => ttl(annotation, limits.max_ttl).map_err(|why| {
            Why::new(Reason::TTLInvalid, format!("the pod's annotation {TTL_ANNOTATION} is wrong: {why}"))
        })?,
        None => limits.default_ttl,
    };
    Ok(Grant { policies, ttl })
}

/// Reads the ttl annotation: a Go duration of whole seconds within the bounds.
fn ttl(annotation: &str, max: Duration) -> Result<Duration, String> {
    let trimmed = annotation.trim_matches(' ');
    let ttl = duration::parse(trimmed)?;
    check_ttl(ttl, max).map_err(|why| format!("{} {why}", quote(trimmed)))?;
    Ok(ttl)
}

/// Whether a token's period is one that the operator gives.
///
/// # Errors
/// The second half of a sentence that begins with the value.
pub fn check_ttl(ttl: Duration, max: Duration) -> Result<(), String> {
    let (min_text, max_text) = (duration::format(MIN_TTL), duration::format(max));
    if ttl < MIN_TTL {
        return Err(format!("is too short: it must be from {min_text} to {max_text}"));
    }
    if ttl > max {
        return Err(format!("is too long: it must be from {min_text} to {max_text}"));
    }
    if ttl.subsec_nanos() != 0 {
        return Err("has a fraction of a second: Vault counts whole seconds".to_owned());
    }
    Ok(())
}

fn denied(reason: Reason, message: String) -> Verdict {
    Verdict::Denied(Why::new(reason, message))
}

fn ended(reason: Reason, message: String) -> Verdict {
    Verdict::Ended(Why::new(reason, message))
}

fn not_yet(reason: Reason, message: String) -> Verdict {
    Verdict::NotYet(Why::new(reason, message))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::pod::tests::pod;
    use super::*;
    use serde_json::{Value, json};

    pub(crate) fn limits() -> Limits {
        let hour = Duration::from_secs(3600);
        Limits { default_ttl: 72 * hour, max_ttl: 768 * hour, networks: PodNetworks::default(), retention: 24 * hour }
    }

    pub(crate) fn request() -> VaultTokenRequest {
        serde_json::from_value(json!({
            "apiVersion": "vaultproject.io/v1alpha1", "kind": "VaultTokenRequest",
            "metadata": {"name": "web-8f1c2d3e-0", "namespace": "shop", "uid": "r", "resourceVersion": "1",
                "generation": 1, "finalizers": [crate::api::FINALIZER]},
            "spec": {"podName": "web", "podUID": "8f1c2d3e-0000-4000-8000-000000000001", "sequence": 1,
                "initContainer": "vault-init", "port": 9443,
                "publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
        }))
        .expect("a request")
    }

    fn verdict(patch: Value) -> Verdict {
        let facts = PodFacts::read(&pod(patch), "vault-init");
        verify(&request(), &Observation::Present(facts), &limits())
    }

    fn annotated(name: &str, value: Value) -> Verdict {
        verdict(json!({"metadata": {"annotations": {name: value}}}))
    }

    #[test]
    fn a_good_pod_gets_what_it_asks_for() {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let grant = |ttl| Verdict::Granted(Grant { policies: vec!["shop-read".to_owned()], ttl });
        assert_eq!(verdict(json!({})), grant(hours(24)));
        assert_eq!(annotated(TTL_ANNOTATION, Value::Null), grant(hours(72)));
        assert_eq!(annotated(TTL_ANNOTATION, json!(" 1h30m ")), grant(Duration::from_secs(5400)));
    }

    #[test]
    fn every_bad_value_is_denied_with_words_that_quote_it() {
        for (name, value, reason, words) in [
            (POLICIES_ANNOTATION, Value::Null, Reason::PoliciesMissing, "no annotation vaultproject.io/policies"),
            (POLICIES_ANNOTATION, json!(""), Reason::PoliciesInvalid, "names no policy"),
            (POLICIES_ANNOTATION, json!("root"), Reason::PoliciesInvalid, "\"root\" is never given"),
            (POLICIES_ANNOTATION, json!("a,a"), Reason::PoliciesInvalid, "names the policy \"a\" twice"),
            (TTL_ANNOTATION, json!(""), Reason::TTLInvalid, "it is empty"),
            (TTL_ANNOTATION, json!("0"), Reason::TTLInvalid, "\"0\" is too short: it must be from 10s to 768h"),
            (TTL_ANNOTATION, json!("-1h"), Reason::TTLInvalid, "\"-1h\" is not a duration: it is negative"),
            (TTL_ANNOTATION, json!("1y"), Reason::TTLInvalid, "no unit \"y\""),
            (TTL_ANNOTATION, json!("769h"), Reason::TTLInvalid, "\"769h\" is too long: it must be from 10s to 768h"),
            (TTL_ANNOTATION, json!("9999999999h"), Reason::TTLInvalid, "longer than 292 years"),
            (TTL_ANNOTATION, json!("10500ms"), Reason::TTLInvalid, "fraction of a second"),
        ] {
            let Verdict::Denied(why) = annotated(name, value.clone()) else { panic!("{value} was not denied") };
            assert_eq!(why.reason, reason, "{value}");
            assert!(why.message.contains(words), "{value}: {}", why.message);
        }
    }

    #[test]
    fn pods_that_are_not_to_be_served() {
        let reason = |verdict: Verdict| match verdict {
            Verdict::Denied(why) | Verdict::NotYet(why) | Verdict::Ended(why) => why.reason,
            Verdict::Granted(_) => panic!("it was granted"),
        };
        assert_eq!(reason(verify(&request(), &Observation::Absent, &limits())), Reason::PodNotFound);
        assert_eq!(reason(verdict(json!({"metadata": {"uid": "another"}}))), Reason::PodUIDMismatch);
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(reason(verdict(deleted)), Reason::PodTerminating);
        assert_eq!(reason(verdict(json!({"status": {"phase": "Failed"}}))), Reason::PodFinished);
        assert_eq!(reason(verdict(json!({"spec": {"hostNetwork": true}}))), Reason::PodHostNetwork);
        assert_eq!(reason(verdict(json!({"status": {"podIP": null, "podIPs": null}}))), Reason::PodHasNoAddress);
        assert_eq!(
            reason(verdict(json!({"status": {"podIP": "127.0.0.1", "podIPs": null}}))),
            Reason::PodAddressForbidden
        );
        assert_eq!(reason(verdict(json!({"spec": {"initContainers": []}}))), Reason::InitContainerNotFound);
        let waiting = json!({"status": {"initContainerStatuses": null}});
        assert_eq!(reason(verdict(waiting)), Reason::InitContainerNotRunning);
        let mut without = request();
        without.metadata.finalizers = None;
        let facts = Observation::Present(PodFacts::read(&pod(json!({})), "vault-init"));
        assert_eq!(reason(verify(&without, &facts, &limits())), Reason::FinalizerMissing);
    }
}
