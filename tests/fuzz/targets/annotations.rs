//! The annotations of a pod: the policies, and after a line `---` the ttl.

use crate::{presentable, text};
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;
use std::time::Duration;
use vault_token_operator::api::{Delivery, Reason};
use vault_token_operator::domain::grant::{Limits, MIN_TTL, grant};
use vault_token_operator::domain::pod::{InitState, PodFacts};
use vault_token_operator::domain::policies::{MAX_POLICIES, check, parse};
use vault_token_operator::domain::rules::{Rule, Rules};

/// Longest message about policies: the annotation and four faults of it, quoted each.
const LONGEST: usize = 1200;

/// Longest message about a grant: it names all policies that one pod can ask for.
const LONGEST_WHY: usize = 5000;

static LIMITS: LazyLock<Limits> =
    LazyLock::new(|| Limits::for_grants(Duration::from_secs(3600), Duration::from_secs(7200)));

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let subjects = json!([{"namespaces": ["shop"], "serviceAccounts": ["web"]}]);
    let rules = [
        ("some", json!({"subjects": subjects, "policies": ["shop-*", "a*b"], "maxTTL": "1h"})),
        ("more", json!({"subjects": subjects, "policies": ["*"], "maxTTL": "5m", "deliveries": ["Status"]})),
        ("others", json!({"subjects": [{"namespaces": ["store"], "serviceAccounts": ["*"]}], "policies": ["*"]})),
    ];
    let read = |(name, spec): (&str, serde_json::Value)| {
        let binding = json!({
            "apiVersion": "vaultproject.io/v1alpha1", "kind": "VaultPolicyBinding", "metadata": {"name": name}, "spec": spec
        });
        Rule::read(&serde_json::from_value(binding).expect("a binding"), "role", &LIMITS).expect("a rule")
    };
    Rules::new(rules.into_iter().map(read).collect(), HashMap::new())
});

pub fn hold(input: &[u8]) {
    let text = text(input);
    let (policies, ttl) = text.split_once("\n---\n").map_or((&*text, None), |(policies, ttl)| (policies, Some(ttl)));
    named(policies);
    for delivery in [Delivery::Push, Delivery::Status] {
        granted(policies, ttl, delivery);
    }
}

/// What is read is good in itself, and is read again as the same.
fn named(annotation: &str) {
    match parse(annotation) {
        Ok(names) => {
            assert!((1..=MAX_POLICIES).contains(&names.len()), "{names:?}");
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
            for name in &names {
                assert_eq!(check(name), Ok(()));
                assert_eq!(parse(name).as_ref(), Ok(&vec![name.clone()]));
            }
            assert_eq!(parse(&names.join(",")), Ok(names));
        }
        Err(message) => presentable(&message, LONGEST),
    }
}

/// What is granted is what was asked for, by a rule that is for this pod, and within its bounds.
fn granted(policies: &str, ttl: Option<&str>, delivery: Delivery) {
    let facts = PodFacts {
        uid: String::new(),
        terminating: false,
        finished: false,
        host_network: false,
        addresses: Vec::new(),
        host_ip: None,
        node_name: None,
        service_account: "web".to_owned(),
        policies: Some(policies.to_owned()),
        ttl: ttl.map(str::to_owned),
        init: InitState::Running,
    };
    match grant(&facts, "shop", delivery, &RULES, &LIMITS) {
        Ok(granted) => {
            let rules = RULES.of("shop", "web");
            let rule = rules.into_iter().find(|rule| rule.name == granted.granted_by).expect("a rule for this pod");
            assert!(rule.delivers(delivery));
            assert_eq!(parse(policies).as_ref(), Ok(&granted.policies));
            assert!(granted.policies.iter().all(|policy| rule.grants(policy)), "{granted:?}");
            assert!((MIN_TTL..=rule.max_ttl).contains(&granted.ttl) && granted.ttl.subsec_nanos() == 0, "{granted:?}");
            assert_eq!(granted.token_role, rule.token_role);
        }
        Err(why) => {
            assert!(matches!(why.reason, Reason::PoliciesInvalid | Reason::TTLInvalid | Reason::NotGranted), "{why:?}");
            presentable(&why.message, LONGEST_WHY);
        }
    }
}
