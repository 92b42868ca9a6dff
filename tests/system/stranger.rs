//! What anybody can do who reaches the network of pods: listen at a pod's address, or send an init container something.

use crate::support::{Cluster, LIMIT};
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::net::SocketAddr;
use testbed::kubelet::{INIT_PORT, PodHandle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use vault_token_operator::api::VaultTokenRequest;
use vault_token_operator::seal::{Receipt, Subject, seal};
use vault_token_operator::wire::{Parcel, Push};

/// A listener at a pod's address.
pub struct Rogue(TcpListener);

/// A push that came to him, with all that was sent, and the connection that waits for an answer to it.
pub struct Taken {
    pub push: Push,
    pub raw: String,
    pub stream: TcpStream,
}

/// Where a pod's init container listens.
pub fn place(pod: &PodHandle) -> SocketAddr {
    SocketAddr::new(pod.address, INIT_PORT)
}

impl Rogue {
    pub async fn at(pod: &PodHandle) -> Self {
        Self(TcpListener::bind(place(pod)).await.expect("the pod's address"))
    }

    /// The next push; `None` if none comes.
    pub async fn takes(&self) -> Option<Taken> {
        tokio::time::timeout(LIMIT, self.take()).await.ok()
    }

    /// The next push, whenever it comes.
    pub async fn take(&self) -> Taken {
        let (mut stream, _) = self.0.accept().await.expect("a connection");
        let mut bytes = Vec::new();
        loop {
            assert!(stream.read_buf(&mut bytes).await.expect("bytes") > 0, "the push ended early");
            let raw = String::from_utf8_lossy(&bytes);
            let body = raw.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
            if let Ok(push) = serde_json::from_str::<Push>(body) {
                return Taken { push, raw: raw.into_owned(), stream };
            }
        }
    }
}

impl Taken {
    /// Answers with a status line, headers and a body.
    pub async fn answer(mut self, head: &str, body: &str) {
        let text = format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(text.as_bytes()).await.expect("written");
    }
}

/// Posts something to an init container.
pub async fn post(pod: &PodHandle, path: &str, body: &str) -> (StatusCode, String) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let sent = client.post(format!("http://{}{path}", place(pod))).body(body.to_owned()).send();
    let answer = sent.await.expect("an answer");
    (answer.status(), answer.text().await.expect("a text"))
}

/// A wrapping token for a token that somebody else made at this path, with the UID of a pod in its metadata.
pub async fn wrapped(cluster: &Cluster, path: &str, policy: &str, pod_uid: &str) -> Value {
    let address = format!("{}/v1/{path}", cluster.vault().address());
    let pem = std::fs::read(cluster.vault().ca_path()).expect("a file");
    let authority = reqwest::Certificate::from_pem(&pem).expect("a certificate");
    let client = reqwest::Client::builder().tls_certs_only([authority]).no_proxy().build().expect("a client");
    let request = client
        .post(address)
        .header("X-Vault-Token", cluster.vault().root_token().expose_secret())
        .header("X-Vault-Wrap-TTL", "90s")
        .json(&json!({ "policies": [policy], "ttl": "1h", "meta": { "pod_uid": pod_uid } }));
    request.send().await.expect("an answer").json::<Value>().await.expect("JSON")["wrap_info"].clone()
}

/// A push of a request's first attempt as the operator makes it, which anybody can make who knows the request; the receipt is his own.
pub fn push(request: &VaultTokenRequest, wrap: &Value) -> String {
    let text = |field: &str| wrap[field].as_str().expect("a text").to_owned();
    let receipt = Receipt::generate().expect("a receipt").encoded();
    let parcel =
        Parcel { wrapping_token: text("token").into(), creation_path: text("creation_path"), receipt: receipt.into() };
    let request_uid = request.metadata.uid.as_deref().expect("a UID");
    let subject = Subject { request_uid, pod_uid: &request.spec.pod_uid, attempt: 1 };
    let sealed = seal(&request.spec.public_key, subject, &parcel).expect("sealed");
    json!({ "requestUID": request_uid, "attempt": 1, "sealed": sealed }).to_string()
}
