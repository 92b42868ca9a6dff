//! Kubernetes Events, on the request and on its pod: told from the side, so that no request ever waits for them.

use crate::api::VaultTokenRequest;
use crate::cluster::bounded;
use crate::domain::announcement::Announcement;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;

/// Announcements that may wait; beyond it they are dropped, and counted in a log line.
const QUEUE: usize = 1024;

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
        let recorder = Recorder::new(client, reporter);
        tokio::spawn(async move {
            while let Some((request, pod, announcement)) = queue.recv().await {
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
        let about = request.object_ref(&());
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(request.spec.pod_name.clone()),
            namespace: request.metadata.namespace.clone(),
            uid: Some(request.spec.pod_uid.clone()),
            ..ObjectReference::default()
        };
        if self.0.try_send((about, pod, announcement)).is_err() {
            tracing::warn!("too many Events wait to be published; one was dropped");
        }
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
