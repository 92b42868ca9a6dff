//! Bindings as rules: read once from the objects, and asked what a service account of a namespace may have.

use super::duration;
use super::glob;
use super::grant::{Limits, check_ttl};
use super::policies;
use crate::api::{Delivery, SelfRenewal, Subject, VaultPolicyBinding, VaultPolicyBindingSpec};
use crate::text::one_line;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// The labels of a namespace.
pub type Labels = BTreeMap<String, String>;

/// All that is granted to anybody. What no rule grants, nobody gets.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// By name: of several that grant the same, the first one does it.
    rules: Vec<Rule>,
    namespaces: HashMap<String, Labels>,
}

/// One binding that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The binding's name.
    pub name: String,
    /// The Vault token role that its tokens are made through.
    pub token_role: String,
    /// The longest period that it grants.
    pub max_ttl: Duration,
    /// The period of tokens whose pods ask for none.
    pub default_ttl: Duration,
    /// Whether its tokens may renew themselves.
    pub self_renewal: bool,
    spec: VaultPolicyBindingSpec,
}

impl Rule {
    /// Reads a binding. `token_role` is the operator's own, which those of bindings must extend: so the tokens made through them can
    /// be told from other people's.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it; it grants nothing then.
    pub fn read(binding: &VaultPolicyBinding, token_role: &str, limits: &Limits) -> Result<Self, String> {
        let spec = binding.spec.clone();
        let read = |field: &str, text: &Option<String>, max: Duration| match text {
            None => Ok(None),
            Some(text) => {
                let ttl = duration::parse(text).map_err(|why| format!("{field}: {why}"))?;
                check_ttl(ttl, max).map_err(|why| format!("{field} {why}"))?;
                Ok::<_, String>(Some(ttl))
            }
        };
        let max_ttl = read("maxTTL", &spec.max_ttl, limits.max_ttl)?.unwrap_or(limits.max_ttl);
        let default_ttl = read("defaultTTL", &spec.default_ttl, max_ttl)?.unwrap_or(limits.default_ttl.min(max_ttl));
        // The definition says all this, too. What is here holds for objects that are older than it, and without an API server.
        for subject in &spec.subjects {
            let selects = subject.namespace_selector.as_ref().map(|selector| &selector.match_labels);
            match (&subject.namespaces, selects) {
                (Some(names), None) if !names.is_empty() => {}
                (None, Some(labels)) if !labels.is_empty() && labels.keys().all(|label| is_safe(label)) => {}
                (None, Some(labels)) if labels.is_empty() => {
                    return Err("an empty namespaceSelector selects nothing here; name the namespaces or their labels"
                        .to_owned());
                }
                (None, Some(_)) => {
                    return Err(
                        "namespaces can be selected by kubernetes.io/metadata.name and by labels under vaultproject.io/ only".to_owned()
                    );
                }
                _ => return Err("each subject needs either namespaces or a namespaceSelector".to_owned()),
            }
        }
        for pattern in &spec.policies {
            policies::check_pattern(pattern)?;
        }
        let role = spec.token_role.clone().unwrap_or_else(|| token_role.to_owned());
        if role != token_role && !role.starts_with(&format!("{token_role}-")) {
            return Err(format!("tokenRole must be {token_role}, or begin with {token_role}-"));
        }
        let name = binding.metadata.name.clone().unwrap_or_default();
        let self_renewal = spec.self_renewal == SelfRenewal::Allow;
        Ok(Self { name, token_role: role, max_ttl, default_ttl, self_renewal, spec })
    }

    /// Whether it is for this service account.
    pub fn is_for(&self, namespace: &str, labels: &Labels, service_account: &str) -> bool {
        self.spec.subjects.iter().any(|subject| {
            reaches(subject, namespace, labels)
                && subject.service_accounts.iter().any(|account| account == "*" || account == service_account)
        })
    }

    /// Whether it grants this policy.
    pub fn grants(&self, policy: &str) -> bool {
        policies::check(policy).is_ok() && self.spec.policies.iter().any(|pattern| glob::matches(pattern, policy))
    }

    /// Whether it lets wrapping tokens be delivered in this way.
    pub fn delivers(&self, delivery: Delivery) -> bool {
        self.spec.deliveries.contains(&delivery)
    }
}

/// Whether bindings may select namespaces by this label: one that a tenant cannot give to a namespace of its own.
pub fn is_safe(label: &str) -> bool {
    label == "kubernetes.io/metadata.name" || label.starts_with("vaultproject.io/")
}

fn reaches(subject: &Subject, namespace: &str, labels: &Labels) -> bool {
    match (&subject.namespaces, &subject.namespace_selector) {
        (Some(names), None) => names.iter().any(|name| name == namespace),
        (None, Some(selector)) => {
            let has = |(label, value): (&String, &crate::api::Value)| labels.get(label) == Some(&value.0);
            !selector.match_labels.is_empty() && selector.match_labels.iter().all(has)
        }
        _ => false,
    }
}

impl Rules {
    /// Puts together what the cluster has.
    pub fn new(mut rules: Vec<Rule>, namespaces: HashMap<String, Labels>) -> Self {
        rules.sort_by(|one, other| one.name.cmp(&other.name));
        Self { rules, namespaces }
    }

    /// The rules that are for this service account, by name.
    pub fn of(&self, namespace: &str, service_account: &str) -> Vec<&Rule> {
        let none = Labels::new();
        let labels = self.namespaces.get(namespace).unwrap_or(&none);
        self.rules.iter().filter(|rule| rule.is_for(namespace, labels, service_account)).collect()
    }

    /// Whether one rule still grants all of these policies. The life, the delivery and the token role of a token that is there are what
    /// they were granted as.
    pub fn still_grant(&self, namespace: &str, service_account: &str, policies: &[String]) -> bool {
        self.of(namespace, service_account).iter().any(|rule| policies.iter().all(|policy| rule.grants(policy)))
    }

    /// How many namespaces a binding reaches.
    pub fn reach(&self, spec: &VaultPolicyBindingSpec) -> usize {
        let reached =
            |(name, labels): &(&String, &Labels)| spec.subjects.iter().any(|subject| reaches(subject, name, labels));
        self.namespaces.iter().filter(reached).count()
    }

    /// The namespaces that a subject reaches, by name.
    pub fn namespaces_of(&self, subject: &Subject) -> Vec<&str> {
        let reached = self.namespaces.iter().filter(|(name, labels)| reaches(subject, name, labels));
        let mut names: Vec<_> = reached.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// What a binding's subjects select and no namespace matches: one phrase for each such subject.
    pub fn unmatched(&self, spec: &VaultPolicyBindingSpec) -> Vec<String> {
        let phrase = |(index, subject): (usize, &Subject)| match (&subject.namespaces, &subject.namespace_selector) {
            (Some(names), _) => {
                let missing: Vec<&str> =
                    names.iter().map(String::as_str).filter(|name| !self.namespaces.contains_key(*name)).collect();
                let missing = (!missing.is_empty()).then(|| missing.join(" and no "))?;
                Some(format!("subjects[{index}]: there is no namespace {}", one_line(&missing)))
            }
            (None, Some(selector)) => {
                let matched = self.namespaces.iter().any(|(name, labels)| reaches(subject, name, labels));
                let labels: Vec<_> =
                    selector.match_labels.iter().map(|(label, value)| format!("{label}={}", value.0)).collect();
                (!matched).then(|| format!("subjects[{index}]: no namespace has {}", one_line(&labels.join(" and "))))
            }
            (None, None) => None,
        };
        spec.subjects.iter().enumerate().filter_map(phrase).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::grant::tests::limits;
    use super::*;
    use serde_json::{Value, json};

    /// A binding with this specification, merged over one that grants `shop-*` to every service account of `shop`.
    pub(crate) fn binding(name: &str, patch: Value) -> VaultPolicyBinding {
        let mut object = json!({
            "apiVersion": "vaultproject.io/v1alpha1", "kind": "VaultPolicyBinding", "metadata": {"name": name},
            "spec": {"subjects": [{"namespaces": ["shop"], "serviceAccounts": ["*"]}], "policies": ["shop-*"]}
        });
        json_patch::merge(&mut object["spec"], &patch);
        serde_json::from_value(object).expect("a binding")
    }

    fn read(patch: Value) -> Result<Rule, String> {
        Rule::read(&binding("b", patch), "role", &limits())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn subjects_are_namespaces_by_name_or_label_and_service_accounts() {
        let by_name = read(json!({"subjects": [{"namespaces": ["shop", "store"], "serviceAccounts": ["web", "db"]}]}));
        let by_name = by_name.expect("a rule");
        let none = Labels::new();
        assert!(by_name.is_for("store", &none, "db"));
        assert!(!by_name.is_for("store", &none, "other") && !by_name.is_for("shop-2", &none, "web"));
        let selector = json!({"matchLabels": {"vaultproject.io/team": "a", "vaultproject.io/stage": "prod"}});
        let by_label = read(json!({"subjects": [{"namespaceSelector": selector, "serviceAccounts": ["*"]}]}));
        let by_label = by_label.expect("a rule");
        let both = labels(&[("vaultproject.io/team", "a"), ("vaultproject.io/stage", "prod"), ("x", "y")]);
        assert!(by_label.is_for("any", &both, "any"));
        assert!(!by_label.is_for("any", &labels(&[("vaultproject.io/team", "a")]), "any"), "all labels");
        assert!(!by_label.is_for("any", &none, "any"));
    }

    #[test]
    fn what_selects_everything_or_what_tenants_can_claim_is_refused() {
        for (subject, words) in [
            (json!({"namespaceSelector": {"matchLabels": {}}, "serviceAccounts": ["*"]}), "empty namespaceSelector"),
            (json!({"namespaceSelector": {"matchLabels": {"team": "a"}}, "serviceAccounts": ["*"]}), "only"),
            (json!({"serviceAccounts": ["*"]}), "either namespaces or a namespaceSelector"),
            (json!({"namespaces": [], "serviceAccounts": ["*"]}), "either namespaces or a namespaceSelector"),
        ] {
            let error = read(json!({"subjects": [subject]})).expect_err("it was taken");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn subjects_that_match_no_namespace_are_named_by_what_they_select() {
        let team = |team: &str, stage: &str| {
            let labels = json!({"vaultproject.io/team": team, "vaultproject.io/stage": stage});
            json!({"namespaceSelector": {"matchLabels": labels}, "serviceAccounts": ["*"]})
        };
        let named = |names: Value| json!({"namespaces": names, "serviceAccounts": ["*"]});
        let subjects = [
            named(json!(["shop"])),
            named(json!(["shpo"])),
            team("a", "prod"),
            team("b", "prod"),
            named(json!(["store", "shop", "stall"])),
        ];
        let shop = ("shop".to_owned(), labels(&[("vaultproject.io/team", "a"), ("vaultproject.io/stage", "prod")]));
        let rules = Rules::new(Vec::new(), HashMap::from([shop]));
        let spec = binding("b", json!({ "subjects": subjects })).spec;
        assert_eq!(
            rules.unmatched(&spec),
            [
                "subjects[1]: there is no namespace shpo",
                "subjects[3]: no namespace has vaultproject.io/stage=prod and vaultproject.io/team=b",
                "subjects[4]: there is no namespace store and no stall",
            ]
        );
        assert_eq!(rules.reach(&spec), 1);
        assert!(rules.unmatched(&binding("b", json!({})).spec).is_empty());
    }

    #[test]
    fn i4_the_operators_own_policies_are_granted_to_nobody() {
        let all = read(json!({"policies": ["*"]})).expect("a rule");
        assert!(all.grants("anything/at-all"));
        for policy in ["root", "default", "vault-token-operator", "vault-token-operator-sweep", "Upper", ""] {
            assert!(!all.grants(policy), "{policy}");
        }
    }

    #[test]
    fn ttls_and_roles_are_within_the_operators() {
        let rule = read(json!({"maxTTL": "1h"})).expect("a rule");
        let hour = Duration::from_secs(3600);
        assert_eq!((rule.max_ttl, rule.default_ttl), (hour, hour), "the default is no longer than the longest");
        assert_eq!(read(json!({"tokenRole": "role-shop"})).expect("a rule").token_role, "role-shop");
        for (patch, words) in [
            (json!({"maxTTL": "1y"}), "maxTTL: \"1y\" is not a duration"),
            (json!({"maxTTL": "800h"}), "maxTTL is too long"),
            (json!({"maxTTL": "1h", "defaultTTL": "2h"}), "defaultTTL is too long"),
            (json!({"tokenRole": "another"}), "begin with role-"),
            (json!({"policies": ["Shop-*"]}), "upper-case"),
        ] {
            let error = read(patch).expect_err("it was taken");
            assert!(error.contains(words), "{error}");
        }
    }
}
