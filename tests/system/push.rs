//! I6: what the init container accepts, and that a wrong push does not end its wait.

use crate::support::{Cluster, shared, token_of};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use testbed::kubelet::{INIT_PORT, Init, PodHandle, PodSpec};
use vault_token_operator::api::Phase;
use vault_token_operator::wire::PUSH_PATH;

/// A pod whose init container waits, and whose request the operator does not serve yet.
async fn waiting(cluster: &Cluster, name: &str) -> (PodHandle, Init) {
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

async fn post(pod: &PodHandle, path: &str, body: &str) -> (StatusCode, String) {
    let url = format!("http://{}{path}", SocketAddr::new(pod.address, INIT_PORT));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.post(url).body(body.to_owned()).send().await.expect("an answer");
    (answer.status(), answer.text().await.expect("a text"))
}

/// A wrapping token for a token that an attacker made.
async fn forged(cluster: &Cluster) -> Value {
    let address = format!("{}/v1/auth/token/create", cluster.vault().address());
    let pem = std::fs::read(cluster.vault().ca_path()).expect("a file");
    let authority = reqwest::Certificate::from_pem(&pem).expect("a certificate");
    let client = reqwest::Client::builder().tls_certs_only([authority]).no_proxy().build().expect("a client");
    let request = client
        .post(address)
        .header("X-Vault-Token", cluster.vault().root_token().expose_secret())
        .header("X-Vault-Wrap-TTL", "90s")
        .json(&json!({ "policies": ["default"], "ttl": "1h" }));
    request.send().await.expect("an answer").json::<Value>().await.expect("JSON")["wrap_info"].clone()
}

#[tokio::test]
async fn wrong_pushes_are_refused_and_the_wait_goes_on() {
    let (cluster, _guard) = shared().await;
    let (pod, init) = waiting(cluster, "wrong-push").await;
    let uid = cluster.request(&pod, 0).await.expect("a request").metadata.uid.expect("a UID");
    let push = |uid: &str, wrap: &Value| {
        json!({ "requestUID": uid, "attempt": 1, "wrappingToken": wrap["token"], "creationPath": wrap["creation_path"] })
            .to_string()
    };
    let forged = forged(cluster).await;

    assert_eq!(post(&pod, "/", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(post(&pod, PUSH_PATH, "nonsense").await.0, StatusCode::BAD_REQUEST);
    let (status, text) = post(&pod, PUSH_PATH, "{\"wrappingToken\": \"hvs.secret\"}").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(!text.contains("hvs.secret"), "I9: {text}");
    assert_eq!(post(&pod, PUSH_PATH, &"x".repeat(1_000_000)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(post(&pod, PUSH_PATH, &push("another", &forged)).await.0, StatusCode::CONFLICT);
    let (status, text) = post(&pod, PUSH_PATH, &push(&uid, &forged)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("does not record attempt 1 as issued"), "{text}");
    assert!(!pod.volume.join("token").exists());
    let url = format!("http://{}{PUSH_PATH}", SocketAddr::new(pod.address, INIT_PORT));
    let get = reqwest::Client::builder().no_proxy().build().expect("a client").request(Method::GET, url);
    assert_eq!(get.send().await.expect("an answer").status(), StatusCode::METHOD_NOT_ALLOWED);

    served_after_all(cluster, &pod, &init).await;
}

#[tokio::test]
async fn i6_a_forged_push_after_the_record_is_refused() {
    let (cluster, _guard) = shared().await;
    let (pod, init) = waiting(cluster, "forged-push").await;
    let request = cluster.request(&pod, 0).await.expect("a request");
    let forged = forged(cluster).await;
    // The status as it is between record and push: the record is another token's.
    let recorded = json!({ "status": { "phase": "Issued", "attempts": 1, "tokenAccessor": "of-another-token" } });
    // While the pod does not initialize by its status, the operator leaves the request alone for a moment.
    let push = json!({ "requestUID": request.metadata.uid, "attempt": 1, "wrappingToken": forged["token"],
        "creationPath": forged["creation_path"] });
    let patch = kube::api::Patch::Merge(&recorded);
    let params = kube::api::PatchParams::default();
    let name = crate::support::name(&request);
    cluster.requests(&pod.namespace).patch_status(&name, &params, &patch).await.expect("a status");
    let (_, text) = post(&pod, PUSH_PATH, &push.to_string()).await;
    assert!(!text.contains("stored"), "{text}");
    assert!(!pod.volume.join("token").exists(), "a token was accepted that the request does not record");
    served_after_all(cluster, &pod, &init).await;
}

#[tokio::test]
async fn slow_and_idle_peers_do_not_keep_the_operator_out() {
    let (cluster, _guard) = shared().await;
    let (pod, init) = waiting(cluster, "slow-push").await;
    // More than the connections that are taken at a time: each gives its place up after two seconds.
    let mut idle: Vec<TcpStream> =
        (0..80).map(|_| TcpStream::connect(SocketAddr::new(pod.address, INIT_PORT)).expect("connected")).collect();
    for stream in &mut idle {
        stream.write_all(b"POST ").expect("written");
    }
    served_after_all(cluster, &pod, &init).await;
    for mut stream in idle {
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        let mut text = Vec::new();
        // The process has ended, and with it every connection.
        let _ = stream.read_to_end(&mut text);
        assert!(!String::from_utf8_lossy(&text).contains("200 OK"));
    }
}
