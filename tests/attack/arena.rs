//! The system under attack, and what attackers and victims have in common.

use crate::stops::{Off, Stop};
use crate::support::{Cluster, LIMIT, by_status, reason, request_for};
use crate::who::Who;
use kube::api::ListParams;
use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use testbed::kubelet::{Init, PodHandle, PodSpec};
use testbed::project;
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};
use vault_token_operator::seal::{OneTimeKey, Subject};
use vault_token_operator::wire::Parcel;

/// The admission policies.
pub const ADMISSION: &str = "config/admission.yaml";
/// How long the API server may take to go by what was written: nothing tells when it does.
const SETTLING: Duration = Duration::from_secs(4);
/// How long an attack may take that is not stopped.
const PATIENCE: Duration = Duration::from_secs(12);
/// Pods have their addresses in the lower half of the loopback network.
const SETTINGS: [(&str, &str); 2] = [("VTO_POD_NETWORKS", "127.0.0.0/9"), ("VTO_LOG", "debug")];

/// One system, and which stops are off in it.
pub struct Arena {
    pub cluster: Cluster,
    /// The file that lists the stops that are off, for a build that looks there.
    switch: PathBuf,
    state: Mutex<State>,
    numbers: AtomicU32,
}

#[derive(Default)]
struct State {
    off: Vec<&'static Stop>,
    settings: Option<Vec<(&'static str, &'static str)>>,
    /// The pods of the attack that is under way.
    pods: Vec<PodHandle>,
    /// How many decisions of the operator were compared with `explain`, and those that it did not foretell.
    compared: (usize, Vec<String>),
}

impl Arena {
    /// A system with this binary.
    pub async fn new(binary: &Path) -> Self {
        let cluster = Cluster::start_with(binary).await;
        let switch = cluster.system.testbed().run().path().join("stops-off");
        Self { cluster, switch, state: Mutex::default(), numbers: AtomicU32::new(0) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the stop is off.
    pub fn is_off(&self, stop: &Stop) -> bool {
        self.state().off.contains(&stop)
    }

    /// Turns these stops off and all others on, with these further settings of the operator.
    pub async fn prepare(&self, off: &[&'static Stop], settings: &[(&'static str, &'static str)]) {
        let before = std::mem::replace(&mut self.state().off, off.to_vec());
        self.state().pods.clear();
        let names: Vec<_> = off.iter().map(|stop| stop.name).collect();
        std::fs::write(&self.switch, names.join("\n")).expect("written");
        let changed = |kind: fn(&Off) -> bool| {
            let of = |stops: &[&'static Stop]| {
                stops.iter().filter(|stop| kind(&stop.off)).map(|stop| stop.name).collect::<Vec<_>>()
            };
            of(&before) != of(off)
        };
        if changed(|off| matches!(off, Off::Vault(..))) {
            self.cluster.system.tell_vault_again().await.expect("told");
            for stop in off {
                if let Off::Vault(path, body) = stop.off {
                    let body = serde_json::from_str(body).expect("JSON");
                    self.cluster.vault().must(Method::POST, path, Some(&body)).await.expect("written");
                }
            }
        }
        let (admission, definitions) =
            (changed(|off| matches!(off, Off::Admission(_))), changed(|off| matches!(off, Off::Definition(_))));
        if admission {
            self.apply_weakened(ADMISSION).await;
        }
        if definitions {
            self.apply_weakened("crds/vaultproject.io.yaml").await;
        }
        let roles = changed(|off| matches!(off, Off::Role(_)));
        if roles {
            self.apply_weakened("config/requester.yaml").await;
        }
        if admission || definitions || roles {
            tokio::time::sleep(SETTLING).await;
        }
        let mut wanted = settings.to_vec();
        wanted.extend(off.iter().filter_map(|stop| match stop.off {
            Off::Setting(name, value) => Some((name, value)),
            _ => None,
        }));
        // What the operator knows of the admission policies it sees anew when it starts.
        let admission_seen =
            admission || changed(|off| matches!(off, Off::Code(_))) && self.state().admission_matters(&before);
        let running = self.state().settings.clone();
        if running.as_ref() != Some(&wanted) || admission_seen {
            self.restart(&wanted).await;
            self.state().settings = Some(wanted);
        }
    }

    /// Starts the operator anew with these further settings.
    pub async fn restart(&self, settings: &[(&str, &str)]) {
        self.cluster.system.kill_operator();
        let mut all = SETTINGS.to_vec();
        let switch = self.switch.to_string_lossy().into_owned();
        all.push(("VTO_STOPS_OFF", &switch));
        all.extend(settings);
        self.cluster.system.start_operator(&all).await.expect("the operator starts");
        self.cluster
            .until_health("a look at the admission policies", |text| !text.contains("admission: not looked at yet"))
            .await;
    }

    /// Waits until what was written of admission policies holds, and lets the operator look at them anew.
    pub async fn settled(&self) {
        tokio::time::sleep(SETTLING).await;
        let settings = self.state().settings.clone().unwrap_or_default();
        self.restart(&settings).await;
    }

    /// Turns all rules of the admission policies on until [`Arena::disarm`]: while one is off, the operator makes no token.
    pub async fn arm(&self) {
        if self.is_weakened() {
            let off = std::mem::take(&mut self.state().off);
            self.apply_weakened(ADMISSION).await;
            self.state().off = off;
            self.settled().await;
        }
    }

    /// Turns those off again that are to be off.
    pub async fn disarm(&self) {
        if self.is_weakened() {
            self.apply_weakened(ADMISSION).await;
            self.settled().await;
        }
    }

    /// Whether a rule of the admission policies is off.
    fn is_weakened(&self) -> bool {
        self.state().off.iter().any(|stop| matches!(stop.off, Off::Admission(_)))
    }

    /// Applies a manifest without the rules whose stops are off.
    pub async fn apply_weakened(&self, manifest: &str) {
        let path = project::root().join(manifest);
        let text = std::fs::read_to_string(&path).expect("a manifest");
        let mut documents = vault_token_operator::yaml::documents(&text).expect("documents");
        let off = self.state().off.clone();
        for stop in off {
            match stop.off {
                Off::Admission(words) => documents.iter_mut().for_each(|document| let_pass(document, words)),
                Off::Definition(words) => documents.iter_mut().for_each(|document| leave_out(document, words)),
                Off::Role(verb) => documents.iter_mut().for_each(|document| allow(document, verb)),
                _ => {}
            }
        }
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": documents });
        let file = self.cluster.system.testbed().run().path().join("weakened.json");
        std::fs::write(&file, list.to_string()).expect("written");
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", &file.to_string_lossy()];
        let said = self.cluster.kubectl(&apply).await;
        let applied = said.lines().filter(|line| line.ends_with(" serverside-applied")).count();
        assert_eq!(applied, list["items"].as_array().map_or(0, Vec::len), "{said}");
    }

    /// A namespace whose pods may ask, and are granted these policies in every way; all of them, where bindings are off.
    pub async fn namespace(&self, policies: &[&str]) -> String {
        let name = format!("attack-{}", self.numbers.fetch_add(1, Ordering::Relaxed));
        self.cluster.namespace(&name).await;
        self.cluster.system.allow_status_delivery(&name).await.expect("a role");
        self.grant(&name, policies).await;
        name
    }

    /// Grants a namespace's pods these policies and no others.
    pub async fn grant(&self, namespace: &str, policies: &[&str]) {
        if policies.is_empty() && !self.is_off(&crate::stops::BINDINGS) {
            let said = self.cluster.kubectl(&["delete", "vpb", namespace]).await;
            assert!(said.contains("deleted"), "{said}");
            return;
        }
        let policies = if self.is_off(&crate::stops::BINDINGS) { &["*"] } else { policies };
        let subject = json!({ "namespaces": [namespace], "serviceAccounts": ["*"] });
        self.bind(namespace, &json!({ "subjects": [subject], "policies": policies, "deliveries": ["Push", "Status"] }))
            .await;
    }

    /// Writes a binding, whatever the API server says of it.
    pub async fn bind(&self, name: &str, spec: &Value) {
        let limit = Instant::now() + self.patience();
        while let Err(error) = self.cluster.system.bind_policies(name, spec).await {
            if Instant::now() > limit {
                note(&format!("the binding {name} is refused: {error}"));
                return;
            }
        }
        // The operator goes by it a moment later.
        let (path, deadline) =
            ("jsonpath={.metadata.generation} {.status.conditions[0].observedGeneration}", Instant::now() + LIMIT);
        loop {
            let said = self.cluster.kubectl(&["get", "vpb", name, "-o", path]).await;
            match said.split_once(' ') {
                Some((written, seen)) if written == seen.trim() => return,
                _ => assert!(Instant::now() < deadline, "the operator does not see the binding {name}: {said}"),
            }
        }
    }

    /// Puts everything back in order after an attack that came to no end.
    pub async fn recover(&self) {
        self.cluster.vault().resume();
        self.cluster.vault().unseal().await.expect("unsealed");
        self.cluster.system.resume_operator();
        self.apply_weakened(ADMISSION).await;
        self.settled().await;
    }

    pub async fn pod(&self, namespace: &str, name: &str, policies: &str) -> PodHandle {
        self.pod_like(&PodSpec::new(namespace, name, policies, "1h")).await
    }

    pub async fn pod_like(&self, spec: &PodSpec) -> PodHandle {
        let pod = self.cluster.pod(spec).await;
        self.state().pods.push(pod.clone());
        pod
    }

    /// Deletes a pod; what `explain` says of it is compared before that with what the operator has decided by then.
    pub async fn remove(&self, pod: &PodHandle) {
        let known = std::mem::take(&mut self.state().pods);
        self.state().pods = known.into_iter().filter(|known| known.uid != pod.uid).collect();
        if self.state().off.is_empty() {
            self.compare(pod, &self.decided(pod).await).await;
        }
        self.cluster.kubelet.remove(self.cluster.plane(), pod).await.expect("removed");
    }

    /// A pod whose init container runs, as the kubelet says.
    pub async fn initializing(&self, namespace: &str, name: &str, policies: &str) -> PodHandle {
        let pod = self.pod(namespace, name, policies).await;
        self.report(&pod).await;
        pod
    }

    /// Reports the pod's init container as running.
    pub async fn report(&self, pod: &PodHandle) {
        self.cluster.kubelet.report_initializing(self.cluster.plane(), pod).await.expect("a status");
    }

    /// Starts the real init container of a pod; nobody reports it.
    pub async fn init(&self, pod: &PodHandle, settings: &[(&str, &str)]) -> Init {
        let switch = self.switch.to_string_lossy().into_owned();
        let mut all = vec![("VTO_STOPS_OFF", switch.as_str())];
        all.extend(settings);
        self.cluster
            .kubelet
            .start_init(self.cluster.plane(), self.cluster.vault(), pod, &all)
            .await
            .expect("init starts")
    }

    /// A pod with its token, whose app runs.
    pub async fn delivered(&self, namespace: &str, name: &str, policies: &str) -> (PodHandle, SecretString) {
        let pod = self.initializing(namespace, name, policies).await;
        let init = self.init(&pod, &[]).await;
        self.cluster.ended_well(&pod, &init).await;
        self.cluster.kubelet.report_running(self.cluster.plane(), &pod).await.expect("a status");
        let token = crate::support::token_of(&pod);
        (pod, token)
    }

    pub async fn who(&self, namespace: &str, pod: Option<&PodHandle>) -> Who<'_> {
        Who::new(&self.cluster, namespace, pod).await
    }

    /// How long something may be refused that is let in: longer where the API server was told to a moment ago.
    fn patience(&self) -> Duration {
        let told = self.state().off.iter().any(|stop| stop.is_in_the_api_server());
        if told { SETTLING } else { Duration::ZERO }
    }

    /// Repeats a call while it is refused; gives whether it was let in at last.
    pub async fn let_in(&self, words: &str, call: impl AsyncFn() -> String) -> bool {
        let limit = Instant::now() + self.patience();
        loop {
            let said = call().await;
            if said.contains(words) {
                return true;
            }
            if Instant::now() > limit {
                note(&format!("refused: {}", said.trim()));
                return false;
            }
        }
    }

    /// Asks for a token of this pod, to be taken from the status with a key of the asker's own. `None` if that is refused.
    pub async fn ask(&self, who: &Who<'_>, pod: &PodHandle, change: impl Fn(&mut Value)) -> Option<Asked> {
        let key = OneTimeKey::generate().expect("a key");
        let mut request = request_for(pod, 0);
        request["spec"]["publicKey"] = json!(key.public());
        by_status(&mut request);
        change(&mut request);
        let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).expect("a text").to_owned();
        let asked = Asked { namespace: text("/metadata/namespace"), name: text("/metadata/name"), key };
        let let_in = self.let_in("created\n", async || who.creates(&request).await).await;
        let_in.then_some(asked)
    }

    /// What comes of a request whose token is taken from the status: the parcel, once it is there, or nothing once it is refused.
    pub async fn offered(&self, asked: &Asked) -> Option<Parcel> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let request = self.cluster.requests(&asked.namespace).get(&asked.name).await.expect("a request");
            let status = request.status.clone().unwrap_or_default();
            if let Some(sealed) = &status.sealed_token {
                let request_uid = request.metadata.uid.as_deref().expect("a UID");
                let subject = Subject { request_uid, pod_uid: &request.spec.pod_uid, attempt: status.attempts };
                return asked.key.open(sealed, subject);
            }
            if is_refused(&request) {
                note(&format!("{}: {}", reason(&request), message(&request)));
                return None;
            }
            assert!(Instant::now() < deadline, "nothing comes of it: {request:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The token that comes of such a request, if one does.
    pub async fn take(&self, asked: &Asked) -> Option<SecretString> {
        self.unwrap(&self.offered(asked).await?.wrapping_token).await
    }

    /// Whether what comes of such a request is a token that Vault takes.
    pub async fn takes(&self, asked: &Asked) -> bool {
        match self.offered(asked).await {
            Some(parcel) => self.unwraps(&parcel.wrapping_token).await,
            None => false,
        }
    }

    /// Whether a token that Vault takes comes out of a wrapping token.
    pub async fn unwraps(&self, wrapping: &SecretString) -> bool {
        match self.unwrap(wrapping).await {
            Some(token) => self.cluster.accepts(&token).await,
            None => false,
        }
    }

    /// The token out of a wrapping token; `None` if Vault does not take it.
    pub async fn unwrap(&self, wrapping: &SecretString) -> Option<SecretString> {
        let path = "sys/wrapping/unwrap";
        let (_, answer) =
            self.cluster.vault().request_as(Some(wrapping), Method::POST, path, None).await.expect("an answer");
        answer["auth"]["client_token"].as_str().map(|token| token.to_owned().into())
    }

    /// Somebody asks for another pod's token, and tries to take it: whether he has one then that Vault takes.
    pub async fn steals(&self, who: &Who<'_>, victim: &PodHandle) -> bool {
        let Some(asked) = self.ask(who, victim, |_| ()).await else { return false };
        self.takes(&asked).await
    }

    /// The policies of a token, by what Vault says of it.
    pub async fn policies(&self, token: &SecretString) -> Vec<String> {
        let path = "auth/token/lookup";
        let body = json!({ "token": token.expose_secret() });
        let answer = self.cluster.vault().must(Method::POST, path, Some(&body)).await.expect("a token");
        let named = answer["data"]["policies"].as_array().expect("policies").iter();
        named.filter_map(|policy| policy.as_str().map(str::to_owned)).collect()
    }

    /// Waits for something for as long as an attack may take; gives whether it came.
    pub async fn comes(&self, happened: impl AsyncFn() -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while !happened().await {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    pub async fn request(&self, pod: &PodHandle) -> Option<VaultTokenRequest> {
        self.cluster.request(pod, 0).await
    }

    /// Waits until something holds of the pod's first request.
    pub async fn until(
        &self,
        pod: &PodHandle,
        what: &str,
        holds: impl Fn(&VaultTokenRequest) -> bool,
    ) -> VaultTokenRequest {
        self.cluster.until(pod, what, holds).await
    }

    /// Compares what `explain` says of every pod of an attack with what the operator has decided about it; gives how many decisions
    /// there were, and those that were not foretold. A pod that came to no decision in the attack, because others asked in its name or
    /// nobody did, asks now.
    ///
    /// Left out is what says nothing of a grant: requests that are refused for what they are themselves (another pod's UID, no finalizer,
    /// a forged status); a pod that is gone before the operator has looked at it; and what a build decides whose stops are off, since
    /// `explain` is the product's.
    pub async fn explained(&self) -> (usize, Vec<String>) {
        let pods = std::mem::take(&mut self.state().pods);
        for pod in pods {
            let mut decided = self.decided(&pod).await;
            if decided.is_empty() {
                decided.push(self.asks_now(&pod).await);
            }
            self.compare(&pod, &decided).await;
        }
        said();
        std::mem::take(&mut self.state().compared)
    }

    /// The requests of a pod that the operator has decided about, each with what `explain` has to say then.
    async fn decided(&self, pod: &PodHandle) -> Vec<(VaultTokenRequest, Vec<String>)> {
        let requests = self.cluster.requests(&pod.namespace).list(&ListParams::default()).await.expect("requests");
        let its = requests.items.into_iter().filter(|request| request.spec.pod_uid == pod.uid);
        its.filter_map(|request| decision(&request).map(|expected| (request, expected))).collect()
    }

    async fn asks_now(&self, pod: &PodHandle) -> (VaultTokenRequest, Vec<String>) {
        self.report(pod).await;
        let who = self.who(&pod.namespace, Some(pod)).await;
        let name = request_name(&pod.name, &pod.uid, 9);
        let asked = self.ask(&who, pod, |request| request["metadata"]["name"] = json!(name)).await;
        assert!(asked.is_some(), "the pod {} may not ask", pod.name);
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(decided) = self.decided(pod).await.pop() {
                return decided;
            }
            assert!(Instant::now() < deadline, "nothing is decided about the pod {}", pod.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn compare(&self, pod: &PodHandle, decided: &[(VaultTokenRequest, Vec<String>)]) {
        for (request, expected) in decided {
            let delivery = format!("{:?}", request.spec.delivery).to_lowercase();
            let said = tokio::process::Command::new(env!("CARGO_BIN_EXE_vault-token-operator"))
                .args(["explain", &request.spec.pod_name, "-n", &pod.namespace, "--delivery", &delivery])
                .env("KUBECONFIG", self.cluster.plane().admin_kubeconfig())
                .output();
            let said = said.await.expect("it runs");
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let mut state = self.state();
            state.compared.0 += 1;
            if !expected.iter().all(|words| said.contains(words)) {
                let place = format!("{}/{}", pod.namespace, pod.name);
                state.compared.1.push(format!("{place}: {expected:?} is not what explain says: {said}"));
            }
        }
    }

    /// A name that no other run of an attack has.
    pub fn fresh(&self, name: &str) -> String {
        format!("{name}-{}", self.numbers.fetch_add(1, Ordering::Relaxed))
    }
}

impl State {
    /// Whether a stop was or is off that decides what the operator takes the admission policies for.
    fn admission_matters(&self, before: &[&'static Stop]) -> bool {
        self.off.iter().chain(before).any(|stop| stop.name.starts_with("admission-"))
    }
}

/// A request that somebody made who is not the init container.
pub struct Asked {
    pub namespace: String,
    pub name: String,
    pub key: OneTimeKey,
}

/// Whether the operator has said no.
pub fn is_refused(request: &VaultTokenRequest) -> bool {
    let held = ["AdmissionLacking", "PodCompromised", "DeliveryForgotten"];
    // An operator that has just been started looks first.
    let looks = message(request).contains("waiting to see whether");
    matches!(request.phase(), Phase::Denied | Phase::Failed | Phase::Revoked)
        || held.contains(&reason(request)) && !looks
}

/// All that the conditions of a request say.
pub fn message(request: &VaultTokenRequest) -> String {
    let conditions = request.status.iter().flat_map(|status| &status.conditions);
    conditions.map(|condition| condition.message.clone()).collect::<Vec<_>>().join("\n")
}

/// What is looked at once a pod is granted what it asks for.
const BEYOND: [&str; 8] = [
    "InitContainerNotFound",
    "InitContainerEnded",
    "InitContainerNotRunning",
    "PodHasNoAddress",
    "PodAddressForbidden",
    "AdmissionLacking",
    "RequestUnverified",
    "PodCompromised",
];

/// What `explain` has to say of the request's pod, if the operator has come to a decision about what it is granted.
fn decision(request: &VaultTokenRequest) -> Option<Vec<String>> {
    let status = request.status.as_ref()?;
    let authorized = status.conditions.iter().find(|condition| condition.type_ == "Authorized")?;
    let refused = ["PodHostNetwork", "PoliciesMissing", "PoliciesInvalid", "TTLInvalid", "NotGranted"];
    match (authorized.reason.as_str(), status.granted_by.as_ref(), status.ttl.as_ref()) {
        (reason, ..) if refused.contains(&reason) => {
            Some(vec!["not granted".to_owned(), format!("{reason}: {}", authorized.message)])
        }
        ("GrantLost" | "GrantEnded" | "RevocationHeld", ..) => {
            Some(vec!["not granted".to_owned(), "NotGranted".to_owned()])
        }
        (_, Some(binding), Some(ttl)) => {
            let policies = format!("policies:   {}", status.policies.join(", "));
            Some(vec![policies, format!("ttl:        {ttl}"), format!("VaultPolicyBinding {binding}")])
        }
        (reason, ..) => BEYOND.contains(&reason).then(|| vec!["): granted\n".to_owned()]),
    }
}

/// Lets everything pass in the rules of an admission policy that have these words in their messages.
fn let_pass(document: &mut Value, words: &str) {
    for rule in document.pointer_mut("/spec/validations").and_then(Value::as_array_mut).into_iter().flatten() {
        let said = |key: &str| rule[key].as_str().is_some_and(|text| text.contains(words));
        if said("message") || said("messageExpression") {
            rule["expression"] = json!("true");
        }
    }
}

/// Adds a verb to the ClusterRole for workloads.
fn allow(document: &mut Value, verb: &str) {
    if document["metadata"]["name"] == "vault-token-requester"
        && let Some(verbs) = document.pointer_mut("/rules/0/verbs").and_then(Value::as_array_mut)
    {
        verbs.push(json!(verb));
    }
}

/// Leaves out of a definition the rules that have these words in them, and the fields of this name.
fn leave_out(value: &mut Value, words: &str) {
    match value {
        Value::Object(fields) => {
            fields.remove(words);
            for (name, field) in fields.iter_mut() {
                if name == "x-kubernetes-validations" {
                    let rules = field.as_array_mut().expect("rules");
                    rules.retain(|rule| !rule["rule"].as_str().is_some_and(|rule| rule.contains(words)));
                } else {
                    leave_out(field, words);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| leave_out(item, words)),
        _ => {}
    }
}

/// What was said about the attack that is under way.
static SAID: Mutex<String> = Mutex::new(String::new());

/// Keeps what is seen of an attack, and says it where somebody wants to know.
pub fn note(text: &str) {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.push_str(text);
    said.push('\n');
    if std::env::var_os("ATTACK_VERBOSE").is_some() {
        testbed::report::line(&format!("    {text}"));
    }
}

/// What was noted since the last call of this.
pub fn said() -> String {
    std::mem::take(&mut SAID.lock().unwrap_or_else(PoisonError::into_inner))
}
