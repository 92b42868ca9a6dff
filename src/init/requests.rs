//! The pod's own requests. The pod may create and get them, and nothing else.

use super::identity::Identity;
use crate::api::{
    Delivery, FINALIZER, MAX_POD_NAME, REQUESTS_PER_POD, VaultTokenRequest, VaultTokenRequestSpec, request_name,
};
use crate::cluster::{Error, FIELD_MANAGER, bounded};
use crate::domain::backoff::Backoff;
use crate::domain::custody::vouches;
use crate::text::one_line;
use crate::wire::Answer;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use std::collections::HashSet;
use std::time::Duration;

/// Waits while the API server cannot be asked.
const RETRY: Backoff = Backoff { first: Duration::from_millis(250), longest: Duration::from_secs(10) };

/// What a request says beside which pod it is of.
pub struct Asked<'a> {
    /// The name of the container that asks.
    pub init_container: &'a str,
    /// The public half of its key.
    pub public_key: &'a str,
    /// Where it waits for a push; without it, it takes its token from the status.
    pub port: Option<u16>,
}

/// Creates and reads the requests of one pod.
pub struct Requests {
    api: Api<VaultTokenRequest>,
    identity: Identity,
}

impl Requests {
    /// The requests of the pod that `identity` names.
    pub fn new(client: Client, identity: &Identity) -> Self {
        Self { api: Api::namespaced(client, &identity.namespace), identity: identity.clone() }
    }

    /// Whether a request of this pod is Delivered with a token of this accessor.
    ///
    /// # Errors
    /// A sentence about the API server.
    pub async fn delivered(&self, accessor: &str) -> Result<bool, String> {
        for digit in 0..REQUESTS_PER_POD {
            let found = self.patiently(|| self.get(digit)).await?;
            if found.is_some_and(|request| vouches(&request, accessor)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Creates a request under the first free name; gives the UIDs of the pod's older ones, too. A create whose answer was lost is
    /// found again by its sequence.
    ///
    /// # Errors
    /// A sentence that says what is missing: RBAC, the CRD, a free name.
    pub async fn create(&self, asked: &Asked<'_>) -> Result<(VaultTokenRequest, HashSet<String>), String> {
        let pod_name = &self.identity.pod_name;
        if pod_name.len() > MAX_POD_NAME {
            return Err(format!("the pod's name is longer than {MAX_POD_NAME} characters; give it a shorter one"));
        }
        let sequence = i64::try_from(Timestamp::now().as_nanosecond()).map_err(|_| "the clock is out of bounds")?;
        let mut spec = VaultTokenRequestSpec {
            pod_name: pod_name.clone(),
            pod_uid: self.identity.pod_uid.clone(),
            sequence,
            init_container: asked.init_container.to_owned(),
            public_key: asked.public_key.to_owned(),
            delivery: if asked.port.is_some() { Delivery::Push } else { Delivery::Status },
            port: asked.port.map(i32::from),
        };
        let mut older = HashSet::new();
        for digit in 0..REQUESTS_PER_POD {
            let mut request = VaultTokenRequest::new(&self.name(digit), spec.clone());
            request.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
            match self.patiently(|| self.post(&request)).await? {
                Some(made) if made.spec.sequence == spec.sequence => return Ok((made, older)),
                // An older one, even if the node's clock went back since.
                Some(found) => {
                    spec.sequence = spec.sequence.max(found.spec.sequence.saturating_add(1));
                    older.extend(found.metadata.uid);
                }
                None => {}
            }
        }
        Err(format!(
            "the pod {pod_name} has made {REQUESTS_PER_POD} requests, and none of them gave it a token; \
             kubectl get vtr -n {} -o wide says why. Delete the pod to start over",
            self.identity.namespace
        ))
    }

    /// Reads a request anew; `None` when it is gone.
    ///
    /// # Errors
    /// Whatever leaves it open whether it is there.
    pub async fn read(&self, name: &str) -> Result<Option<VaultTokenRequest>, Error> {
        bounded(self.api.get_opt(name)).await
    }

    /// Writes into the status of a request what became of the wrapping token that was there; gives a sentence if the pod may not do
    /// that, whatever is in the request.
    ///
    /// # Errors
    /// Whatever leaves it open whether it was written.
    pub async fn answer(&self, request: &VaultTokenRequest, answer: &Answer) -> Result<Option<String>, Error> {
        let name = request.metadata.name.as_deref().unwrap_or_default();
        // Keeps it off another request of the same name. Of a UID in a patch of the status, the API server takes no notice.
        let version = &request.metadata.resource_version;
        let patch = json!({ "metadata": { "resourceVersion": version }, "status": { "answer": answer } });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match bounded(self.api.patch_status(name, &params, &Patch::Merge(patch))).await {
            Ok(_) => Ok(None),
            Err(error) => match (error.status(), said(&error)) {
                (Some(403), Some(said)) if said.contains(" cannot patch resource ") => {
                    Ok(Some(self.lacks_role("patch the status of", "vault-token-requester-status", &said)))
                }
                _ => Err(error),
            },
        }
    }

    fn name(&self, digit: u8) -> String {
        request_name(&self.identity.pod_name, &self.identity.pod_uid, digit)
    }

    async fn get(&self, digit: u8) -> Result<Option<VaultTokenRequest>, Error> {
        self.read(&self.name(digit)).await
    }

    /// Creates the request, or gives the one that has its name.
    async fn post(&self, request: &VaultTokenRequest) -> Result<Option<VaultTokenRequest>, Error> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match bounded(self.api.create(&params, request)).await {
            Ok(made) => Ok(Some(made)),
            Err(error) if error.status() == Some(409) => {
                self.read(request.metadata.name.as_deref().unwrap_or_default()).await
            }
            Err(error) => Err(error),
        }
    }

    /// Repeats a call for as long as the API server is away; a refusal is final.
    async fn patiently<T, F: Future<Output = Result<T, Error>>>(&self, call: impl Fn() -> F) -> Result<T, String> {
        let mut failures = 0;
        loop {
            match call().await {
                Ok(value) => return Ok(value),
                Err(error) => match self.refusal(&error) {
                    Some(refusal) => return Err(refusal),
                    None => {
                        failures += 1;
                        tracing::warn!(%error, failures, "cannot ask the Kubernetes API server yet");
                        tokio::time::sleep(RETRY.after(failures, rand::random())).await;
                    }
                },
            }
        }
    }

    /// The words for an error that asking again does not mend.
    fn refusal(&self, error: &Error) -> Option<String> {
        let said = said(error)?;
        match error.status() {
            Some(401) => Some(format!("the API server does not accept the pod's ServiceAccount token: {said}")),
            Some(403) if said.contains(" cannot create resource ") || said.contains(" cannot get resource ") => {
                Some(self.lacks_role("create and get", "vault-token-requester", &said))
            }
            // A quota, a namespace that is going, an admission policy: the server's words are all there is to say.
            Some(403) => Some(format!("the API server refuses the request: {said}")),
            Some(404) => Some(format!("the cluster has no VaultTokenRequest: apply crds/ first ({said})")),
            Some(400 | 422) => Some(format!("the API server refuses the request: {said}")),
            _ => None,
        }
    }

    fn lacks_role(&self, verbs: &str, role: &str, said: &str) -> String {
        let Identity { namespace, service_account, .. } = &self.identity;
        format!(
            "the service account {service_account} may not {verbs} vaulttokenrequests in the namespace {namespace}: kubectl create \
             rolebinding {role}-{service_account} -n {namespace} --clusterrole={role} \
             --serviceaccount={namespace}:{service_account} ({said})"
        )
    }
}

/// The API server's own words.
fn said(error: &Error) -> Option<String> {
    match error {
        Error::Api(kube::Error::Api(status)) => Some(one_line(&status.message)),
        _ => None,
    }
}
