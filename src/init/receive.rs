//! The receiving end: what is accepted of a push, and what a look at one's own request means for the files.

use super::requests::Requests;
use super::store::Store;
use super::words;
use crate::api::{Phase, VaultTokenRequest};
use crate::vault::Connection;
use crate::wire::{Outcome, PUSH_PATH, Push, PushAnswer};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use kube::ResourceExt;
use tokio::sync::{Mutex, Notify};

/// Only a token's creation is ever opened: anything else that is wrapped is not for us.
const CREATION_PREFIX: &str = "auth/token/create/";

/// Takes pushes for one request.
pub struct Receiver {
    vault: Connection,
    requests: Requests,
    store: Store,
    name: String,
    uid: String,
    /// The token in the files. Whoever touches the files holds the lock, and looks at the request under it.
    held: Mutex<Option<Held>>,
    stored: Notify,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    attempt: u32,
    accessor: String,
    /// Whether both files were written to their ends.
    whole: bool,
}

/// What a look at the request means.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The token is delivered, and it is the one in the files.
    Done,
    /// There will be no token, and this is why.
    Over(String),
    /// Not yet; in words.
    Waiting(String),
}

impl Receiver {
    /// Takes pushes for `request`.
    pub fn new(vault: Connection, requests: Requests, store: Store, request: &VaultTokenRequest) -> Self {
        Self {
            vault,
            requests,
            store,
            name: request.name_any(),
            uid: request.uid().unwrap_or_default(),
            held: Mutex::new(None),
            stored: Notify::new(),
        }
    }

    /// Waits until a token was stored.
    pub async fn stored(&self) {
        self.stored.notified().await;
    }

    /// Answers one HTTP request.
    pub async fn answer(&self, request: Request<Bytes>) -> Response<Full<Bytes>> {
        if request.uri().path() != PUSH_PATH {
            return text(StatusCode::NOT_FOUND, "there is nothing here");
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only POST is understood");
        }
        // A parser's message quotes what it could not read, which may be a token: it is not told.
        let Ok(push) = serde_json::from_slice::<Push>(request.body()) else {
            tracing::warn!("a push was refused: it is not one");
            return text(StatusCode::BAD_REQUEST, "this is not a push");
        };
        if push.request_uid != self.uid {
            tracing::warn!("a push was refused: it is for another request");
            return text(StatusCode::CONFLICT, "this is not the request that waits here");
        }
        let answer = self.receive(push).await;
        match answer.outcome {
            Outcome::Stored => self.stored.notify_one(),
            Outcome::Unused | Outcome::Lost => tracing::warn!(outcome = ?answer.outcome, "{}", answer.message),
        }
        match serde_json::to_vec(&answer) {
            Ok(body) => Response::new(Full::new(Bytes::from(body))),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written"),
        }
    }

    async fn receive(&self, push: Push) -> PushAnswer {
        let mut held = self.held.lock().await;
        match self.accept(&push, &mut held).await {
            Ok(()) => PushAnswer { outcome: Outcome::Stored, message: String::new() },
            Err((outcome, message)) => PushAnswer { outcome, message },
        }
    }

    /// I6: nothing is accepted that the request's status does not record.
    async fn accept(&self, push: &Push, held: &mut Option<Held>) -> Result<(), (Outcome, String)> {
        let unused = |message: String| (Outcome::Unused, message);
        let lost = |message: &str| (Outcome::Lost, message.to_owned());
        let recorded = match self.requests.read(&self.name).await {
            Ok(Some(request)) if request.uid().as_deref() == Some(&self.uid) => request,
            Ok(_) => return Err(unused("the request is gone".to_owned())),
            Err(error) => return Err(unused(error.to_string())),
        };
        let status = recorded.status.clone().unwrap_or_default();
        let accessor = match (recorded.phase(), status.token_accessor) {
            (Phase::Issued, Some(accessor)) if status.attempts == push.attempt => accessor,
            _ => return Err(unused(format!("the request does not record attempt {} as issued", push.attempt))),
        };
        let expected = Held { attempt: push.attempt, accessor, whole: true };
        if held.as_ref() == Some(&expected) {
            return Ok(());
        }
        let refused = |error: crate::vault::Error| match error.is_refusal() {
            true => lost("the wrapping token was used before, or has expired"),
            false => unused(error.to_string()),
        };
        let info = self.vault.look_up_wrapping(&push.wrapping_token).await.map_err(refused)?;
        if info.creation_path != push.creation_path || !info.creation_path.starts_with(CREATION_PREFIX) {
            return Err(lost("the wrapping token was not made by creating a token as the operator says"));
        }
        let unwrapped = self.vault.unwrap(&push.wrapping_token).await.map_err(refused)?;
        if unwrapped.accessor != expected.accessor {
            return Err(lost("the wrapping token held another token than the one that the request records"));
        }
        let answer = unwrapped.answer.bytes().to_vec();
        // Before the files are there: if the writing breaks off, the next look takes away what is there of them.
        let held = held.insert(Held { whole: false, ..expected });
        self.store.write(unwrapped.token, answer).await.map_err(|message| lost(&message))?;
        held.whole = true;
        Ok(())
    }

    /// Looks at the request, and takes the files away if they hold anything but the token that it records.
    pub async fn look(&self) -> Verdict {
        // Under the lock, and before the read: a token that is stored meanwhile must not be judged by what was
        // true before it.
        let mut held = self.held.lock().await;
        let request = match self.requests.read(&self.name).await {
            Ok(request) => request.filter(|request| request.uid().as_deref() == Some(&self.uid)),
            Err(error) => return Verdict::Waiting(error.to_string()),
        };
        let verdict = judge(request.as_ref(), held.as_ref());
        let keeps = match (&verdict, &request) {
            (Verdict::Done, _) => true,
            (Verdict::Waiting(_), Some(request)) => records(request, held.as_ref()),
            _ => false,
        };
        if held.is_some() && !keeps {
            match self.store.clear().await {
                Ok(()) => *held = None,
                // It is tried again at the next look, and this process does not end well before.
                Err(error) => return Verdict::Waiting(error),
            }
        }
        verdict
    }
}

/// What the request says about the token that is held.
fn judge(request: Option<&VaultTokenRequest>, held: Option<&Held>) -> Verdict {
    let Some(request) = request else {
        return Verdict::Over("the request was deleted, and the token with it".to_owned());
    };
    match request.phase() {
        // Its token is being revoked; what comes of that is worth waiting for.
        Phase::Delivered if request.metadata.deletion_timestamp.is_some() => Verdict::Waiting(words(request)),
        Phase::Delivered if records(request, held) => Verdict::Done,
        Phase::Delivered => Verdict::Over("the request is Delivered with a token that is not here".to_owned()),
        phase if phase.is_final() => Verdict::Over(words(request)),
        _ => Verdict::Waiting(words(request)),
    }
}

/// Whether the held token is the one that the request records, and is not being revoked.
fn records(request: &VaultTokenRequest, held: Option<&Held>) -> bool {
    let accessor = request.status.as_ref().and_then(|status| status.token_accessor.as_ref());
    matches!(request.phase(), Phase::Issued | Phase::Delivered)
        && request.metadata.deletion_timestamp.is_none()
        && held.is_some_and(|held| held.whole && Some(&held.accessor) == accessor)
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
