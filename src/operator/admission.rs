//! Sees whether the admission policies of `config/admission.yaml` are installed as they should be, and in force.

use crate::api::{FINALIZER, VaultTokenRequest, VaultTokenRequestSpec, request_name};
use crate::cluster::{Error, FIELD_MANAGER, bounded};
use crate::domain::admission::Admission;
use crate::seal::OneTimeKey;
use crate::yaml;
use jiff::{SignedDuration, Timestamp};
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::watch;

/// What the operator was built with.
const MANIFEST: &str = include_str!("../../config/admission.yaml");

/// The policy that checks requests, and its binding.
const REQUESTS: &str = "vault-token-requests";

/// Time between two looks.
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
        loop {
            let seen = if self.waived { Ok(Admission::Waived) } else { self.inspect().await };
            match seen {
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
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn inspect(&self) -> Result<Admission, Error> {
        let mut since = Timestamp::MIN;
        let expected = match yaml::documents(MANIFEST) {
            Ok(expected) => expected,
            Err(why) => {
                return Ok(Admission::Lacking(format!(
                    "the operator's own copy of the policies cannot be read: {why}"
                )));
            }
        };
        for expected in &expected {
            let text = |pointer: &str| expected.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let (kind, name) = (text("/kind"), text("/metadata/name"));
            let lacking = |what: &str| Ok(Admission::Lacking(format!("the {kind} {name} {what}")));
            let kinds = ApiResource::from_gvk(&GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind));
            let objects: Api<DynamicObject> = Api::all_with(self.client.clone(), &kinds);
            let object = match bounded(objects.get_opt(name)).await {
                Err(error) if error.status() == Some(403) => return lacking(&format!("cannot be read ({error})")),
                found => found?,
            };
            let Some(object) = object else { return lacking("is not there") };
            if object.data.get("spec") != expected.get("spec") {
                return lacking(
                    "is not as in the config/ of this version (delete it first if applying it does not help)",
                );
            }
            if object.metadata.deletion_timestamp.is_some() {
                return lacking("is being deleted");
            }
            if name == REQUESTS {
                since = since.max(changed(&object));
            }
        }
        // Installed is not in force: it takes the API server some time, and others may have bound it away.
        match self.try_what_is_forbidden().await? {
            None => Ok(Admission::InForce { since: since.checked_add(SETTLING).unwrap_or(since) }),
            Some(why) => Ok(Admission::Lacking(why)),
        }
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
        Admission::Lacking(why) => tracing::error!(why, "no tokens are made: kubectl apply --server-side -k config/"),
    }
}
