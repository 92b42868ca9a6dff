//! Handing a wrapping token to the init container: one bounded HTTP exchange with the pod's address.

use crate::text::one_line;
use crate::wire::{Answer, MAX_MESSAGE, PUSH_PATH, Push};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// No exchange takes longer. The init container asks the API server once and Vault twice before it answers, each with
/// ten seconds at most; to hang up on it in the midst of that would waste the token.
const PUSH_TIMEOUT: Duration = Duration::from_secs(35);

/// No connection to a pod takes longer to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends pushes.
pub struct Pusher(reqwest::Client);

impl Pusher {
    /// Prepares the HTTP client.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn new() -> Result<Self, String> {
        reqwest::Client::builder()
            // It speaks plain HTTP: no certificate authorities are needed, and the image has none.
            .tls_certs_only([])
            // Nobody but the address that the API server names gets the wrapping token.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(PUSH_TIMEOUT)
            // The next pod with this address is another one: no connection outlives its push.
            .pool_max_idle_per_host(0)
            .build()
            .map(Self)
            .map_err(|error| format!("cannot set up the HTTP client for pods: {}", describe(&error)))
    }

    /// Pushes to the first address that takes the connection.
    ///
    /// # Errors
    /// What was seen at the last address: connection refused, no answer in time, an answer that is none.
    pub async fn push(&self, addresses: &[IpAddr], port: u16, push: &Push) -> Result<Answer, String> {
        let mut seen = "the pod has no address".to_owned();
        for address in addresses {
            let peer = SocketAddr::new(*address, port);
            match self.exchange(peer, push).await {
                Ok(answer) => return Ok(answer),
                Err((message, connected)) => {
                    seen = format!("{peer}: {message}");
                    // What was connected may have taken the token: no other address gets the same one.
                    if connected {
                        break;
                    }
                }
            }
        }
        Err(seen)
    }

    async fn exchange(&self, peer: SocketAddr, push: &Push) -> Result<Answer, (String, bool)> {
        let sent = self.0.post(format!("http://{peer}{PUSH_PATH}")).json(push).send().await;
        let mut response = sent.map_err(|error| (describe(&error), !error.is_connect()))?;
        let failed = |message: String| (message, true);
        if !response.status().is_success() {
            return Err(failed(format!("it answered with the HTTP status {}", response.status().as_u16())));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(describe(&error)))? {
            if body.len() + chunk.len() > MAX_MESSAGE {
                return Err(failed("its answer is too long".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|_| failed("its answer is none of an init container's".to_owned()))
    }
}

/// What went wrong, without the URL and in the operating system's words where it has any.
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    one_line(&cause.to_string())
}
