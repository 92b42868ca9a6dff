//! The init container's settings: from arguments and environment to values that were checked.

use crate::api::Delivery;
use crate::domain::duration;
use crate::vault::{Connection, Server};
use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `vault-token-operator init`.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Name of this init container in the pod's manifest
    #[arg(long, env = "VTO_CONTAINER_NAME", value_name = "NAME", default_value = "vault-init")]
    container_name: String,

    /// Folder that gets the files token and secret.json; a memory-backed emptyDir that the app mounts too
    #[arg(long, env = "VTO_DIRECTORY", value_name = "PATH", default_value = "/var/run/secrets/vaultproject.io")]
    directory: PathBuf,

    /// Permissions of these files, in octal
    #[arg(long, env = "VTO_FILE_MODE", value_name = "MODE", default_value = "0440", value_parser = octal)]
    file_mode: u32,

    /// How to get the token: by the operator's push, or from the request's status, for networks where the operator cannot reach
    /// pods. The status needs a further right, the ClusterRole vault-token-requester-status
    #[arg(long, env = "VTO_DELIVERY", value_name = "HOW", value_enum, default_value_t = How::Push)]
    delivery: How,

    /// Where to wait for the operator's push
    #[arg(long, env = "VTO_LISTEN", value_name = "ADDRESS", default_value = "[::]:8245")]
    listen: SocketAddr,

    /// How long to wait for the token in all; the kubelet then starts the container again
    #[arg(long, env = "VTO_TIMEOUT", value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    timeout: Duration,

    /// File with the pod's bound ServiceAccount token; it says which pod this is
    #[arg(
        long,
        env = "VTO_SERVICE_ACCOUNT_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    service_account_token_file: PathBuf,

    /// File that gets the reason of a failure
    #[arg(long, env = "VTO_TERMINATION_LOG", value_name = "FILE", default_value = "/dev/termination-log")]
    termination_log: PathBuf,

    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    Push,
    Status,
}

/// Settings that were checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) delivery: Delivery,
    pub(super) container_name: String,
    pub(super) directory: PathBuf,
    pub(super) file_mode: u32,
    pub(super) listen: SocketAddr,
    pub(super) timeout: Duration,
    pub(super) service_account_token_file: PathBuf,
    pub(super) termination_log: PathBuf,
    pub(super) vault: Connection,
}

impl Arguments {
    /// Checks the arguments and reads the files that they name for TLS.
    ///
    /// # Errors
    /// A sentence that names the argument that is wrong.
    pub fn check(self) -> Result<Settings, String> {
        if self.timeout < Duration::from_secs(1) {
            return Err("--timeout must be 1s at least".to_owned());
        }
        Ok(Settings {
            delivery: match self.delivery {
                How::Push => Delivery::Push,
                How::Status => Delivery::Status,
            },
            container_name: self.container_name,
            directory: self.directory,
            file_mode: self.file_mode,
            listen: self.listen,
            timeout: self.timeout,
            service_account_token_file: self.service_account_token_file,
            termination_log: self.termination_log,
            vault: Connection::new(&self.server)?,
        })
    }
}

/// Reads file permissions; the owner must be able to read what is written.
fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o400 != 0 => Ok(mode),
        _ => Err("it must be octal, at most 0777, and let the owner read, as in 0440".to_owned()),
    }
}
