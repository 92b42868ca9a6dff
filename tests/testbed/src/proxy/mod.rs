//! A proxy that stands between two parts of the system and does what networks, balancers and tired servers do. It ends TLS with
//! a certificate of the run's authority and speaks HTTP on both sides, so that it can break a call before or after the server
//! has acted.

mod fault;
mod storm;
mod stream;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::error::Error;
use crate::kubelet::INIT_PORT;
use crate::pki::{KeyPairFiles, Usage};
use crate::run::Run;
pub use fault::{Break, Call, Fault, WatchFault};
pub use storm::storm;
pub use stream::Endless;
use stream::{ByteStream, reset};

/// What decides what becomes of each call; it is asked as the call comes in.
type Script = Box<dyn FnMut(&Call) -> Fault + Send>;

/// An answer; an error in its body resets the connection.
type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// A running proxy; dropping it ends it and breaks its connections. It belongs to the async runtime that started it.
pub struct Proxy {
    address: SocketAddr,
    link: Arc<Link>,
    task: JoinHandle<()>,
}

/// The server behind a proxy, and what becomes of calls on the way.
struct Link {
    server: String,
    client: reqwest::Client,
    script: Mutex<Script>,
    /// Told when there is another script.
    changed: Notify,
    /// By path, what was answered to calls whose answers stand still.
    stale: Mutex<HashMap<String, Bytes>>,
    /// The last answer without end.
    endless: Mutex<Arc<Mutex<Option<Endless>>>>,
    /// The last answer that somebody read along.
    overheard: Mutex<Option<Bytes>>,
}

impl Proxy {
    /// Before a server with a certificate of the run's authority, such as `https://127.0.0.1:<port>`.
    pub async fn before_server(run: &Run, server: &str) -> Result<Self, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("proxy-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let tls = tls(&run.pki().issue(&name, Usage::Server(&[]))?)?;
        let authority = reqwest::Certificate::from_der(&run.pki().ca().der);
        let builder = authority.map(|authority| reqwest::Client::builder().tls_certs_only([authority]));
        Self::start(([127, 0, 0, 1], 0).into(), Some(tls), server, builder).await
    }

    /// Before an init container, in plain HTTP, at its pod's address. Gives where the init container is to listen: at the same
    /// address in the upper half of the loopback addresses, where no pod is.
    pub async fn before_init(pod: IpAddr) -> Result<(Self, String), Error> {
        let IpAddr::V4(address) = pod else {
            return Err(Error::Incomplete { what: "a proxy before an init container".into(), field: "IPv4 address" });
        };
        let [a, b, c, d] = address.octets();
        let listen = format!("{}:{INIT_PORT}", Ipv4Addr::new(a, b | 128, c, d));
        let builder = Ok(reqwest::Client::builder().tls_certs_only([]));
        let proxy = Self::start((pod, INIT_PORT).into(), None, &format!("http://{listen}"), builder).await?;
        Ok((proxy, listen))
    }

    async fn start(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        server: &str,
        builder: reqwest::Result<reqwest::ClientBuilder>,
    ) -> Result<Self, Error> {
        let client = builder.and_then(|builder| builder.http1_only().no_proxy().build());
        let client = client.map_err(|source| Error::Http { what: "could not make a proxy's client".into(), source })?;
        let what = || Error::io(format!("could not listen on {address}"));
        let listener = TcpListener::bind(address).await.map_err(what())?;
        let address = listener.local_addr().map_err(what())?;
        let script = Mutex::new(Box::new(|_: &Call| Fault::None) as Script);
        let link = Arc::new(Link {
            server: server.to_owned(),
            client,
            script,
            changed: Notify::new(),
            stale: Mutex::default(),
            endless: Mutex::default(),
            overheard: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&link)));
        Ok(Self { address, link, task })
    }

    /// Its address as a server with TLS: `https://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `script` decides what becomes of each call; at first, everything passes. Calls that meet silence are reset.
    pub fn follow(&self, script: impl FnMut(&Call) -> Fault + Send + 'static) {
        *self.link.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
        self.link.changed.notify_waiters();
    }

    /// The last answer that somebody read along, if there is one.
    pub fn overheard(&self) -> Option<Bytes> {
        self.link.overheard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the client of the last answer without end makes of it.
    pub fn endless(&self) -> Option<Endless> {
        let last = Arc::clone(&self.link.endless.lock().unwrap_or_else(PoisonError::into_inner));
        *last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).field("server", &self.link.server).finish()
    }
}

fn tls(files: &KeyPairFiles) -> Result<TlsAcceptor, Error> {
    let unreadable = |error: pem::Error| Error::io("could not read a proxy's certificate")(io::Error::other(error));
    let certificate = CertificateDer::from_pem_file(&files.certificate).map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(unreadable)?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    let unusable = |error| Error::io("could not use a proxy's certificate")(io::Error::other(error));
    config.map(|config| TlsAcceptor::from(Arc::new(config))).map_err(unusable)
}

/// Serves until it is dropped, and its connections with it.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, link: Arc<Link>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        // Clients close connections that are done with; those that the proxy closes are to be reset.
        if stream.set_zero_linger().is_err() {
            continue;
        }
        let (tls, link) = (tls.clone(), Arc::clone(&link));
        connections.spawn(async move {
            match tls {
                None => serve(stream, &link).await,
                Some(tls) => {
                    // A client that breaks off its handshake has gone.
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, &link).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, link: &Link) {
    let service = service_fn(|request| link.answer(request));
    // An error is a connection that broke, which is what it is here for.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Link {
    /// An error resets the connection.
    async fn answer(&self, request: Request<Incoming>) -> io::Result<Answer> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let call = Call { method: head.method, path };
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let fault = (self.script.lock().unwrap_or_else(PoisonError::into_inner))(&call);
        match fault {
            Fault::Before(broken) => return self.broken(broken, &call).await,
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Stale => return self.stale_answer(&call, head.headers, body).await,
            _ => {}
        }
        let body = match fault {
            Fault::Rewritten(text, instead) => replaced(&body, text, instead),
            _ => body,
        };
        let response = self.pass_on(&call, head.headers, body).await?;
        let (status, headers) = (response.status(), passed(response.headers()));
        let bytes: ByteStream = response.bytes_stream().map_err(io::Error::other).boxed();
        let bytes = match fault {
            Fault::After(broken) => {
                // The server has acted once its whole answer is there.
                let _answer: Vec<Bytes> = bytes.try_collect().await?;
                return self.broken(broken, &call).await;
            }
            Fault::Overheard => {
                let pieces: Vec<Bytes> = bytes.try_collect().await?;
                let whole = Bytes::from(pieces.concat());
                *self.overheard.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole.clone());
                futures::stream::iter([Ok(whole)]).boxed()
            }
            Fault::Misquoted(text, instead) => {
                let pieces: Vec<Bytes> = bytes.try_collect().await?;
                futures::stream::iter([Ok(replaced(&pieces.concat(), text, instead))]).boxed()
            }
            Fault::Slow(pause) => stream::slowly(bytes, pause),
            Fault::Endless(size, pause) => {
                let count = Arc::default();
                *self.endless.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&count);
                stream::endless(bytes, size, pause, count)
            }
            Fault::Watch(fault) => stream::spoil(bytes, fault),
            _ => bytes,
        };
        let mut answer = Response::new(StreamBody::new(bytes.map_ok(Frame::data)).boxed_unsync());
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }

    async fn broken(&self, broken: Break, call: &Call) -> io::Result<Answer> {
        match broken {
            Break::Reset => Err(reset()),
            Break::Silence => {
                self.changed.notified().await;
                Err(reset())
            }
            Break::Answer(status) => Ok(answer(status, Bytes::new())),
            Break::Redirect(address) => {
                let mut answer = answer(StatusCode::TEMPORARY_REDIRECT, Bytes::new());
                let place = format!("https://{address}{}", call.path);
                answer.headers_mut().insert(LOCATION, HeaderValue::try_from(place).map_err(io::Error::other)?);
                Ok(answer)
            }
            Break::Says(status, body) => {
                let mut answer = answer(status, Bytes::from_static(body.as_bytes()));
                answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Ok(answer)
            }
        }
    }

    async fn stale_answer(&self, call: &Call, headers: HeaderMap, body: Bytes) -> io::Result<Answer> {
        let stale = || self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let known = stale().get(&call.path).cloned();
        let bytes = match known {
            Some(bytes) => bytes,
            None => {
                let response = self.pass_on(call, headers, body).await?.error_for_status().map_err(io::Error::other)?;
                let bytes = response.bytes().await.map_err(io::Error::other)?;
                stale().insert(call.path.clone(), bytes.clone());
                bytes
            }
        };
        Ok(answer(StatusCode::OK, bytes))
    }

    async fn pass_on(&self, call: &Call, headers: HeaderMap, body: Bytes) -> io::Result<reqwest::Response> {
        let url = format!("{}{}", self.server, call.path);
        let request = self.client.request(call.method.clone(), url).headers(passed(&headers)).body(body);
        request.send().await.map_err(io::Error::other)
    }
}

fn replaced(body: &[u8], text: &str, instead: &str) -> Bytes {
    String::from_utf8_lossy(body).replace(text, instead).into()
}

/// An answer whose whole body is there.
fn answer(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// What both sides are to see; the rest is about one connection.
fn passed(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for own in [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING] {
        headers.remove(own);
    }
    headers
}
