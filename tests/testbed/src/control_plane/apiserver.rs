//! The API server.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::control_plane::access::Access;
use crate::control_plane::etcd::Etcd;
use crate::error::Error;
use crate::pki::{KeyPairFiles, Usage};
use crate::port;
use crate::process::{self, Process};
use crate::run::Run;

/// How long it may take to be ready, on a machine that builds other things meanwhile.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How long it may take to end by itself; it lets requests end first.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Where pods would find it.
const SERVICE_NAMES: [&str; 4] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
/// The range of Services' addresses, and the first of it, which the Service `kubernetes` gets.
const SERVICE_RANGE: &str = "10.96.0.0/16";
const SERVICE_ADDRESS: &str = "10.96.0.1";
/// Who issues ServiceAccount tokens, by kubeadm's default.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What is written to its audit log: who did what to the product's resources, without the objects.
const AUDIT_POLICY: &str = r#"{
    "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [{ "level": "Metadata", "resources": [{ "group": "vaultproject.io" }] }]
}"#;

/// A running API server, which can be stopped and started again.
#[derive(Debug)]
pub(super) struct ApiServer {
    binary: PathBuf,
    folder: PathBuf,
    arguments: Vec<String>,
    access: Access,
    token_signing: KeyPairFiles,
    process: Mutex<Arc<Process>>,
}

impl ApiServer {
    pub(super) async fn start(run: &Run, folder: &Path, binary: &Path, etcd: &Etcd) -> Result<Self, Error> {
        let files = Files::issue(run)?;
        let [port] = port::free()?;
        let ca = run.pki().ca().clone();
        crate::pki::write(&audit_policy(folder), AUDIT_POLICY)?;
        let arguments = arguments(run.address(), port, etcd.url(), &ca.path, &files, folder);
        let access = Access { url: format!("https://{}:{port}", run.address()), ca, admin: files.admin.clone() };
        let process = Mutex::new(Arc::new(spawn(binary, folder, &arguments)?));
        let (binary, folder, token_signing) = (binary.to_owned(), folder.to_owned(), files.token_signing.clone());
        let this = Self { binary, folder, arguments, access, token_signing, process };
        this.wait_until_ready().await?;
        Ok(this)
    }

    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        audit_log(&self.folder)
    }

    pub(super) const fn token_signing(&self) -> &KeyPairFiles {
        &self.token_signing
    }

    pub(super) fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn stop(&self) {
        self.process().stop(STOP_LIMIT).await;
    }

    pub(super) async fn start_again(&self) -> Result<(), Error> {
        let process = Arc::new(spawn(&self.binary, &self.folder, &self.arguments)?);
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        self.wait_until_ready().await
    }

    async fn wait_until_ready(&self) -> Result<(), Error> {
        let client = self.access.admin_client()?;
        let ready = || async {
            let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
            client.request_text(request).await.map(drop).map_err(|error| format!("/readyz: {error}"))
        };
        self.process().wait_until_ready(START_LIMIT, ready).await
    }
}

/// The keys and certificates that it uses, and its administrator's.
struct Files {
    server: KeyPairFiles,
    etcd_client: KeyPairFiles,
    kubelet_client: KeyPairFiles,
    token_signing: KeyPairFiles,
    admin: KeyPairFiles,
}

impl Files {
    fn issue(run: &Run) -> Result<Self, Error> {
        let pki = run.pki();
        let names = [&SERVICE_NAMES[..], &[SERVICE_ADDRESS]].concat();
        Ok(Self {
            server: pki.issue("kube-apiserver", Usage::Server(&names))?,
            etcd_client: pki.issue("kube-apiserver-etcd-client", Usage::Client(None))?,
            kubelet_client: pki.issue("kube-apiserver-kubelet-client", Usage::Client(Some("system:masters")))?,
            token_signing: pki.signing_key("service-account-tokens")?,
            admin: pki.issue("kubernetes-admin", Usage::Client(Some("system:masters")))?,
        })
    }
}

fn spawn(binary: &Path, folder: &Path, arguments: &[String]) -> Result<Process, Error> {
    let mut command = process::clean_command(binary, folder)?;
    command.args(arguments);
    Process::spawn("kube-apiserver", command, &folder.join("kube-apiserver.log"))
}

fn audit_policy(folder: &Path) -> PathBuf {
    folder.join("audit-policy.json")
}

fn audit_log(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

fn arguments(address: Ipv4Addr, port: u16, etcd: &str, ca: &Path, files: &Files, folder: &Path) -> Vec<String> {
    let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
    // The Service `kubernetes` may not lead to a loopback address, by which nothing would reach it.
    let reconciler = if address.is_loopback() { "none" } else { "lease" };
    vec![
        format!("--bind-address={address}"),
        format!("--secure-port={port}"),
        format!("--advertise-address={address}"),
        format!("--endpoint-reconciler-type={reconciler}"),
        file("tls-cert-file", &files.server.certificate),
        file("tls-private-key-file", &files.server.key),
        file("client-ca-file", ca),
        "--anonymous-auth=false".into(),
        format!("--etcd-servers={etcd}"),
        file("etcd-cafile", ca),
        file("etcd-certfile", &files.etcd_client.certificate),
        file("etcd-keyfile", &files.etcd_client.key),
        // For the logs of pods, and what is run in them.
        "--kubelet-preferred-address-types=InternalIP".into(),
        file("kubelet-certificate-authority", ca),
        file("kubelet-client-certificate", &files.kubelet_client.certificate),
        file("kubelet-client-key", &files.kubelet_client.key),
        // What kubeadm turns on, beside the default admission plugins.
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        format!("--service-account-issuer={ISSUER}"),
        file("service-account-key-file", &files.token_signing.certificate),
        file("service-account-signing-key-file", &files.token_signing.key),
        file("audit-policy-file", &audit_policy(folder)),
        file("audit-log-path", &audit_log(folder)),
        "--profiling=false".into(),
    ]
}
