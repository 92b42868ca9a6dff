//! The init container's port: any bytes on a connection to it.

use crate::push::INTAKE;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use std::cell::LazyCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use vault_token_operator::http::{Limits, converse};

/// A body that is short enough to be exceeded often.
const LIMITS: Limits = Limits {
    connections: 1,
    per_peer: 1,
    receive: Duration::from_secs(2),
    exchange: Duration::from_secs(4),
    body: 512,
};

thread_local! {
    static RUNTIME: LazyCell<Runtime> =
        LazyCell::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));
}

/// Whoever sends it gets one answer or none, and the handler at most one request, whose body is within the limit.
pub fn hold(input: &[u8]) {
    let handled = Arc::new(AtomicU32::new(0));
    let count = handled.clone();
    let handler = move |request: Request<Bytes>| {
        count.fetch_add(1, Ordering::Relaxed);
        assert!(request.body().len() <= LIMITS.body, "{} bytes", request.body().len());
        let status = INTAKE.admit(&request).map_or_else(|refusal| refusal.status, |_| StatusCode::OK);
        let mut response = Response::new(Full::new(Bytes::new()));
        *response.status_mut() = status;
        std::future::ready(response)
    };
    // It holds all that either side sends, so that none waits for the other.
    let (mut client, server) = tokio::io::duplex(input.len() + 4096);
    let answer = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let talk = async {
                // A server that has seen enough hangs up.
                let _ = client.write_all(input).await;
                let _ = client.shutdown().await;
                let mut answer = Vec::new();
                let _ = client.read_to_end(&mut answer).await;
                answer
            };
            tokio::join!(converse(server, LIMITS, Arc::new(handler)), talk).1
        })
    });
    let handled = handled.load(Ordering::Relaxed);
    assert!(handled <= 1, "{handled} requests on one connection");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", crate::text(&answer));
    assert!(handled == 0 || !answer.is_empty(), "a request without an answer");
}
