//! A real node: what makes pods, places them, runs them and leads to them. It lives in a [`crate::world`], beside a control plane
//! that listens on the node's address there.

mod cluster;
mod containers;
mod kubelet;

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use serde_json::json;

use crate::components::{self, Component};
use crate::control_plane::ControlPlane;
use crate::error::Error;
use crate::image::Image;
use crate::pki::{self, Usage};
use crate::process::{self, Process};
use crate::run::Run;
use crate::settings::{KubernetesVersion, Settings};
use crate::world;
pub use cluster::{Cluster, NEXT_OPERATOR_IMAGE, SHELL_IMAGE, in_world, lacking, openbao_image};
use containers::Containerd;
use containers::PAUSE_IMAGE;

/// How long anything of it may take to be ready, on a machine that builds other things meanwhile.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How long anything may take to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The addresses of pods.
pub const POD_RANGE: &str = "10.244.0.0/16";

/// A running node with the controllers that a cluster has; dropping it kills it.
#[derive(Debug)]
pub struct Node {
    // In this order: what is used ends after what uses it.
    kubelet: kubelet::Kubelet,
    firewall: Process,
    proxy: Process,
    scheduler: Process,
    controllers: Process,
    containerd: Containerd,
}

/// Gets all components that a node and its control plane take, and says what is missing.
fn obtain() -> Result<Binaries, Error> {
    let settings = settings()?;
    let paths = Component::needed(&settings).iter().chain(&Component::NODE).map(|component| {
        let obtained = components::obtain(*component, &settings)?;
        Ok((*component, obtained.path))
    });
    paths.collect::<Result<_, _>>().map(Binaries)
}

fn settings() -> Result<Settings, Error> {
    let settings = Settings::from_env()?;
    if settings.kubernetes != KubernetesVersion::V1_37 {
        let (variable, value) = (crate::settings::KUBERNETES_VARIABLE, format!("1.{}", settings.kubernetes.minor()));
        return Err(Error::Variable { variable, value, reason: "nodes are of 1.37 here".to_owned() });
    }
    Ok(settings)
}

/// The binaries of a node's components.
#[derive(Clone, Debug)]
pub struct Binaries(Vec<(Component, PathBuf)>);

impl Binaries {
    fn of(&self, wanted: Component) -> Result<&Path, Error> {
        let found = self.0.iter().find(|(component, _)| *component == wanted);
        found
            .map(|(_, path)| path.as_path())
            .ok_or(Error::Incomplete { what: wanted.name().to_owned(), field: "binary" })
    }

    /// Makes a folder that has these under their names.
    fn link(&self, folder: &Path, wanted: &[Component]) -> Result<(), Error> {
        std::fs::create_dir_all(folder).map_err(Error::path("could not make", folder))?;
        wanted.iter().try_for_each(|component| {
            let link = folder.join(component.name());
            std::os::unix::fs::symlink(self.of(*component)?, &link).map_err(Error::path("could not make", &link))
        })
    }
}

impl Node {
    /// Starts it, and waits until it is ready for pods.
    pub async fn start(run: &Run, control_plane: &ControlPlane, binaries: &Binaries) -> Result<Self, Error> {
        let cgroup = world::cgroup().ok_or_else(|| {
            Error::io("cannot start a node")(std::io::Error::other("it lives in a world of its own: see `world.rs`"))
        })?;
        let folder = run.folder("node")?;
        let parts = Parts { run, control_plane, binaries, folder: &folder };
        let controllers = parts.controllers()?;
        let scheduler = parts.component(Component::KubeScheduler, "system:kube-scheduler", &[])?;
        let proxy = parts.proxy()?;
        let containerd = Containerd::start(binaries, &folder).await?;
        let kubelet = kubelet::Kubelet::start(&parts, &cgroup)?;
        wait_until_ready(&kubelet, control_plane).await?;
        // It looks for the node once.
        let firewall = parts.firewall().await?;
        Ok(Self { kubelet, firewall, proxy, scheduler, controllers, containerd })
    }

    /// Brings an image in, for pods that do not pull.
    pub async fn import(&self, image: &Image) -> Result<(), Error> {
        self.containerd.import(image).await
    }

    /// The kubelet is away from now on, as when its machine is; containers go on.
    pub async fn stop_kubelet(&self) {
        self.kubelet.stop().await;
    }

    /// The kubelet is there again.
    pub fn start_kubelet(&self) -> Result<(), Error> {
        self.kubelet.start_again()
    }

    /// Where whoever writes to the machine's disk puts pods that the API server need not know.
    pub fn static_pods(&self) -> PathBuf {
        self.kubelet.static_pods()
    }

    /// What the kubelet wrote.
    pub fn kubelet_log(&self) -> &Path {
        self.kubelet.log()
    }

    /// What its parts wrote.
    pub fn logs(&self) -> [&Path; 6] {
        let Self { firewall, proxy, scheduler, controllers, containerd, kubelet } = self;
        [kubelet.log(), firewall.log(), proxy.log(), scheduler.log(), controllers.log(), containerd.log()]
    }
}

async fn wait_until_ready(kubelet: &kubelet::Kubelet, control_plane: &ControlPlane) -> Result<(), Error> {
    let nodes = Api::<NodeObject>::all(control_plane.admin_client()?);
    let ready = || async {
        let node = nodes.get(world::NODE).await.map_err(|error| format!("the node: {error}"))?;
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
            Some(condition) if condition.status == "True" => Ok(()),
            Some(condition) => Err(format!("the node: {}", condition.message.unwrap_or_default())),
            None => Err("the node does not say whether it is ready".to_owned()),
        }
    };
    kubelet.process().wait_until_ready(START_LIMIT, ready).await
}

/// What the parts of a node are made from.
struct Parts<'a> {
    run: &'a Run,
    control_plane: &'a ControlPlane,
    binaries: &'a Binaries,
    folder: &'a Path,
}

impl Parts<'_> {
    fn controllers(&self) -> Result<Process, Error> {
        let (key, plugins) =
            (self.control_plane.token_signing_key_path().display(), self.folder.join("volume-plugins"));
        let ca = self.run.pki().ca().path.display();
        self.component(
            Component::KubeControllerManager,
            "system:kube-controller-manager",
            &[
                "--use-service-account-credentials=true".to_owned(),
                format!("--service-account-private-key-file={key}"),
                format!("--root-ca-file={ca}"),
                format!("--cluster-cidr={POD_RANGE}"),
                "--allocate-node-cidrs=true".to_owned(),
                // It makes the folder.
                format!("--flex-volume-plugin-dir={}", plugins.display()),
            ],
        )
    }

    fn proxy(&self) -> Result<Process, Error> {
        let kubeconfig = self.kubeconfig(Component::KubeProxy, "system:kube-proxy", None)?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": { "kubeconfig": kubeconfig },
            "hostnameOverride": world::NODE,
            "clusterCIDR": POD_RANGE,
            // These are the whole machine's.
            "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        });
        let path = self.folder.join("kube-proxy.json");
        pki::write(&path, &config.to_string())?;
        self.spawn(Component::KubeProxy, &[format!("--config={}", path.display())])
    }

    /// What enforces NetworkPolicies, and does nothing else here; it is ready once it has its rules.
    async fn firewall(&self) -> Result<Process, Error> {
        // Kubernetes has no role for it.
        let kubeconfig = self.kubeconfig(Component::KubeRouter, "kube-router", Some("system:masters"))?;
        let arguments = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", world::NODE),
            "--run-firewall=true".to_owned(),
            "--run-router=false".to_owned(),
            "--run-service-proxy=false".to_owned(),
            // Nobody asks it how it is.
            "--health-port=0".to_owned(),
        ];
        let process = self.spawn(Component::KubeRouter, &arguments)?;
        let list = || async {
            let mut command = process::clean_command(Path::new("iptables"), self.folder)?;
            command.env("PATH", machine_path()).args(["--numeric", "--list", "KUBE-ROUTER-FORWARD"]);
            process::capture("iptables", command, self.folder, STOP_LIMIT).await
        };
        let has_rules = || async {
            match list().await {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => Err(output.stderr),
                Err(error) => Err(format!("{error:?}")),
            }
        };
        process.wait_until_ready(START_LIMIT, has_rules).await?;
        Ok(process)
    }

    /// Starts a part that has flags for all that it is told.
    fn component(&self, component: Component, user: &str, arguments: &[String]) -> Result<Process, Error> {
        let kubeconfig = self.kubeconfig(component, user, None)?;
        let kubeconfig = kubeconfig.display();
        let usual = [
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
        ];
        self.spawn(component, &[&usual, arguments].concat())
    }

    fn kubeconfig(&self, component: Component, user: &str, group: Option<&str>) -> Result<PathBuf, Error> {
        let files = self.run.pki().issue(user, Usage::Client(group))?;
        self.control_plane.kubeconfig_for_certificate(component.name(), &files)
    }

    fn spawn(&self, component: Component, arguments: &[String]) -> Result<Process, Error> {
        let name = component.name();
        let mut command = process::clean_command(self.binaries.of(component)?, self.folder)?;
        command.env("PATH", machine_path()).args(arguments);
        Process::spawn(name, command, &self.folder.join(format!("{name}.log")))
    }
}

/// The programs of the machine, some of which the parts of a node run.
fn machine_path() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap_or_default()
}
