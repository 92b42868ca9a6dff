//! A stand-in for the kubelet: pods are objects whose status it writes, and their init container is a local process
//! with an address of its own among the loopback addresses, a bound ServiceAccount token and a volume.

mod node;

pub use node::Node;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::control_plane::{BearerToken, ControlPlane, within};
use crate::error::Error;
use crate::process::{self, Process};
use crate::run::Run;
use crate::vault::VaultServer;

/// The name of the init container of pods that are made here, as in the original talk.
pub const INIT_CONTAINER: &str = "vault-init";
/// The name of the image that init containers are known by, whatever its registry and its tag.
pub const IMAGE: &str = "vault-token-operator";
/// The port that init containers listen on.
pub const INIT_PORT: u16 = 8245;
/// The node that pods say they are on.
const NODE: &str = "testbed-node";

/// Where this process looks for the next free address; runs on one machine begin apart, so that they seldom meet. The upper half
/// of the loopback addresses is for what stands behind a proxy at the same address in the lower half.
static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(fastrand::u32(16 << 16..112 << 16)));

/// Runs pods.
#[derive(Debug)]
pub struct Kubelet {
    folder: PathBuf,
    binary: PathBuf,
}

/// A pod as it is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its annotations.
    pub annotations: Vec<(String, String)>,
    /// What its object has beside, merged over what every pod here has (RFC 7386).
    pub patch: Value,
}

/// A pod that was made.
#[derive(Clone, Debug)]
pub struct PodHandle {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// The name of its init container.
    pub init_container: String,
    /// What its init container's manifest has the image run: `init`, unless it says more.
    pub init_arguments: Vec<String>,
    /// The settings of init that its init container's manifest has in its environment.
    pub init_environment: Vec<(String, String)>,
    /// Its address; the status may not show it yet.
    pub address: IpAddr,
    /// Its volume, which init writes to and the app reads.
    pub volume: PathBuf,
}

/// A running init container.
#[derive(Debug)]
pub struct Init {
    process: Process,
    termination_log: PathBuf,
}

impl PodSpec {
    /// A pod that asks for these policies with this ttl.
    pub fn new(namespace: &str, name: &str, policies: &str, ttl: &str) -> Self {
        let annotations = [("vaultproject.io/policies", policies), ("vaultproject.io/ttl", ttl)];
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            annotations: annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
            patch: json!({}),
        }
    }
}

impl Kubelet {
    /// Runs init containers from this binary.
    pub fn new(run: &Run, binary: &Path) -> Result<Self, Error> {
        let folder = run.folder("pods")?;
        Ok(Self { folder, binary: binary.to_owned() })
    }

    /// Makes a pod that nothing has been done about yet.
    pub async fn create(&self, control_plane: &ControlPlane, spec: &PodSpec) -> Result<PodHandle, Error> {
        let annotations: BTreeMap<_, _> = spec.annotations.iter().cloned().collect();
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": spec.name, "annotations": annotations },
            "spec": {
                "nodeName": NODE,
                "initContainers": [{ "name": INIT_CONTAINER, "image": IMAGE }],
                "containers": [{ "name": "app", "image": "vault-example" }],
            },
        });
        json_patch::merge(&mut pod, &spec.patch);
        let pod: Pod = serde_json::from_value(pod)
            .map_err(|error| Error::io("could not make a pod")(std::io::Error::other(error)))?;
        let pods = pods(control_plane.admin_client()?, &spec.namespace);
        let what = format!("could not create the pod {}", spec.name);
        let made = within(&what, pods.create(&PostParams::default(), &pod)).await?;
        self.admit(&made)
    }

    /// Takes a pod that somebody else made to this node, as the scheduler does.
    pub async fn bind(&self, control_plane: &ControlPlane, pod: &Pod) -> Result<PodHandle, Error> {
        let namespace = pod.namespace().unwrap_or_default();
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": name, "namespace": namespace },
            "target": { "apiVersion": "v1", "kind": "Node", "name": NODE },
        });
        let what = format!("could not bind the pod {name}");
        let pods = pods(control_plane.admin_client()?, &namespace);
        let params = PostParams::default();
        within(&what, pods.create_subresource::<Value, Value>("binding", &name, &params, &binding)).await?;
        self.admit(pod)
    }

    /// Gives a pod what a node gives it: an address and a volume.
    fn admit(&self, pod: &Pod) -> Result<PodHandle, Error> {
        let missing = |field| Error::Incomplete { what: "could not admit a pod".into(), field };
        let uid = pod.uid().ok_or(missing("uid"))?;
        let init = init_container(pod).ok_or(missing("init container"))?;
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let volume = self.volume(&uid);
        std::fs::create_dir_all(&volume).map_err(Error::path("could not make", &volume))?;
        Ok(PodHandle {
            namespace: pod.namespace().ok_or(missing("namespace"))?,
            name: pod.name_any(),
            uid,
            service_account: account.ok_or(missing("serviceAccountName"))?,
            init_container: init.name.clone(),
            init_arguments: init.args.clone().unwrap_or_else(|| vec!["init".to_owned()]),
            init_environment: init_environment(init),
            address: Self::free_address()?,
            volume,
        })
    }

    /// Reports the init container as running at the pod's address.
    pub async fn report_initializing(&self, control_plane: &ControlPlane, pod: &PodHandle) -> Result<(), Error> {
        let running = json!({ "running": { "startedAt": jiff::Timestamp::now().to_string() } });
        self.report(control_plane, pod, &initializing(pod, &running)).await
    }

    /// Reports the init container as ended well, and the app as running.
    pub async fn report_running(&self, control_plane: &ControlPlane, pod: &PodHandle) -> Result<(), Error> {
        let mut status = initializing(pod, &json!({ "terminated": { "exitCode": 0, "reason": "Completed" } }));
        json_patch::merge(&mut status, &json!({ "phase": "Running" }));
        self.report(control_plane, pod, &status).await
    }

    /// Reports the init container as ended in failure, with what it wrote to its termination log.
    pub async fn report_init_failed(&self, plane: &ControlPlane, pod: &PodHandle, message: &str) -> Result<(), Error> {
        self.report(plane, pod, &initializing(pod, &failed(message))).await
    }

    /// Reports the init container as ended in failure, and the pod with it: what `restartPolicy: Never` means.
    pub async fn report_failed(&self, plane: &ControlPlane, pod: &PodHandle, message: &str) -> Result<(), Error> {
        let mut status = initializing(pod, &failed(message));
        json_patch::merge(&mut status, &json!({ "phase": "Failed" }));
        self.report(plane, pod, &status).await
    }

    /// Reports the pod's end: `Succeeded` or `Failed`.
    pub async fn report_end(&self, control_plane: &ControlPlane, pod: &PodHandle, phase: &str) -> Result<(), Error> {
        self.report(control_plane, pod, &json!({ "phase": phase })).await
    }

    /// Writes anything into the pod's status.
    pub async fn report(&self, control_plane: &ControlPlane, pod: &PodHandle, status: &Value) -> Result<(), Error> {
        let pods = pods(control_plane.admin_client()?, &pod.namespace);
        let patch = Patch::Merge(json!({ "status": status }));
        let what = format!("could not report the status of the pod {}", pod.name);
        within(&what, pods.patch_status(&pod.name, &PatchParams::default(), &patch)).await.map(drop)
    }

    /// Asks for the pod's deletion, as `kubectl delete pod` does: it is terminating until it is removed.
    pub async fn terminate(&self, control_plane: &ControlPlane, pod: &PodHandle) -> Result<(), Error> {
        self.delete(control_plane, pod, &DeleteParams::default()).await
    }

    /// Removes the pod's object, as a kubelet does once its containers have ended.
    pub async fn remove(&self, control_plane: &ControlPlane, pod: &PodHandle) -> Result<(), Error> {
        self.delete(control_plane, pod, &DeleteParams::default().grace_period(0)).await
    }

    async fn delete(&self, plane: &ControlPlane, pod: &PodHandle, params: &DeleteParams) -> Result<(), Error> {
        let pods = pods(plane.admin_client()?, &pod.namespace);
        let what = format!("could not delete the pod {}", pod.name);
        within(&what, pods.delete(&pod.name, params)).await.map(drop)
    }

    /// Starts the pod's init container: a process with the pod's address, bound token and volume, and no more
    /// environment than the original talk's manifest gives it and the pod's own. `settings` are further variables.
    pub async fn start_init(
        &self,
        control_plane: &ControlPlane,
        vault: &VaultServer,
        pod: &PodHandle,
        settings: &[(&str, &str)],
    ) -> Result<Init, Error> {
        let bound = Some((pod.name.as_str(), pod.uid.as_str()));
        let token = control_plane.service_account_token(&pod.namespace, &pod.service_account, &[], bound, 3600).await?;
        let token_file = self.folder.join(format!("{}.service-account-token", pod.uid));
        crate::pki::write(&token_file, &token)?;
        let kubeconfig =
            control_plane.kubeconfig_for_token(&pod.uid, &pod.namespace, BearerToken::File(&token_file))?;
        let termination_log = self.folder.join(format!("{}.termination-log", pod.uid));
        // As the kubelet makes it before each start of the container.
        std::fs::write(&termination_log, "").map_err(Error::path("could not write", &termination_log))?;
        let mut command = process::image_command(&self.binary, &self.folder)?;
        command
            .args(&pod.init_arguments)
            // First: whatever is set below depends on this machine.
            .envs(pod.init_environment.iter().map(|(name, value)| (name, value)))
            .env("KUBECONFIG", &kubeconfig)
            .env("POD_NAME", &pod.name)
            .env("POD_NAMESPACE", &pod.namespace)
            .env("VAULT_ADDR", vault.address())
            .env("VAULT_CACERT", vault.ca_path())
            .env("VTO_DIRECTORY", &pod.volume)
            .env("VTO_LISTEN", std::net::SocketAddr::new(pod.address, INIT_PORT).to_string())
            .env("VTO_SERVICE_ACCOUNT_TOKEN_FILE", &token_file)
            .env("VTO_TERMINATION_LOG", &termination_log)
            .env("VTO_LOG", "trace")
            .envs(settings.iter().copied());
        let process = Process::spawn("init", command, &self.log(pod))?;
        Ok(Init { process, termination_log })
    }

    /// Where the volumes of all pods are, and beside each what its init containers wrote.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The volume of the pod with this UID.
    pub fn volume(&self, uid: &str) -> PathBuf {
        self.folder.join(uid)
    }

    /// What the pod's init containers wrote.
    pub fn log(&self, pod: &PodHandle) -> PathBuf {
        self.folder.join(format!("{}.log", pod.uid))
    }

    /// A loopback address on which nobody listens at the port of init containers.
    fn free_address() -> Result<IpAddr, Error> {
        for _ in 0..1000 {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let [_, b, c, d] = number.to_be_bytes();
            let address = IpAddr::V4(Ipv4Addr::new(127, b, c, d));
            // The first and the last of each 256 look like a network's own.
            if (1..255).contains(&d) && is_free((address, INIT_PORT).into()) {
                return Ok(address);
            }
        }
        Err(Error::io("could not find a free loopback address")(std::io::Error::other("all are in use")))
    }
}

/// Whether nobody listens there. It is not tried by listening: a child that another thread starts in that moment would have the socket,
/// too, until it has become what it is to run, and keep whoever listens there next from doing so.
fn is_free(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

impl Init {
    /// Waits for its end.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus, Error> {
        self.process.wait(limit).await
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.process.exit_status()
    }

    /// Kills it.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// The limits that the kernel holds it to, while it runs.
    pub fn limits(&self) -> Result<String, Error> {
        self.process.limits()
    }

    /// What it wrote to its termination log.
    pub fn termination_message(&self) -> String {
        std::fs::read_to_string(&self.termination_log).unwrap_or_default()
    }
}

/// The container that is run for a pod: its first init container of the product's image.
fn init_container(pod: &Pod) -> Option<&Container> {
    let is_ours = |container: &&Container| container.image.as_deref().is_some_and(|image| image_name(image) == IMAGE);
    pod.spec.as_ref()?.init_containers.iter().flatten().find(is_ours)
}

/// An image's name without its registry, its folders, its tag and its digest.
fn image_name(image: &str) -> &str {
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split([':', '@']).next().unwrap_or_default()
}

/// Init's own settings that the manifest gives in so many words.
fn init_environment(container: &Container) -> Vec<(String, String)> {
    let variables = container.env.iter().flatten().filter(|variable| variable.name.starts_with("VTO_"));
    variables.filter_map(|variable| Some((variable.name.clone(), variable.value.clone()?))).collect()
}

fn failed(message: &str) -> Value {
    json!({ "terminated": { "exitCode": 1, "reason": "Error", "message": message } })
}

fn initializing(pod: &PodHandle, state: &Value) -> Value {
    json!({
        "phase": "Pending",
        "hostIP": "127.0.0.1",
        "hostIPs": [{ "ip": "127.0.0.1" }],
        "podIP": pod.address,
        "podIPs": [{ "ip": pod.address }],
        "initContainerStatuses": [{ "name": pod.init_container, "image": IMAGE, "imageID": "",
            "ready": false, "restartCount": 0, "state": state }],
    })
}

fn pods(client: Client, namespace: &str) -> Api<Pod> {
    Api::namespaced(client, namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_container_of_the_products_image_is_run_whatever_its_name() {
        let pod = |containers: Value| -> Pod {
            serde_json::from_value(json!({ "spec": { "containers": [], "initContainers": containers } })).unwrap()
        };
        let name = |containers| init_container(&pod(containers)).map(|container| container.name.clone());
        let migrate = json!({ "name": "migrate", "image": "shop/vault-token-operator-migrate:1" });
        for image in ["vault-token-operator", "host:5000/a/vault-token-operator:0.1.0", "vault-token-operator@sha256:0"]
        {
            let fetch = json!({ "name": "fetch", "image": image });
            assert_eq!(name(json!([migrate, fetch])).as_deref(), Some("fetch"), "{image}");
        }
        assert_eq!(name(json!([migrate])), None);
        assert_eq!(name(Value::Null), None);
    }

    #[test]
    fn of_the_manifests_environment_init_gets_its_own_settings() {
        let container = json!({ "name": "fetch", "env": [
            { "name": "VAULT_ADDR", "value": "https://vault.vault.svc:8200" },
            { "name": "VTO_CONTAINER_NAME", "value": "fetch" },
            { "name": "VTO_TIMEOUT", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
        ]});
        let environment = init_environment(&serde_json::from_value(container).unwrap());
        assert_eq!(environment, [("VTO_CONTAINER_NAME".to_owned(), "fetch".to_owned())]);
    }
}
