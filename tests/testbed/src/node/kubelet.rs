//! The kubelet.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use crate::components::Component;
use crate::error::Error;
use crate::node::containers::SOCKET;
use crate::node::{Parts, STOP_LIMIT, machine_path};
use crate::pki::{self, Usage};
use crate::process::{self, Process};
use crate::world;

/// The folder of pods that the kubelet runs by itself.
const STATIC_PODS: &str = "static-pods";

/// A kubelet, which can be stopped and started again.
#[derive(Debug)]
pub(super) struct Kubelet {
    binary: PathBuf,
    folder: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    process: Mutex<Arc<Process>>,
}

impl Kubelet {
    pub(super) fn start(parts: &Parts<'_>, cgroup: &str) -> Result<Self, Error> {
        let user = format!("system:node:{}", world::NODE);
        let kubeconfig = parts.kubeconfig(Component::Kubelet, &user, Some("system:nodes"))?;
        let server = parts.run.pki().issue("kubelet", Usage::Server(&[world::NODE]))?;
        let folder = |name: &str| parts.folder.join(name);
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": parts.run.pki().ca().path },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": server.certificate,
            "tlsPrivateKeyFile": server.key,
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{cgroup}"),
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "localStorageCapacityIsolation": false,
            // The disk is shared with whatever else the machine does.
            "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "",
            "staticPodPath": folder(STATIC_PODS),
            "podLogsDir": folder("pod-logs"),
            "nodeStatusUpdateFrequency": "4s",
            "volumePluginDir": folder("volume-plugins"),
            // Nobody waits minutes here for what starts again and again.
            "crashLoopBackOff": { "maxContainerRestartPeriod": "3s" },
        });
        for name in [STATIC_PODS, "pod-logs"] {
            std::fs::create_dir_all(folder(name)).map_err(Error::path("could not make", &folder(name)))?;
        }
        let path = folder("kubelet.json");
        pki::write(&path, &config.to_string())?;
        let arguments = vec![
            format!("--config={}", path.display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={}", world::NODE),
            format!("--node-ip={}", world::ADDRESS),
            format!("--root-dir={}", folder("kubelet").display()),
            format!("--cert-dir={}", folder("kubelet-pki").display()),
        ];
        let (binary, log) = (parts.binaries.of(Component::Kubelet)?.to_owned(), folder("kubelet.log"));
        let process = Mutex::new(Arc::new(spawn(&binary, parts.folder, &arguments, &log)?));
        Ok(Self { binary, folder: parts.folder.to_owned(), arguments, log, process })
    }

    pub(super) fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn static_pods(&self) -> PathBuf {
        self.folder.join(STATIC_PODS)
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    pub(super) async fn stop(&self) {
        self.process().stop(STOP_LIMIT).await;
    }

    pub(super) fn start_again(&self) -> Result<(), Error> {
        let process = Arc::new(spawn(&self.binary, &self.folder, &self.arguments, &self.log)?);
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        Ok(())
    }
}

fn spawn(binary: &Path, folder: &Path, arguments: &[String], log: &Path) -> Result<Process, Error> {
    let mut command = process::clean_command(binary, folder)?;
    command.env("PATH", machine_path()).args(arguments);
    Process::spawn("kubelet", command, log)
}
