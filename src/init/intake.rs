//! What is looked at in a push before anybody is asked about it: whether it is one, for whom, and whether its seal opens.

use crate::api::VaultTokenRequest;
use crate::seal::{OneTimeKey, Receipt, Subject};
use crate::wire::{PUSH_PATH, Parcel, Push};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use kube::ResourceExt;
use secrecy::ExposeSecret;
use std::collections::HashSet;

/// What is sealed for one request.
pub struct Intake {
    key: OneTimeKey,
    uid: String,
    pod_uid: String,
    /// UIDs of the pod's older requests, which the operator may still try to answer.
    older: HashSet<String>,
}

/// A push whose seal was opened. That proves nothing yet about who made it.
#[derive(Debug)]
pub struct Opened {
    /// The attempt that it is about.
    pub attempt: u32,
    /// What was in the seal.
    pub parcel: Parcel,
    /// What marks the answer to it.
    pub receipt: Receipt,
}

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status to answer with.
    pub status: StatusCode,
    /// A sentence.
    pub why: &'static str,
    /// Whether it looks like a push and the operator did not make it.
    pub foreign: bool,
}

impl Intake {
    /// For what is sealed to `key` for `request`. `older` are the UIDs of the pod's older ones.
    pub fn new(key: OneTimeKey, request: &VaultTokenRequest, older: HashSet<String>) -> Self {
        let (uid, pod_uid) = (request.uid().unwrap_or_default(), request.spec.pod_uid.clone());
        Self { key, uid, pod_uid, older }
    }

    /// UID of the request.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// UID of its pod.
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// What seals and receipts of this attempt are about.
    pub fn subject(&self, attempt: u32) -> Subject<'_> {
        Subject { request_uid: &self.uid, pod_uid: &self.pod_uid, attempt }
    }

    /// Opens the push that an HTTP request brings.
    ///
    /// # Errors
    /// How to answer what is none for this request.
    pub fn admit(&self, request: &Request<Bytes>) -> Result<Opened, Refusal> {
        let stray = |status, why| Err(Refusal { status, why, foreign: false });
        let foreign = |status, why| Err(Refusal { status, why, foreign: true });
        if request.uri().path() != PUSH_PATH {
            return stray(StatusCode::NOT_FOUND, "there is nothing here");
        }
        if request.method() != Method::POST {
            return stray(StatusCode::METHOD_NOT_ALLOWED, "only POST is understood");
        }
        let Ok(push) = serde_json::from_slice::<Push>(request.body()) else {
            return foreign(StatusCode::BAD_REQUEST, "this is not a push");
        };
        if self.older.contains(&push.request_uid) {
            return stray(StatusCode::CONFLICT, "that request was made by an init container that is gone");
        }
        if push.request_uid != self.uid {
            return foreign(StatusCode::CONFLICT, "this is not the request that waits here");
        }
        match self.open(push.attempt, &push.sealed) {
            Some(opened) => Ok(opened),
            None => foreign(StatusCode::FORBIDDEN, "this is not sealed for the request that waits here"),
        }
    }

    /// Opens what is sealed for this attempt.
    pub fn open(&self, attempt: u32, sealed: &str) -> Option<Opened> {
        let parcel = self.key.open(sealed, self.subject(attempt))?;
        let receipt = Receipt::decode(parcel.receipt.expose_secret())?;
        Some(Opened { attempt, parcel, receipt })
    }
}
