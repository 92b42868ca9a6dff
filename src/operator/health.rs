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
    synced: Arc<AtomicBool>,
    vault: Session,
}

impl Health {
    /// Not ready yet.
    pub fn new(vault: Session) -> Self {
        Self { synced: Arc::default(), vault }
    }

    /// The requests were listed and are watched.
    pub fn synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        let vault = match self.vault.token() {
            Ok(_) => "logged in".to_owned(),
            Err(error) => error.to_string(),
        };
        match (path, self.synced.load(Ordering::Acquire)) {
            ("/healthz", _) => (StatusCode::OK, format!("ok\nvault: {vault}\n")),
            ("/readyz", true) => (StatusCode::OK, format!("ok\nvault: {vault}\n")),
            ("/readyz", false) => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("the requests are not listed yet\nvault: {vault}\n"))
            }
            _ => (StatusCode::NOT_FOUND, "there are /healthz and /readyz\n".to_owned()),
        }
    }
}

/// Serves the endpoints for ever.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(address: SocketAddr, health: Health) -> Result<(), String> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address} (--health-address): {error}"))?;
    let second = Duration::from_secs(1);
    let limits = Limits { connections: 16, receive: second, exchange: 5 * second, body: 1024 };
    serve_http(listener, limits, move |request| {
        let (status, text) = health.answer(request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        std::future::ready(response)
    })
    .await;
    Ok(())
}
