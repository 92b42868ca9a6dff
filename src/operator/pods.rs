//! The watch of pods: which requests a change of a pod concerns. Of a pod itself nothing is kept but its UID.

use super::endings::Endings;
use super::health::Health;
use super::patience::Patience;
use super::vitals::Vitals;
use crate::api::{Phase, REQUESTS_PER_POD, VaultTokenRequest, request_name};
use crate::cluster;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// A pod that ends leaves this selection, and so looks deleted to the watch.
const UNFINISHED: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// UIDs of the pods that the watch shows alive. It is a reason to skip a look at the pod of a delivered token, and
/// never one to end anything (rule 7).
#[derive(Clone, Default)]
pub struct LivePods {
    /// None before they were listed.
    alive: Arc<RwLock<Option<HashSet<String>>>>,
    endings: Endings,
}

impl LivePods {
    /// Whether the watch shows a pod with this UID alive.
    pub fn contains(&self, uid: &str) -> bool {
        // The set stays whole whatever a panicking holder of the lock was about.
        self.alive.read().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|alive| alive.contains(uid))
    }

    /// Whether the watch shows that there is no pod with this UID alive.
    pub fn lacks(&self, uid: &str) -> bool {
        self.alive.read().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|alive| !alive.contains(uid))
    }

    /// When those were first seen to have ended that have tokens.
    pub fn endings(&self) -> Endings {
        self.endings.clone()
    }

    /// The watch shows that it has not ended, whatever a list made of it that had begun before it was there.
    fn shows(&self, pod: &PartialObjectMeta<Pod>) {
        if let Some(uid) = &pod.metadata.uid {
            self.endings.take(uid);
        }
    }

    fn change(&self, change: impl FnOnce(&mut HashSet<String>)) {
        change(self.alive.write().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
    }
}

/// Watches all pods, which are listed anew every `relist`, and names the requests to look at again.
pub fn triggers(
    client: Client,
    requests: Store<VaultTokenRequest>,
    live: LivePods,
    health: Health,
    relist: Duration,
) -> impl Stream<Item = ObjectRef<VaultTokenRequest>> {
    let pods: Api<PartialObjectMeta<Pod>> = Api::all(client);
    let mut listed = HashSet::new();
    let vitals = health.vitals();
    cluster::watch_anew(pods, cluster::watch().fields(UNFINISHED), relist)
        .backoff(Patience::default())
        .filter_map(move |event| {
            match &event {
                Ok(Event::InitDone) => health.pods_listed(),
                Ok(_) => {}
                Err(error) => {
                    let error = cluster::watch_words(error);
                    tracing::warn!(error, "the watch of pods broke; it is taken up again");
                }
            }
            std::future::ready(event.ok())
        })
        .flat_map(move |event| futures::stream::iter(concerned(event, &requests, &live, &mut listed, &vitals)))
}

fn concerned(
    event: Event<PartialObjectMeta<Pod>>,
    requests: &Store<VaultTokenRequest>,
    live: &LivePods,
    listed: &mut HashSet<String>,
    vitals: &Vitals,
) -> Vec<ObjectRef<VaultTokenRequest>> {
    match event {
        Event::Init => {
            listed.clear();
            Vec::new()
        }
        Event::InitApply(pod) => {
            live.shows(&pod);
            listed.extend(pod.metadata.uid.clone());
            Vec::new()
        }
        // The list replaces what was known; whatever it lacks may be gone since the watch broke.
        Event::InitDone => {
            let listed = std::mem::take(listed);
            live.change(|known| *known = listed);
            // After it is known which pods live: who owes it something looks at that.
            vitals.listed("pods");
            let unsure = requests.state_filter(|request| {
                !request.is_over() && (request.phase() != Phase::Delivered || !live.contains(&request.spec.pod_uid))
            });
            for request in unsure.iter().filter(|request| request.holds_token()) {
                if live.lacks(&request.spec.pod_uid) {
                    live.endings.saw(&request.spec.pod_uid, Timestamp::now());
                }
            }
            unsure.iter().map(|request| ObjectRef::from_obj(&**request)).collect()
        }
        Event::Apply(pod) => {
            live.shows(&pod);
            live.change(|known| known.extend(pod.metadata.uid.clone()));
            vitals.brought("pods", pod.metadata.uid.as_deref().unwrap_or_default());
            // A delivered token is none of this event's business: the pod lives.
            of_pod(&pod, requests, |request| !request.is_over() && request.phase() != Phase::Delivered)
        }
        Event::Delete(pod) => {
            live.change(|known| {
                pod.metadata.uid.as_ref().map(|uid| known.remove(uid));
            });
            vitals.brought("pods", pod.metadata.uid.as_deref().unwrap_or_default());
            let unfinished = of_pod(&pod, requests, |request| !request.is_over());
            if let (Some(uid), false) = (&pod.metadata.uid, unfinished.is_empty()) {
                live.endings.saw(uid, Timestamp::now());
            }
            unfinished
        }
    }
}

/// The requests of a pod, found by their names.
fn of_pod(
    pod: &PartialObjectMeta<Pod>,
    requests: &Store<VaultTokenRequest>,
    wanted: impl Fn(&VaultTokenRequest) -> bool,
) -> Vec<ObjectRef<VaultTokenRequest>> {
    let (Some(name), Some(namespace), Some(uid)) = (&pod.metadata.name, &pod.metadata.namespace, &pod.metadata.uid)
    else {
        return Vec::new();
    };
    (0..REQUESTS_PER_POD)
        .map(|digit| ObjectRef::new(&request_name(name, uid, digit)).within(namespace))
        .filter(|reference| requests.get(reference).is_some_and(|request| wanted(&request)))
        .collect()
}
