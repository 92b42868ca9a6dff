//! What the tests share: the running system, and words for what they do with it.

use futures::future::select_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testbed::Testbed;
use testbed::control_plane::ControlPlane;
use testbed::kubelet::{Init, Kubelet, PodHandle, PodSpec};
use testbed::system::System;
use testbed::vault::VaultServer;
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use vault_token_operator::api::{Phase, VaultTokenRequest, VaultTokenRequestStatus, request_name};
use vault_token_operator::seal::OneTimeKey;

/// How late calls can still take effect, and by how much clocks can differ: `CALL_DEADLINE` of `domain/plan.rs`, whose value the tests do
/// not take from there.
pub const CALL_DEADLINE: SignedDuration = SignedDuration::from_secs(60);

/// How long anything may take that should take milliseconds, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A running system.
pub struct Cluster {
    pub system: System,
    pub kubelet: Kubelet,
    /// Whether the operator runs with the usual settings.
    usual: AtomicBool,
    starting: Mutex<()>,
}

/// A place for a system, which the first test that comes to it starts.
struct Place {
    cluster: OnceCell<Cluster>,
    taken: Mutex<()>,
}

/// The first system is for tests that want the operator as it usually is, and run side by side. Those that do something to the
/// operator, to Vault or to the API server have one of the others, one at a time.
static PLACES: [Place; 3] = [const { Place { cluster: OnceCell::const_new(), taken: Mutex::const_new(()) } }; 3];

/// The system with the operator running as usual. Tests that have it run side by side.
pub async fn shared() -> &'static Cluster {
    let cluster = PLACES[0].cluster().await;
    cluster.make_usual().await;
    cluster
}

/// A system for a test that is alone with it. The operator runs as usual; whatever becomes of it is mended before the next test
/// has it.
pub async fn alone() -> (&'static Cluster, MutexGuard<'static, ()>) {
    let waiting = PLACES[1..].iter().map(|place| Box::pin(async move { (place, place.taken.lock().await) }));
    let ((place, guard), ..) = select_all(waiting).await;
    let cluster = place.cluster().await;
    cluster.make_usual().await;
    cluster.usual.store(false, Ordering::Release);
    (cluster, guard)
}

/// The systems that tests have had so far.
pub fn started() -> impl Iterator<Item = &'static Cluster> {
    PLACES.iter().filter_map(|place| place.cluster.get())
}

impl Place {
    async fn cluster(&self) -> &Cluster {
        self.cluster.get_or_init(Cluster::start).await
    }
}

/// A pod whose init container has delivered its token.
pub struct Delivered {
    pub pod: PodHandle,
    pub token: SecretString,
    pub request: VaultTokenRequest,
}

impl Delivered {
    pub fn status(&self) -> &VaultTokenRequestStatus {
        self.request.status.as_ref().expect("a status")
    }

    pub fn accessor(&self) -> &str {
        self.status().token_accessor.as_deref().expect("an accessor")
    }
}

impl Cluster {
    /// A system for one of the places above, or for a test that what others left would disturb. The operator is not started yet.
    pub async fn start() -> Self {
        Self::start_with(Path::new(env!("CARGO_BIN_EXE_vault-token-operator"))).await
    }

    /// The real components, with this binary installed on them.
    pub async fn start_with(binary: &Path) -> Self {
        let testbed = Testbed::start().await.expect("the testbed starts");
        let kubelet = Kubelet::new(testbed.run(), binary).expect("a kubelet");
        let system = System::install(testbed, binary).await.expect("the product is installed");
        Self { system, kubelet, usual: AtomicBool::new(false), starting: Mutex::default() }
    }

    /// Starts the operator with the usual settings, unless it runs so.
    async fn make_usual(&self) {
        let _starting = self.starting.lock().await;
        if !self.usual.load(Ordering::Acquire) {
            self.system.kill_operator();
            // A test that failed may have left it so.
            self.vault().resume();
            self.vault().unseal().await.expect("unsealed");
            self.system.tell_vault_again().await.expect("told");
            self.system.start_operator(&[]).await.expect("the operator starts");
            self.usual.store(true, Ordering::Release);
        }
    }

    /// Kills the operator, and starts it anew with these settings.
    pub async fn restart(&self, settings: &[(&str, &str)]) {
        self.system.kill_operator();
        self.system.start_operator(settings).await.expect("the operator starts");
    }

    pub fn plane(&self) -> &ControlPlane {
        self.system.testbed().control_plane()
    }

    pub fn vault(&self) -> &VaultServer {
        self.system.testbed().vault()
    }

    /// A namespace of the test's own, whose pods may ask for tokens.
    pub async fn namespace(&self, name: &str) -> String {
        self.system.create_workload_namespace(name).await.expect("a namespace");
        name.to_owned()
    }

    pub async fn pod(&self, spec: &PodSpec) -> PodHandle {
        self.kubelet.create(self.plane(), spec).await.expect("a pod")
    }

    /// Starts the init container and reports it as running, as a kubelet does.
    pub async fn init(&self, pod: &PodHandle) -> Init {
        self.init_with(pod, &[]).await
    }

    pub async fn init_with(&self, pod: &PodHandle, settings: &[(&str, &str)]) -> Init {
        let init = self.kubelet.start_init(self.plane(), self.vault(), pod, settings).await.expect("init starts");
        self.kubelet.report_initializing(self.plane(), pod).await.expect("a status");
        init
    }

    /// A pod that has its token and whose app runs.
    pub async fn deliver(&self, spec: &PodSpec) -> Delivered {
        self.deliver_with(spec, &[]).await
    }

    /// The same with an init container that has these settings.
    pub async fn deliver_with(&self, spec: &PodSpec, settings: &[(&str, &str)]) -> Delivered {
        let pod = self.pod(spec).await;
        let init = self.init_with(&pod, settings).await;
        self.ended_well(&pod, &init).await;
        self.kubelet.report_running(self.plane(), &pod).await.expect("a status");
        let request = self.request(&pod, 0).await.expect("a request");
        assert_eq!(request.phase(), Phase::Delivered);
        Delivered { token: token_of(&pod), request, pod }
    }

    pub async fn ended_well(&self, pod: &PodHandle, init: &Init) {
        match init.wait(LIMIT).await {
            Ok(status) if status.success() => {}
            ended => panic!(
                "init: {:?} {}\n{:#?}\n{}\n{}",
                ended.map_err(|_| "it still runs"),
                init.termination_message(),
                self.request(pod, 0).await.and_then(|request| request.status),
                important(&self.init_log(pod)),
                self.operator_said(),
            ),
        }
    }

    /// What the present operator wrote that is worth a person's time.
    pub fn operator_said(&self) -> String {
        let log = self.system.operator_logs().pop().and_then(|log| std::fs::read_to_string(log).ok());
        important(&log.unwrap_or_default())
    }

    /// The audit lines of all operators so far that have this value.
    pub fn audit_lines(&self, key: &str, value: &str) -> Vec<Value> {
        self.log_lines(|line| line["target"] == "audit" && line[key] == value)
    }

    /// Waits until there is an audit line of this step that has this value; gives the first one.
    pub async fn until_audited(&self, key: &str, value: &str, step: &str) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(line) = self.audit_lines(key, value).into_iter().find(|line| line["step"] == step) {
                return line;
            }
            assert!(Instant::now() < deadline, "{step} is in no audit line of {value}\n{}", self.operator_said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the operator that was started last has decided what to do about the pod's first request in this phase; gives the
    /// step.
    pub async fn until_decided(&self, pod: &PodHandle, phase: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(line) = self.decisions(pod).into_iter().find(|line| line["phase"] == phase) {
                return line["step"].as_str().expect("a step").to_owned();
            }
            assert!(Instant::now() < deadline, "nothing was decided about {} in the phase {phase}", pod.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// When the present operator decided on this step for the pod's first request.
    pub fn decided(&self, pod: &PodHandle, step: &str) -> Vec<Timestamp> {
        let of_step = |line: &Value| line["step"].as_str().is_some_and(|said| said.starts_with(step));
        let taken = self.decisions(pod).into_iter().filter(of_step);
        taken.map(|line| line["timestamp"].as_str().expect("a time").parse().expect("a time")).collect()
    }

    /// The present operator's lines about what it decided for the pod's first request.
    fn decisions(&self, pod: &PodHandle) -> Vec<Value> {
        let name = request_name(&pod.name, &pod.uid, 0);
        let log = self.system.operator_logs().pop().expect("a log");
        let lines = lines_of(&log).into_iter();
        lines.filter(|line| line["message"] == "decided" && line["request"] == *name).collect()
    }

    /// Such lines of the API server's audit log.
    pub fn api_server_heard(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        lines_of(&self.plane().audit_log()).into_iter().filter(wanted).collect()
    }

    /// Such lines of the logs of all operators so far.
    fn log_lines(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.system.operator_logs().iter().flat_map(|log| lines_of(log)).filter(wanted).collect()
    }

    pub fn init_log(&self, pod: &PodHandle) -> String {
        std::fs::read_to_string(self.kubelet.log(pod)).unwrap_or_default()
    }

    pub fn requests(&self, namespace: &str) -> Api<VaultTokenRequest> {
        Api::namespaced(self.plane().admin_client().expect("a client"), namespace)
    }

    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.plane().admin_client().expect("a client"), namespace)
    }

    /// The pod's request of this number, if it is there.
    pub async fn request(&self, pod: &PodHandle, digit: u8) -> Option<VaultTokenRequest> {
        let name = request_name(&pod.name, &pod.uid, digit);
        self.requests(&pod.namespace).get_opt(&name).await.expect("an answer")
    }

    /// Waits until there is a token file in the pod's volume.
    pub async fn until_stored(&self, pod: &PodHandle) {
        let deadline = Instant::now() + LIMIT;
        while !pod.volume.join("token").exists() {
            assert!(Instant::now() < deadline, "nothing is stored: {}", self.init_log(pod));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the pod's first request is in this phase.
    pub async fn until_phase(&self, pod: &PodHandle, phase: Phase) -> VaultTokenRequest {
        self.until(pod, &format!("phase {phase}"), |request| request.phase() == phase).await
    }

    /// Waits until something holds of the pod's first request.
    pub async fn until(
        &self,
        pod: &PodHandle,
        what: &str,
        holds: impl Fn(&VaultTokenRequest) -> bool,
    ) -> VaultTokenRequest {
        let deadline = Instant::now() + LIMIT;
        let requests = self.requests(&pod.namespace);
        loop {
            match requests.get_opt(&request_name(&pod.name, &pod.uid, 0)).await.expect("an answer") {
                Some(request) if holds(&request) => return request,
                request if Instant::now() > deadline => panic!("no {what} within {LIMIT:?}: {request:#?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Waits until `kubectl describe` says these words of an object.
    pub async fn until_described(&self, kind: &str, name: &str, namespace: &str, words: &str) {
        self.until_said(&["describe", kind, name, "-n", namespace], words).await;
    }

    /// Waits until kubectl says these words.
    pub async fn until_said(&self, arguments: &[&str], words: &str) {
        self.until_says(arguments, words, |text| text.contains(words)).await;
    }

    /// Waits until something holds of what kubectl says.
    pub async fn until_says(&self, arguments: &[&str], what: &str, holds: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = self.kubectl(arguments).await;
            if holds(&text) {
                return;
            }
            assert!(Instant::now() < deadline, "kubectl {arguments:?} does not say {what:?}: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the operator's health says these words.
    pub async fn until_healthy(&self, words: &str) -> String {
        self.until_health(words, |text| text.contains(words)).await
    }

    /// Waits until something holds of what the operator's health says.
    pub async fn until_health(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let text = self.system.operator_health().await.expect("an answer").expect("an operator");
            if holds(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "its health does not say {what:?}: {text}\n{}", self.operator_said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The operator's metrics have these lines, without the prefix of their names.
    pub async fn assert_counted(&self, lines: &[&str]) {
        let text = self.system.operator_metrics().await.expect("an answer").expect("an operator");
        for line in lines {
            let line = format!("vault_token_operator_{line}");
            assert!(text.lines().any(|said| said == line), "{line:?} is not in\n{text}");
        }
    }

    /// Waits until one of the operator's metrics is as `line` says by then, without the prefix of its name.
    pub async fn until_counted(&self, line: impl Fn() -> String) {
        let deadline = Instant::now() + 2 * LIMIT;
        loop {
            let text = self.system.operator_metrics().await.expect("an answer").expect("an operator");
            let line = format!("vault_token_operator_{}", line());
            if text.lines().any(|said| said == line) {
                return;
            }
            assert!(Instant::now() < deadline, "no {line:?}\n{text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes the pod's first request by hand, as somebody may who can create requests; nobody listens at the pod.
    pub async fn ask(&self, pod: &PodHandle, change: impl FnOnce(&mut Value)) {
        let mut request = request_for(pod, 0);
        change(&mut request);
        let request = serde_json::from_value(request).expect("a request");
        self.requests(&pod.namespace).create(&PostParams::default(), &request).await.expect("created");
    }

    /// A login to Vault as the operator's, as whoever has its pod can make it.
    pub async fn operators_login(&self) -> SecretString {
        self.login_as("vault-token-operator").await
    }

    /// The same for the role with which it lists tokens.
    pub async fn sweeps_login(&self) -> SecretString {
        self.login_as("vault-token-operator-sweep").await
    }

    async fn login_as(&self, role: &str) -> SecretString {
        let [_, login] = self.system.operator_token_files();
        let jwt = std::fs::read_to_string(login).expect("a token");
        let body = json!({ "role": role, "jwt": jwt.trim() });
        let path = "auth/kubernetes/login";
        let (status, answer) = self.vault().request_as(None, Method::POST, path, Some(&body)).await.expect("an answer");
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["auth"]["client_token"].as_str().expect("a token").into()
    }

    /// Whether Vault accepts the token, which has the policy shop-read.
    pub async fn accepts(&self, token: &SecretString) -> bool {
        let path = "secret/data/shop/read";
        let (status, _) = self.vault().request_as(Some(token), Method::GET, path, None).await.expect("an answer");
        match status {
            StatusCode::OK => true,
            StatusCode::FORBIDDEN => false,
            status => panic!("{status}"),
        }
    }

    /// Whether Vault knows a live token of this accessor.
    pub async fn lives(&self, accessor: &str) -> bool {
        self.look_up(accessor).await.is_some()
    }

    /// What Vault knows of the token of this accessor.
    pub async fn look_up(&self, accessor: &str) -> Option<Value> {
        let body = json!({ "accessor": accessor });
        let path = "auth/token/lookup-accessor";
        let (status, answer) = self.vault().request(Method::POST, path, Some(&body)).await.expect("an answer");
        match status {
            StatusCode::OK => Some(answer["data"].clone()),
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => None,
            status => panic!("{status}: {answer}"),
        }
    }

    /// How many live tokens Vault has that were made for this pod.
    pub async fn live_tokens(&self, pod: &PodHandle) -> usize {
        self.live_tokens_where("pod_uid", &pod.uid).await
    }

    /// How many live tokens Vault has with this in their metadata.
    pub async fn live_tokens_where(&self, key: &str, value: &str) -> usize {
        self.vault().live_tokens_where(key, value).await.expect("a list").len()
    }

    /// Waits until Vault has this many live tokens for a namespace.
    pub async fn until_live(&self, namespace: &str, wanted: usize) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let live = self.live_tokens_where("namespace", namespace).await;
            if live == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{live} live tokens, not {wanted}\n{}", self.operator_said());
        }
    }

    /// Waits until the token of this accessor is dead; gives the time that it took.
    pub async fn until_dead(&self, accessor: &str) -> Duration {
        let start = Instant::now();
        while self.lives(accessor).await {
            assert!(start.elapsed() < LIMIT, "the token {accessor} is still alive");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        start.elapsed()
    }

    /// Runs kubectl as an administrator; gives what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.plane().kubectl(arguments).await.expect("kubectl runs");
        format!("{}{}", output.stdout, output.stderr)
    }
}

/// The lines of a log in JSON; the last one may be under way.
pub fn lines_of(log: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(log).expect("a log");
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The last lines of a log without those of the levels trace and debug.
fn important(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("TRACE") && !line.contains("DEBUG")).collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Waits for init's end.
pub async fn ended(init: &Init) -> ExitStatus {
    init.wait(LIMIT).await.expect("init ends")
}

/// The token in the pod's volume.
pub fn token_of(pod: &PodHandle) -> SecretString {
    std::fs::read_to_string(pod.volume.join("token")).expect("a token file").into()
}

/// The message of one of the request's conditions.
pub fn condition(request: &VaultTokenRequest, kind: &str) -> (String, String, String) {
    let conditions = request.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition.type_ == kind);
    let found = found.unwrap_or_else(|| panic!("no condition {kind}: {request:#?}"));
    (found.status, found.reason, found.message)
}

/// A request of a pod, as the pod's init container would make it.
pub fn request_for(pod: &PodHandle, digit: u8) -> Value {
    json!({
        "apiVersion": "vaultproject.io/v1alpha1",
        "kind": "VaultTokenRequest",
        "metadata": { "name": request_name(&pod.name, &pod.uid, digit), "namespace": pod.namespace,
            "finalizers": [vault_token_operator::api::FINALIZER] },
        "spec": { "podName": pod.name, "podUID": pod.uid, "sequence": 1,
            "initContainer": testbed::kubelet::INIT_CONTAINER, "port": testbed::kubelet::INIT_PORT,
            "publicKey": OneTimeKey::generate().expect("a key").public() },
    })
}

/// Lets a request take its token from its status.
pub fn by_status(request: &mut Value) {
    request["spec"]["delivery"] = json!("Status");
    request["spec"]["port"] = Value::Null;
}

/// Why the request is in its phase, in one word.
pub fn reason(request: &VaultTokenRequest) -> &str {
    request.status.as_ref().and_then(|status| status.reason.as_deref()).unwrap_or_default()
}

/// The name of a request, for kubectl.
pub fn name(request: &VaultTokenRequest) -> String {
    request.name_any()
}
