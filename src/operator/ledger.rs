//! The record: every change of a request goes through here, guarded by the resourceVersion of what was seen, and
//! leaves one audit line and one Event, and is counted. A change whose answer is lost leaves a line that says so.

use super::herald::Herald;
use super::metrics::Metrics;
use super::pods::LivePods;
use super::vitals::Vitals;
use crate::api::{FINALIZER, Phase, Reason, VaultTokenRequest, VaultTokenRequestStatus};
use crate::cluster::{Error, FIELD_MANAGER, bounded};
use crate::domain::announcement::announcement;
use crate::domain::audit::step;
use crate::domain::tally::{Times, tally};
use jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

/// Reads and writes requests.
pub struct Ledger {
    client: Client,
    herald: Herald,
    metrics: Metrics,
    pods: LivePods,
    vitals: Vitals,
}

impl Ledger {
    /// Writes with `client`, announces through `herald`, counts in `metrics`; knows from `pods` when one ended, and tells `vitals` what
    /// the watches are to bring.
    pub fn new(client: Client, herald: Herald, metrics: Metrics, pods: LivePods, vitals: Vitals) -> Self {
        Self { client, herald, metrics, pods, vitals }
    }

    /// Reads a request fresh.
    ///
    /// # Errors
    /// Whatever leaves it open whether it is there.
    pub async fn read(&self, namespace: &str, name: &str) -> Result<Option<VaultTokenRequest>, Error> {
        let requests: Api<VaultTokenRequest> = Api::namespaced(self.client.clone(), namespace);
        bounded(requests.get_opt(name)).await
    }

    /// Writes the status of a request, unless somebody changed the request since `request` was read. Gives the
    /// request as it is then; an unchanged status is not written.
    ///
    /// # Errors
    /// 409 where somebody was faster, 404 where the request is gone; without an answer, it may have been written.
    pub async fn write(
        &self,
        request: &VaultTokenRequest,
        status: VaultTokenRequestStatus,
    ) -> Result<VaultTokenRequest, Error> {
        if request.status.as_ref() == Some(&status) {
            return Ok(request.clone());
        }
        let mut next = request.clone();
        next.status = Some(status);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        // Before the call: its news may come before its answer.
        let uid = request.uid().unwrap_or_default();
        let owed = self.vitals.owe("vaulttokenrequests", &uid);
        let written = bounded(self.api(request).replace_status(&request.name_any(), &params, &next)).await;
        let changed = written.as_ref().is_ok_and(|written| written.resource_version() != request.resource_version());
        if owed && !changed {
            self.vitals.brought("vaulttokenrequests", &uid);
        }
        match &written {
            Ok(written) => self.tell(request, written),
            Err(error) => audit_change(request, &next, Some(error)),
        }
        written
    }

    /// Takes the finalizer off (rule 7, I8).
    ///
    /// # Errors
    /// 409 where somebody changed the request meanwhile.
    pub async fn release(&self, request: &VaultTokenRequest) -> Result<(), Error> {
        let others: Vec<&String> = request.finalizers().iter().filter(|name| *name != FINALIZER).collect();
        let patch = json!({"metadata": {"resourceVersion": request.resource_version(), "finalizers": others}});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let released = bounded(self.api(request).patch(&request.name_any(), &params, &Patch::Merge(patch))).await;
        gone_or_done("Released", request, released.map(drop))
    }

    /// Deletes the request, at the version that was seen.
    ///
    /// # Errors
    /// 409 where somebody changed the request meanwhile.
    pub async fn delete(&self, request: &VaultTokenRequest) -> Result<(), Error> {
        let preconditions = Preconditions { uid: request.uid(), resource_version: request.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted = bounded(self.api(request).delete(&request.name_any(), &params)).await;
        gone_or_done("Deleted", request, deleted.map(drop))
    }

    fn api(&self, request: &VaultTokenRequest) -> Api<VaultTokenRequest> {
        Api::namespaced(self.client.clone(), request.namespace().as_deref().unwrap_or_default())
    }

    fn tell(&self, before: &VaultTokenRequest, after: &VaultTokenRequest) {
        let (old, new) = (before.status.clone().unwrap_or_default(), after.status.clone().unwrap_or_default());
        audit_change(before, after, None);
        if let Some(announcement) = announcement(&old, &new) {
            self.herald.announce(after, announcement);
        }
        let created = after.metadata.creation_timestamp.as_ref().map(|created| created.0);
        let pod_uid = &after.spec.pod_uid;
        let pod_ended = if new.phase == Some(Phase::Revoked) { self.pods.endings().take(pod_uid) } else { None };
        // A fresh look has shown its end, and so is the watch to do.
        let ended = [Reason::PodDeleted, Reason::PodFinished].map(Reason::as_str);
        if new.reason.as_deref().is_some_and(|reason| ended.contains(&reason)) {
            self.vitals.owe("pods", pod_uid);
            // It may have shown it before.
            if !self.pods.contains(pod_uid) {
                self.vitals.brought("pods", pod_uid);
            }
        }
        for count in tally(&old, &new, Times { created, pod_ended, now: Timestamp::now() }) {
            self.metrics.count(count);
        }
    }
}

/// What became of a call that lets a request go: one that is gone already needs no more.
fn gone_or_done(step: &str, request: &VaultTokenRequest, done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.status() == Some(404) => Ok(()),
        Err(error) => {
            audit(step, request, request, Some(&error));
            Err(error)
        }
        Ok(()) => {
            audit(step, request, request, None);
            Ok(())
        }
    }
}

fn audit_change(before: &VaultTokenRequest, after: &VaultTokenRequest, error: Option<&Error>) {
    let none = VaultTokenRequestStatus::default();
    let [old, new] = [before, after].map(|request| request.status.as_ref().unwrap_or(&none));
    if let Some(step) = step(old, new) {
        audit(&step, before, after, error);
    }
}

/// One line of the audit log, unless the step was certainly not taken.
fn audit(step: &str, before: &VaultTokenRequest, after: &VaultTokenRequest, error: Option<&Error>) {
    if error.is_some_and(Error::had_no_effect) {
        return;
    }
    let (old, new) = (before.status.clone().unwrap_or_default(), after.status.clone().unwrap_or_default());
    tracing::info!(
        target: "audit",
        step,
        answered = error.is_none(),
        reason = new.reason.as_deref().unwrap_or_default(),
        namespace = after.namespace().unwrap_or_default(),
        request = after.name_any(),
        request_uid = after.uid().unwrap_or_default(),
        pod = after.spec.pod_name,
        pod_uid = after.spec.pod_uid,
        service_account = new.service_account_name.as_deref().unwrap_or_default(),
        attempt = new.attempts,
        policies = new.policies.join(","),
        token_accessor = new.token_accessor.as_deref().or(old.token_accessor.as_deref()).unwrap_or_default(),
        wrapping_accessor = new.wrapping_accessor.as_deref().unwrap_or_default(),
        "{}", crate::domain::status::current(&new),
    );
}
