//! A small HTTP/1 server with bounds on everything that a peer can send, and on the time that it has for it.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Longest request line and headers, in bytes (the least that hyper takes).
const MAX_HEAD: usize = 8192;

/// What a peer gets at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Connections at a time from one address; more are closed, so that no single peer keeps the others out.
    pub per_peer: usize,
    /// Time to send a whole request; whoever is slower gives his place to another.
    pub receive: Duration,
    /// Time for one connection with its one exchange, from being accepted to the last byte of the answer.
    pub exchange: Duration,
    /// Bytes of a request's body.
    pub body: usize,
}

/// Listens on an address. Where all addresses are asked for (`[::]`) and the machine has no IPv6, those of IPv4.
///
/// # Errors
/// What the operating system said.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await.map_err(|_| error)
        }
        bound => bound,
    }
}

/// The connections of each peer.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of a peer, until it is dropped.
struct Place(Peers, IpAddr);

impl Peers {
    /// Takes one more connection of this peer, unless it has so many.
    fn enter(&self, peer: IpAddr, most: usize) -> Option<Place> {
        let mut counts = self.counts();
        let count = counts.entry(peer).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place(self.clone(), peer))
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // The map stays whole whatever a panicking holder of the lock was about.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Serves for as long as it is polled. The handler sees requests whose body has arrived whole.
pub async fn serve<H, F>(listener: TcpListener, limits: Limits, handler: H)
where
    H: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let handler = Arc::new(handler);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let peers = Peers::default();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, place) = match listener.accept().await {
            Ok((stream, peer)) => match peers.enter(peer.ip().to_canonical(), limits.per_peer) {
                Some(place) => (stream, place),
                None => continue,
            },
            Err(error) => {
                // Out of file descriptors, most likely: waiting is all that helps.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = handler.clone();
        tokio::spawn(async move {
            converse(stream, limits, handler).await;
            drop((slot, place));
        });
    }
}

/// Serves one connection, whatever comes over it: one exchange at most.
pub async fn converse<S, H, F>(stream: S, limits: Limits, handler: Arc<H>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Bytes>) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(move |request| answer(request, limits, handler.clone()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.receive)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limits.exchange, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection broke"),
        Err(_) => tracing::debug!("a connection took too long"),
    }
}

async fn answer<H, F>(
    request: Request<Incoming>,
    limits: Limits,
    handler: Arc<H>,
) -> Result<Response<Full<Bytes>>, Infallible>
where
    H: Fn(Request<Bytes>) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    let (head, body) = request.into_parts();
    let received = tokio::time::timeout(limits.receive, Limited::new(body, limits.body).collect()).await;
    Ok(match received {
        Ok(Ok(body)) => handler(Request::from_parts(head, body.to_bytes())).await,
        Ok(Err(_)) => refusal(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long or broke off\n"),
        Err(_) => refusal(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
    })
}

fn refusal(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
