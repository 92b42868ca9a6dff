//! The API server's store.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::error::Error;
use crate::pki::Usage;
use crate::port;
use crate::process::{self, Process};
use crate::run::Run;

/// How long it may take to listen, on a machine that builds other things meanwhile.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// An etcd of one member.
#[derive(Debug)]
pub(super) struct Etcd {
    process: Mutex<Arc<Process>>,
    binary: PathBuf,
    folder: PathBuf,
    arguments: Vec<OsString>,
    data: PathBuf,
    listens: SocketAddr,
    url: String,
}

impl Etcd {
    pub(super) async fn start(run: &Run, folder: &Path, binary: &Path) -> Result<Self, Error> {
        let peer = run.pki().issue("etcd", Usage::Peer)?;
        let [client_port, peer_port] = port::free()?;
        let address = run.address();
        let url = format!("https://{address}:{client_port}");
        let peer_url = format!("https://{address}:{peer_port}");
        let data = folder.join("etcd-data");
        let mut arguments: Vec<OsString> = vec!["--data-dir".into(), data.clone().into()];
        arguments.extend(["--name", "testbed", "--logger", "zap", "--log-level", "warn"].map(Into::into));
        // The data need not outlive the machine.
        arguments.push("--unsafe-no-fsync".into());
        arguments.extend(["--listen-client-urls", &url, "--advertise-client-urls", &url].map(Into::into));
        arguments.extend(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url].map(Into::into));
        arguments.extend(["--initial-cluster", &format!("testbed={peer_url}")].map(Into::into));
        for prefix in ["", "peer-"] {
            arguments.push(format!("--{prefix}client-cert-auth").into());
            let files =
                [("trusted-ca-file", &run.pki().ca().path), ("cert-file", &peer.certificate), ("key-file", &peer.key)];
            for (flag, file) in files {
                arguments.extend([format!("--{prefix}{flag}").into(), file.into()]);
            }
        }
        let process = Mutex::new(Arc::new(spawn(binary, folder, &arguments)?));
        let (binary, folder) = (binary.to_owned(), folder.to_owned());
        let listens = SocketAddr::new(address.into(), client_port);
        let this = Self { process, binary, folder, arguments, data, listens, url };
        this.wait_until_ready().await?;
        Ok(this)
    }

    pub(super) fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn wait_until_ready(&self) -> Result<(), Error> {
        let address = self.listens;
        // It listens to clients only once it has a leader.
        let listens = || async move {
            match TcpStream::connect(address).await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{address}: {error}")),
            }
        };
        self.process().wait_until_ready(START_LIMIT, listens).await
    }

    /// Starts it after [`Etcd::stop`], on what its folder holds.
    pub(super) async fn start_again(&self) -> Result<(), Error> {
        let process = Arc::new(spawn(&self.binary, &self.folder, &self.arguments)?);
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        self.wait_until_ready().await
    }

    /// Copies its data to this folder; it has to be stopped.
    pub(super) fn save(&self, to: &Path) -> Result<(), Error> {
        copy(&self.data, to)
    }

    /// Replaces its data by those in this folder; it has to be stopped.
    pub(super) fn restore(&self, from: &Path) -> Result<(), Error> {
        std::fs::remove_dir_all(&self.data).map_err(Error::path("could not remove", &self.data))?;
        copy(from, &self.data)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn stop(&self) {
        self.process().stop(STOP_LIMIT).await;
    }
}

fn spawn(binary: &Path, folder: &Path, arguments: &[OsString]) -> Result<Process, Error> {
    let mut command = process::clean_command(binary, folder)?;
    command.args(arguments);
    Process::spawn("etcd", command, &folder.join("etcd.log"))
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to).map_err(Error::path("could not make", to))?;
    for entry in std::fs::read_dir(from).map_err(Error::path("could not read", from))? {
        let path = entry.map_err(Error::path("could not read", from))?.path();
        let copied = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &copied)?;
        } else {
            std::fs::copy(&path, &copied).map_err(Error::path("could not copy", &path))?;
        }
    }
    Ok(())
}
