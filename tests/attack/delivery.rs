//! Somebody between the operator and the init container, or in the place of one of them.

use crate::arena::{Arena, is_refused, note};
use crate::stranger::{Rogue, Taken, place, post, push, wrapped};
use crate::support::{LIMIT, by_status, reason, request_for, token_of};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testbed::kubelet::{INIT_PORT, Init, PodHandle, PodSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Mutex;
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};
use vault_token_operator::seal::{OneTimeKey, Receipt, Subject};
use vault_token_operator::wire::{Answer, Outcome, PUSH_PATH, Push};

/// Connections of whoever floods: more than an init container has places.
const FLOOD: usize = 600;

/// What somebody can read out of a push without the request's key.
fn read_off(sealed: &str) -> Option<SecretString> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(sealed).ok()?;
    let parcel: Value = serde_json::from_slice(&bytes).ok()?;
    parcel["wrappingToken"].as_str().map(|token| token.to_owned().into())
}

/// Whether somebody has a living token of the pod's who has read this.
async fn taken(arena: &Arena, sealed: &str) -> bool {
    let Some(wrapping) = read_off(sealed) else { return false };
    arena.unwraps(&wrapping).await
}

/// A pod at whose address somebody else listens, and the push that came to him.
async fn pushed(arena: &Arena) -> (PodHandle, Rogue, Taken) {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.pod(&namespace, "web", "shop-read").await;
    let listener = Rogue::at(&pod).await;
    arena.cluster.ask(&pod, |_| ()).await;
    arena.report(&pod).await;
    let taken = listener.takes().await.expect("a push");
    (pod, listener, taken)
}

pub async fn a_push_read_on_its_way(arena: &Arena) -> bool {
    let (_, _listener, Taken { push, .. }) = pushed(arena).await;
    taken(arena, &push.sealed).await
}

pub async fn a_status_read_by_others(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    arena.cluster.ask(&pod, by_status).await;
    let sealed = |request: &VaultTokenRequest| request.status.as_ref().and_then(|status| status.sealed_token.clone());
    let request = arena.until(&pod, "offer", |request| sealed(request).is_some()).await;
    taken(arena, &sealed(&request).expect("an offer")).await
}

/// The next push about a pod's first request; `None` once that is refused.
async fn takes_unless_refused(arena: &Arena, listener: &Rogue, pod: &PodHandle) -> Option<Taken> {
    tokio::select! {
        taken = listener.take() => Some(taken),
        _ = arena.until(pod, "push", is_refused) => None,
    }
}

/// An init container that waits at its address, while the kubelet reports another one: so somebody can come between.
struct Detour {
    pod: PodHandle,
    init: Init,
    between: Rogue,
}

async fn detour(arena: &Arena) -> Detour {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.pod(&namespace, "web", "shop-read").await;
    let decoy = PodHandle { address: arena.pod(&namespace, "decoy", "").await.address, ..pod.clone() };
    let between = Rogue::at(&decoy).await;
    let init = arena.init(&pod, &[]).await;
    arena.report(&decoy).await;
    Detour { pod, init, between }
}

pub async fn a_token_of_the_attackers_own_planted(arena: &Arena) -> bool {
    planted(arena, "auth/token/create", "planted", |_| "the attacker's".to_owned()).await
}

pub async fn a_token_by_way_of_the_operators_own_role_planted(arena: &Arena) -> bool {
    planted(arena, "auth/token/create/vault-token-operator-main", "shop-read", |pod| pod.uid.clone()).await
}

/// Whether a pod has the token in the end that somebody else has made and sealed for it.
async fn planted(arena: &Arena, path: &str, policy: &str, pod_uid: fn(&PodHandle) -> String) -> bool {
    let Detour { pod, init, between } = detour(arena).await;
    let _held = between.takes().await.expect("a push");
    let request = arena.request(&pod).await.expect("a request");
    let wrapping = wrapped(&arena.cluster, path, policy, &pod_uid(&pod)).await;
    let (_, said) = post(&pod, PUSH_PATH, &push(&request, &wrapping)).await;
    note(&said);
    let planted = pod.volume.join("token").exists();
    assert!(planted || init.exit_status().is_none(), "the wait goes on");
    planted
}

/// A push that was held back, and is passed off as a later one: the pod would have a token that no request records.
pub async fn an_old_push_for_a_new_one(arena: &Arena) -> bool {
    let Detour { pod, between, init: _runs } = detour(arena).await;
    let Taken { push: old, stream, .. } = between.takes().await.expect("a push");
    drop((stream, between));
    // The operator gives the attempt up when it has lost what it had in hand, long before the wrapping token expires.
    arena.restart(&[]).await;
    let second = |request: &VaultTokenRequest| {
        request.phase() == Phase::Issued && request.status.as_ref().is_some_and(|status| status.attempts > old.attempt)
    };
    let request = arena.until(&pod, "second attempt", second).await;
    let attempt = request.status.map(|status| status.attempts).unwrap_or_default();
    let replayed = Push { attempt, ..old };
    let (status, said) = post(&pod, PUSH_PATH, &serde_json::to_string(&replayed).expect("JSON")).await;
    note(&format!("{status}: {said}"));
    pod.volume.join("token").exists() && arena.cluster.accepts(&token_of(&pod)).await
}

pub async fn an_answer_that_confirms_what_was_not_taken(arena: &Arena) -> bool {
    races(arena, Outcome::Stored, |request| request.phase() == Phase::Delivered).await
}

pub async fn a_false_alarm(arena: &Arena) -> bool {
    races(arena, Outcome::Intercepted, VaultTokenRequest::is_compromised).await
}

/// A listener that is faster than the init container, which waits beside him: whether the operator believes his answer. If not, the
/// next push finds the init container, which is none the worse for it.
async fn races(arena: &Arena, outcome: Outcome, is_believed: fn(&VaultTokenRequest) -> bool) -> bool {
    let Detour { pod, init, between } = detour(arena).await;
    answer_without_receipt(between.takes().await.expect("a push"), outcome).await;
    let told = |request: &VaultTokenRequest| is_believed(request) || reason(request) == "PushFailed";
    let believed = is_believed(&arena.until(&pod, "word of the answer", told).await);
    if believed {
        assert!(!pod.volume.join("token").exists(), "the init container has its token");
        init.kill();
        init.wait(LIMIT).await.expect("it ends");
    } else {
        let next = between.takes().await.expect("another push");
        let (status, answer) = post(&pod, PUSH_PATH, &serde_json::to_string(&next.push).expect("JSON")).await;
        next.answer(&status.to_string(), &answer).await;
        arena.cluster.ended_well(&pod, &init).await;
        assert!(arena.cluster.accepts(&token_of(&pod)).await);
    }
    believed
}

async fn answer_without_receipt(taken: Taken, outcome: Outcome) {
    let attempt = taken.push.attempt;
    let answer = Answer { attempt, outcome, message: "as said".to_owned(), refused: 0, mac: "AAAA".to_owned() };
    taken.answer("200 OK", &serde_json::to_string(&answer).expect("JSON")).await;
}

/// An init container that is played here, because its key must be known to whoever breaks the seal: its wrapping token is used by
/// somebody else, and it says so. Gives the pod, the stolen token, and the request once it is clear what follows.
async fn intercepted(arena: &Arena) -> (PodHandle, SecretString, VaultTokenRequest) {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.pod(&namespace, "web", "shop-read").await;
    let listener = Rogue::at(&pod).await;
    let key = OneTimeKey::generate().expect("a key");
    arena.cluster.ask(&pod, |request| request["spec"]["publicKey"] = json!(key.public())).await;
    arena.report(&pod).await;
    let request_uid = arena.request(&pod).await.and_then(|request| request.metadata.uid).expect("a UID");
    let stolen = Mutex::new(None);
    // Vault may show a wrapping token for a moment more that is used, and the operator asks again then.
    let answers = async {
        loop {
            let Some(taken) = listener.takes().await else { continue };
            let attempt = taken.push.attempt;
            let subject = Subject { request_uid: &request_uid, pod_uid: &pod.uid, attempt };
            let parcel = key.open(&taken.push.sealed, subject).expect("it opens");
            let mut stolen = stolen.lock().await;
            if stolen.is_none() {
                *stolen = Some(arena.unwrap(&parcel.wrapping_token).await.expect("a token"));
            }
            let receipt = Receipt::decode(parcel.receipt.expose_secret()).expect("a receipt");
            let (outcome, message) = (Outcome::Intercepted, String::new());
            let plain = Answer { attempt, outcome, message, refused: 0, mac: String::new() };
            taken.answer("200 OK", &serde_json::to_string(&receipt.sign(subject, plain)).expect("JSON")).await;
        }
    };
    let follows = |request: &VaultTokenRequest| {
        request.is_compromised() || request.status.as_ref().is_some_and(|status| status.attempts > 1)
    };
    let request = tokio::select! {
        request = arena.until(&pod, "what follows", follows) => request,
        () = answers => unreachable!("it answers for ever"),
    };
    let stolen = stolen.into_inner().expect("a token");
    (pod, stolen, request)
}

/// Whoever finds a wrapping token that nobody has used, once the operator has given its attempt up, or after a while.
pub async fn a_wrapping_token_found_later(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let asked = arena.ask(&who, &pod, |_| ()).await.expect("its own request");
    let parcel = arena.offered(&asked).await.expect("an offer");
    let given_up = async || {
        let request = arena.request(&pod).await.expect("a request");
        request.is_over() || request.status.is_some_and(|status| status.attempts > 1)
    };
    note(&format!("given up: {}", arena.comes(given_up).await));
    // Whether it opens at all: that its token would be dead by then is another matter.
    arena.unwrap(&parcel.wrapping_token).await.is_some()
}

/// Whoever got a wrapping token has used it, and wants that nobody hears of it.
pub async fn a_wrapping_token_used_first_and_unnoticed(arena: &Arena) -> bool {
    let (_, stolen, request) = intercepted(arena).await;
    assert!(arena.comes(async || !arena.cluster.accepts(&stolen).await).await, "the token is revoked in any case");
    !request.is_compromised()
}

/// Whoever could use one wrapping token of a pod, and waits for the next.
pub async fn a_second_token_for_whoever_has_intercepted_one(arena: &Arena) -> bool {
    let (pod, _, request) = intercepted(arena).await;
    assert!(request.is_compromised(), "the alarm");
    let who = arena.who(&pod.namespace, Some(&pod)).await;
    let second = |request: &mut Value| request["metadata"]["name"] = json!(request_name("web", &pod.uid, 1));
    let asked = arena.ask(&who, &pod, second).await.expect("its own request");
    arena.take(&asked).await.is_some()
}

/// A pod that is gone before it was reached, and another one with its address.
pub async fn the_next_owner_of_a_pods_address(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    // Nobody listens at first: the operator tries again.
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    arena.cluster.ask(&victim, |_| ()).await;
    let tried = |request: &VaultTokenRequest| reason(request) == "PushFailed";
    arena.until(&victim, "push that nobody takes", tried).await;
    arena.remove(&victim).await;
    let attacker = PodHandle { address: victim.address, ..arena.pod(&namespace, "attacker", "").await };
    let listener = Rogue::at(&attacker).await;
    arena.report(&attacker).await;
    match takes_unless_refused(arena, &listener, &victim).await {
        Some(Taken { push, .. }) => taken(arena, &push.sealed).await,
        None => false,
    }
}

/// A pod that shares its address with its node, where others listen.
pub async fn a_listener_on_the_node_of_a_pod(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let patch = json!({ "spec": { "hostNetwork": true } });
    let pod = arena.pod_like(&PodSpec { patch, ..PodSpec::new(&namespace, "web", "shop-read", "1h") }).await;
    let listener = Rogue::at(&pod).await;
    arena.cluster.ask(&pod, |_| ()).await;
    arena.report(&pod).await;
    match takes_unless_refused(arena, &listener, &pod).await {
        Some(Taken { push, .. }) => taken(arena, &push.sealed).await,
        None => false,
    }
}

/// A pod whose status names an address of something else, such as a cloud's metadata service.
pub async fn an_address_of_something_else(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.pod(&namespace, "web", "shop-read").await;
    // No pod's by `--pod-network`, which names the lower half of these.
    let other = match pod.address {
        std::net::IpAddr::V4(address) => {
            let [_, b, c, d] = address.octets();
            std::net::Ipv4Addr::new(127, b | 128, c, d).into()
        }
        address => address,
    };
    let listener = TcpListener::bind((other, INIT_PORT)).await.expect("an address");
    arena.cluster.ask(&pod, |_| ()).await;
    arena.report(&PodHandle { address: other, ..pod.clone() }).await;
    tokio::select! {
        _ = listener.accept() => true,
        _ = arena.until(&pod, "call", is_refused) => false,
    }
}

pub async fn a_redirect_to_somebody_else(arena: &Arena) -> bool {
    let (pod, _listener, taken) = pushed(arena).await;
    let elsewhere = arena.pod(&pod.namespace, "elsewhere", "").await;
    let other = Rogue::at(&elsewhere).await;
    let head = format!("307 Temporary Redirect\r\nlocation: http://{}{PUSH_PATH}", place(&elsewhere));
    taken.answer(&head, "").await;
    tokio::select! {
        came = other.takes() => came.is_some(),
        request = arena.until(&pod, "word of the answer", |request| reason(request) == "PushFailed") => {
            note(&crate::arena::message(&request));
            false
        }
    }
}

/// How many bytes a pod can make the operator take for one answer.
pub async fn an_answer_without_end(arena: &Arena) -> bool {
    let (_, _listener, Taken { mut stream, .. }) = pushed(arena).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n").await.expect("written");
    let (chunk, mut written) = ([b' '; 64 * 1024], 0);
    // What the kernel's buffers take on both sides is far less.
    while written < 64 << 20 {
        match tokio::time::timeout(Duration::from_secs(2), stream.write(&chunk)).await {
            Ok(Ok(count)) if count > 0 => written += count,
            _ => break,
        }
    }
    note(&format!("{written} bytes"));
    written >= 64 << 20
}

/// How long a pod can keep the operator waiting with one byte a second.
pub async fn an_answer_that_never_comes_to_its_end(arena: &Arena) -> bool {
    let (_, _listener, Taken { mut stream, .. }) = pushed(arena).await;
    let begun = Instant::now();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n").await.expect("written");
    let mut byte = [0];
    while begun.elapsed() < Duration::from_secs(40) {
        let second = Duration::from_secs(1);
        // The operator hangs up when it has waited long enough.
        if stream.write_all(b" ").await.is_err()
            || matches!(tokio::time::timeout(second, stream.read(&mut byte)).await, Ok(Ok(0) | Err(_)))
        {
            assert!(begun.elapsed() > Duration::from_secs(30), "it hung up for another reason");
            return false;
        }
    }
    true
}

pub async fn idle_connections_in_every_place(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.pod(&namespace, "web", "shop-read").await;
    let init = arena.init(&pod, &[]).await;
    let waits = |request: &VaultTokenRequest| reason(request) == "InitContainerNotRunning";
    arena.until(&pod, "wait", waits).await;
    let place = place(&pod);
    // One address, which takes whatever place there is, as often as it is put out.
    let tried = Arc::new(AtomicUsize::new(0));
    let flood: Vec<_> = (0..FLOOD)
        .map(|_| {
            let tried = tried.clone();
            tokio::spawn(async move {
                loop {
                    // From an address that is not the operator's.
                    let socket = TcpSocket::new_v4().expect("a socket");
                    socket.bind(([127, 0, 0, 201], 0).into()).expect("bound");
                    if let Ok(mut stream) = socket.connect(place).await {
                        let mut byte = [0];
                        // Something of a request, so that it is worth waiting for the rest.
                        let begun = stream.write_all(b"POST ").await;
                        tried.fetch_add(1, Ordering::Relaxed);
                        let _ended = (begun, stream.read(&mut byte).await);
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            })
        })
        .collect();
    // As many as the kernel lets wait may wait, beside those that have a place.
    assert!(arena.comes(async || tried.load(Ordering::Relaxed) >= FLOOD / 2).await, "the flood does not come");
    arena.report(&pod).await;
    let served = arena.comes(async || init.exit_status().is_some()).await;
    flood.iter().for_each(tokio::task::JoinHandle::abort);
    if served {
        assert!(arena.cluster.accepts(&token_of(&pod)).await);
    }
    !served
}

/// Whoever may create requests by hand names a key of his own; nothing but the network is between him and the push.
pub async fn a_key_of_the_attackers_own_in_a_request_by_hand(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    let attacker = arena.pod(&namespace, "attacker", "").await;
    let key = OneTimeKey::generate().expect("a key");
    let who = arena.who(&namespace, Some(&attacker)).await;
    let mut request = request_for(&victim, 0);
    request["spec"]["publicKey"] = json!(key.public());
    // He reads along between the operator and the pod.
    let between = Rogue::at(&victim).await;
    if !arena.let_in("created\n", async || who.creates(&request).await).await {
        return false;
    }
    let request = arena.request(&victim).await.expect("a request");
    let (request_uid, pod_uid) = (request.metadata.uid.as_deref().expect("a UID"), victim.uid.as_str());
    let Some(Taken { push, .. }) = takes_unless_refused(arena, &between, &victim).await else { return false };
    let parcel = key.open(&push.sealed, Subject { request_uid, pod_uid, attempt: push.attempt }).expect("it opens");
    arena.unwraps(&parcel.wrapping_token).await
}
