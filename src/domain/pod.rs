//! What a decision needs of a pod, read from the API server's object once and carried as plain data.

use crate::api::{POLICIES_ANNOTATION, TTL_ANNOTATION};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use std::net::IpAddr;

/// A pod as a fresh read shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The API server has no pod of that name.
    Absent,
    /// It has one; whether it is the right one is for the decision to say.
    Present(PodFacts),
}

/// The facts of one pod that matter to its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid`
    pub uid: String,
    /// Whether `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Whether its phase is Succeeded or Failed: no container of it runs any more, or ever will again.
    pub finished: bool,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Its addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// The addresses of its node.
    pub host_ip: Option<String>,
    /// The node it runs on.
    pub node_name: Option<String>,
    /// Its service account.
    pub service_account: String,
    /// Its annotation `vaultproject.io/policies`.
    pub policies: Option<String>,
    /// Its annotation `vaultproject.io/ttl`.
    pub ttl: Option<String>,
    /// What its status says of the init container that asks.
    pub init: InitState,
}

/// The state of the init container that made the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitState {
    /// The pod's spec has no such init container, or it is a native sidecar, which runs for the pod's whole life and so
    /// says nothing about whether the pod initializes.
    Unknown,
    /// It is not reported as running yet, or is about to run again.
    Waiting,
    /// It runs.
    Running,
    /// It ended well, or the pod's app runs, which it does only once all init containers have ended.
    Ended,
}

impl PodFacts {
    /// Reads the facts of `pod`; `init_container` is the name of the container that asks.
    pub fn read(pod: &Pod, init_container: &str) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(name)).cloned();
        let primary = status.and_then(|status| status.pod_ip.clone());
        let all = status.and_then(|status| status.pod_ips.clone()).unwrap_or_default();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for ip in primary.into_iter().chain(all.into_iter().map(|ip| ip.ip)).filter_map(|ip| ip.parse().ok()) {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            finished: matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            addresses,
            host_ip: status.and_then(|status| status.host_ip.clone()),
            node_name: spec.and_then(|spec| spec.node_name.clone()),
            // The older field is filled in by the API server, but not in a manifest.
            service_account: spec
                .and_then(|spec| spec.service_account_name.clone().or_else(|| spec.service_account.clone()))
                .unwrap_or_default(),
            policies: annotation(POLICIES_ANNOTATION),
            ttl: annotation(TTL_ANNOTATION),
            init: init_state(pod, init_container),
        }
    }
}

fn init_state(pod: &Pod, name: &str) -> InitState {
    let declared = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    let asks = |container: &&Container| container.name == name && container.restart_policy.as_deref() != Some("Always");
    if declared.is_none_or(|containers| !containers.iter().any(|container| asks(&container))) {
        return InitState::Unknown;
    }
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.iter().flatten().find(|it| it.name == name));
    match init.and_then(|init| init.state.as_ref()) {
        // Whatever is said of the init container itself. The phase, and the condition Initialized, say nothing: they stay as they are
        // where a pod initializes once more, as after its machine has started anew.
        _ if status.is_some_and(app_runs) => InitState::Ended,
        Some(state) if state.running.is_some() => InitState::Running,
        Some(state) if state.terminated.as_ref().is_some_and(|end| end.exit_code == 0) => InitState::Ended,
        _ => InitState::Waiting,
    }
}

/// Whether a container runs that only runs in pods that have initialized.
fn app_runs(status: &PodStatus) -> bool {
    let mut states = status.container_statuses.iter().flatten().filter_map(|container| container.state.as_ref());
    states.any(|state| state.running.is_some())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn pod(patch: serde_json::Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "8f1c2d3e-0000-4000-8000-000000000001",
                "annotations": {"vaultproject.io/policies": "shop-read", "vaultproject.io/ttl": "24h"}},
            "spec": {"serviceAccountName": "web", "nodeName": "node-1", "containers": [],
                "initContainers": [{"name": "vault-init"}]},
            "status": {"phase": "Pending", "podIP": "10.1.0.7", "podIPs": [{"ip": "10.1.0.7"}, {"ip": "fd00::7"}],
                "hostIP": "192.168.0.4",
                "initContainerStatuses": [{"name": "vault-init", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}
        });
        json_patch::merge(&mut pod, &patch);
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn a_pod_that_initializes_on_two_networks() {
        let facts = PodFacts::read(&pod(json!({})), "vault-init");
        assert_eq!(facts.init, InitState::Running);
        assert_eq!(facts.addresses, ["10.1.0.7", "fd00::7"].map(|ip| ip.parse::<IpAddr>().expect("an address")));
        assert_eq!((facts.service_account.as_str(), facts.policies.as_deref()), ("web", Some("shop-read")));
        assert!(!facts.terminating && !facts.finished && !facts.host_network);
    }

    #[test]
    fn an_init_container_that_is_not_there_or_not_running_or_done() {
        let state = |state| {
            json!({"status": {"initContainerStatuses": [{"name": "vault-init", "image": "", "imageID": "",
                "ready": false, "restartCount": 0, "state": state}]}})
        };
        let read = |patch| PodFacts::read(&pod(patch), "vault-init").init;
        assert_eq!(PodFacts::read(&pod(json!({})), "other").init, InitState::Unknown);
        assert_eq!(read(state(json!({"waiting": {"reason": "PodInitializing"}}))), InitState::Waiting);
        assert_eq!(read(state(json!({"terminated": {"exitCode": 1}}))), InitState::Waiting);
        assert_eq!(read(state(json!({"terminated": {"exitCode": 0}}))), InitState::Ended);
        assert_eq!(read(json!({"status": {"initContainerStatuses": null}})), InitState::Waiting);
        let sidecar = json!({"spec": {"initContainers": [{"name": "vault-init", "restartPolicy": "Always"}]}});
        assert_eq!(read(sidecar), InitState::Unknown, "a native sidecar runs long after the pod has initialized");
    }

    /// What the status of a pod has whose app is in this state.
    pub(crate) fn app(state: serde_json::Value) -> serde_json::Value {
        json!({"phase": "Running", "conditions": [{"type": "Initialized", "status": "True"}],
            "containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]})
    }

    #[test]
    fn a_pod_initializes_once_more_only_while_its_app_does_not_run() {
        let read = |state| PodFacts::read(&pod(json!({"status": app(state)})), "vault-init").init;
        assert_eq!(read(json!({"running": {}})), InitState::Ended, "whatever its init container's state says");
        for state in [json!({"terminated": {"exitCode": 137}}), json!({"waiting": {"reason": "PodInitializing"}})] {
            assert_eq!(read(state), InitState::Running, "its sandbox is another one");
        }
    }
}
