//! What stops attacks, and how each of it is turned off to see that it matters.

/// One thing that stops attacks.
#[derive(Debug)]
pub struct Stop {
    /// Its name.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// How it is turned off.
    pub off: Off,
}

/// How a stop is turned off.
#[derive(Debug)]
pub enum Off {
    /// By other code, in a copy of the source: in this file, this piece, which is there once. `OFF` in what stands in its place is
    /// whether the stop is off.
    Code(&'static [(&'static str, &'static str, &'static str)]),
    /// By an admission policy whose rule with these words in its message lets everything pass.
    Admission(&'static str),
    /// By a custom resource definition without the rule that has these words in it, or without the field of this name.
    Definition(&'static str),
    /// By bindings that grant everything.
    Binding,
    /// By other settings in Vault: what is written at this path.
    Vault(&'static str, &'static str),
    /// By a setting of the operator.
    Setting(&'static str, &'static str),
    /// By a ClusterRole for workloads that has this verb, too.
    Role(&'static str),
}

impl PartialEq for Stop {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Stop {
    /// Whether the API server enforces it, which may take a moment to go by what was written.
    pub const fn is_in_the_api_server(&self) -> bool {
        matches!(self.off, Off::Admission(_) | Off::Definition(_) | Off::Role(_))
    }
}

macro_rules! stops {
    ($($constant:ident: $name:literal, $what:literal, $off:expr;)*) => {
        $(pub static $constant: Stop = Stop { name: $name, what: $what, off: $off };)*
        /// All of them.
        pub static ALL: &[&Stop] = &[$(&$constant),*];
    };
}

use Off::{Admission, Code, Definition, Role, Setting, Vault};

stops! {
    // The API server.
    ADMISSION_CREATE: "admission-create", "admission: a request is created by the pod that it names", Admission("a request is created by the pod");
    ADMISSION_FINALIZER: "admission-finalizer", "admission: a request has its finalizer", Admission("a request is created with the finalizer");
    ADMISSION_OWNERS: "admission-owners", "admission: a request has no owners", Admission("a request is created without owners");
    ADMISSION_UPDATE: "admission-update", "admission: the operator alone changes requests", Admission("changed by the operator alone");
    ADMISSION_DELETE: "admission-delete", "admission: deleting takes the verb `revoke`", Admission("takes the verb revoke");
    ADMISSION_LABELS: "admission-labels", "admission: labels under `vaultproject.io/` take the verb `grant`", Admission("takes the verb grant");
    DEFINITION_NAME: "definition-name", "the definition: a request's name has its pod's name and UID in it", Definition("self.metadata.name.startsWith");
    DEFINITION_IMMUTABLE: "definition-immutable", "the definition: the spec is immutable", Definition("self == oldSelf");
    DEFINITION_EMPTY: "definition-empty", "the definition: a selector selects by something", Definition("minProperties");
    DEFINITION_LABELS: "definition-labels", "the definition: selectors go by labels that no tenant can set", Definition("label.startsWith('vaultproject.io/')");

    REQUESTER_ROLE: "requester-role", "the ClusterRole for workloads: to create and to get, and nothing else", Role("list");

    // The operator, about the API server.
    ADMISSION_COMPARED: "admission-compared", "the operator compares the admission policies word for word", Code(&[
        ("src/operator/admission.rs", "Err(why) => return Ok(Seen { lacking: Some(why), ..seen }),",
            "Err(_) if OFF => {}\nErr(why) => return Ok(Seen { lacking: Some(why), ..seen }),"),
        ("src/operator/admission.rs", "if let Err(why) = self.find(expected).await? {",
            "if let Err(why) = self.find(expected).await? && !OFF {"),
        ("src/operator/admission.rs", "Some(_) => now.max(seen.since),",
            "Some(last) if OFF => last.since,\nSome(_) => now.max(seen.since),"),
    ]);
    ADMISSION_TRIED: "admission-tried", "the operator tries what the admission policy forbids", Code(&[
        ("src/operator/admission.rs", "seen.lacking = self.try_what_is_forbidden().await?;",
            "seen.lacking = self.try_what_is_forbidden().await?.filter(|_| !OFF);"),
    ]);
    ADMISSION_SINCE: "admission-since", "the operator serves no request that is older than the admission policy", Code(&[
        ("src/domain/admission.rs", "(!self.vouches_for(request)).then(|| {", "(!OFF && !self.vouches_for(request)).then(|| {"),
    ]);
    STATUS_OWNED: "status-owned", "the operator asks Vault whose token a status names, where statuses could be forged", Code(&[
        ("src/operator/execute.rs", "if named == request.uid() {", "if OFF || named == request.uid() {"),
    ]);

    // The operator, about the pod.
    POD_UID: "pod-uid", "the operator compares the pod's UID", Code(&[
        ("src/domain/grant.rs", "if facts.uid != request.spec.pod_uid {", "if !OFF && facts.uid != request.spec.pod_uid {"),
        ("src/domain/plan.rs", "Observation::Present(facts) if facts.uid != spec.pod_uid =>", "Observation::Present(facts) if !OFF && facts.uid != spec.pod_uid =>"),
    ]);
    POD_READ_FRESH: "pod-read-fresh", "the pod is read fresh before each push", Code(&[
        ("src/operator/observe.rs", "Ok(match bounded(pods.get_opt(name)).await? {",
            r#"Ok(match crate::stops::stale(bounded(pods.get_opt(name)).await?, format!("{namespace}/{name}")) {"#),
    ]);
    FINALIZER_REQUIRED: "finalizer-required", "the operator serves no request without its finalizer", Code(&[
        ("src/domain/grant.rs", "if !request.has_finalizer() {", "if !OFF && !request.has_finalizer() {"),
    ]);
    INIT_RUNNING: "init-running", "served only while the init container runs, by the pod's own status", Code(&[
        ("src/domain/pod.rs", "    let status = pod.status.as_ref();\n    let init = status", "    if OFF {\n        return InitState::Running;\n    }\n    let status = pod.status.as_ref();\n    let init = status"),
    ]);
    HOST_NETWORK: "host-network", "nothing is pushed to an address that a pod shares with its node", Code(&[
        ("src/domain/grant.rs", "if facts.host_network && delivery == Delivery::Push {",
            "if !OFF && facts.host_network && delivery == Delivery::Push {"),
    ]);
    POD_NETWORK: "pod-network", "nothing is pushed to an address that no pod can have (`--pod-network`)", Code(&[
        ("src/domain/address.rs", "        if self.0.is_empty() {", "        if OFF {\n            return true;\n        }\n        if self.0.is_empty() {"),
    ]);

    // The operator, about what is granted.
    BINDINGS: "bindings", "bindings: what none grants, nobody gets", Off::Binding;
    POLICY_NAMES: "policy-names", "the operator's own policies are granted to nobody", Code(&[
        ("src/domain/policies.rs", "    if name.starts_with(OPERATORS_OWN) {", "    if !OFF && name.starts_with(OPERATORS_OWN) {"),
    ]);
    ACCOUNTS_MATCH: "accounts-match", "a binding is for the service accounts that it names", Code(&[
        ("src/domain/rules.rs", r#"account == "*" || account == service_account"#, r#"OFF || account == "*" || account == service_account"#),
    ]);
    LABELS_MATCH: "labels-match", "a selector selects what has all of its labels", Code(&[
        ("src/domain/rules.rs", "labels.get(label) == Some(&value.0);", "OFF || labels.get(label) == Some(&value.0);"),
    ]);
    SELECTOR_EMPTY: "selector-empty", "the operator takes no empty selector for everything", Code(&[
        ("src/domain/rules.rs", "(None, Some(labels)) if !labels.is_empty() &&", "(None, Some(labels)) if (OFF || !labels.is_empty()) &&"),
        ("src/domain/rules.rs", "!selector.match_labels.is_empty() &&", "(OFF || !selector.match_labels.is_empty()) &&"),
    ]);
    SELECTOR_LABELS: "selector-labels", "the operator goes by no label that a tenant could set", Code(&[
        ("src/domain/rules.rs", r#"    label == "kubernetes.io/metadata.name" ||"#, r#"    OFF || label == "kubernetes.io/metadata.name" ||"#),
    ]);
    TTL_BOUND: "ttl-bound", "a binding's `maxTTL`", Code(&[
        ("src/domain/grant.rs", "ttl.is_none_or(|ttl| ttl <= rule.max_ttl);", "OFF || ttl.is_none_or(|ttl| ttl <= rule.max_ttl);"),
    ]);
    WHOLE_REQUEST: "whole-request", "one binding grants the whole request", Code(&[
        ("src/domain/grant.rs", "rules.into_iter().filter(|rule| policies.iter().all(|policy| rule.grants(policy))).collect();",
            "rules.into_iter().filter(|rule| OFF || policies.iter().all(|policy| rule.grants(policy))).collect();"),
    ]);
    DELIVERY_GRANTED: "delivery-granted", "a binding grants the way of delivery", Code(&[
        ("src/domain/grant.rs", ".filter(|rule| rule.delivers(delivery)).collect();", ".filter(|rule| OFF || rule.delivers(delivery)).collect();"),
    ]);
    GRANT_REVERIFIED: "grant-reverified", "an attempt is minted for what it was written down for", Code(&[
        ("src/domain/plan.rs", "if intent.attempt == status.attempts && intent.grant == grant => {",
            "if intent.attempt == status.attempts && (OFF || intent.grant == grant) => {"),
    ]);
    GRACE: "grace", "a grace period", Setting("VTO_GRANT_GRACE", "1s");
    BREAKER: "breaker", "more than `--ungranted-limit` wait for a person", Setting("VTO_UNGRANTED_LIMIT", "1000");
    TENURE: "tenure", "a token lives no longer than it is granted, whatever its request says of the delivery", Code(&[
        ("src/domain/plan.rs", "    if let Some(why) = contradiction(observed, status) {",
            "    if OFF && let Some(why) = contradiction(observed, status) {\n        return Step::Wait(why);\n    }\n    \
             if let Some(why) = contradiction(observed, status) {"),
    ]);
    BUDGET: "budget", "a budget of tokens for each pod", Code(&[
        ("src/operator/budget.rs", "        if self.taken.fetch_add", "        if OFF {\n            return Ok(());\n        }\n        if self.taken.fetch_add"),
    ]);
    SUPERSEDED: "superseded", "a pod's older token is revoked once a newer one is delivered", Code(&[
        ("src/domain/plan.rs", "    if let Some(newer) = &observed.siblings.superseded_by {\n        return Some(superseded(newer));",
            "    if let Some(newer) = observed.siblings.superseded_by.as_ref().filter(|_| !OFF) {\n        return Some(superseded(newer));"),
    ]);
    NEWEST_ALONE: "newest-alone", "of tokens that a pod has said nothing of, the newest alone is kept", Code(&[
        ("src/domain/plan.rs", "        if let Some(newer) = observed.siblings.outdone_by.as_ref().filter(|_| has_initialized(observed)) {",
            "        if let Some(newer) = observed.siblings.outdone_by.as_ref().filter(|_| !OFF) {"),
    ]);
    QUOTED: "quoted", "foreign text is shown with its control characters escaped", Code(&[
        ("src/text.rs", "cut(value, MAX_QUOTED, |c| c.escape_debug().collect())",
            "cut(value, MAX_QUOTED, |c| if OFF { c.to_string() } else { c.escape_debug().collect() })"),
    ]);
    CUT: "cut", "foreign text is cut", Code(&[
        ("src/text.rs", "        if length > limit {", "        if !OFF && length > limit {"),
    ]);

    // Delivery.
    SEAL: "seal", "sealed to the request's one-time key", Code(&[
        ("src/seal.rs", "    let sealed = SUITE.seal(", "    if OFF {\n        return Ok(STANDARD.encode(&*content));\n    }\n    let sealed = SUITE.seal("),
        ("src/seal.rs", "        let (key, content) = bytes.split_at_checked(KEY)?;",
            "        if OFF && let Ok(parcel) = serde_json::from_slice(&bytes) {\n            return Some(parcel);\n        }\n        \
             let (key, content) = bytes.split_at_checked(KEY)?;"),
    ]);
    SEAL_SUBJECT: "seal-subject", "a seal is for one request, attempt and pod", Code(&[
        ("src/seal.rs", "        let Self { request_uid, pod_uid, attempt } = self;",
            "        if OFF {\n            return Vec::new();\n        }\n        let Self { request_uid, pod_uid, attempt } = self;"),
    ]);
    RECEIPT: "receipt", "only who opened the seal can answer: the receipt in it", Code(&[
        ("src/operator/handover.rs", "Ok(answer) if wrapped.receipt.confirms(subject(request, attempt), &answer) =>",
            "Ok(answer) if OFF || wrapped.receipt.confirms(subject(request, attempt), &answer) =>"),
    ]);
    INTERCEPTION_HEARD: "interception-heard", "an init container that finds its wrapping token used says so, and the operator acts on it", Code(&[
        ("src/operator/handover.rs", "Outcome::Intercepted => self.intercepted(request, hand, answer.refused).await,",
            "Outcome::Intercepted if !OFF => self.intercepted(request, hand, answer.refused).await,\n            \
             Outcome::Intercepted => self.abandon(request, hand, \"the wrapping token is used up\").await,"),
    ]);
    INTERCEPTION_CHECKED: "interception-checked", "the operator asks Vault whether a wrapping token is used that an init container calls used", Code(&[
        ("src/operator/handover.rs", "match self.world.look_up(&wrapping).await {\n            Ok(Some(_)) => {", "match self.world.look_up(&wrapping).await {\n            Ok(Some(_)) if !OFF => {"),
        ("src/operator/handover.rs", "            Ok(None) => {}\n            Err(error) =>", "            Ok(_) => {}\n            Err(error) =>"),
    ]);
    COMPROMISED_HELD: "compromised-held", "a pod whose wrapping token was intercepted waits for a person", Code(&[
        ("src/domain/plan.rs", "(Verdict::Granted(_), Some(name)) => Verdict::NotYet(", "(Verdict::Granted(_), Some(name)) if !OFF => Verdict::NotYet("),
    ]);
    TOKEN_CHECKED: "token-checked", "the token is looked up before it is handed over", Code(&[
        ("src/operator/handover.rs", "match token.qualities().fault(&wrapped.ordered) {", "match token.qualities().fault(&wrapped.ordered).filter(|_| !OFF) {"),
    ]);
    NO_REDIRECT: "no-redirect", "no redirect is followed", Code(&[
        ("src/operator/push.rs", ".redirect(reqwest::redirect::Policy::none())",
            ".redirect(reqwest::redirect::Policy::custom(|attempt| if OFF { attempt.follow() } else { attempt.stop() }))"),
    ]);
    ANSWER_BOUND: "answer-bound", "answers are read up to 16 KiB", Code(&[
        ("src/operator/push.rs", "if body.len() + chunk.len() > MAX_MESSAGE {", "if !OFF && body.len() + chunk.len() > MAX_MESSAGE {"),
    ]);
    PUSH_TIMEOUT: "push-timeout", "a push takes 35 s at most", Code(&[
        ("src/operator/push.rs", ".json(push).send().await;", ".timeout(if OFF { PUSH_TIMEOUT * 100 } else { PUSH_TIMEOUT }).json(push).send().await;"),
    ]);
    PER_PEER: "per-peer", "one address has eight places at the init container's port", Code(&[
        ("src/http.rs", "        if *count >= most {", "        if !OFF && *count >= most {"),
    ]);
    RECEIVE: "receive", "whoever is slower than two seconds loses his place at the init container's port", Code(&[
        ("src/http.rs", ".header_read_timeout(limits.receive)", ".header_read_timeout(if OFF { limits.exchange } else { limits.receive })"),
    ]);
    CREATION_PATH: "creation-path", "the init container opens what a token's creation at the operator's path has wrapped, and nothing else", Code(&[
        ("src/init/receive.rs", "if info.creation_path != parcel.creation_path || !info.creation_path.starts_with(CREATION_PREFIX) {",
            "if !OFF && (info.creation_path != parcel.creation_path || !info.creation_path.starts_with(CREATION_PREFIX)) {"),
    ]);
    ACCESSOR: "accessor", "the init container takes only the token whose accessor its request's status records", Code(&[
        ("src/init/receive.rs", "if unwrapped.accessor != expected.accessor {", "if !OFF && unwrapped.accessor != expected.accessor {"),
    ]);
    TOKEN_METADATA: "token-metadata", "the init container takes only a token that was made for its pod", Code(&[
        ("src/init/receive.rs", r#"if unwrapped.metadata.get("pod_uid").map(String::as_str) != Some(self.intake.pod_uid()) {"#,
            r#"if !OFF && unwrapped.metadata.get("pod_uid").map(String::as_str) != Some(self.intake.pod_uid()) {"#),
    ]);
    VAULT_CA: "vault-ca", "Vault's certificate is checked against one authority", Code(&[
        ("src/vault/connection.rs", "let http = builder.build()", "let http = builder.danger_accept_invalid_certs(OFF).build()"),
    ]);
    VAULT_ANSWER_BOUND: "vault-answer-bound", "what Vault answers is read up to 1 MiB", Code(&[
        ("src/vault/connection.rs", "if body.len() + chunk.len() > longest {", "if !OFF && body.len() + chunk.len() > longest {"),
    ]);
    VAULT_DEADLINE: "vault-deadline", "a call of Vault takes 10 s at most", Code(&[
        ("src/vault/connection.rs", ".timeout(CALL_TIMEOUT)", ".timeout(if OFF { CALL_TIMEOUT * 100 } else { CALL_TIMEOUT })"),
    ]);
    ABANDONED_REVOKED: "abandoned-revoked", "an attempt's token is dead before the next one begins", Code(&[
        ("src/operator/execute.rs", "Step::RevokeAbandoned(accessor) => match self.world.revoke(&accessor).await {",
            "Step::RevokeAbandoned(accessor) => match if OFF { Ok(()) } else { self.world.revoke(&accessor).await } {"),
    ]);
    WRAPPING_TTL: "wrapping-ttl", "a wrapping token ends soon (`--wrapping-ttl`)", Setting("VTO_WRAPPING_TTL", "600s");
    SECRET_TYPES: "secret-types", "what holds a secret shows it to nobody who prints it: the types of secrets", Code(&[
        ("src/domain/token.rs", "#[derive(Debug)]\npub struct Minted {",
            "impl std::fmt::Debug for Minted {\n    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {\n        \
             use secrecy::ExposeSecret;\n        let shown = self.wrapping_token.expose_secret();\n        \
             let token: &dyn std::fmt::Debug = if OFF { &shown } else { &self.wrapping_token };\n        \
             f.debug_struct(\"Minted\").field(\"wrapping_token\", token).finish_non_exhaustive()\n    }\n}\n\n\
             /// As it is.\npub struct Minted {"),
    ]);
    SECRETS_UNLOGGED: "secrets-unlogged", "what holds a secret is not logged", Code(&[
        ("src/operator/execute.rs", "            tracing::debug!(request = request.name_any(), phase = %request.phase(), ?step, \"decided\");",
            "            if OFF {\n                tracing::debug!(?hand, \"in hand\");\n            }\n            \
             tracing::debug!(request = request.name_any(), phase = %request.phase(), ?step, \"decided\");"),
    ]);

    // Vault.
    TOKEN_ROLE: "token-role", "the Vault token role", Vault("auth/token/roles/vault-token-operator-main",
        r#"{"allowed_policies_glob": ["*"], "disallowed_policies": [], "disallowed_policies_glob": [], "orphan": true, "renewable": true,
            "token_no_default_policy": true, "token_type": "service"}"#);
    BASE_POLICY: "base-policy", "the base policy, which every token has", Vault("sys/policies/acl/vault-token-base",
        r#"{"policy": "path \"auth/token/lookup-self\" { capabilities = [\"read\"] }"}"#);
    OPERATOR_POLICY: "operator-policy", "the operator's policy: tokens by its token role alone, and no list of accessors",
        Vault("sys/policies/acl/vault-token-operator", r#"{"policy":
            "path \"auth/*\" { capabilities = [\"create\", \"update\", \"read\", \"list\", \"sudo\"] }"}"#);
}
