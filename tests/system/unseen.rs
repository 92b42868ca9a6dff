//! What happens between two looks of a running operator's watch: it sees how things were and how they are, and never what was between.

use crate::fault::{FORGOTTEN, Proxied};
use crate::support::{Cluster, LIMIT, alone, reason, token_of};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use reqwest::StatusCode;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use testbed::proxy::{Break, Call, Fault, WatchFault};
use vault_token_operator::api::{Phase, VaultTokenRequest};

/// How long a watch goes on until it breaks and is taken up again.
const SHORT: Duration = Duration::from_millis(300);

/// A running operator, one of whose watches can be kept from what happens.
struct Blindfold {
    proxied: Proxied,
    /// What is in the path of the watch.
    kind: &'static str,
}

impl Blindfold {
    async fn new(cluster: &Cluster, kind: &'static str, settings: &[(&str, &str)]) -> Self {
        let proxied = Proxied::new(cluster).await;
        proxied.api.follow(move |call| if is(call, kind) { Fault::Watch(WatchFault::Cut(SHORT)) } else { Fault::None });
        proxied.start_with(cluster, settings).await;
        cluster.until_healthy("this replica leads").await;
        Self { proxied, kind }
    }

    /// From now on the watch is down: it broke, and is not answered.
    async fn put_on(&self) {
        let (kind, down) = (self.kind, Arc::new(AtomicBool::new(false)));
        let met = Arc::clone(&down);
        self.proxied.api.follow(move |call| {
            if !is(call, kind) {
                return Fault::None;
            }
            met.store(true, Ordering::Release);
            Fault::Before(Break::Silence)
        });
        until(&down, "the watch to break").await;
    }

    /// What the watch ended at is forgotten, as after a compaction: everything is listed anew.
    async fn take_off(&self) {
        let (kind, told) = (self.kind, Arc::new(AtomicBool::new(false)));
        let met = Arc::clone(&told);
        self.proxied.api.follow(move |call| match is(call, kind) && !met.swap(true, Ordering::AcqRel) {
            true => Fault::Before(FORGOTTEN),
            false => Fault::None,
        });
        until(&told, "the watch to be taken up again").await;
    }
}

/// A watch's path, and how often it was taken up while it brought nothing.
type Muted = (&'static str, Arc<AtomicUsize>);

/// From now on these watches go on, are taken up again and again, and bring nothing.
fn mute(proxied: &Proxied, watches: &[Muted]) {
    let watches = watches.to_vec();
    proxied.api.follow(move |call| match watches.iter().find(|(kind, _)| is(call, &format!("/{kind}?"))) {
        Some((_, begun)) => {
            begun.fetch_add(1, Ordering::AcqRel);
            Fault::Watch(WatchFault::Muted)
        }
        None => Fault::None,
    });
}

async fn until(happened: &AtomicBool, what: &str) {
    let deadline = Instant::now() + LIMIT;
    while !happened.load(Ordering::Acquire) {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is(call: &Call, kind: &str) -> bool {
    call.is_watch() && call.path.contains(kind)
}

#[tokio::test]
async fn i3_a_pod_whose_end_was_never_seen_loses_its_token_though_another_has_its_name() {
    let (cluster, _guard) = alone().await;
    let blindfold = Blindfold::new(cluster, "/pods?", &[]).await;
    let namespace = cluster.namespace("unseen-pods").await;
    let spec = |name: &str| PodSpec::new(&namespace, name, "shop-read", "1h");
    let (replaced, finished) = (cluster.deliver(&spec("web-0")).await, cluster.deliver(&spec("job")).await);
    let alive = cluster.deliver(&spec("alive")).await;

    blindfold.put_on().await;
    // Never seen: that it was gone.
    cluster.kubelet.remove(cluster.plane(), &replaced.pod).await.expect("removed");
    let successor = cluster.pod(&spec("web-0")).await;
    let init = cluster.init(&successor).await;
    // Never seen: that it ran again, and that it had finished.
    cluster.kubelet.report_end(cluster.plane(), &finished.pod, "Succeeded").await.expect("a status");
    cluster.kubelet.remove(cluster.plane(), &finished.pod).await.expect("removed");
    assert!(cluster.accepts(&replaced.token).await && cluster.accepts(&finished.token).await, "nobody has told");
    blindfold.take_off().await;

    for delivered in [&replaced, &finished] {
        let request = cluster.until_phase(&delivered.pod, Phase::Revoked).await;
        assert_eq!(reason(&request), "PodDeleted");
        assert!(!cluster.accepts(&delivered.token).await, "I3");
    }
    cluster.ended_well(&successor, &init).await;
    assert!(cluster.accepts(&token_of(&successor)).await && cluster.accepts(&alive.token).await, "I7");
    cluster.until_live(&namespace, 2).await;
}

#[tokio::test]
async fn i1_an_init_container_whose_run_was_never_seen_leaves_no_token_and_its_next_run_gets_one() {
    let (cluster, _guard) = alone().await;
    let blindfold = Blindfold::new(cluster, "/pods?", &[]).await;
    let namespace = cluster.namespace("unseen-runs").await;
    let waits = |request: &VaultTokenRequest| reason(request) == "InitContainerNotRunning";
    let mut begun = Vec::new();
    for name in ["failed", "past"] {
        let pod = cluster.pod(&PodSpec::new(&namespace, name, "shop-read", "1h")).await;
        let init = cluster.kubelet.start_init(cluster.plane(), cluster.vault(), &pod, &[]).await.expect("init starts");
        cluster.until(&pod, "wait for the container", waits).await;
        begun.push((pod, init));
    }
    let [(failed, _), (past, _)] = &begun[..] else { panic!("two pods") };

    blindfold.put_on().await;
    // Never seen: that they ran; nor by a look that happens to come in that moment.
    cluster.system.pause_operator();
    for (pod, init) in &begun {
        cluster.kubelet.report_initializing(cluster.plane(), pod).await.expect("a status");
        init.kill();
    }
    cluster.kubelet.report_init_failed(cluster.plane(), failed, "killed").await.expect("a status");
    cluster.kubelet.report_running(cluster.plane(), past).await.expect("a status");
    cluster.system.resume_operator();
    blindfold.take_off().await;

    let denied = cluster.until(past, "end", VaultTokenRequest::is_over).await;
    assert_eq!(reason(&denied), "InitContainerEnded");
    assert_eq!(denied.status.expect("a status").attempts, 0, "nothing was made");
    let again = cluster.init(failed).await;
    cluster.ended_well(failed, &again).await;
    let older = cluster.until(failed, "end", VaultTokenRequest::is_over).await;
    assert_eq!(reason(&older), "Superseded");
    assert!(cluster.accepts(&token_of(failed)).await);
    cluster.until_live(&namespace, 1).await;
}

#[tokio::test]
async fn i1_i2_a_request_that_was_replaced_unseen_by_another_of_its_name_leaves_no_token_behind() {
    let (cluster, _guard) = alone().await;
    let blindfold = Blindfold::new(cluster, "/vaulttokenrequests?", &[("VTO_SWEEP_INTERVAL", "10s")]).await;
    let namespace = cluster.namespace("unseen-requests").await;
    // One that came to nothing, and one whose token waits for somebody to take it: both are replaced under their names.
    let denied = cluster.pod(&PodSpec::new(&namespace, "denied", "", "1h")).await;
    let issued = cluster.pod(&PodSpec::new(&namespace, "issued", "shop-read", "1h")).await;
    for pod in [&denied, &issued] {
        cluster.kubelet.report_initializing(cluster.plane(), pod).await.expect("a status");
        cluster.ask(pod, |_| ()).await;
    }
    let released = |request: &VaultTokenRequest| request.phase() == Phase::Denied && request.finalizers().is_empty();
    let old = [cluster.until(&denied, "denial", released).await, cluster.until_phase(&issued, Phase::Issued).await];
    let orphan = old[1].status.as_ref().and_then(|status| status.token_accessor.clone()).expect("an accessor");

    blindfold.put_on().await;
    let mended = json!({ "metadata": { "annotations": { "vaultproject.io/policies": "shop-read" } } });
    let pods = cluster.pods(&namespace);
    pods.patch(&denied.name, &PatchParams::default(), &Patch::Merge(mended)).await.expect("an annotation");
    let requests = cluster.requests(&namespace);
    for request in &old {
        // Somebody who may do everything breaks the glass: it goes, with its token alive.
        let open = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        requests.patch(&request.name_any(), &PatchParams::default(), &open).await.expect("no finalizer");
        requests.delete(&request.name_any(), &DeleteParams::default()).await.expect("deleted");
    }
    let mut inits = Vec::new();
    for pod in [&denied, &issued] {
        inits.push((pod, cluster.init(pod).await));
    }
    for (pod, old) in [&denied, &issued].into_iter().zip(&old) {
        let new = cluster.until(pod, "another request of its name", |request| request.uid() != old.uid()).await;
        assert_eq!(new.name_any(), old.name_any());
    }
    blindfold.take_off().await;

    for (pod, init) in &inits {
        cluster.ended_well(pod, init).await;
        cluster.kubelet.report_running(cluster.plane(), pod).await.expect("a status");
        assert!(cluster.accepts(&token_of(pod)).await, "{}", pod.name);
    }
    // The sweep finds what nobody records any more.
    let deadline = Instant::now() + 4 * LIMIT;
    while cluster.lives(&orphan).await {
        assert!(Instant::now() < deadline, "I2: the token of the request that is gone lives on");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.until_live(&namespace, 2).await;
    for (pod, _) in &inits {
        assert!(cluster.accepts(&token_of(pod)).await, "I7: {}", pod.name);
    }
}

/// No watch brings anything any more, and nobody owes news: nothing was written.
#[tokio::test]
async fn i3_what_no_watch_brings_is_seen_when_all_is_listed_anew() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("listed-anew").await;
    let proxied = Proxied::new(cluster).await;
    proxied.start_with(cluster, &[("VTO_SWEEP_INTERVAL", "10s")]).await;
    cluster.until_healthy("this replica leads").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "gone", "shop-read", "24h")).await;
    let watches =
        ["vaulttokenrequests", "pods", "vaultpolicybindings", "namespaces"].map(|kind| (kind, Arc::default()));
    mute(&proxied, &watches);
    // The last watches that bring something come to their ends.
    let deadline = Instant::now() + 2 * LIMIT;
    while watches.iter().any(|(_, begun)| begun.load(Ordering::Acquire) == 0) {
        assert!(Instant::now() < deadline, "not all are muted: {watches:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    // A namespace, its binding, and a request in it.
    let unheard = cluster.namespace("unheard-of").await;
    let pod = cluster.pod(&PodSpec::new(&unheard, "web", "shop-read", "24h")).await;
    let init = cluster.init(&pod).await;
    // Six times as long as sweeps are apart.
    let deadline = Instant::now() + 4 * LIMIT;
    while cluster.lives(delivered.accessor()).await {
        assert!(Instant::now() < deadline, "I3: nobody has seen that the pod is gone\n{}", cluster.operator_said());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(reason(&cluster.until_phase(&delivered.pod, Phase::Revoked).await), "PodDeleted");
    assert!(init.wait(4 * LIMIT).await.expect("init ends").success(), "{}", init.termination_message());
    assert!(cluster.accepts(&token_of(&pod)).await);
}

/// No call breaks, and a new start alone would mend it.
#[tokio::test]
async fn watches_that_bring_nothing_of_what_has_changed_are_a_fault() {
    const FAULT: Duration = Duration::from_secs(300);
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("muted").await;
    let proxied = Proxied::new(cluster).await;
    proxied.start(cluster).await;
    cluster.until_healthy("this replica leads").await;
    // It is renewed soon, and that is written down.
    cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "20s")).await;
    // It says for how many namespaces it is, once there is one.
    let subject = json!({ "namespaces": ["muted-meanwhile"], "serviceAccounts": ["*"] });
    let spec = json!({ "subjects": [subject], "policies": ["shop-read"] });
    cluster.system.bind_policies("muted-meanwhile", &spec).await.expect("a binding");
    cluster.until_said(&["get", "vpb", "muted-meanwhile", "-o", "wide"], "NoNamespaceMatches").await;
    let until = async |what: &str, holds: &dyn Fn(StatusCode, &str) -> bool| {
        let deadline = Instant::now() + FAULT;
        loop {
            let (status, text) = cluster.system.probe_operator("healthz").await.expect("an answer").expect("it runs");
            if holds(status, &text) {
                return text;
            }
            assert!(Instant::now() < deadline, "no {what}: {status}: {text}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let mut muted =
        vec![("vaultpolicybindings", Arc::<AtomicUsize>::default()), ("vaulttokenrequests", Arc::default())];
    mute(&proxied, &muted);
    // The last watch that brings something comes to its end.
    until("muted watch of bindings", &|_, _| muted[0].1.load(Ordering::Acquire) > 0).await;
    cluster.kubectl(&["create", "namespace", "muted-meanwhile"]).await;
    let fault = |kind: &str| format!("the watch of {kind} does not bring what has changed for");
    while !muted.is_empty() {
        let named = |text: &str| muted.iter().position(|(kind, _)| text.starts_with(&fault(kind)));
        let is_told = |status, text: &str| status == StatusCode::SERVICE_UNAVAILABLE && named(text).is_some();
        let told = until("fault", &is_told).await;
        let (kind, watched) = muted.remove(named(&told).expect("one of them"));
        assert!(watched.load(Ordering::Acquire) > 3, "{kind}: it was taken up again");
        mute(&proxied, &muted);
    }
    let text = until("health", &|status, _| status == StatusCode::OK).await;
    assert_eq!(text, "ok\n", "they bring it");
}
