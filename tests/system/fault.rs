//! Calls that break: before or after the server has acted, with each kind of answer. Whatever broke, a pod has exactly one live
//! token in the end, and none when it is gone.

use crate::support::{Cluster, LIMIT, alone, name, request_for, token_of};
use futures::stream::{self, StreamExt};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testbed::kubelet::{Init, PodHandle, PodSpec};
use testbed::process::Process;
use testbed::proxy::{Break, Call, Fault, Proxy};
use testbed::system::System;
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};

const MINT: &str = "auth/token/create/";
const REVOKE: &str = "auth/token/revoke-accessor";
const PUSH: &str = "wrapping-token";

/// What an API server says to a watch that would begin at what it does not know any more: all is to be listed anew. It is an event, and no
/// status of the answer's.
pub const FORGOTTEN: Break = Break::Says(
    StatusCode::OK,
    r#"{"type":"ERROR","object":{"apiVersion":"v1","kind":"Status","metadata":{},"status":"Failure","reason":"Expired","code":410}}"#,
);

/// What each call meets in turn. `Silence` is left out where it costs its caller's whole patience and shows nothing more.
const BROKEN: [Fault; 9] = [
    Fault::Before(Break::Reset),
    Fault::Before(Break::Answer(StatusCode::TOO_MANY_REQUESTS)),
    Fault::Before(Break::Answer(StatusCode::INTERNAL_SERVER_ERROR)),
    Fault::Before(Break::Answer(StatusCode::SERVICE_UNAVAILABLE)),
    Fault::After(Break::Reset),
    Fault::After(Break::Answer(StatusCode::BAD_GATEWAY)),
    Fault::After(Break::Answer(StatusCode::INTERNAL_SERVER_ERROR)),
    Fault::Delay(Duration::from_millis(300)),
    Fault::Slow(Duration::from_millis(30)),
];

/// The operator with a proxy before Vault and one before the API server.
pub struct Proxied {
    pub vault: Proxy,
    pub api: Proxy,
}

impl Proxied {
    pub async fn new(cluster: &Cluster) -> Self {
        let run = cluster.system.testbed().run();
        let vault = Proxy::before_server(run, cluster.vault().address()).await.expect("a proxy");
        let api = Proxy::before_server(run, cluster.plane().server_url()).await.expect("a proxy");
        Self { vault, api }
    }

    /// Starts the operator with one proxy, of Vault or of the API server, in which calls meet traps that are yet to be set.
    pub async fn trapped(cluster: &Cluster, which: fn(&Self) -> &Proxy) -> (Self, Traps) {
        let (proxied, traps) = (Self::new(cluster).await, Traps::default());
        which(&proxied).follow(traps.script());
        proxied.start(cluster).await;
        (proxied, traps)
    }

    pub async fn start(&self, cluster: &Cluster) {
        self.start_with(cluster, &[]).await;
    }

    /// Starts it with these further settings.
    pub async fn start_with(&self, cluster: &Cluster, more: &[(&str, &str)]) {
        cluster.system.kill_operator();
        let [vault, api] = self.settings(cluster);
        let settings = [&[("VAULT_ADDR", vault.as_str()), ("KUBECONFIG", &api)], more].concat();
        cluster.system.start_operator(&settings).await.expect("the operator starts");
    }

    /// Starts an operator and waits for nothing; gives the address of its health endpoint.
    pub fn spawn(&self, cluster: &Cluster, more: &[(&str, &str)]) -> (Process, String) {
        let [vault, api] = self.settings(cluster);
        let settings = [&[("VAULT_ADDR", vault.as_str()), ("KUBECONFIG", &api)], more].concat();
        cluster.system.spawn_operator(&settings).expect("it starts")
    }

    /// Vault's address, and the kubeconfig.
    fn settings(&self, cluster: &Cluster) -> [String; 2] {
        let kubeconfig = cluster.system.operator_kubeconfig_at(&self.api.url()).expect("a kubeconfig");
        [self.vault.url(), kubeconfig.to_string_lossy().into_owned()]
    }
}

/// Calls that are still to break.
#[derive(Clone, Default)]
pub struct Traps(Arc<Mutex<Vec<Trap>>>);

/// Breaks one call: the one that `after` others like it have gone before.
struct Trap {
    method: Method,
    /// What its path contains.
    path: String,
    after: usize,
    fault: Fault,
}

impl Traps {
    pub fn set(&self, method: Method, path: &str, after: usize, fault: Fault) {
        self.0.lock().expect("traps").push(Trap { method, path: path.to_owned(), after, fault });
    }

    pub fn script(&self) -> impl FnMut(&Call) -> Fault + Send + 'static + use<> {
        let traps = self.clone();
        move |call| {
            let mut traps = traps.0.lock().expect("traps");
            let fits = |trap: &Trap| call.method == trap.method && call.path.contains(&trap.path);
            let Some(number) = traps.iter().position(fits) else { return Fault::None };
            match traps[number].after.checked_sub(1) {
                Some(after) => {
                    traps[number].after = after;
                    Fault::None
                }
                None => traps.remove(number).fault,
            }
        }
    }

    fn is_sprung(&self) -> bool {
        self.0.lock().expect("traps").is_empty()
    }

    /// Waits until all of them have met their calls.
    pub async fn until_sprung(&self) {
        let deadline = Instant::now() + LIMIT;
        while !self.is_sprung() {
            assert!(Instant::now() < deadline, "the call does not come");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All of them broke a call; a table whose calls never came would show nothing.
    pub fn assert_sprung(&self) {
        let traps = self.0.lock().expect("traps");
        let left: Vec<_> = traps.iter().map(|trap| format!("{} {} {:?}", trap.method, trap.path, trap.fault)).collect();
        assert!(left.is_empty(), "these calls never came: {left:#?}");
    }
}

#[tokio::test]
async fn i1_i2_i3_whatever_call_breaks_each_pod_has_one_token_and_in_the_end_none() {
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    let traps = Traps::default();
    proxied.vault.follow(traps.script());
    proxied.api.follow(traps.script());
    proxied.start(cluster).await;
    let namespace = cluster.namespace("broken-calls").await;

    // Each of the three writes of a request's way to Delivered breaks in each way; so do as many mints and pushes.
    let mut rows: Vec<(&str, usize, Fault)> = Vec::new();
    for fault in BROKEN {
        rows.extend((0..3).map(|after| ("write", after, fault)));
        rows.extend([("mint", 0, fault), ("push", 0, fault)]);
    }
    // Nobody hears of the token, nor that its attempt is over: only a sweep that follows all the same finds it in time.
    rows.push(("mint and its end", 1, Fault::After(Break::Reset)));
    let deliver = async |(number, (call, after, fault))| {
        let pod = cluster.pod(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h")).await;
        let (push, listen) = Proxy::before_init(pod.address).await.expect("a proxy");
        push.follow(traps.script());
        match call {
            "write" => traps.set(Method::PUT, &status_of(&pod), after, fault),
            "mint" => traps.set(Method::POST, MINT, after, fault),
            "mint and its end" => {
                traps.set(Method::POST, MINT, 0, fault);
                traps.set(Method::PUT, &status_of(&pod), after, fault);
            }
            _ => traps.set(Method::POST, PUSH, after, fault),
        }
        let init = cluster.init_with(&pod, &[("VTO_LISTEN", &listen)]).await;
        cluster.ended_well(&pod, &init).await;
        cluster.kubelet.report_running(cluster.plane(), &pod).await.expect("a status");
        pod
    };
    let pods: Vec<_> = stream::iter(rows.into_iter().enumerate()).map(deliver).buffer_unordered(10).collect().await;
    traps.assert_sprung();
    cluster.until_live(&namespace, pods.len()).await;
    for pod in &pods {
        assert!(cluster.accepts(&token_of(pod)).await, "the token of {} is dead", pod.name);
    }

    // The ways to the end break in the same ways.
    for (pod, fault) in pods.iter().zip(BROKEN) {
        traps.set(Method::POST, REVOKE, 0, fault);
        traps.set(Method::PUT, &status_of(pod), 0, fault);
        traps.set(Method::PATCH, &request_name(&pod.name, &pod.uid, 0), 0, fault);
    }
    let remove = async |pod| cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
    stream::iter(&pods).for_each_concurrent(10, remove).await;
    for pod in &pods {
        cluster
            .until(pod, "end", |request| request.phase() == Phase::Revoked && request.metadata.finalizers.is_none())
            .await;
    }
    traps.assert_sprung();
    cluster.until_live(&namespace, 0).await;
}

#[tokio::test]
async fn a_list_that_is_never_answered_is_given_up_and_made_again() {
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    let traps = Traps::default();
    for kind in ["/vaulttokenrequests?", "/pods?"] {
        traps.set(Method::GET, kind, 0, Fault::Before(Break::Silence));
    }
    proxied.api.follow(traps.script());
    cluster.system.kill_operator();
    let (process, health) = proxied.spawn(cluster, &[]);
    let (began, limit) = (Instant::now(), Duration::from_secs(90));
    // Nobody ends the silence; a call that waited for its answer would wait for ever.
    while !System::health_of(&health).await.is_ok_and(|text| text.starts_with("ok")) {
        assert!(began.elapsed() < limit, "{:?}", System::health_of(&health).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    traps.assert_sprung();
    assert!(began.elapsed() > Duration::from_secs(5), "the lists were answered at once");
    process.stop(LIMIT).await;
}

/// As when etcd was compacted meanwhile, and when somebody else was faster.
#[tokio::test]
async fn a_watch_whose_place_is_gone_and_writes_that_conflict_are_made_anew() {
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    let traps = Traps::default();
    for (method, path, answer) in [
        (Method::GET, "/vaulttokenrequests?&watch=true", FORGOTTEN),
        (Method::GET, "/pods?&watch=true", FORGOTTEN),
        (Method::PUT, "/vaulttokenrequests/", Break::Answer(StatusCode::CONFLICT)),
    ] {
        traps.set(method, path, 0, Fault::Before(answer));
    }
    proxied.api.follow(traps.script());
    proxied.start(cluster).await;
    let namespace = cluster.namespace("gone-and-conflict").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    traps.assert_sprung();
    assert_eq!(cluster.live_tokens(&delivered.pod).await, 1);
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    cluster.until_live(&namespace, 0).await;
}

#[tokio::test]
async fn a_request_that_was_made_while_no_watch_stood_is_seen_though_the_list_comes_in_pages() {
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    // More than a page, behind the one that matters.
    let crowd = cluster.namespace("zz-crowd").await;
    let nobody = cluster.pod(&PodSpec::new(&crowd, "nobody", "shop-read", "1h")).await;
    let create = async |number: u32| {
        let mut request = request_for(&nobody, 0);
        request["metadata"]["name"] = json!(format!("nobody-{number:08x}-0"));
        request["spec"]["podUID"] = json!(format!("{number:08x}{}", &nobody.uid[8..]));
        let request = serde_json::from_value(request).expect("a request");
        cluster.requests(&crowd).create(&PostParams::default(), &request).await.expect("created");
    };
    stream::iter(0..60).for_each_concurrent(8, create).await;
    proxied.start(cluster).await;
    cluster.until_healthy("this replica leads").await;
    let traps = Traps::default();
    traps.set(Method::GET, "/vaulttokenrequests?&watch=true", 0, Fault::Before(Break::Silence));
    proxied.api.follow(traps.script());
    // The watch ends by itself, and is not taken up again.
    let began = Instant::now();
    while !traps.is_sprung() {
        assert!(began.elapsed() < Duration::from_secs(45), "the watch goes on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let namespace = cluster.namespace("aa-relisted").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    // What the watch ended at is too old for a server that starts anew: all is listed again, and the second page takes its time.
    cluster.plane().stop_apiserver().await;
    cluster.plane().start_apiserver().await.expect("started");
    traps.set(Method::GET, "continue=", 0, Fault::Delay(Duration::from_secs(2)));
    proxied.api.follow(traps.script());
    cluster.until_phase(&pod, Phase::Issued).await;
    traps.assert_sprung();
}

/// The status of a pod's first request, as part of a path.
fn status_of(pod: &PodHandle) -> String {
    format!("{}/status", request_name(&pod.name, &pod.uid, 0))
}

#[tokio::test]
async fn i3_a_pod_that_is_deleted_while_its_delivery_is_still_being_written_down_loses_its_token_at_once() {
    let (cluster, _guard) = alone().await;
    let (_proxied, traps) = Proxied::trapped(cluster, |proxied| &proxied.api).await;
    let namespace = cluster.namespace("deleted-midway").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "brief", "shop-read", "1h")).await;
    // The API server has written Delivered, the init container has seen it, and the operator still waits for the answer.
    traps.set(Method::PUT, &status_of(&pod), 2, Fault::Slow(Duration::from_millis(500)));
    let init = cluster.init(&pod).await;
    cluster.ended_well(&pod, &init).await;
    let token = token_of(&pod);
    cluster.kubelet.remove(cluster.plane(), &pod).await.expect("removed");
    traps.assert_sprung();
    cluster.until_phase(&pod, Phase::Revoked).await;
    assert!(!cluster.accepts(&token).await, "I3");
}

#[tokio::test]
async fn i7_a_token_whose_record_and_delivery_were_not_answered_is_not_taken_back() {
    let (cluster, _guard) = alone().await;
    let (_proxied, traps) = Proxied::trapped(cluster, |proxied| &proxied.api).await;
    let namespace = cluster.namespace("unanswered").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    traps.set(Method::PUT, &status_of(&pod), 1, Fault::After(Break::Reset));
    traps.set(Method::PUT, &status_of(&pod), 0, Fault::After(Break::Reset));
    let init = cluster.init(&pod).await;
    cluster.ended_well(&pod, &init).await;
    traps.assert_sprung();
    cluster.kubelet.report_running(cluster.plane(), &pod).await.expect("a status");
    // The operator looks at the request once more, and finds it delivered.
    cluster.until_decided(&pod, "Delivered").await;
    assert!(cluster.accepts(&token_of(&pod)).await, "I7");
    cluster.kubelet.remove(cluster.plane(), &pod).await.expect("removed");
    let request = cluster.until_phase(&pod, Phase::Revoked).await;
    let lines = cluster.audit_lines("request_uid", request.metadata.uid.as_deref().expect("a UID"));
    assert!(lines.iter().all(|line| line["step"] != "UnrecordedRevoked"), "I7: {lines:#?}");
    // Neither is missing in the audit log for want of an answer.
    for step in ["Issued", "Delivered"] {
        let unanswered = lines.iter().any(|line| line["step"] == step && line["answered"] == false);
        assert!(unanswered, "{step}: {lines:#?}");
    }
}

/// Has a pod ask, and holds its mint up for long enough for somebody to come between; gives its request in the midst of the attempt.
pub async fn minting(cluster: &Cluster, traps: &Traps, namespace: &str) -> (PodHandle, Init, VaultTokenRequest) {
    let pod = cluster.pod(&PodSpec::new(namespace, "web", "shop-read", "1h")).await;
    traps.set(Method::POST, MINT, 0, Fault::Delay(Duration::from_secs(5)));
    let init = cluster.init(&pod).await;
    let request = cluster.until_phase(&pod, Phase::Minting).await;
    (pod, init, request)
}

/// The calls are held up, and what is recorded by then is looked at.
#[tokio::test]
async fn rules_1_3_and_6_what_is_to_happen_is_recorded_before_it_does() {
    const HELD: Fault = Fault::Delay(Duration::from_secs(5));
    // Of its own: of what another test has left behind, calls come, too.
    let cluster = &Cluster::start().await;
    let proxied = Proxied::new(cluster).await;
    let traps = Traps::default();
    proxied.vault.follow(traps.script());
    proxied.start_with(cluster, &[("VTO_WRAPPING_TTL", "12s")]).await;
    let namespace = cluster.namespace("recorded-before").await;
    let held = async |pod: &PodHandle| {
        traps.until_sprung().await;
        let status = cluster.request(pod, 0).await.and_then(|request| request.status).expect("a status");
        let accessor = status.token_accessor.clone();
        let lives = match &accessor {
            Some(accessor) => cluster.lives(accessor).await,
            None => false,
        };
        (status.phase.expect("a phase"), status.attempts, accessor.is_some(), lives)
    };

    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let (push, listen) = Proxy::before_init(pod.address).await.expect("a proxy");
    push.follow(traps.script());
    traps.set(Method::POST, MINT, 0, HELD);
    let init = cluster.init_with(&pod, &[("VTO_LISTEN", &listen)]).await;
    let minting = held(&pod).await;
    traps.set(Method::POST, PUSH, 0, HELD);
    assert_eq!(minting, (Phase::Minting, 1, false, false), "rule 1: the attempt, before the mint");
    assert_eq!(held(&pod).await, (Phase::Issued, 1, true, true), "rule 3: the record, before the push");
    assert!(!pod.volume.join("token").exists());
    cluster.ended_well(&pod, &init).await;

    let silent = cluster.pod(&PodSpec::new(&namespace, "silent", "shop-read", "1h")).await;
    proxied.vault.follow(|call| if call.path.contains(REVOKE) { HELD } else { Fault::None });
    cluster.kubelet.report_initializing(cluster.plane(), &silent).await.expect("a status");
    cluster.ask(&silent, |_| ()).await;
    let revoking = cluster.until_phase(&silent, Phase::Revoking).await;
    let accessor = revoking.status.and_then(|status| status.token_accessor).expect("an accessor");
    assert!(cluster.lives(&accessor).await, "rule 6: Revoking, before the revocation");
    cluster.kubelet.remove(cluster.plane(), &silent).await.expect("removed");
    cluster.until(&silent, "end", VaultTokenRequest::is_over).await;
    assert_eq!(cluster.live_tokens(&silent).await, 0);
}

#[tokio::test]
async fn rule_3_a_record_is_refused_if_the_request_was_changed_since_the_intent_and_its_token_revoked() {
    let (cluster, _guard) = alone().await;
    let (_proxied, traps) = Proxied::trapped(cluster, |proxied| &proxied.vault).await;
    let namespace = cluster.namespace("changed-midway").await;
    let (pod, init, request) = minting(cluster, &traps, &namespace).await;
    let label = Patch::Merge(json!({ "metadata": { "labels": { "changed": "meanwhile" } } }));
    let requests = cluster.requests(&namespace);
    requests.patch(&name(&request), &PatchParams::default(), &label).await.expect("changed");
    let uid = request.metadata.uid.expect("a UID");
    let line = cluster.until_audited("request_uid", &uid, "UnrecordedRevoked").await;
    cluster.ended_well(&pod, &init).await;
    traps.assert_sprung();
    let delivered = cluster.until_phase(&pod, Phase::Delivered).await.status.expect("a status");
    assert_eq!(delivered.attempts, 2, "{delivered:#?}");
    assert_ne!(line["token_accessor"].as_str(), delivered.token_accessor.as_deref());
    cluster.until_live(&namespace, 1).await;
    assert!(cluster.accepts(&token_of(&pod)).await, "I7");
}

#[tokio::test]
async fn rule_3_a_token_whose_request_is_gone_when_it_is_to_be_recorded_is_revoked() {
    let (cluster, _guard) = alone().await;
    let (_proxied, traps) = Proxied::trapped(cluster, |proxied| &proxied.vault).await;
    let namespace = cluster.namespace("gone-midway").await;
    let (pod, init, request) = minting(cluster, &traps, &namespace).await;
    let requests = cluster.requests(&namespace);
    let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    requests.patch(&name(&request), &PatchParams::default(), &free).await.expect("released");
    requests.delete(&name(&request), &DeleteParams::default()).await.expect("deleted");
    cluster.until_audited("request_uid", &request.metadata.uid.expect("a UID"), "UnrecordedRevoked").await;
    traps.assert_sprung();
    assert_eq!(cluster.live_tokens(&pod).await, 0, "I2");
    assert!(!init.wait(LIMIT).await.expect("init ends").success());
}

/// The operator's last calls about a request are held up, and by the time that they land another one has its name.
#[tokio::test]
async fn i8_a_release_and_a_deletion_that_come_late_leave_a_newer_request_of_the_name_alone() {
    const OPERATOR: &str = "system:serviceaccount:vault-token-operator:vault-token-operator";
    let (cluster, _guard) = alone().await;
    let (proxied, traps) = (Proxied::new(cluster).await, Traps::default());
    proxied.api.follow(traps.script());
    proxied.start_with(cluster, &[("VTO_RETENTION", "2s")]).await;
    let namespace = cluster.namespace("let-go-late").await;
    let requests = cluster.requests(&namespace);
    for (method, verb) in [(Method::PATCH, "patch"), (Method::DELETE, "delete")] {
        let pod = cluster.pod(&PodSpec::new(&namespace, verb, "shop-read", "1h")).await;
        let name = request_name(&pod.name, &pod.uid, 0);
        traps.set(method, &format!("/vaulttokenrequests/{name}"), 0, Fault::Delay(Duration::from_secs(5)));
        // It is denied, and so let go at once.
        cluster.ask(&pod, |request| request["spec"]["initContainer"] = json!("another")).await;
        traps.until_sprung().await;
        let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        requests.patch(&name, &PatchParams::default(), &free).await.expect("released");
        requests.delete(&name, &DeleteParams::default()).await.expect("deleted");
        // This one waits for its init container to run.
        cluster.ask(&pod, |_| ()).await;
        let newer = cluster.request(&pod, 0).await.expect("a request");

        let answers = || {
            cluster.api_server_heard(|line| {
                line["user"]["username"] == OPERATOR && line["verb"] == verb && line["objectRef"]["name"] == *name
            })
        };
        let deadline = Instant::now() + LIMIT;
        while answers().is_empty() {
            assert!(Instant::now() < deadline, "{verb}: the call does not land");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let codes: Vec<_> = answers().iter().map(|line| line["responseStatus"]["code"].clone()).collect();
        assert_eq!(codes, [409], "{verb}");
        let seen = cluster.until(&pod, "word of the newer one", |request| request.status.is_some()).await;
        assert_eq!((seen.phase(), seen.metadata.uid.as_ref()), (Phase::Pending, newer.metadata.uid.as_ref()), "{verb}");
        assert!(seen.has_finalizer() && seen.metadata.deletion_timestamp.is_none(), "{verb}: {seen:#?}");
    }
}

#[tokio::test]
async fn i7_a_restart_against_a_cache_that_lags_kills_no_living_pods_token() {
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    let namespace = cluster.namespace("lagging-cache").await;
    // All lists are from before the pods and their requests, and watches bring nothing.
    let lag = |call: &Call| match call {
        call if call.is_watch() => Fault::Before(Break::Silence),
        call if call.path.contains("limit=") => Fault::Stale,
        _ => Fault::None,
    };
    proxied.api.follow(lag);
    proxied.start(cluster).await;
    cluster.until_healthy("this replica leads").await;
    proxied.api.follow(|_| Fault::None);
    let alive = cluster.deliver(&PodSpec::new(&namespace, "alive", "shop-read", "1h")).await;
    let gone = cluster.deliver(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    cluster.system.kill_operator();
    cluster.kubelet.remove(cluster.plane(), &gone.pod).await.expect("removed");
    let waiting = cluster.pod(&PodSpec::new(&namespace, "waiting", "shop-read", "1h")).await;
    let init = cluster.init(&waiting).await;

    proxied.api.follow(lag);
    proxied.start(cluster).await;
    cluster.until_healthy("0 without a request revoked").await;
    assert!(cluster.accepts(&alive.token).await, "I7");
    // The cache catches up; the watches that were silent are reset.
    proxied.api.follow(|_| Fault::None);
    cluster.ended_well(&waiting, &init).await;
    cluster.until_phase(&gone.pod, Phase::Revoked).await;
    assert!(cluster.accepts(&alive.token).await, "I7");

    // The requests are as they are now, and of the pods there are none yet.
    cluster.system.kill_operator();
    let no_pods = move |call: &Call| if call.path.starts_with("/api/v1/pods?") { lag(call) } else { Fault::None };
    proxied.api.follow(no_pods);
    proxied.start(cluster).await;
    let step = cluster.until_decided(&alive.pod, "Delivered").await;
    assert!(step.starts_with("Later("), "I7: {step}");
    assert!(cluster.accepts(&alive.token).await, "I7");
}
