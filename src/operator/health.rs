//! `/healthz`, `/readyz` and `/metrics`. Ready means that everything was listed once: neither Vault nor the API server being
//! away makes the operator unready, since restarting it would not help; the answer says so in words. Healthy means that nothing has
//! stopped that a restart would mend.

use super::census::Census;
use super::lease::Leadership;
use super::metrics::{CONTENT_TYPE, Metrics, Present};
use super::rulebook::Rulebook;
use super::turnstile::Turnstile;
use super::vitals::{Looking, Vitals};
use crate::domain::admission::Admission;
use crate::domain::rights::Rights;
use crate::http::{Limits, serve as serve_http};
use crate::vault::TokenStore;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Whom the endpoints ask.
#[derive(Clone)]
pub struct Sources {
    /// Vault, and the login there.
    pub vault: TokenStore,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// What was counted.
    pub metrics: Metrics,
    /// The tokens without a grant.
    pub census: Arc<Census>,
    /// The bindings.
    pub rulebook: Rulebook,
    /// Whether requests are checked.
    pub admission: watch::Receiver<Admission>,
    /// What the login may do in Vault.
    pub rights: watch::Receiver<Rights>,
    /// The watches, and the looks under way.
    pub vitals: Vitals,
}

/// What the endpoints tell.
#[derive(Clone)]
pub struct Health {
    requests: watch::Sender<bool>,
    pods: Arc<AtomicBool>,
    turnstile: Arc<Turnstile>,
    sweep: Arc<Mutex<String>>,
    sources: Sources,
}

impl Health {
    /// Not ready yet.
    pub fn new(sources: Sources) -> Self {
        let sweep = Arc::new(Mutex::new("there was none yet".to_owned()));
        let (requests, pods, turnstile) = (watch::Sender::new(false), Arc::default(), Arc::new(Turnstile::new()));
        Self { requests, pods, turnstile, sweep, sources }
    }

    /// Where requests wait for their turn.
    pub fn turnstile(&self) -> Arc<Turnstile> {
        self.turnstile.clone()
    }

    /// What the watches bring is told there.
    pub fn vitals(&self) -> Vitals {
        self.sources.vitals.clone()
    }

    /// A look at a request begins, and goes on until what is given is dropped.
    pub fn look(&self) -> Looking {
        self.sources.vitals.look()
    }

    /// The requests were listed and are watched.
    pub fn requests_synced(&self) {
        self.requests.send_replace(true);
    }

    /// The pods were listed. A watch that breaks is taken up where it was, most often, and nothing tells of that.
    pub fn pods_listed(&self) {
        self.pods.store(true, Ordering::Release);
    }

    /// Whether the requests were listed.
    pub fn has_requests(&self) -> bool {
        *self.requests.borrow()
    }

    /// Waits until the requests were listed.
    pub async fn requests_listed(&self) {
        // The sender is this one.
        let _ = self.requests.subscribe().wait_for(|listed| *listed).await;
    }

    /// What the last sweep came to; gives whether that is news.
    pub fn sweep(&self, said: String) -> bool {
        // A sentence is whole whatever a panicking holder of the lock was about.
        let mut sweep = self.sweep.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *sweep != said;
        *sweep = said;
        news
    }

    /// What is not there yet.
    fn missing(&self) -> Option<&'static str> {
        if !self.has_requests() {
            Some("the requests are not listed yet")
        } else if !self.pods.load(Ordering::Acquire) {
            Some("the pods are not listed yet")
        } else if self.sources.rulebook.edition().number == 0 {
            Some("the bindings and namespaces are not listed yet")
        } else {
            None
        }
    }

    fn counted(&self) -> String {
        let edition = self.sources.rulebook.edition();
        let admission = self.sources.admission.borrow().clone();
        let now = Instant::now();
        self.sources.metrics.text(&Present {
            leads: self.sources.leadership.leads(),
            admission: matches!(admission, Admission::InForce { .. }),
            waived: matches!(admission, Admission::Waived),
            vault: self.sources.vault.away().is_none(),
            living: self.sources.census.living(),
            ungranted: self.sources.census.count(&edition),
            held: self.sources.census.held(&edition).unwrap_or_default(),
            queue: self.turnstile.waiting(),
            silence: self.sources.vitals.silence(now).2,
            look: self.sources.vitals.longest_look(now),
            sweep: self.sources.vitals.sweep_overdue(now),
        })
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        if path == "/metrics" {
            let mut response = Response::new(Full::new(Bytes::from(self.counted())));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
            return response;
        }
        let (status, text) = match path {
            "/healthz" => self.health(),
            "/readyz" => self.readiness(),
            _ => (StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    }

    /// Cheap, however much there is to do: whoever has a lot to do is not to be started anew for it.
    fn health(&self) -> (StatusCode, String) {
        match self.sources.vitals.fault(Instant::now()) {
            Some(fault) => (StatusCode::SERVICE_UNAVAILABLE, format!("{fault}\n")),
            None => (StatusCode::OK, "ok\n".to_owned()),
        }
    }

    fn readiness(&self) -> (StatusCode, String) {
        // Whether calls can be made, and not only whether there is a login: that outlives an outage.
        let vault = self.sources.vault.away().map_or_else(|| "logged in".to_owned(), |error| error.to_string());
        let sweep = self.sweep.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let leads = if self.sources.leadership.leads() { "this replica leads" } else { "this replica stands by" };
        let edition = self.sources.rulebook.edition();
        let bindings = match (edition.bindings.len(), self.sources.census.held(&edition)) {
            (0, _) => "there is none, so nobody is granted anything".to_owned(),
            (count, None) => count.to_string(),
            (count, Some(held)) => {
                format!(
                    "{count}; {held} tokens have lost their grants and are kept until a person says so (--ungranted-limit)"
                )
            }
        };
        let admission = self.sources.admission.borrow().describe();
        let rights = self.sources.rights.borrow().describe();
        let details = format!(
            "lease: {leads}\nvault: {vault}\nvault rights: {rights}\nsweep: {sweep}\nadmission: {admission}\nbindings: \
             {bindings}\n"
        );
        match self.missing() {
            None => (StatusCode::OK, format!("ok\n{details}")),
            Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n{details}")),
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
    let limits = Limits { connections: 256, per_peer: 8, receive: second, exchange: 5 * second, body: 1024 };
    serve_http(listener, limits, move |request| std::future::ready(health.answer(request.uri().path()))).await;
}
