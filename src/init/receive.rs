//! The receiving end: what is accepted of a push, and what a look at one's own request means for the files.

use super::intake::{Intake, Opened, Refusal};
use super::requests::Requests;
use super::store::Store;
use crate::api::{Phase, VaultTokenRequest};
use crate::domain::custody::{Held, Verdict, expected, judge, keeps, precedes_record};
use crate::vault::{Connection, Error, Unwrapped};
use crate::wire::{Answer, Outcome, Parcel};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use kube::ResourceExt;
use secrecy::{ExposeSecret, SecretString};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{Mutex, Notify};

/// Only a token's creation is ever opened: anything else that is wrapped is not for us.
const CREATION_PREFIX: &str = "auth/token/create/";

/// How many wrapping tokens are remembered: the operator makes five for a request at most.
const MAX_TRIED: usize = 256;

/// Takes what is sealed for one request.
pub struct Receiver {
    vault: Connection,
    requests: Requests,
    store: Store,
    intake: Intake,
    /// The request's name.
    name: String,
    /// Whoever touches the files holds the lock, and looks at the request under it.
    state: Mutex<State>,
    stored: Notify,
    /// Pushes that were not the operator's.
    refused: AtomicU32,
}

#[derive(Default)]
struct State {
    /// The token in the files.
    held: Option<Held>,
    /// The wrapping token that it came in.
    opened: Option<SecretString>,
    /// The wrapping tokens that were sent to Vault to be opened. What finds one used is most likely this process's own call.
    tried: Vec<SecretString>,
    /// Those that Vault does not know or did not open, and the attempts that they were said to be of. There is one in each attempt: once
    /// that is opened, the others are known to be somebody else's.
    unopened: Vec<(u32, SecretString)>,
}

impl State {
    /// Whether the parcel's wrapping token was sent to Vault to be opened.
    fn has_tried(&self, parcel: &Parcel) -> bool {
        self.tried.iter().any(|tried| is_of(tried, parcel))
    }

    /// What it means that Vault does not open a parcel.
    fn refused(&mut self, parcel: &Parcel, attempt: u32, tried: bool, error: &Error) -> (Outcome, String) {
        if !error.says_invalid_wrapping_token() {
            return (Outcome::Unused, error.to_string());
        }
        if self.unopened.len() < MAX_TRIED {
            self.unopened.push((attempt, parcel.wrapping_token.clone()));
        }
        match tried {
            true => lost("the wrapping token was used before, or has expired"),
            false => (Outcome::Intercepted, "the wrapping token was used before it came here".to_owned()),
        }
    }

    /// How many that Vault did not open were not the operator's, now that it has opened this one.
    fn strangers(&mut self, parcel: &Parcel, attempt: u32) -> usize {
        let unopened = std::mem::take(&mut self.unopened);
        unopened.iter().filter(|(of, token)| *of == attempt && !is_of(token, parcel)).count()
    }

    /// Why a push is taken for somebody else's that is not of an attempt which the request records as issued. One that comes for the
    /// first time after its attempt may be the operator's.
    fn untimely(&self, request: &VaultTokenRequest, opened: &Opened) -> Option<&'static str> {
        match expected(request, opened.attempt) {
            Some(_) => None,
            None if precedes_record(request, opened.attempt) => Some("it came before the request records its token"),
            None => self.has_tried(&opened.parcel).then_some("it came once more after its attempt was over"),
        }
    }
}

impl Receiver {
    /// Takes what `intake` opens, for the request of this name.
    pub fn new(vault: Connection, requests: Requests, store: Store, intake: Intake, name: String) -> Self {
        let (state, stored, refused) = (Mutex::default(), Notify::new(), AtomicU32::new(0));
        Self { vault, requests, store, intake, name, state, stored, refused }
    }

    /// Waits until a token was stored.
    pub async fn stored(&self) {
        self.stored.notified().await;
    }

    /// Answers one HTTP request.
    pub async fn answer(&self, request: Request<Bytes>) -> Response<Full<Bytes>> {
        let opened = match self.intake.admit(&request) {
            Ok(opened) => opened,
            Err(Refusal { status, why, foreign }) => {
                // The wait goes on.
                if foreign {
                    self.count_refused(why);
                }
                return text(status, why);
            }
        };
        let mut state = self.state.lock().await;
        let request = self.current().await;
        if let Some(why) = request.as_ref().ok().and_then(|request| state.untimely(request, &opened)) {
            self.count_refused(why);
        }
        let answer = self.take(request, &opened, &mut state).await;
        match serde_json::to_vec(&answer) {
            Ok(body) => Response::new(Full::new(Bytes::from(body))),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written"),
        }
    }

    fn count_refused(&self, why: &str) {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        tracing::warn!(refused, "a push was refused: {why}");
    }

    /// The request as it is now, or what keeps it from being read.
    async fn current(&self) -> Result<VaultTokenRequest, String> {
        match self.requests.read(&self.name).await {
            Ok(Some(request)) if request.uid().as_deref() == Some(self.intake.uid()) => Ok(request),
            Ok(_) => Err("the request is gone".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes a parcel, and says under its receipt what became of it.
    async fn take(&self, request: Result<VaultTokenRequest, String>, opened: &Opened, state: &mut State) -> Answer {
        let Opened { attempt, parcel, receipt } = opened;
        let attempt = *attempt;
        let taken = match request {
            Ok(request) => self.accept(&request, attempt, parcel, state).await,
            Err(message) => Err((Outcome::Unused, message)),
        };
        let (outcome, message) = match taken {
            Ok(()) => {
                self.stored.notify_one();
                (Outcome::Stored, String::new())
            }
            Err((outcome, message)) => {
                tracing::warn!(?outcome, "{message}");
                (outcome, message)
            }
        };
        let refused = self.refused.load(Ordering::Relaxed);
        receipt.sign(self.intake.subject(attempt), Answer { attempt, outcome, message, refused, mac: String::new() })
    }

    /// I6: nothing is accepted that the request's status does not record.
    async fn accept(
        &self,
        request: &VaultTokenRequest,
        attempt: u32,
        parcel: &Parcel,
        state: &mut State,
    ) -> Result<(), (Outcome, String)> {
        let Some(accessor) = expected(request, attempt) else {
            return Err((Outcome::Unused, format!("the request does not record attempt {attempt} as issued")));
        };
        let expected = Held { attempt, accessor: accessor.to_owned(), whole: true };
        if state.held.as_ref() == Some(&expected) {
            if state.opened.as_ref().is_some_and(|opened| is_of(opened, parcel)) {
                return Ok(());
            }
            self.count_refused("it came beside the one whose token is here");
            return Err((Outcome::Unused, "another wrapping token of this attempt was opened".to_owned()));
        }
        let unwrapped = self.unwrap(parcel, attempt, state).await?;
        if unwrapped.accessor != expected.accessor {
            self.count_refused("it held another token than the one that the request records");
            return Err(lost("the wrapping token held another token than the one that the request records"));
        }
        // What the API server says names the token; this is for an operator that took one pod for another.
        if unwrapped.metadata.get("pod_uid").map(String::as_str) != Some(self.intake.pod_uid()) {
            self.count_refused("its token was made for another pod");
            return Err(lost("the token was made for another pod"));
        }
        for _ in 0..state.strangers(parcel, attempt) {
            self.count_refused("its wrapping token was not that of its attempt");
        }
        let answer = unwrapped.answer.bytes().to_vec();
        state.opened = Some(parcel.wrapping_token.clone());
        // Before the files are there: if the writing breaks off, the next look takes away what is there of them.
        let held = state.held.insert(Held { whole: false, ..expected });
        self.store.write(unwrapped.token, answer).await.map_err(|message| lost(&message))?;
        held.whole = true;
        Ok(())
    }

    /// Opens a wrapping token once it was seen to be what it should be.
    async fn unwrap(&self, parcel: &Parcel, attempt: u32, state: &mut State) -> Result<Unwrapped, (Outcome, String)> {
        let tried_before = state.has_tried(parcel);
        let info = self.vault.look_up_wrapping(&parcel.wrapping_token).await;
        let info = info.map_err(|error| state.refused(parcel, attempt, tried_before, &error))?;
        if info.creation_path != parcel.creation_path || !info.creation_path.starts_with(CREATION_PREFIX) {
            self.count_refused("its wrapping token was not made by creating a token");
            return Err(lost("the wrapping token was not made by creating a token as the operator says"));
        }
        // A stranger who has this Vault make wrapping tokens through a token role could make it longer; not without end.
        if !tried_before && state.tried.len() < MAX_TRIED {
            state.tried.push(parcel.wrapping_token.clone());
        }
        let unwrapped = self.vault.unwrap(&parcel.wrapping_token).await;
        unwrapped.map_err(|error| state.refused(parcel, attempt, tried_before, &error))
    }

    /// Looks at the request, takes what is in its status, and takes the files away if they hold anything but the token that it
    /// records.
    pub async fn look(&self) -> Verdict {
        // Under the lock, and before the read: a token that is stored meanwhile must not be judged by what was
        // true before it.
        let mut state = self.state.lock().await;
        let request = match self.requests.read(&self.name).await {
            Ok(request) => request.filter(|request| request.uid().as_deref() == Some(self.intake.uid())),
            Err(error) => return Verdict::Waiting(error.to_string()),
        };
        let refused = match &request {
            Some(request) => self.take_offered(request, &mut state).await,
            None => None,
        };
        let verdict = match refused {
            Some(why) => Verdict::Over(why),
            None => judge(request.as_ref(), state.held.as_ref()),
        };
        // With a token, the operator tells it.
        let verdict = match (verdict, self.refused.load(Ordering::Relaxed)) {
            (Verdict::Over(why), refused @ 1..) => {
                Verdict::Over(format!("{why}; {refused} pushes were refused that were not the operator's"))
            }
            (verdict, _) => verdict,
        };
        if state.held.is_some() && !keeps(&verdict, request.as_ref(), state.held.as_ref()) {
            match self.store.clear().await {
                Ok(()) => state.held = None,
                // It is tried again at the next look, and this process does not end well before.
                Err(error) => return Verdict::Waiting(error),
            }
        }
        verdict
    }

    /// Takes the wrapping token that the operator has left in the status, and answers there; gives a sentence if it may not.
    async fn take_offered(&self, request: &VaultTokenRequest, state: &mut State) -> Option<String> {
        let status = request.status.as_ref()?;
        let sealed = status.sealed_token.as_ref().filter(|_| request.phase() == Phase::Issued)?;
        let attempt = status.attempts;
        let Some(opened) = self.intake.open(attempt, sealed) else {
            tracing::error!("status.sealedToken is not sealed for this request; only the operator may write it");
            return None;
        };
        if status.answer.as_ref().is_some_and(|answer| opened.receipt.confirms(self.intake.subject(attempt), answer)) {
            return None;
        }
        let answer = self.take(Ok(request.clone()), &opened, state).await;
        self.requests.answer(request, &answer).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot answer in the request's status yet");
            None
        })
    }
}

fn is_of(token: &SecretString, parcel: &Parcel) -> bool {
    token.expose_secret() == parcel.wrapping_token.expose_secret()
}

fn lost(message: &str) -> (Outcome, String) {
    (Outcome::Lost, message.to_owned())
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
