//! The container runtime: containerd with runc, and a network of links.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::components::Component;
use crate::error::Error;
use crate::image::Image;
use crate::node::{Binaries, POD_RANGE, START_LIMIT, machine_path};
use crate::process::{self, Process};
use crate::system::must_succeed;

/// Where it listens. Its shims' sockets are below `/run/containerd`, which cannot be chosen.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
/// The image of what holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "testbed/pause:1";
/// Where the kubelet's containers are.
const NAMESPACE: &str = "k8s.io";
/// How long an image may take to be brought in.
const IMPORT_LIMIT: Duration = Duration::from_secs(60);

/// A running containerd.
#[derive(Debug)]
pub(super) struct Containerd {
    process: Process,
    ctr: PathBuf,
    folder: PathBuf,
}

impl Containerd {
    pub(super) async fn start(binaries: &Binaries, folder: &Path) -> Result<Self, Error> {
        let (programs, plugins, networks) = (folder.join("bin"), folder.join("cni"), folder.join("net.d"));
        binaries.link(&programs, &[Component::ContainerdShim, Component::Runc])?;
        binaries.link(&plugins, &[Component::CniPtp, Component::CniHostLocal, Component::CniLoopback])?;
        std::fs::create_dir_all(&networks).map_err(Error::path("could not make", &networks))?;
        let network = networks.join("10-pods.conflist");
        std::fs::write(&network, network_config(folder)).map_err(Error::path("could not write", &network))?;
        let config = folder.join("containerd.toml");
        std::fs::write(&config, containerd_config(folder, &programs, &plugins, &networks))
            .map_err(Error::path("could not write", &config))?;
        let mut command = process::clean_command(binaries.of(Component::Containerd)?, folder)?;
        let path = std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&machine_path())));
        let path = path.map_err(|error| Error::io("could not set PATH")(std::io::Error::other(error)))?;
        command.env("PATH", path).arg("--config").arg(&config);
        let process = Process::spawn("containerd", command, &folder.join("containerd.log"))?;
        let this = Self { process, ctr: binaries.of(Component::Ctr)?.to_owned(), folder: folder.to_owned() };
        this.wait_until_ready().await?;
        Ok(this)
    }

    pub(super) async fn import(&self, image: &Image) -> Result<(), Error> {
        let archive = self.folder.join("image.tar");
        image.save(&archive)?;
        let archive = archive.to_string_lossy();
        must_succeed(self.ctr(&["images", "import", "--all-platforms", &archive]).await?, "ctr images import").map(drop)
    }

    pub(super) fn log(&self) -> &Path {
        self.process.log()
    }

    async fn wait_until_ready(&self) -> Result<(), Error> {
        let ready = || async {
            match self.ctr(&["version"]).await {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => Err(output.stderr),
                Err(error) => Err(format!("{error:?}")),
            }
        };
        self.process.wait_until_ready(START_LIMIT, ready).await
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<process::Output, Error> {
        let mut command = process::clean_command(&self.ctr, &self.folder)?;
        command.args(["--address", SOCKET, "--namespace", NAMESPACE]).args(arguments);
        process::capture("ctr", command, &self.folder, IMPORT_LIMIT).await
    }
}

/// Each pod has a link of its own: unlike on a bridge, all that pods send one another goes by the node's rules, so that Services work
/// between them whatever the machine's kernel has for bridges.
fn network_config(folder: &Path) -> String {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": POD_RANGE }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dataDir": folder.join("addresses"),
    });
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "ptp", "ipam": ipam }] }).to_string()
}

fn containerd_config(folder: &Path, programs: &Path, plugins: &Path, networks: &Path) -> String {
    let quoted = |path: &Path| json!(path).to_string();
    let (root, runc) = (quoted(&folder.join("containerd")), quoted(&programs.join(Component::Runc.name())));
    let optional = quoted(&folder.join("containerd-opt"));
    let (plugins, networks) = (quoted(plugins), quoted(networks));
    format!(
        "version = 3
root = {root}
[grpc]
address = \"{SOCKET}\"
[plugins.\"io.containerd.internal.v1.opt\"]
path = {optional}
[plugins.\"io.containerd.cri.v1.images\".pinned_images]
sandbox = \"{PAUSE_IMAGE}\"
# Not everybody may make the kernel spare a process, who may do all else here.
[plugins.\"io.containerd.cri.v1.runtime\"]
restrict_oom_score_adj = true
[plugins.\"io.containerd.cri.v1.runtime\".cni]
bin_dirs = [{plugins}]
conf_dir = {networks}
[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]
runtime_type = \"io.containerd.runc.v2\"
[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]
BinaryName = {runc}
SystemdCgroup = false
"
    )
}
