//! The API server's store.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::error::Error;
use crate::pki::{KeyPairFiles, Usage};
use crate::port;
use crate::process::{self, Process};
use crate::run::Run;

/// How long it may take to listen, on a machine that builds other things meanwhile.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running etcd of one member.
#[derive(Debug)]
pub(super) struct Etcd {
    process: Process,
    url: String,
}

impl Etcd {
    pub(super) async fn start(run: &Run, folder: &Path, binary: &Path) -> Result<Self, Error> {
        let peer = run.pki().issue("etcd", Usage::Peer)?;
        for _ in 1..port::ATTEMPTS {
            match Self::start_once(run, folder, binary, &peer).await {
                Err(error) if error.port_was_taken() => {}
                outcome => return outcome,
            }
        }
        Self::start_once(run, folder, binary, &peer).await
    }

    async fn start_once(run: &Run, folder: &Path, binary: &Path, peer: &KeyPairFiles) -> Result<Self, Error> {
        let [client_port, peer_port] = port::free()?;
        let url = format!("https://127.0.0.1:{client_port}");
        let peer_url = format!("https://127.0.0.1:{peer_port}");
        let mut command = process::clean_command(binary, folder)?;
        command
            // A folder for each attempt: what one has written names its ports.
            .arg("--data-dir")
            .arg(folder.join(format!("etcd-{client_port}")))
            .args(["--name", "testbed", "--logger", "zap", "--log-level", "warn"])
            // The data need not outlive the machine.
            .arg("--unsafe-no-fsync")
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("testbed={peer_url}")]);
        for prefix in ["", "peer-"] {
            command
                .arg(format!("--{prefix}client-cert-auth"))
                .arg(format!("--{prefix}trusted-ca-file"))
                .arg(&run.pki().ca().path)
                .arg(format!("--{prefix}cert-file"))
                .arg(&peer.certificate)
                .arg(format!("--{prefix}key-file"))
                .arg(&peer.key);
        }
        let process = Process::spawn("etcd", command, &folder.join("etcd.log"))?;
        // It listens to clients only once it has a leader.
        let listens = || async move {
            match TcpStream::connect(("127.0.0.1", client_port)).await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("port {client_port}: {error}")),
            }
        };
        process.wait_until_ready(START_LIMIT, listens).await?;
        Ok(Self { process, url })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn stop(&self) {
        self.process.stop(STOP_LIMIT).await;
    }
}
