//! What bindings say of themselves: whether they grant anything, and if not, why.

use super::lease::Leadership;
use super::rulebook::{BINDINGS, Edition, Rulebook};
use super::vitals::Vitals;
use crate::api::{BindingReason, VaultPolicyBinding, VaultPolicyBindingSpec, VaultPolicyBindingStatus};
use crate::cluster::{Error, FIELD_MANAGER, bounded};
use crate::domain::grant::Limits;
use crate::domain::rules::{Rule, Rules};
use crate::vault::TokenStore;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How often it is looked whether Vault has the token roles.
const RECHECK: Duration = Duration::from_secs(60);

/// How long a service account that was found is taken to be there.
const ACCOUNTS_RECHECK: Duration = Duration::from_secs(600);

/// Service accounts are looked for in the namespaces of a subject that has no more of them.
const LOOKED_INTO: usize = 16;

/// What the statuses are made of.
pub struct Statuses {
    /// The API server.
    pub client: Client,
    /// Vault.
    pub tokens: TokenStore,
    /// The bindings.
    pub rulebook: Rulebook,
    /// Whether this replica writes.
    pub leadership: Leadership,
    /// The operator's own token role.
    pub token_role: String,
    /// The operator's settings.
    pub limits: Limits,
    /// What the watch is to bring is told there.
    pub vitals: Vitals,
}

/// Writes statuses for as long as it is polled and this replica leads.
pub async fn run(mut statuses: Statuses) {
    let mut number = 0;
    let mut accounts = Accounts { client: statuses.client.clone(), found: HashSet::new(), since: Instant::now() };
    loop {
        statuses.leadership.elected(0).await;
        let edition = statuses.rulebook.edition();
        if edition.number > 0 {
            number = edition.number;
            statuses.write(&edition, &mut accounts).await;
        }
        tokio::select! {
            _ = statuses.rulebook.changed(number) => {}
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
}

/// The service accounts that were found not long ago.
struct Accounts {
    client: Client,
    /// By namespace and name.
    found: HashSet<(String, String)>,
    since: Instant,
}

impl Accounts {
    /// The service accounts that subjects name and none of their namespaces has: one phrase for each such subject.
    async fn missing(&mut self, rules: &Rules, spec: &VaultPolicyBindingSpec) -> Result<Vec<String>, Error> {
        if self.since.elapsed() > ACCOUNTS_RECHECK {
            self.found.clear();
            self.since = Instant::now();
        }
        let mut phrases = Vec::new();
        for (index, subject) in spec.subjects.iter().enumerate() {
            let namespaces = rules.namespaces_of(subject);
            if namespaces.is_empty() || namespaces.len() > LOOKED_INTO {
                continue;
            }
            let mut missing = Vec::new();
            for account in subject.service_accounts.iter().filter(|account| *account != "*") {
                if !self.has(&namespaces, account).await? {
                    missing.push(account.as_str());
                }
            }
            if !missing.is_empty() {
                phrases.push(format!("subjects[{index}]: there is no service account {}", missing.join(" and no ")));
            }
        }
        Ok(phrases)
    }

    async fn has(&mut self, namespaces: &[&str], account: &str) -> Result<bool, Error> {
        for namespace in namespaces {
            let key = ((*namespace).to_owned(), account.to_owned());
            if self.found.contains(&key) {
                return Ok(true);
            }
            let accounts: Api<PartialObjectMeta<ServiceAccount>> = Api::namespaced(self.client.clone(), namespace);
            if bounded(accounts.get_opt(account)).await?.is_some() {
                self.found.insert(key);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Statuses {
    async fn write(&self, edition: &Edition, accounts: &mut Accounts) {
        let mut roles = HashMap::new();
        for (name, binding) in &*edition.bindings {
            let reach = edition.rules.reach(&binding.spec);
            let (ready, reason, message) = match Rule::read(binding, &self.token_role, &self.limits) {
                Err(why) => ("False", BindingReason::Invalid, format!("it grants nothing: {why}")),
                Ok(rule) => {
                    if !roles.contains_key(&rule.token_role) {
                        roles.insert(rule.token_role.clone(), self.look_for(&rule.token_role).await);
                    }
                    let mut unmatched = edition.rules.unmatched(&binding.spec);
                    match accounts.missing(&edition.rules, &binding.spec).await {
                        Ok(missing) => unmatched.extend(missing),
                        Err(error) => {
                            tracing::warn!(%error, binding = name, "cannot look for its service accounts");
                            // What was found before stands, but where there is no right to look.
                            if error.status() != Some(403) {
                                continue;
                            }
                        }
                    }
                    judge(&rule, reach, &unmatched, roles[&rule.token_role])
                }
            };
            let reach = u32::try_from(reach).unwrap_or(u32::MAX);
            let status = status(binding, ready, reason, message, reach);
            if binding.status.as_ref() == Some(&status) {
                continue;
            }
            // Before the call: its news may come before its answer.
            let uid = binding.uid().unwrap_or_default();
            let owed = self.vitals.owe(BINDINGS, &uid);
            let written = self.patch(name, &status).await;
            // What the watch has shown meanwhile, it does not bring again.
            let comes = written.as_ref().is_ok_and(|written| self.rulebook.edition().awaits(written, &uid));
            if owed && !comes {
                self.vitals.brought(BINDINGS, &uid);
            }
            if let Err(error) = written
                && error.status() != Some(404)
            {
                tracing::warn!(%error, binding = name, "cannot write the status of a binding yet");
            }
        }
    }

    async fn look_for(&self, role: &str) -> Role {
        match self.tokens.has_role(role).await {
            Ok(true) => Role::There,
            Ok(false) => Role::Missing,
            Err(error) if error.is_forbidden() => Role::Hidden,
            // Vault is away: nothing is known, and it says so elsewhere.
            Err(_) => Role::There,
        }
    }

    async fn patch(&self, name: &str, status: &VaultPolicyBindingStatus) -> Result<VaultPolicyBinding, Error> {
        let bindings: Api<VaultPolicyBinding> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        bounded(bindings.patch_status(name, &params, &Patch::Merge(json!({ "status": status })))).await
    }
}

/// What is known of a token role.
#[derive(Clone, Copy)]
enum Role {
    There,
    Missing,
    Hidden,
}

/// `unmatched`: what its subjects name and the cluster does not have.
fn judge(rule: &Rule, reach: usize, unmatched: &[String], role: Role) -> (&'static str, BindingReason, String) {
    let name = &rule.token_role;
    let (ready, reason, mut message) = match role {
        _ if reach == 0 => {
            ("False", BindingReason::NoNamespaceMatches, "none of its subjects matches a namespace".to_owned())
        }
        Role::Missing => {
            let message = format!("Vault has no token role {name}; make it as config/vault/ says");
            ("False", BindingReason::TokenRoleMissing, message)
        }
        Role::Hidden => {
            let message = format!(
                "Vault does not let the operator read auth/token/roles/{name}, nor make tokens through it, perhaps; add its two \
                 paths to the operator's policy as config/vault/README.md says"
            );
            ("Unknown", BindingReason::TokenRoleUnreadable, message)
        }
        Role::There => ("True", BindingReason::Accepted, format!("it is for service accounts of {reach} namespaces")),
    };
    if !unmatched.is_empty() {
        message.push_str(&format!("; what matches nothing: {}", unmatched.join("; ")));
    }
    (ready, reason, message)
}

fn status(
    binding: &VaultPolicyBinding,
    ready: &str,
    reason: BindingReason,
    message: String,
    reach: u32,
) -> VaultPolicyBindingStatus {
    let before =
        binding.status.iter().flat_map(|status| &status.conditions).find(|condition| condition.type_ == "Ready");
    let since = before.filter(|before| before.status == ready).map(|before| before.last_transition_time.clone());
    let condition = Condition {
        type_: "Ready".to_owned(),
        status: ready.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        last_transition_time: since.unwrap_or_else(|| {
            // What the API server keeps of a time: an unchanged status is not written again.
            Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH))
        }),
        observed_generation: binding.metadata.generation,
    };
    VaultPolicyBindingStatus {
        conditions: vec![condition],
        observed_generation: binding.metadata.generation,
        namespaces: Some(reach),
    }
}
