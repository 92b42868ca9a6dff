//! The product, installed as a user installs it: the manifests of `crds/` and `config/`, Vault set up from
//! `config/vault/`, and the operator with nothing but the rights that these give it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::bed::Testbed;
use crate::control_plane::BearerToken;
use crate::error::Error;
use crate::kubectl::Kubectl;
use crate::kubelet::Kubelet;
use crate::port;
use crate::process::{self, Process};
use crate::project::{self, Binaries};
use crate::report;

/// The name of the cluster, as in `config/vault/`.
pub const CLUSTER: &str = "main";
/// The operator's namespace and ServiceAccount, as in `config/`.
pub const OPERATOR: &str = "vault-token-operator";
/// The namespace of the example secrets in Vault: a KV version 2 mount.
pub const SECRETS: &str = "secret";

/// How long the operator may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long after their making the operator takes the admission policies to be in force, and the second that times are cut to.
const ADMISSION_SETTLING: Duration = Duration::from_secs(4);
/// How long the operator may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The product on a testbed.
#[derive(Debug)]
pub struct System {
    operator: Mutex<Option<Operator>>,
    binary: PathBuf,
    folder: PathBuf,
    token_file: PathBuf,
    login_file: PathBuf,
    kubeconfig: PathBuf,
    starts: AtomicU32,
    testbed: Testbed,
}

/// A running operator.
#[derive(Debug)]
struct Operator {
    process: Process,
    health: String,
}

impl System {
    /// Builds the product, and installs it on components of its own.
    pub async fn fresh(build: fn(&Path) -> Result<Binaries, Error>) -> Result<(Self, Kubelet), Error> {
        report::line("starting etcd, a Kubernetes API server and a Vault server on loopback ...");
        let testbed = Testbed::start().await?;
        let folder = testbed.run().folder("build")?;
        let built = tokio::task::spawn_blocking(move || build(&folder)).await;
        let binaries = built.map_err(|error| Error::io("could not build")(std::io::Error::other(error)))??;
        let kubelet = Kubelet::new(testbed.run(), &binaries.operator)?;
        Ok((Self::install(testbed, &binaries.operator).await?, kubelet))
    }

    /// Starts the real components and installs the product on them. The operator is not started yet.
    pub async fn install(testbed: Testbed, binary: &Path) -> Result<Self, Error> {
        let control_plane = testbed.control_plane();
        for target in [["-f", "crds"], ["-k", "config"]] {
            let path = project::root().join(target[1]);
            let path = path.to_string_lossy();
            must_succeed(control_plane.kubectl(&["apply", "--server-side", target[0], &path]).await?, "kubectl apply")?;
        }
        // What is made before the API server goes by the admission policies is not served.
        let admission = tokio::time::sleep(ADMISSION_SETTLING);
        let definitions = ["vaulttokenrequests", "vaultpolicybindings"];
        let [requests, bindings] = definitions.map(|name| format!("customresourcedefinition/{name}.vaultproject.io"));
        let established = ["wait", "--for=condition=Established", "--timeout=30s", &requests, &bindings];
        must_succeed(control_plane.kubectl(&established).await?, "kubectl wait")?;
        // kubectl keeps what it knows of the server's resources for hours; this makes it ask anew.
        let asked = control_plane.kubectl(&["api-resources", "--api-group=vaultproject.io"]).await?;
        must_succeed(asked, "kubectl api-resources")?;
        prepare_vault(&testbed).await?;

        let folder = testbed.run().folder("operator")?;
        let token_file = folder.join("service-account-token");
        // Long enough for any run; a kubelet would rotate it.
        let token = control_plane.service_account_token(OPERATOR, OPERATOR, &[], None, 24 * 3600).await?;
        crate::pki::write(&token_file, &token)?;
        let kubeconfig = control_plane.kubeconfig_for_token(OPERATOR, OPERATOR, BearerToken::File(&token_file))?;
        // As the volume vault-login in config/deployment.yaml.
        let login_file = folder.join("vault-login-token");
        let token = control_plane.service_account_token(OPERATOR, OPERATOR, &["vault"], None, 24 * 3600).await?;
        crate::pki::write(&login_file, &token)?;
        admission.await;
        let operator = Mutex::default();
        let starts = AtomicU32::new(0);
        Ok(Self { operator, binary: binary.to_owned(), folder, token_file, login_file, kubeconfig, starts, testbed })
    }

    /// Creates a namespace whose ServiceAccount `default` may ask for tokens, with any policies that Vault gives.
    pub async fn create_workload_namespace(&self, name: &str) -> Result<(), Error> {
        self.testbed.control_plane().create_namespace(name).await?;
        let binding = ["--clusterrole=vault-token-requester", &format!("--serviceaccount={name}:default")];
        let create = ["create", "rolebinding", "vault-token-requester", "--namespace", name, binding[0], binding[1]];
        must_succeed(self.testbed.control_plane().kubectl(&create).await?, "kubectl create rolebinding")?;
        let subject = json!({ "namespaces": [name], "serviceAccounts": ["*"] });
        let spec = json!({ "subjects": [subject], "policies": ["*"], "deliveries": ["Push", "Status"] });
        self.bind_policies(name, &spec).await
    }

    /// Creates a VaultPolicyBinding, or replaces its specification.
    pub async fn bind_policies(&self, name: &str, spec: &Value) -> Result<(), Error> {
        let binding = json!({ "apiVersion": "vaultproject.io/v1alpha1", "kind": "VaultPolicyBinding",
            "metadata": { "name": name }, "spec": spec });
        let file = self.folder.join(format!("{name}.binding.json"));
        std::fs::write(&file, binding.to_string()).map_err(Error::path("could not write", &file))?;
        let apply = ["apply", "-f", &file.to_string_lossy()];
        must_succeed(self.testbed.control_plane().kubectl(&apply).await?, "kubectl apply").map(drop)
    }

    /// Tells Vault once more what `config/vault/` says.
    pub async fn tell_vault_again(&self) -> Result<(), Error> {
        tell_vault(&self.testbed).await
    }

    /// Lets the pods of such a namespace take their tokens from the status of their requests.
    pub async fn allow_status_delivery(&self, namespace: &str) -> Result<(), Error> {
        let account = format!("--serviceaccount={namespace}:default");
        let role = "vault-token-requester-status";
        let create = ["create", "rolebinding", role, "--namespace", namespace, "--clusterrole", role, &account];
        must_succeed(self.testbed.control_plane().kubectl(&create).await?, "kubectl create rolebinding").map(drop)
    }

    /// What it stands on.
    pub const fn testbed(&self) -> &Testbed {
        &self.testbed
    }

    /// The kubeconfig of the operator's ServiceAccount.
    pub fn operator_kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// That kubeconfig for an API server at another address, such as a proxy's.
    pub fn operator_kubeconfig_at(&self, server: &str) -> Result<PathBuf, Error> {
        let here = self.testbed.control_plane().server_url();
        let read =
            std::fs::read_to_string(&self.kubeconfig).map_err(Error::path("could not read", &self.kubeconfig))?;
        // One for each of several operators that run side by side.
        let path = self.kubeconfig.with_extension(format!("at-{}", server.rsplit(':').next().unwrap_or_default()));
        crate::pki::write(&path, &read.replace(here, server))?;
        Ok(path)
    }

    /// The files with the tokens of the operator's ServiceAccount: for the API server, and for Vault.
    pub fn operator_token_files(&self) -> [&Path; 2] {
        [&self.token_file, &self.login_file]
    }

    /// The logs of all operators that ran so far, the first one first.
    pub fn operator_logs(&self) -> Vec<PathBuf> {
        (0..self.starts.load(Ordering::Relaxed)).map(|start| self.log(start)).collect()
    }

    fn log(&self, start: u32) -> PathBuf {
        self.folder.join(format!("operator-{start}.log"))
    }

    /// Starts the operator, and waits until it is ready. `settings` are further environment variables.
    pub async fn start_operator(&self, settings: &[(&str, &str)]) -> Result<(), Error> {
        let (process, health) = self.spawn_operator(settings)?;
        let client = plain_client()?;
        process.wait_until_ready(READY_LIMIT, || ready(&client, &health)).await?;
        *self.operator() = Some(Operator { process, health });
        Ok(())
    }

    /// Starts the operator and waits for nothing; gives its process, and the address of its health endpoint.
    pub fn spawn_operator(&self, settings: &[(&str, &str)]) -> Result<(Process, String), Error> {
        let vault = self.testbed.vault();
        let log = self.log(self.starts.fetch_add(1, Ordering::Relaxed));
        let [port] = port::free()?;
        let health = format!("127.0.0.1:{port}");
        let mut command = process::image_command(&self.binary, &self.folder)?;
        command
            .arg("run")
            .env("KUBECONFIG", &self.kubeconfig)
            .env("VTO_CLUSTER", CLUSTER)
            // The next one takes its lease over at once, as a container does that starts again in its pod.
            .env("VTO_IDENTITY", "operator")
            .env("VTO_SERVICE_ACCOUNT_TOKEN_FILE", &self.login_file)
            .env("VTO_HEALTH_ADDRESS", &health)
            // Pods of the testbed have loopback addresses.
            .env("VTO_POD_NETWORKS", "127.0.0.0/8,::1/128")
            .env("VTO_LOG_FORMAT", "json")
            .env("VTO_LOG", "trace")
            .env("VAULT_ADDR", vault.address())
            .env("VAULT_CACERT", vault.ca_path())
            .envs(settings.iter().copied());
        Ok((Process::spawn("vault-token-operator", command, &log)?, health))
    }

    /// What the running operator says of its health, if one runs.
    pub async fn operator_health(&self) -> Result<Option<String>, Error> {
        self.operator_answer("readyz").await
    }

    /// What the running operator tells over HTTP at this path, if one runs.
    pub async fn operator_answer(&self, path: &str) -> Result<Option<String>, Error> {
        let Some(health) = self.operator().as_ref().map(|operator| operator.health.clone()) else { return Ok(None) };
        Self::ask(&health, path).await.map(Some)
    }

    /// What the operator says of its health whose endpoint is at this address.
    pub async fn health_of(address: &str) -> Result<String, Error> {
        Self::ask(address, "readyz").await
    }

    /// What the running operator has counted, if one runs.
    pub async fn operator_metrics(&self) -> Result<Option<String>, Error> {
        self.operator_answer("metrics").await
    }

    /// What the operator has counted whose endpoint is at this address.
    pub async fn metrics_of(address: &str) -> Result<String, Error> {
        Self::ask(address, "metrics").await
    }

    /// What a probe of the kubelet's sees of the running operator at this path, if one runs.
    pub async fn probe_operator(&self, path: &str) -> Result<Option<(StatusCode, String)>, Error> {
        let Some(health) = self.operator().as_ref().map(|operator| operator.health.clone()) else { return Ok(None) };
        Self::probe(&health, path).await.map(Some)
    }

    async fn ask(address: &str, path: &str) -> Result<String, Error> {
        Self::probe(address, path).await.map(|(_, text)| text)
    }

    /// What a probe of the kubelet's sees at this path of the operator whose endpoint is at this address.
    pub async fn probe(address: &str, path: &str) -> Result<(StatusCode, String), Error> {
        let failed = |source| Error::Http { what: format!("could not ask the operator for its {path}"), source };
        let answer = plain_client()?.get(format!("http://{address}/{path}")).send().await.map_err(failed)?;
        let status = answer.status();
        Ok((status, answer.text().await.map_err(failed)?))
    }

    /// How much memory the running operator has, in bytes, if one runs.
    pub fn operator_memory(&self) -> Result<Option<u64>, Error> {
        self.operator().as_ref().map(|operator| operator.process.memory()).transpose()
    }

    /// The most memory that the running operator has had, if one runs: [`crate::process::Process::peak_memory`].
    pub fn operator_peak_memory(&self) -> Result<Option<u64>, Error> {
        self.operator().as_ref().map(|operator| operator.process.peak_memory()).transpose()
    }

    /// The limits that the kernel holds the running operator to, if one runs.
    pub fn operator_limits(&self) -> Result<Option<String>, Error> {
        self.operator().as_ref().map(|operator| operator.process.limits()).transpose()
    }

    /// Lets the operator do nothing, as a machine that is paused does, until [`System::resume_operator`].
    pub fn pause_operator(&self) {
        if let Some(operator) = &*self.operator() {
            operator.process.pause();
        }
    }

    /// Lets the operator go on.
    pub fn resume_operator(&self) {
        if let Some(operator) = &*self.operator() {
            operator.process.resume();
        }
    }

    /// Kills the operator (SIGKILL), in the midst of whatever it does.
    pub fn kill_operator(&self) {
        self.operator().take();
    }

    /// Asks the operator to end (SIGTERM); gives its exit status.
    pub async fn stop_operator(&self) -> Option<std::process::ExitStatus> {
        let Operator { process, .. } = self.operator().take()?;
        process.stop(STOP_LIMIT).await;
        process.exit_status()
    }

    /// Ends everything in order, and removes the files.
    pub async fn stop(self) -> Result<(), Error> {
        self.stop_operator().await;
        self.testbed.stop().await
    }

    fn operator(&self) -> std::sync::MutexGuard<'_, Option<Operator>> {
        self.operator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without TLS, and so without the cost of reading the system's certificates.
fn plain_client() -> Result<reqwest::Client, Error> {
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build();
    client.map_err(|source| Error::Http { what: "could not make a client".into(), source })
}

/// The error that a command has failed.
pub fn must_succeed(output: process::Output, name: &str) -> Result<String, Error> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let tail = format!("{}{}", output.stdout, output.stderr);
    Err(Error::Ended { name: name.to_owned(), status: output.status, tail })
}

/// Tells Vault what `config/vault/` says, and makes the example secrets.
pub async fn prepare_vault(testbed: &Testbed) -> Result<(), Error> {
    tell_vault(testbed).await?;
    make_secrets(testbed).await
}

/// What `config/vault/README.md` tells a Vault administrator to do.
async fn tell_vault(testbed: &Testbed) -> Result<(), Error> {
    for (path, body) in vault_setup()? {
        testbed.vault().must(Method::POST, &path, Some(&body)).await?;
    }
    Ok(())
}

/// What is written to Vault by that, path by path: policies, roles, and how long tokens may live in all.
pub fn vault_setup() -> Result<Vec<(String, Value)>, Error> {
    let folder = project::root().join("config/vault");
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).map_err(Error::path("could not read", &path))
    };
    let sweep = format!("{OPERATOR}-sweep");
    let mut setup = Vec::new();
    for (name, file) in
        [(OPERATOR, "policy.hcl"), ("vault-token-base", "base-policy.hcl"), (&sweep, "sweep-policy.hcl")]
    {
        setup.push((format!("sys/policies/acl/{name}"), json!({ "policy": read(file)? })));
    }
    for (path, file) in [
        (format!("auth/token/roles/{OPERATOR}-{CLUSTER}"), "token-role.json"),
        (format!("auth/kubernetes/role/{OPERATOR}"), "auth-role.json"),
        (format!("auth/kubernetes/role/{sweep}"), "sweep-auth-role.json"),
    ] {
        let role = serde_json::from_str(&read(file)?);
        setup.push((path, role.map_err(|error| Error::path("could not read", &folder.join(file))(error.into()))?));
    }
    setup.push(("sys/auth/token/tune".to_owned(), json!({ "max_lease_ttl": "8760h" })));
    Ok(setup)
}

/// README.md, "Install it in a cluster", step 3: a kustomization in this folder, for a Vault at this address.
pub fn kustomization(folder: &Path, vault: &str) -> Result<Value, Error> {
    Ok(json!({
        "resources": [project::path_from(folder, "config")?],
        "configMapGenerator": [{
            "name": OPERATOR, "namespace": OPERATOR, "behavior": "merge",
            "literals": [format!("VTO_CLUSTER={CLUSTER}"), format!("VAULT_ADDR={vault}")],
        }],
    }))
}

/// Step 4 of it: the ConfigMap with the authority of Vault's certificate.
pub async fn give_ca(kubectl: &Kubectl, namespace: &str, ca: &Path) -> Result<(), Error> {
    let file = format!("--from-file=ca.crt={}", ca.display());
    kubectl.must(&["-n", namespace, "create", "configmap", "vault-ca", &file]).await.map(drop)
}

/// Waits until all of the operator's replicas are as they should be.
pub async fn roll_out(kubectl: &Kubectl) -> Result<(), Error> {
    let deployment = format!("deployment/{OPERATOR}");
    kubectl.must(&["rollout", "status", &deployment, "-n", OPERATOR, "--timeout=90s"]).await.map(drop)
}

/// Two example secrets, and the policies to read them.
async fn make_secrets(testbed: &Testbed) -> Result<(), Error> {
    let vault = testbed.vault();
    vault.mount_kv(SECRETS).await?;
    for name in ["read", "db"] {
        let rule = format!("path \"{SECRETS}/data/shop/{name}\" {{ capabilities = [\"read\"] }}");
        let policy = json!({ "policy": rule });
        vault.must(Method::PUT, &format!("sys/policies/acl/shop-{name}"), Some(&policy)).await?;
        let secret = json!({ "data": { "greeting": format!("hello from {name}") } });
        vault.must(Method::POST, &format!("{SECRETS}/data/shop/{name}"), Some(&secret)).await?;
    }
    Ok(())
}

async fn ready(client: &reqwest::Client, address: &str) -> Result<(), String> {
    let answer = client.get(format!("http://{address}/readyz")).send().await.map_err(|error| format!("{error:?}"))?;
    if answer.status().is_success() { Ok(()) } else { Err(answer.text().await.unwrap_or_default()) }
}
