//! A real Vault: OpenBao or HashiCorp Vault as a normal server, with TLS, storage on disk, a seal and an audit log.

mod api;
mod config;
mod kubernetes_auth;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::error::Error;
use crate::pki::Usage;
use crate::port;
use crate::process::{self, Output, Process};
use crate::run::Run;
use crate::settings::VaultKind;
use api::Api;
use config::Config;

/// How long it may take to be ready, on a machine that builds other things meanwhile.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Vault drops a token that is looked up after it was stored and before its lease is registered: nothing is looked up that was
/// not there for so long.
const SETTLING: Duration = Duration::from_secs(1);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The binaries that a Vault needs.
#[derive(Clone, Debug)]
pub enum Binaries {
    /// OpenBao, which has the Kubernetes auth method built in.
    OpenBao(PathBuf),
    /// HashiCorp Vault, with that method as a plugin.
    Vault {
        /// The server.
        server: PathBuf,
        /// The plugin.
        kubernetes_auth: PathBuf,
    },
}

impl Binaries {
    /// Which of the two it is.
    pub const fn kind(&self) -> VaultKind {
        match self {
            Self::OpenBao(_) => VaultKind::OpenBao,
            Self::Vault { .. } => VaultKind::Vault,
        }
    }

    fn server(&self) -> &Path {
        match self {
            Self::OpenBao(server) | Self::Vault { server, .. } => server,
        }
    }
}

/// A running Vault, initialised and unsealed; dropping it kills it.
#[derive(Debug)]
pub struct VaultServer {
    binaries: Binaries,
    config: Config,
    api: Api,
    ca_path: PathBuf,
    process: Mutex<Arc<Process>>,
    keys: Keys,
}

/// A live token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveToken {
    /// Its accessor.
    pub accessor: String,
    /// The metadata that it was made with.
    pub meta: HashMap<String, String>,
}

/// What initialising a Vault gives, in types that no format string prints.
#[derive(Clone, Debug)]
struct Keys {
    root_token: SecretString,
    unseal_key: SecretString,
}

impl VaultServer {
    /// Starts it, initialises it with one key share, unseals it, turns its audit log on, and waits until it is active.
    pub async fn start(run: &Run, binaries: &Binaries) -> Result<Self, Error> {
        let launched = launch(run, binaries, "vault", None).await?;
        let keys = initialise(&launched.api).await?;
        let this = Self::new(run, binaries, launched, keys);
        this.unseal().await?;
        this.enable_audit_log().await?;
        Ok(this)
    }

    /// Starts a second server of the same Vault, and waits until it can take over: without both, none is active.
    pub async fn join(&self, run: &Run) -> Result<Self, Error> {
        let launched = launch(run, &self.binaries, "vault-standby", Some(&self.config)).await?;
        let this = Self::new(run, &self.binaries, launched, self.keys.clone());
        // After ten seconds otherwise.
        let votes_soon = json!({ "server_stabilization_time": "1s" });
        self.must(Method::PUT, "sys/storage/raft/autopilot/configuration", Some(&votes_soon)).await?;
        let active = json!({ "leader_api_addr": self.address(), "leader_ca_cert": run.pki().ca().pem });
        this.api.must(None, Method::PUT, "sys/storage/raft/join", Some(&active)).await?;
        this.unseal().await?;
        let voters = async || {
            let raft = self.must(Method::GET, "sys/storage/raft/configuration", None).await;
            let raft = raft.map_err(|error| format!("{error:?}"))?;
            let servers = raft["data"]["config"]["servers"].as_array().cloned().unwrap_or_default();
            let votes = servers.iter().filter(|server| server["voter"] == json!(true)).count();
            if votes == 2 { Ok(()) } else { Err(format!("{votes} of 2 servers vote: {servers:?}")) }
        };
        this.process().wait_until_ready(START_LIMIT, voters).await?;
        Ok(this)
    }

    fn new(run: &Run, binaries: &Binaries, Launched { config, api, process }: Launched, keys: Keys) -> Self {
        let (binaries, ca_path) = (binaries.clone(), run.pki().ca().path.clone());
        Self { binaries, config, api, ca_path, process: Mutex::new(Arc::new(process)), keys }
    }

    /// Which of the two kinds it is.
    pub const fn kind(&self) -> VaultKind {
        self.binaries.kind()
    }

    /// Its address: `https://<address>:<port>`.
    pub fn address(&self) -> &str {
        self.config.address()
    }

    /// Where it lets nobody in without a client certificate of the run's authority.
    pub fn strict_address(&self) -> &str {
        self.config.strict_address()
    }

    /// The certificate of the authority that it is verified with, as a PEM file.
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// The root token.
    pub const fn root_token(&self) -> &SecretString {
        &self.keys.root_token
    }

    /// The audit log: a line of JSON for each request and each answer, secrets in it hashed.
    pub fn audit_log(&self) -> &Path {
        self.config.audit_log()
    }

    /// What it writes of its own work.
    pub fn server_log(&self) -> PathBuf {
        self.process().log().to_owned()
    }

    /// A request with the root token; `path` is what follows `/v1/`. An answer of any status is no error, and an answer
    /// without a body is `null`.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), Error> {
        self.request_as(Some(self.root_token()), method, path, body).await
    }

    /// As [`VaultServer::request`], with another token or none.
    pub async fn request_as(
        &self,
        token: Option<&SecretString>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), Error> {
        self.api.request(token, method, path, body).await
    }

    /// A request with the root token that has to succeed: what is set up for a test.
    pub async fn must(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        self.api.must(Some(self.root_token()), method, path, body).await
    }

    /// Runs its command line (`vault`, `bao`) with the root token to its end, as a person would.
    pub async fn command(&self, arguments: &[&str]) -> Result<Output, Error> {
        let folder = self.config.folder();
        let mut command = process::clean_command(self.binaries.server(), folder)?;
        command
            .args(arguments)
            .env("VAULT_ADDR", self.address())
            .env("VAULT_CACERT", self.ca_path())
            .env("VAULT_TOKEN", self.root_token().expose_secret());
        process::capture(self.kind().name(), command, folder, COMMAND_LIMIT).await
    }

    /// The live tokens with this in their metadata.
    pub async fn live_tokens_where(&self, key: &str, value: &str) -> Result<Vec<LiveToken>, Error> {
        let list = Method::from_bytes(b"LIST").map_err(|error| Error::io("no method")(std::io::Error::other(error)))?;
        let listed = self.must(list, "auth/token/accessors", None).await?;
        tokio::time::sleep(SETTLING).await;
        let mut live = Vec::new();
        for accessor in listed["data"]["keys"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let body = json!({ "accessor": accessor });
            let (status, answer) = self.request(Method::POST, "auth/token/lookup-accessor", Some(&body)).await?;
            // Tokens of others may have none.
            let meta =
                serde_json::from_value::<HashMap<String, String>>(answer["data"]["meta"].clone()).unwrap_or_default();
            if status == StatusCode::OK && meta.get(key).is_some_and(|found| found == value) {
                live.push(LiveToken { accessor: accessor.to_owned(), meta });
            }
        }
        Ok(live)
    }

    /// Mounts a KV version 2 secrets engine, and waits until it can be used: it prepares itself a little after the mount
    /// has been answered, and refuses all requests until then.
    pub async fn mount_kv(&self, mount: &str) -> Result<(), Error> {
        let engine = json!({ "type": "kv", "options": { "version": "2" } });
        self.must(Method::POST, &format!("sys/mounts/{mount}"), Some(&engine)).await?;
        let config = format!("{mount}/config");
        let usable = || async {
            match self.request(Method::GET, &config, None).await {
                Ok((status, _)) if status.is_success() => Ok(()),
                Ok((status, answer)) => Err(format!("{config}: {status} {}", answer["errors"])),
                Err(error) => Err(format!("{error:?}")),
            }
        };
        self.process().wait_until_ready(START_LIMIT, usable).await
    }

    /// Seals it: it then answers nothing but its state.
    pub async fn seal(&self) -> Result<(), Error> {
        self.must(Method::PUT, "sys/seal", None).await.map(drop)
    }

    /// Unseals it, and waits until it, or another server of its Vault, is active.
    pub async fn unseal(&self) -> Result<(), Error> {
        let key = json!({ "key": self.keys.unseal_key.expose_secret() });
        self.api.must(None, Method::PUT, "sys/unseal", Some(&key)).await?;
        self.process().wait_until_ready(START_LIMIT, || self.serves()).await
    }

    async fn serves(&self) -> Result<(), String> {
        let Err(health) = health_is(&self.api, &[StatusCode::OK]).await else { return Ok(()) };
        match self.request_as(None, Method::GET, "sys/leader", None).await {
            // One that has just started may name itself, from before, until it leads again.
            Ok((_, leader))
                if leader["leader_address"].as_str().is_some_and(|at| !at.is_empty() && at != self.address()) =>
            {
                Ok(())
            }
            Ok((_, leader)) => Err(format!("{health}; its leader is {leader}")),
            Err(error) => Err(format!("{health}; {error:?}")),
        }
    }

    /// Whether it is the active server of its Vault.
    pub async fn is_active(&self) -> bool {
        health_is(&self.api, &[StatusCode::OK]).await.is_ok()
    }

    /// Kills it, as a machine's end would.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Lets it answer nothing, with its connections kept, until [`VaultServer::resume`].
    pub fn pause(&self) {
        self.process().pause();
    }

    /// Lets it answer again.
    pub fn resume(&self) {
        self.process().resume();
    }

    /// Starts it after [`VaultServer::kill`], on the same port and the same data, and unseals it.
    pub async fn start_again(&self) -> Result<(), Error> {
        let process = Arc::new(spawn(&self.binaries, &self.config)?);
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&process);
        wait_until_listening(&process, &self.api).await?;
        self.unseal().await
    }

    /// Ends it.
    pub async fn stop(&self) {
        self.process().stop(STOP_LIMIT).await;
    }

    fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// OpenBao takes audit logs from its configuration only.
    async fn enable_audit_log(&self) -> Result<(), Error> {
        match self.kind() {
            VaultKind::OpenBao => Ok(()),
            VaultKind::Vault => {
                let device = json!({ "type": "file", "options": { "file_path": self.audit_log() } });
                self.must(Method::PUT, "sys/audit/file", Some(&device)).await.map(drop)
            }
        }
    }
}

/// A server that listens, and that nothing was done about yet.
struct Launched {
    config: Config,
    api: Api,
    process: Process,
}

/// Starts a server, on ports that are free, and waits until it listens.
async fn launch(run: &Run, binaries: &Binaries, name: &str, other: Option<&Config>) -> Result<Launched, Error> {
    let (pki, folder) = (run.pki(), run.folder(name)?);
    let server = pki.issue(name, Usage::Server(&["vault", "vault.vault.svc"]))?;
    let config = Config::write(&folder, binaries.kind(), &server, pki.ca(), run.address(), port::free()?, other)?;
    let api = Api::new(config.address(), pki.ca())?;
    let process = spawn(binaries, &config)?;
    wait_until_listening(&process, &api).await?;
    Ok(Launched { config, api, process })
}

fn spawn(binaries: &Binaries, config: &Config) -> Result<Process, Error> {
    let mut command = process::clean_command(binaries.server(), config.folder())?;
    command.arg("server").arg(format!("-config={}", config.path().display()));
    Process::spawn(binaries.kind().name(), command, &config.folder().join("server.log"))
}

/// Until it says that it is not initialised or that it is sealed.
async fn wait_until_listening(process: &Process, api: &Api) -> Result<(), Error> {
    let states = [StatusCode::NOT_IMPLEMENTED, StatusCode::SERVICE_UNAVAILABLE];
    process.wait_until_ready(START_LIMIT, || health_is(api, &states)).await
}

async fn health_is(api: &Api, wanted: &[StatusCode]) -> Result<(), String> {
    match api.request(None, Method::GET, "sys/health", None).await {
        Ok((status, _)) if wanted.contains(&status) => Ok(()),
        Ok((status, _)) => Err(format!("its health is {status}")),
        Err(error) => Err(format!("{error:?}")),
    }
}

async fn initialise(api: &Api) -> Result<Keys, Error> {
    let shares = json!({ "secret_shares": 1, "secret_threshold": 1 });
    let answer = api.must(None, Method::PUT, "sys/init", Some(&shares)).await?;
    let secret = |pointer: &'static str| {
        let value = answer.pointer(pointer).and_then(Value::as_str).map(SecretString::from);
        value.ok_or(Error::Incomplete { what: "could not initialise Vault".into(), field: pointer })
    };
    Ok(Keys { root_token: secret("/root_token")?, unseal_key: secret("/keys/0")? })
}
