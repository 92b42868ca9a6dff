//! `/healthz` and `/readyz`. Ready means that the watches stand: Vault being away does not make the operator unready,
//! since restarting it would not help; the answer says so in words.

use crate::http::{Limits, serve as serve_http};
use crate::vault::Session;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// What the endpoints tell.
#[derive(Clone)]
pub struct Health {
    requests: Arc<AtomicBool>,
    pods: Arc<AtomicBool>,
    vault: Session,
}

impl Health {
    /// Not ready yet.
    pub fn new(vault: Session) -> Self {
        Self { requests: Arc::default(), pods: Arc::default(), vault }
    }

    /// The requests were listed and are watched.
    pub fn requests_synced(&self) {
        self.requests.store(true, Ordering::Release);
    }

    /// The pods were listed and are watched, or that has broken.
    pub fn pods_synced(&self, synced: bool) {
        self.pods.store(synced, Ordering::Release);
    }

    /// Whether the requests were listed.
    pub fn has_requests(&self) -> bool {
        self.requests.load(Ordering::Acquire)
    }

    /// What is not there yet.
    fn missing(&self) -> Option<&'static str> {
        if !self.has_requests() {
            Some("the requests are not listed yet")
        } else if !self.pods.load(Ordering::Acquire) {
            Some("the pods are not watched")
        } else {
            None
        }
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        let vault = match self.vault.token() {
            Ok(_) => "logged in".to_owned(),
            Err(error) => error.to_string(),
        };
        match (path, self.missing()) {
            ("/healthz", _) | ("/readyz", None) => (StatusCode::OK, format!("ok\nvault: {vault}\n")),
            ("/readyz", Some(missing)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\nvault: {vault}\n")),
            _ => (StatusCode::NOT_FOUND, "there are /healthz and /readyz\n".to_owned()),
        }
    }
}

/// Takes the address. First of all, so that a wrong one is told before anything has begun.
///
/// # Errors
/// When the address cannot be had.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    crate::http::listen(address)
        .await
        .map_err(|error| format!("cannot listen on {address} (--health-address): {error}"))
}

/// Serves the endpoints for ever.
pub async fn serve(listener: TcpListener, health: Health) {
    let second = Duration::from_secs(1);
    let limits = Limits { connections: 16, per_peer: 8, receive: second, exchange: 5 * second, body: 1024 };
    serve_http(listener, limits, move |request| {
        let (status, text) = health.answer(request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        std::future::ready(response)
    })
    .await;
}
