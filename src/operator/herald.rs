//! Kubernetes Events, on the request and on its pod: told from the side, so that no request ever waits for them.

use crate::api::VaultTokenRequest;
use crate::cluster::bounded;
use crate::domain::announcement::Announcement;
use crate::domain::sweep::Claim;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;

/// Announcements that may wait; beyond it they are dropped, and counted in a log line.
const QUEUE: usize = 1024;

/// After how many of them the recorder is a new one: it keeps each Event for six minutes, to count repetitions, in two KiB or so.
const REMEMBERED: usize = 1000;

/// Longest note of an Event that Kubernetes takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Takes announcements.
#[derive(Clone)]
pub struct Herald(mpsc::Sender<(ObjectReference, ObjectReference, Announcement)>);

impl Herald {
    /// Starts the task that publishes. It ends when the last [`Herald`] is dropped.
    pub fn start(client: Client) -> Self {
        let (sender, mut queue) = mpsc::channel::<(ObjectReference, ObjectReference, Announcement)>(QUEUE);
        let reporter = Reporter { controller: "vault-token-operator".to_owned(), instance: None };
        tokio::spawn(async move {
            let mut recorder = Recorder::new(client.clone(), reporter.clone());
            let mut told = 0;
            while let Some((request, pod, announcement)) = queue.recv().await {
                told += 1;
                if told % REMEMBERED == 0 {
                    recorder = Recorder::new(client.clone(), reporter.clone());
                }
                for (about, related) in [(&request, &pod), (&pod, &request)] {
                    let event = event(&announcement, related);
                    if let Err(error) = bounded(recorder.publish(&event, about)).await {
                        tracing::warn!(%error, reason = announcement.reason, "cannot publish an Event");
                    }
                }
            }
        });
        Self(sender)
    }

    /// Announces something about the request, there and on its pod.
    pub fn announce(&self, request: &VaultTokenRequest, announcement: Announcement) {
        let spec = &request.spec;
        let pod = reference("v1", "Pod", request.metadata.namespace.as_deref(), &spec.pod_name, &spec.pod_uid);
        self.send(request.object_ref(&()), pod, announcement);
    }

    /// Announces something about a token that no request records: on its pod, and where its request should be.
    pub fn announce_unrecorded(&self, claim: &Claim, announcement: Announcement) {
        let (namespace, version) = (Some(claim.namespace.as_str()), VaultTokenRequest::api_version(&()));
        let kind = VaultTokenRequest::kind(&());
        let request = reference(&version, &kind, namespace, &claim.request_name, &claim.request_uid);
        let pod = reference("v1", "Pod", namespace, &claim.pod_name, &claim.pod_uid);
        self.send(request, pod, announcement);
    }

    fn send(&self, request: ObjectReference, pod: ObjectReference, announcement: Announcement) {
        if self.0.try_send((request, pod, announcement)).is_err() {
            tracing::warn!("too many Events wait to be published; one was dropped");
        }
    }
}

fn reference(version: &str, kind: &str, namespace: Option<&str>, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

fn event(announcement: &Announcement, related: &ObjectReference) -> Event {
    let mut note = announcement.note.clone();
    while note.len() > MAX_NOTE {
        note.pop();
    }
    Event {
        type_: if announcement.warning { EventType::Warning } else { EventType::Normal },
        reason: announcement.reason.clone(),
        note: Some(note),
        action: announcement.action.to_owned(),
        secondary: Some(related.clone()),
    }
}
