//! I6: what the init container accepts, and that a wrong push does not end its wait.

use crate::fault::{Proxied, Traps};
use crate::stranger::{post, push, wrapped};
use crate::support::{Cluster, LIMIT, alone, ended, name, shared, token_of};
use crate::sweep::ROLE_PATH;
use kube::api::{DeleteParams, Patch, PatchParams};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use testbed::kubelet::{INIT_PORT, Init, PodHandle, PodSpec};
use testbed::proxy::{Break, Fault, Proxy};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use vault_token_operator::api::{Phase, VaultTokenRequest};
use vault_token_operator::wire::PUSH_PATH;

/// A pod whose init container waits, and whose request the operator does not serve yet.
pub async fn waiting(cluster: &Cluster, name: &str) -> (PodHandle, Init) {
    let namespace = cluster.namespace(name).await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.kubelet.start_init(cluster.plane(), cluster.vault(), &pod, &[]).await.expect("init starts");
    cluster.until(&pod, "request", |request| request.phase() == Phase::Pending && request.status.is_some()).await;
    (pod, init)
}

async fn served_after_all(cluster: &Cluster, pod: &PodHandle, init: &Init) {
    assert_eq!(init.exit_status(), None, "a wrong push ended the wait: {}", cluster.init_log(pod));
    cluster.kubelet.report_initializing(cluster.plane(), pod).await.expect("a status");
    cluster.ended_well(pod, init).await;
    assert!(cluster.accepts(&token_of(pod)).await);
}

#[tokio::test]
async fn wrong_pushes_are_refused_and_the_wait_goes_on() {
    let cluster = shared().await;
    let (pod, init) = waiting(cluster, "wrong-push").await;
    let request = cluster.request(&pod, 0).await.expect("a request");
    let forged = wrapped(cluster, "auth/token/create", "default", "nobody").await;

    assert_eq!(post(&pod, "/", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(post(&pod, PUSH_PATH, "nonsense").await.0, StatusCode::BAD_REQUEST);
    let (status, text) = post(&pod, PUSH_PATH, "{\"sealed\": \"hvs.secret\"}").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(!text.contains("hvs.secret"), "I9: {text}");
    assert_eq!(post(&pod, PUSH_PATH, &"x".repeat(1_000_000)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let mut another = request.clone();
    another.metadata.uid = Some("another".to_owned());
    assert_eq!(post(&pod, PUSH_PATH, &push(&another, &forged)).await.0, StatusCode::CONFLICT);
    let mut unsealed: Value = serde_json::from_str(&push(&request, &forged)).expect("JSON");
    unsealed["sealed"] = json!("AAAA");
    assert_eq!(post(&pod, PUSH_PATH, &unsealed.to_string()).await.0, StatusCode::FORBIDDEN);
    // Sealed for another attempt than it says.
    let mut replayed: Value = serde_json::from_str(&push(&request, &forged)).expect("JSON");
    replayed["attempt"] = json!(2);
    assert_eq!(post(&pod, PUSH_PATH, &replayed.to_string()).await.0, StatusCode::FORBIDDEN);
    // Whoever may read requests knows the public key.
    let (status, text) = post(&pod, PUSH_PATH, &push(&request, &forged)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("does not record attempt 1 as issued"), "{text}");
    assert!(!pod.volume.join("token").exists());
    let url = format!("http://{}{PUSH_PATH}", SocketAddr::new(pod.address, INIT_PORT));
    let get = reqwest::Client::builder().no_proxy().build().expect("a client").request(Method::GET, url);
    assert_eq!(get.send().await.expect("an answer").status(), StatusCode::METHOD_NOT_ALLOWED);

    served_after_all(cluster, &pod, &init).await;
    // What is no push at all is not counted among them: nonsense, one that is no JSON, another request's, two that do not open, and
    // one that came before its record.
    cluster.until_described("pod", "web", "wrong-push", "refused 6 pushes that were not the operator's").await;
}

/// Ends the operator, and lets the pod's request record this accessor as that of its first attempt.
async fn record(cluster: &Cluster, pod: &PodHandle, accessor: &Value) -> VaultTokenRequest {
    cluster.system.kill_operator();
    let request = cluster.request(pod, 0).await.expect("a request");
    patch_status(cluster, &request, &json!({ "phase": "Issued", "attempts": 1, "tokenAccessor": accessor })).await;
    request
}

async fn patch_status(cluster: &Cluster, request: &VaultTokenRequest, status: &Value) {
    let namespace = request.metadata.namespace.as_deref().unwrap_or_default();
    let (params, patch) = (PatchParams::default(), Patch::Merge(json!({ "status": status })));
    cluster.requests(namespace).patch_status(&name(request), &params, &patch).await.expect("a status");
}

#[tokio::test]
async fn i6_a_forged_push_after_the_record_is_refused() {
    let (cluster, _guard) = alone().await;
    let (pod, init) = waiting(cluster, "forged-push").await;
    let request = record(cluster, &pod, &json!("of-another-token")).await;

    // Not by way of a token role at all: it stays unopened.
    let elsewhere = wrapped(cluster, "auth/token/create", "default", "nobody").await;
    let (_, text) = post(&pod, PUSH_PATH, &push(&request, &elsewhere)).await;
    assert!(text.contains("not made by creating a token as the operator says"), "{text}");
    let opened = json!({ "token": elsewhere["token"] });
    cluster.vault().must(Method::POST, "sys/wrapping/lookup", Some(&opened)).await.expect("it was opened");

    // By way of the operator's own token role: only the accessor tells.
    let forged = wrapped(cluster, ROLE_PATH, "shop-read", "nobody").await;
    let (_, text) = post(&pod, PUSH_PATH, &push(&request, &forged)).await;
    assert!(text.contains("another token than the one that the request records"), "{text}");
    assert!(text.contains("\"Lost\""), "{text}");
    let (_, text) = post(&pod, PUSH_PATH, &push(&request, &forged)).await;
    assert!(text.contains("was used before, or has expired"), "its own doing is no alarm: {text}");

    // One that somebody else has used by now.
    let used = wrapped(cluster, ROLE_PATH, "shop-read", "nobody").await;
    let body = json!({ "token": used["token"] });
    cluster.vault().must(Method::POST, "sys/wrapping/unwrap", Some(&body)).await.expect("unwrapped");
    let (_, text) = post(&pod, PUSH_PATH, &push(&request, &used)).await;
    assert!(text.contains("\"Intercepted\""), "{text}");

    // Once the attempt is given up: one that was here before is a replay, and one that was not may be the operator's that comes late.
    patch_status(cluster, &request, &json!({ "phase": "Revoking" })).await;
    let late = wrapped(cluster, ROLE_PATH, "shop-read", "nobody").await;
    for old in [&forged, &late] {
        let (_, text) = post(&pod, PUSH_PATH, &push(&request, old)).await;
        assert!(text.contains("does not record attempt 1 as issued"), "{text}");
    }

    let names: Vec<_> = std::fs::read_dir(&pod.volume).expect("a folder").collect();
    assert!(names.is_empty(), "a token was accepted that the request does not record: {names:?}");
    cluster.system.start_operator(&[]).await.expect("the operator starts");
    served_after_all(cluster, &pod, &init).await;
    // The one from elsewhere, that with another accessor, and its replay.
    cluster.until_described("pod", "web", "forged-push", "refused 3 pushes that were not the operator's").await;
}

/// Whoever knows the request can seal; there is one wrapping token in an attempt, and all else is told apart by it.
#[tokio::test]
async fn i6_pushes_beside_the_operators_own_are_refused_and_counted_once() {
    let (cluster, _guard) = alone().await;
    let (proxied, traps) = Proxied::trapped(cluster, |proxied| &proxied.vault).await;
    let namespace = cluster.namespace("beside").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let (way, listen) = Proxy::before_init(pod.address).await.expect("a proxy");
    // It is recorded, and the operator looks at the token before it pushes.
    traps.set(Method::POST, "auth/token/lookup-accessor", 0, Fault::Delay(Duration::from_secs(5)));
    let init = cluster.init_with(&pod, &[("VTO_LISTEN", &listen)]).await;
    let request = cluster.until_phase(&pod, Phase::Issued).await;
    traps.until_sprung().await;
    let invented = json!({ "token": "hvs.CAESIG-invented-and-never-there", "creation_path": ROLE_PATH });
    let (_, text) = post(&pod, PUSH_PATH, &push(&request, &invented)).await;
    assert!(text.contains("\"Intercepted\""), "{text}");
    // It takes the operator's own, and nobody hears of that.
    let answered = Traps::default();
    answered.set(Method::POST, PUSH_PATH, 0, Fault::After(Break::Silence));
    way.follow(answered.script());
    cluster.until_stored(&pod).await;
    let (_, text) = post(&pod, PUSH_PATH, &push(&request, &invented)).await;
    assert!(text.contains("another wrapping token of this attempt was opened"), "{text}");
    way.follow(|_| Fault::None);
    cluster.ended_well(&pod, &init).await;
    assert!(cluster.accepts(&token_of(&pod)).await);
    cluster.until_described("pod", "web", &namespace, "refused 2 pushes that were not the operator's").await;
    cluster.assert_counted(&["alarms_total{kind=\"foreign_push\"} 2"]).await;
    drop(proxied);
}

#[tokio::test]
async fn a_push_that_breaks_off_in_the_midst_of_the_unwrapping_loses_no_token() {
    let (cluster, _guard) = alone().await;
    let (pod, _init) = waiting(cluster, "push-breaks-off").await;
    let wrap = wrapped(cluster, ROLE_PATH, "shop-read", &pod.uid).await;
    let request = record(cluster, &pod, &wrap["wrapped_accessor"]).await;
    cluster.vault().pause();
    let url = format!("http://{}{PUSH_PATH}", SocketAddr::new(pod.address, INIT_PORT));
    let impatient =
        reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(500)).build().expect("a client");
    let sent = impatient.post(url).body(push(&request, &wrap)).send().await;
    cluster.vault().resume();
    assert!(sent.expect_err("it was answered").is_timeout());
    // The next push of the same token finds it stored.
    let deadline = Instant::now() + LIMIT;
    loop {
        let (_, text) = post(&pod, PUSH_PATH, &push(&request, &wrap)).await;
        match text.contains("\"Stored\"") {
            true => break,
            false => assert!(Instant::now() < deadline, "{text}"),
        }
    }
    assert!(cluster.accepts(&token_of(&pod)).await);
}

#[tokio::test]
async fn i6_a_token_that_was_made_for_another_pod_is_refused_though_the_request_records_it() {
    let (cluster, _guard) = alone().await;
    let (pod, init) = waiting(cluster, "another-pods").await;
    let wrap = wrapped(cluster, ROLE_PATH, "shop-read", "another").await;
    let request = record(cluster, &pod, &wrap["wrapped_accessor"]).await;
    let (_, text) = post(&pod, PUSH_PATH, &push(&request, &wrap)).await;
    assert!(text.contains("the token was made for another pod"), "{text}");
    assert!(!pod.volume.join("token").exists());
    // Whoever gets no token has nobody to tell it to, and says it in its last words.
    let requests = cluster.requests(&pod.namespace);
    let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    requests.patch(&name(&request), &PatchParams::default(), &free).await.expect("released");
    requests.delete(&name(&request), &DeleteParams::default()).await.expect("deleted");
    assert!(!ended(&init).await.success());
    let last = init.termination_message();
    assert!(last.ends_with("; 1 pushes were refused that were not the operator's"), "{last}");
}

#[tokio::test]
async fn slow_and_idle_peers_do_not_keep_the_operator_out() {
    let cluster = shared().await;
    let (pod, init) = waiting(cluster, "slow-push").await;
    let peer = SocketAddr::new(pod.address, INIT_PORT);
    // One takes every place that it gets, again and again; others take the rest once, and hold it while they can.
    let flood = tokio::spawn(async move {
        let mut held = VecDeque::new();
        loop {
            match idle(peer, 200).await {
                Some(stream) => held.push_back(stream),
                None => tokio::task::yield_now().await,
            }
            if held.len() > 100 {
                held.pop_front();
            }
        }
    });
    let mut held = Vec::new();
    for number in 0..80 {
        held.extend(idle(peer, 201 + number % 16).await);
    }
    assert!(held.len() > 64, "{} connections", held.len());
    served_after_all(cluster, &pod, &init).await;
    flood.abort();
}

#[tokio::test]
async fn pods_that_take_the_push_and_say_nothing_hold_up_nobody_else() {
    let (cluster, _guard) = alone().await;
    let mut silent = Vec::new();
    for namespace in ["silent-1", "silent-2"] {
        let namespace = cluster.namespace(namespace).await;
        let calm = cluster.deliver(&PodSpec::new(&namespace, "calm", "shop-read", "1h")).await;
        for number in 0..20 {
            let pod = cluster.pod(&PodSpec::new(&namespace, &format!("silent-{number}"), "shop-read", "1h")).await;
            // The kernel takes the connection, and nobody ever reads from it.
            let listener = TcpListener::bind((pod.address, INIT_PORT)).await.expect("an address");
            cluster.ask(&pod, |_| ()).await;
            cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
            silent.push((pod, listener));
        }
        // More of them are asked than a namespace has places; the end of a pod among them is seen to all the same.
        cluster.kubelet.remove(cluster.plane(), &calm.pod).await.expect("removed");
        cluster.until_phase(&calm.pod, Phase::Revoked).await;
    }
    let namespace = cluster.namespace("others").await;
    let others = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    assert!(cluster.accepts(&others.token).await);
    for (pod, _listener) in &silent {
        cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
    }
}

/// A connection from an address of its own, on which a request is begun and not ended.
async fn idle(peer: SocketAddr, host: u8) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new([127, 0, 0, host].into(), 0)).expect("bound");
    let mut stream = tokio::time::timeout(Duration::from_millis(200), socket.connect(peer)).await.ok()?.ok()?;
    stream.write_all(b"POST ").await.ok()?;
    Some(stream)
}
