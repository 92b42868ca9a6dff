//! Whether a pod may have what it asks for, and what exactly that is.

use super::address::PodNetworks;
use super::pod::{InitState, Observation, PodFacts};
use super::rules::{Rule, Rules};
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
    /// How long a token lives on whose policies are not granted any more.
    pub grace: Duration,
}

impl Limits {
    /// Those that a grant depends on.
    pub fn for_grants(default_ttl: Duration, max_ttl: Duration) -> Self {
        Self {
            default_ttl,
            max_ttl,
            networks: PodNetworks::default(),
            retention: Duration::ZERO,
            grace: Duration::ZERO,
        }
    }
}

/// What a verified pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Vault policies of the token.
    pub policies: Vec<String>,
    /// Period of the token, in whole seconds.
    pub ttl: Duration,
    /// The name of the binding that grants it.
    pub granted_by: String,
    /// The Vault token role that it is made through.
    pub token_role: String,
    /// Whether the token may renew itself.
    pub self_renewal: bool,
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
pub fn verify(request: &VaultTokenRequest, pod: &Observation, rules: &Rules, limits: &Limits) -> Verdict {
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
    let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
    match grant(facts, namespace, request.spec.delivery, rules, limits) {
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

/// What a pod asks for in its annotations, if one rule grants all of it: all that can be said of a pod that is not there yet.
///
/// # Errors
/// Why it gets nothing: an annotation that is wrong, what is not granted, or a way of delivery that it cannot have.
pub fn grant(
    facts: &PodFacts,
    namespace: &str,
    delivery: Delivery,
    rules: &Rules,
    limits: &Limits,
) -> Result<Grant, Why> {
    if facts.host_network && delivery == Delivery::Push {
        return Err(Why::new(
            Reason::PodHostNetwork,
            "the pod uses hostNetwork: its address is its node's, where others listen, too; have the init container ask with \
             --delivery status (VTO_DELIVERY), which takes deliveries: [Status] in the binding and the ClusterRole \
             vault-token-requester-status",
        ));
    }
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
    let wrong = |why| Why::new(Reason::TTLInvalid, format!("the pod's annotation {TTL_ANNOTATION} is wrong: {why}"));
    let asked = facts.ttl.as_deref().map(|annotation| ttl(annotation, limits.max_ttl)).transpose().map_err(wrong)?;
    let rule = granting(facts, namespace, delivery, &policies, asked, rules)?;
    Ok(Grant {
        policies,
        ttl: asked.unwrap_or(rule.default_ttl),
        granted_by: rule.name.clone(),
        token_role: rule.token_role.clone(),
        self_renewal: rule.self_renewal,
    })
}

/// The first rule by name that grants all of it. The messages name no binding: those of others are nobody's business.
fn granting<'a>(
    facts: &PodFacts,
    namespace: &str,
    delivery: Delivery,
    policies: &[String],
    ttl: Option<Duration>,
    rules: &'a Rules,
) -> Result<&'a Rule, Why> {
    let whom = format!("the service account {} of the namespace {namespace}", facts.service_account);
    let rules = rules.of(namespace, &facts.service_account);
    let refused = |message: String| Why::new(Reason::NotGranted, message);
    if let Some(policy) = policies.iter().find(|policy| !rules.iter().any(|rule| rule.grants(policy))) {
        return Err(refused(format!(
            "the policy {} is not granted to {whom}; ask whoever manages VaultPolicyBindings for it. The request is served as \
             soon as it is granted",
            quote(policy)
        )));
    }
    let whole: Vec<_> = rules.into_iter().filter(|rule| policies.iter().all(|policy| rule.grants(policy))).collect();
    if whole.is_empty() {
        return Err(refused(format!(
            "each of the policies {} is granted to {whom}, but no one VaultPolicyBinding grants all of them, and one must grant \
             the whole request",
            policies.join(", ")
        )));
    }
    let delivered: Vec<_> = whole.into_iter().filter(|rule| rule.delivers(delivery)).collect();
    let Some(longest) = delivered.iter().map(|rule| rule.max_ttl).max() else {
        return Err(refused(format!("the delivery {delivery:?} is not granted to {whom}")));
    };
    let fits = |rule: &&Rule| ttl.is_none_or(|ttl| ttl <= rule.max_ttl);
    delivered.into_iter().find(fits).ok_or_else(|| {
        Why::new(
            Reason::TTLInvalid,
            format!(
                "the pod's annotation {TTL_ANNOTATION} asks for {}; at most {} is granted to {whom}",
                ttl.map(duration::format).unwrap_or_default(),
                duration::format(longest)
            ),
        )
    })
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
    use super::super::rules::tests::binding;
    use super::*;
    use serde_json::{Value, json};
    use std::collections::HashMap;

    pub(crate) fn limits() -> Limits {
        let hour = Duration::from_secs(3600);
        Limits {
            default_ttl: 72 * hour,
            max_ttl: 768 * hour,
            networks: PodNetworks::default(),
            retention: 24 * hour,
            grace: hour,
        }
    }

    /// Everything of the kind `shop-*` for the namespace `shop`.
    pub(crate) fn rules() -> Rules {
        rules_of(&[("all", json!({}))])
    }

    fn rules_of(bindings: &[(&str, Value)]) -> Rules {
        let read = |(name, patch): &(&str, Value)| Rule::read(&binding(name, patch.clone()), "role", &limits());
        Rules::new(bindings.iter().map(|one| read(one).expect("a rule")).collect(), HashMap::new())
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
        verify(&request(), &Observation::Present(facts), &rules(), &limits())
    }

    fn annotated(name: &str, value: Value) -> Verdict {
        verdict(json!({"metadata": {"annotations": {name: value}}}))
    }

    #[test]
    fn a_good_pod_gets_what_it_asks_for() {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let grant = |ttl| {
            Verdict::Granted(Grant {
                policies: vec!["shop-read".to_owned()],
                ttl,
                granted_by: "all".to_owned(),
                token_role: "role".to_owned(),
                self_renewal: false,
            })
        };
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

    /// What pods of the service account `web` of `shop` get that ask for these policies with this ttl.
    fn granted(bindings: &[(&str, Value)], policies: &str, ttl: Option<&str>) -> Result<Grant, Why> {
        let annotations = json!({POLICIES_ANNOTATION: policies, TTL_ANNOTATION: ttl});
        let facts = PodFacts::read(&pod(json!({"metadata": {"annotations": annotations}})), "vault-init");
        grant(&facts, "shop", Delivery::Push, &rules_of(bindings), &limits())
    }

    #[test]
    fn i4_one_binding_grants_the_whole_request_or_none_does() {
        let read = ("b-read", json!({"policies": ["shop-read"], "maxTTL": "1h"}));
        let both = ("c-both", json!({"policies": ["shop-*"], "maxTTL": "30m", "tokenRole": "role-c"}));
        let db = ("d-db", json!({"policies": ["shop-db"]}));
        let whole = granted(&[both.clone(), read.clone()], "shop-read,shop-db", None).expect("granted");
        assert_eq!((whole.granted_by.as_str(), whole.token_role.as_str()), ("c-both", "role-c"));
        assert_eq!(granted(&[both.clone(), read.clone()], "shop-read", None).expect("granted").granted_by, "b-read");
        let longer = granted(&[both.clone(), read.clone()], "shop-read", Some("45m")).expect("granted");
        assert_eq!((longer.granted_by.as_str(), longer.ttl), ("b-read", Duration::from_secs(2700)));
        for (bindings, policies, ttl, reason, words) in [
            (
                vec![],
                "shop-read",
                None,
                Reason::NotGranted,
                "the policy \"shop-read\" is not granted to the service account web",
            ),
            (
                vec![db.clone()],
                "shop-db,shop-read",
                None,
                Reason::NotGranted,
                "the policy \"shop-read\" is not granted",
            ),
            (
                vec![db, read],
                "shop-db,shop-read",
                None,
                Reason::NotGranted,
                "no one VaultPolicyBinding grants all of them",
            ),
            (vec![both], "shop-db", Some("1h"), Reason::TTLInvalid, "asks for 1h; at most 30m is granted"),
            (
                vec![("by-status", json!({"deliveries": ["Status"]}))],
                "shop-db",
                None,
                Reason::NotGranted,
                "the delivery Push is not granted",
            ),
            (
                vec![("of-db", json!({"subjects": [{"namespaces": ["shop"], "serviceAccounts": ["db"]}]}))],
                "shop-db",
                None,
                Reason::NotGranted,
                "is not granted to the service account web of the namespace shop",
            ),
        ] {
            let why = granted(&bindings, policies, ttl).expect_err(words);
            assert_eq!(why.reason, reason, "{}", why.message);
            assert!(why.message.contains(words), "{}", why.message);
            for (name, _) in &bindings {
                assert!(!why.message.contains(&format!(" {name}")), "it names a binding: {}", why.message);
            }
        }
    }

    #[test]
    fn pods_that_are_not_to_be_served() {
        let reason = |verdict: Verdict| match verdict {
            Verdict::Denied(why) | Verdict::NotYet(why) | Verdict::Ended(why) => why.reason,
            Verdict::Granted(_) => panic!("it was granted"),
        };
        assert_eq!(reason(verify(&request(), &Observation::Absent, &rules(), &limits())), Reason::PodNotFound);
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
        assert_eq!(reason(verify(&without, &facts, &rules(), &limits())), Reason::FinalizerMissing);
    }
}
