//! Sees whether the admission policies of `config/admission.yaml` are installed as they should be, and in force.

use super::patience::Patience;
use crate::api::{FINALIZER, VaultTokenRequest, VaultTokenRequestSpec, request_name};
use crate::cluster::{self, Error, FIELD_MANAGER, bounded, watch_words};
use crate::domain::admission::{Admission, REMEDY};
use crate::seal::OneTimeKey;
use crate::yaml;
use futures::{Stream, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;
use std::time::Duration;
use tokio::sync::watch;

/// What the operator was built with.
const MANIFEST: &str = include_str!("../../config/admission.yaml");

/// The policy that checks requests, and its binding.
const REQUESTS: &str = "vault-token-requests";

/// Time between two looks, if nothing is seen to change.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long API servers may take to go by a policy that was written: whatever is made meanwhile counts as unchecked.
const SETTLING: SignedDuration = SignedDuration::from_secs(3);

/// A pod that there is none of.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// Looks at the policies.
pub struct Inspector {
    client: Client,
    waived: bool,
    sender: watch::Sender<Admission>,
}

impl Inspector {
    /// Nothing is known yet. `waived`: the operator was told to do without.
    pub fn new(client: Client, waived: bool) -> Self {
        Self { client, waived, sender: watch::Sender::new(Admission::Unknown) }
    }

    /// What is known, as it changes.
    pub fn admission(&self) -> watch::Receiver<Admission> {
        self.sender.subscribe()
    }

    /// Looks for as long as it is polled.
    pub async fn run(&self) {
        if self.waived {
            tell(&Admission::Waived);
            self.sender.send_replace(Admission::Waived);
            return std::future::pending().await;
        }
        let policies = changes::<ValidatingAdmissionPolicy>(self.client.clone());
        let bindings = changes::<ValidatingAdmissionPolicyBinding>(self.client.clone());
        let mut changes = std::pin::pin!(futures::stream::select(policies, bindings));
        let mut last = None;
        loop {
            // The watches go on meanwhile, however long the API server takes.
            let known: Vec<Version> = last.iter().flat_map(|last: &Seen| last.versions.clone()).collect();
            let mut meanwhile = Vec::new();
            let looked = {
                let mut look = std::pin::pin!(self.look(&mut last));
                loop {
                    tokio::select! {
                        looked = &mut look => break looked,
                        Some(change) = changes.next() => {
                            if !change.as_ref().is_some_and(|version| known.contains(version)) {
                                self.doubt();
                            }
                            meanwhile.push(change);
                        }
                    }
                }
            };
            let seen = |version: &Version| last.as_ref().is_some_and(|last| last.versions.contains(version));
            let outdated = meanwhile.iter().any(|change| !change.as_ref().is_some_and(seen));
            match looked {
                // It changed again while it was looked at.
                Ok(Admission::InForce { .. }) if outdated => {}
                Ok(admission) => {
                    let news = *self.sender.borrow() != admission;
                    if news {
                        tell(&admission);
                        self.sender.send_replace(admission);
                    }
                }
                // What was seen last may well be true still; in an outage nothing can be written either.
                Err(error) => tracing::warn!(%error, "cannot look at the admission policies"),
            }
            if outdated {
                self.doubt();
                continue;
            }
            let mut news = changes.by_ref().filter(|change| std::future::ready(!change.as_ref().is_some_and(seen)));
            tokio::select! {
                Some(_) = news.next() => self.doubt(),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Until the next look nothing is known: it may be that nobody checks who makes requests.
    fn doubt(&self) {
        self.sender.send_if_modified(|admission| {
            let doubted = matches!(admission, Admission::InForce { .. });
            if doubted {
                *admission = Admission::Unknown;
            }
            doubted
        });
    }

    async fn look(&self, last: &mut Option<Seen>) -> Result<Admission, Error> {
        let expected = match yaml::documents(MANIFEST) {
            Ok(expected) => expected,
            Err(why) => {
                return Ok(Admission::Lacking(format!(
                    "the operator's own copy of the policies cannot be read: {why}"
                )));
            }
        };
        let (requests, others): (Vec<_>, Vec<_>) =
            expected.iter().partition(|expected| text(expected, "/metadata/name") == REQUESTS);
        let seen = self.see_requests_checked(&requests).await?;
        let since = since(last.as_ref(), &seen, Timestamp::now());
        *last = Some(Seen { since, ..seen.clone() });
        if let Some(why) = seen.lacking {
            return Ok(Admission::Lacking(why));
        }
        for expected in others {
            if let Err(why) = self.find(expected).await? {
                return Ok(Admission::Lacking(why));
            }
        }
        Ok(Admission::InForce { since: since.checked_add(SETTLING).unwrap_or(since) })
    }

    /// Whether requests are checked as they should be.
    async fn see_requests_checked(&self, expected: &[&Value]) -> Result<Seen, Error> {
        let mut seen = Seen { since: Timestamp::MIN, versions: Vec::new(), lacking: None };
        for expected in expected {
            match self.find(expected).await? {
                Ok(object) => {
                    seen.since = seen.since.max(changed(&object));
                    seen.versions.push(version(&object.metadata));
                }
                Err(why) => return Ok(Seen { lacking: Some(why), ..seen }),
            }
        }
        // Installed is not in force: it takes the API server some time, and others may have bound it away.
        seen.lacking = self.try_what_is_forbidden().await?;
        Ok(seen)
    }

    /// An object as it should be; or what is wrong with it.
    async fn find(&self, expected: &Value) -> Result<Result<DynamicObject, String>, Error> {
        let (kind, name) = (text(expected, "/kind"), text(expected, "/metadata/name"));
        let lacking = |what: &str| Ok(Err(format!("the {kind} {name} {what}")));
        let kinds = ApiResource::from_gvk(&GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind));
        let objects: Api<DynamicObject> = Api::all_with(self.client.clone(), &kinds);
        let object = match bounded(objects.get_opt(name)).await {
            Err(error) if error.status() == Some(403) => return lacking(&format!("cannot be read ({error})")),
            found => found?,
        };
        let Some(object) = object else { return lacking("is not there") };
        if object.data.get("spec") != expected.get("spec") {
            return lacking("is not as in the config/ of this version (delete it first if applying it does not help)");
        }
        if object.metadata.deletion_timestamp.is_some() {
            return lacking("is being deleted");
        }
        Ok(Ok(object))
    }

    /// A request in the name of a pod that this is not. Nothing is ever made: it is a dry run. Gives what is wrong if it is not
    /// refused by the policy.
    async fn try_what_is_forbidden(&self) -> Result<Option<String>, Error> {
        let key = OneTimeKey::generate().map_err(|_| Error::Timeout)?;
        let spec = VaultTokenRequestSpec {
            pod_name: "nobody".to_owned(),
            pod_uid: NOBODY.to_owned(),
            sequence: 1,
            init_container: "nobody".to_owned(),
            public_key: key.public().to_owned(),
            delivery: crate::api::Delivery::Push,
            port: Some(1),
        };
        let mut request = VaultTokenRequest::new(&request_name("nobody", NOBODY, 0), spec);
        request.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        let requests: Api<VaultTokenRequest> = Api::default_namespaced(self.client.clone());
        let params = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.to_owned()) };
        match bounded(requests.create(&params, &request)).await {
            Ok(_) => Ok(Some(
                "a request in the name of another pod is let in: the admission policy is not in force, or the operator runs as \
                 somebody who may pass it"
                    .to_owned(),
            )),
            Err(error) if error.status() == Some(403) && error.to_string().contains(REQUESTS) => Ok(None),
            Err(error) if error.status() == Some(403) => Ok(Some(format!(
                "it cannot be tried whether the admission policy is in force ({error})"
            ))),
            Err(error) => Err(error),
        }
    }
}

/// UID and generation of an object: the API server counts the changes of a specification itself.
type Version = (Option<String>, Option<i64>);

fn version(metadata: &ObjectMeta) -> Version {
    (metadata.uid.clone(), metadata.generation)
}

/// The versions of one of the objects that have requests checked, as they come; `None` where it goes. This only hurries the next look.
fn changes<K>(client: Client) -> impl Stream<Item = Option<Version>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let objects: Api<PartialObjectMeta<K>> = Api::all(client);
    watcher(objects, cluster::watch().fields(&format!("metadata.name={REQUESTS}")))
        .backoff(Patience::default())
        .filter_map(|event| {
            std::future::ready(match event {
                Ok(Event::Apply(object) | Event::InitApply(object)) => Some(Some(version(&object.metadata))),
                Ok(Event::Delete(_)) => Some(None),
                Ok(Event::Init | Event::InitDone) => None,
                Err(error) => {
                    let error = watch_words(&error);
                    tracing::warn!(error, "the watch of the admission policy broke; it is taken up again");
                    None
                }
            })
        })
}

/// What one look found of the objects that have requests checked.
#[derive(Clone)]
struct Seen {
    /// Since when they have been as they are.
    since: Timestamp,
    /// Those that were seen.
    versions: Vec<Version>,
    /// What is wrong, if anything is.
    lacking: Option<String>,
}

/// Since when requests have been checked without a gap. Whoever closes a gap can have the objects say that there was none, but not
/// how often they have changed; and some gaps are none of theirs, as an API server that was told not to check anything. It is by the API
/// server's clock that requests are older or newer, so that a clock of ours that is behind must not end a gap before its time.
fn since(last: Option<&Seen>, seen: &Seen, now: Timestamp) -> Timestamp {
    match last {
        None => seen.since,
        Some(last) if last.lacking.is_none() && last.versions == seen.versions => last.since.max(seen.since),
        Some(_) => now.max(seen.since),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// When an object was written last, its status not counted.
fn changed(object: &DynamicObject) -> Timestamp {
    let created = object.creation_timestamp().map(|time| time.0);
    let written = object.managed_fields().iter().filter(|entry| entry.subresource.as_deref().unwrap_or("").is_empty());
    let times = written.filter_map(|entry| entry.time.as_ref().map(|time| time.0));
    times.chain(created).max().unwrap_or(Timestamp::MAX)
}

fn tell(admission: &Admission) {
    match admission {
        Admission::InForce { .. } => tracing::info!("the admission policy is in force: requests are their pods' own"),
        Admission::Waived => tracing::warn!(
            "--trust-unverified-requests: nothing checks who creates requests; any pod that may create them can take the token of \
             another pod of its namespace that initializes"
        ),
        Admission::Unknown => {}
        Admission::Lacking(why) => {
            tracing::error!(why, "no tokens are made: {REMEDY}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i4_a_gap_counts_that_left_no_trace() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let seen = |since, generation, lacking: Option<&str>| Seen {
            since: at(since),
            versions: vec![(Some("uid".to_owned()), Some(generation))],
            lacking: lacking.map(str::to_owned),
        };
        let whole = seen(100, 1, None);
        assert_eq!(since(None, &whole, at(500)), at(100), "the first look goes by what the objects say");
        assert_eq!(since(Some(&whole), &whole, at(500)), at(100));
        assert_eq!(since(Some(&seen(300, 1, None)), &whole, at(500)), at(300), "what is known stays known");
        assert_eq!(since(Some(&whole), &seen(100, 3, None), at(500)), at(500), "changed and changed back");
        assert_eq!(since(Some(&seen(100, 1, Some("let in"))), &whole, at(500)), at(500), "nothing was checked");
        let mended = seen(600, 2, None);
        assert_eq!(since(Some(&seen(100, 1, Some("let in"))), &mended, at(500)), at(600), "our clock is behind");
    }
}
