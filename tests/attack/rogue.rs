//! Somebody else who listens where an init container should, or between it and the operator.

use crate::arena::{Arena, is_refused, note};
use std::time::Duration;
use testbed::kubelet::PodHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use vault_token_operator::wire::Push;

/// How long a push may take to come.
const LIMIT: Duration = Duration::from_secs(12);

/// A listener at a pod's address.
pub struct Rogue(TcpListener);

/// A push that came to him, and the connection that waits for an answer to it.
pub struct Taken {
    pub push: Push,
    pub stream: TcpStream,
}

impl Rogue {
    pub async fn at(pod: &PodHandle) -> Self {
        Self(TcpListener::bind(Arena::place(pod)).await.expect("the pod's address"))
    }

    /// The next push; `None` if none comes.
    pub async fn takes(&self) -> Option<Taken> {
        tokio::time::timeout(LIMIT, self.take()).await.ok()
    }

    /// The next push about a pod's first request; `None` once that is refused.
    pub async fn takes_unless_refused(&self, arena: &Arena, pod: &PodHandle) -> Option<Taken> {
        tokio::select! {
            taken = self.take() => Some(taken),
            _ = arena.until(pod, "push", is_refused) => None,
        }
    }

    async fn take(&self) -> Taken {
        loop {
            let (mut stream, _) = self.0.accept().await.expect("a connection");
            let mut bytes = Vec::new();
            while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&bytes);
                let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
                if let Ok(push) = serde_json::from_str::<Push>(&body) {
                    return Taken { push, stream };
                }
            }
            note("a connection without a push");
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
