//! The demo in a cluster that is there already: in namespaces of its own, with a Vault of its own, and all of it removed in the end.

use std::path::Path;

use serde_json::{Value, json};

use super::pods::{self, LOOK_UP, Stage};
use crate::components::{self, Component};
use crate::error::Error;
use crate::kubectl::Kubectl;
use crate::pki::{Pki, Usage};
use crate::project;
use crate::report;
use crate::settings::Settings;
use crate::system::{CLUSTER, OPERATOR};
use crate::workdir::Workdir;

/// Where Vault and the pod that asks are.
const NAMESPACE: &str = "vault-token-operator-demo";
/// Where Vault is, as the cluster has it.
const VAULT: &str = "https://vault.vault-token-operator-demo.svc:8200";
/// Where it is for whoever is in its pod.
const INSIDE: &str = "127.0.0.1:8201";
/// The oldest version that the operator takes.
const MINOR: u32 = 33;
/// What the demo makes is of these kinds, or in a namespace of its own.
const KINDS: &str = "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,validatingadmissionpolicies,\
                     validatingadmissionpolicybindings";

/// The images that its pods are of: the cluster must be able to pull them, or have them.
#[derive(Clone, Debug)]
pub struct Images {
    /// The operator's.
    pub operator: String,
    /// The example app's.
    pub example: String,
    /// OpenBao's, with `bao` on its PATH.
    pub openbao: String,
}

/// Somebody's cluster.
#[derive(Debug)]
pub struct Existing {
    kubectl: Kubectl,
    images: Images,
    pki: Pki,
    folder: Workdir,
}

impl Existing {
    /// The cluster of a context of the user's; as [`Existing::new`].
    pub async fn of_context(context: &str, images: Images) -> Result<Self, Error> {
        let obtained =
            tokio::task::spawn_blocking(|| components::obtain(Component::Kubectl, &Settings::from_env()?)).await;
        let program = obtained.map_err(|error| Error::io("could not get kubectl")(std::io::Error::other(error)))??.path;
        let folder = Workdir::new()?;
        let kubectl = Kubectl::by_context(&program, folder.path(), context);
        Self::new(kubectl, folder, images).await
    }

    /// The cluster that kubectl reaches, unless there is already in it what the demo would make, and remove.
    pub async fn new(kubectl: Kubectl, folder: Workdir, images: Images) -> Result<Self, Error> {
        let this = Self { kubectl, images, pki: Pki::new(folder.path())?, folder };
        let version: Value = parsed(&this.kubectl.must(&["version", "-o", "json"]).await?)?;
        let minor =
            version["serverVersion"]["minor"].as_str().and_then(|minor| minor.trim_end_matches('+').parse().ok());
        if minor.is_none_or(|minor: u32| minor < MINOR) {
            return Err(refused(format!(
                "its version is {}; 1.{MINOR} is needed",
                version["serverVersion"]["gitVersion"]
            )));
        }
        let there = this.there().await?;
        if !there.is_empty() {
            return Err(refused(format!(
                "it has {} already, and the demo would remove that in the end; nothing was changed",
                there.join(", ")
            )));
        }
        Ok(this)
    }

    /// Installs everything, and tells the story once.
    pub async fn tell(&self) -> Result<(), Error> {
        report::line("starting an OpenBao that keeps nothing on disk ...");
        self.start_vault().await?;
        report::line("installing crds/, config/ and config/vault/ ...");
        self.tell_vault().await?;
        self.install().await?;
        pods::tell(self).await
    }

    /// Removes everything, and looks whether it is gone.
    pub async fn remove(&self) -> Result<(), Error> {
        report::line("removing all of it ...");
        let there = self.there().await?;
        let has = |name: &str| there.iter().any(|one| one.ends_with(&format!("/{name}")));
        // As README.md says: whoever asks anew no longer may, and the operator revokes what is there.
        let wait = "--timeout=90s";
        if has(NAMESPACE) {
            self.delete(&["rolebinding", "vault-token-requester", "-n", NAMESPACE, "--ignore-not-found"]).await?;
        }
        if has("vaulttokenrequests.vaultproject.io") {
            self.delete(&["vtr", "-A", "--all", wait]).await?;
        }
        let folder = self.folder.path().to_string_lossy().into_owned();
        self.delete(&["-k", &folder, "--ignore-not-found", wait]).await?;
        self.delete(&["-f", &of_project("crds"), "--ignore-not-found", wait]).await?;
        self.delete(&["clusterrolebinding", NAMESPACE, "--ignore-not-found"]).await?;
        self.delete(&["namespace", NAMESPACE, "--ignore-not-found", wait]).await?;
        match self.there().await? {
            left if left.is_empty() => {
                report::line("the cluster is as it was");
                Ok(())
            }
            left => Err(Error::io("not all of it is gone")(std::io::Error::other(left.join(", ")))),
        }
    }

    async fn delete(&self, what: &[&str]) -> Result<(), Error> {
        self.kubectl.must(&[&["delete"], what].concat()).await.map(drop)
    }

    /// What is in the cluster of what the demo makes.
    async fn there(&self) -> Result<Vec<String>, Error> {
        let names = self.kubectl.must(&["get", KINDS, "-o", "name"]).await?;
        let ours = ["vault-token", "vaulttokenrequests.", "vaultpolicybindings."];
        Ok(names.lines().filter(|name| ours.iter().any(|our| name.contains(our))).map(str::to_owned).collect())
    }

    /// OpenBao as a pod: for development, but with TLS to the cluster.
    async fn start_vault(&self) -> Result<(), Error> {
        let server = self.pki.issue("vault", Usage::Server(&["vault.vault-token-operator-demo.svc"]))?;
        let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::path("could not read", path));
        let config = json!({ "listener": [{ "tcp": {
            "address": "0.0.0.0:8200", "tls_cert_file": "/etc/openbao/tls.crt", "tls_key_file": "/etc/openbao/tls.key",
        } }] });
        let files = json!({
            "openbao.json": config.to_string(), "tls.crt": read(&server.certificate)?, "tls.key": read(&server.key)?,
        });
        let token: String = std::iter::repeat_with(fastrand::alphanumeric).take(32).collect();
        let command = ["bao", "server", "-dev", "-dev-no-store-token", "-config=/etc/openbao/openbao.json"];
        let environment = [
            ("BAO_DEV_LISTEN_ADDRESS", INSIDE),
            ("BAO_DEV_ROOT_TOKEN_ID", &token),
            ("BAO_ADDR", &format!("http://{INSIDE}")),
            ("BAO_TOKEN", &token),
            ("HOME", "/tmp"),
        ];
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        let labels = json!({ "app": "vault" });
        let meta = |name: &str| json!({ "name": name, "namespace": NAMESPACE, "labels": labels });
        let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } },
            { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("vault") },
            { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": NAMESPACE },
              "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator" },
              "subjects": [{ "kind": "ServiceAccount", "name": "vault", "namespace": NAMESPACE }] },
            { "apiVersion": "v1", "kind": "Secret", "metadata": meta("openbao"), "stringData": files },
            { "apiVersion": "v1", "kind": "Service", "metadata": meta("vault"),
              "spec": { "selector": labels, "ports": [{ "port": 8200 }] } },
            { "apiVersion": "v1", "kind": "Pod", "metadata": meta("vault"), "spec": {
                "serviceAccountName": "vault",
                "terminationGracePeriodSeconds": 1,
                "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532 },
                "containers": [{
                    "name": "openbao", "image": self.images.openbao, "command": command, "env": environment,
                    "ports": [{ "containerPort": 8200 }],
                    "readinessProbe": {
                        "httpGet": { "scheme": "HTTPS", "port": 8200, "path": "/v1/sys/health" }, "periodSeconds": 1,
                    },
                    "volumeMounts": [
                        { "name": "openbao", "mountPath": "/etc/openbao", "readOnly": true },
                        { "name": "tmp", "mountPath": "/tmp" },
                    ],
                }],
                "volumes": [
                    { "name": "openbao", "secret": { "secretName": "openbao", "defaultMode": 288 } },
                    { "name": "tmp", "emptyDir": {} },
                ],
            } },
        ] });
        self.apply_text("vault.json", &objects.to_string()).await?;
        let ready = ["wait", "--for=condition=Ready", "pod/vault", "-n", NAMESPACE, "--timeout=100s"];
        match self.kubectl.must(&ready).await {
            Ok(_) => Ok(()),
            Err(error) => {
                report::line(&self.kubectl.must(&["describe", "pod", "vault", "-n", NAMESPACE]).await?);
                Err(error)
            }
        }
    }

    /// What `config/vault/README.md` says for a Vault in the cluster, and an example secret with the policy to read it.
    async fn tell_vault(&self) -> Result<(), Error> {
        let policy = |name: &str, file: &str| {
            Ok::<_, Error>(vec![
                "write".to_owned(),
                format!("sys/policies/acl/{name}"),
                format!("policy={}", text(file)?),
            ])
        };
        let role = |path: String, file: &str| {
            let role: Value = parsed(&text(file)?)?;
            let fields = role.as_object().into_iter().flatten().map(|(name, value)| format!("{name}={}", plain(value)));
            Ok::<_, Error>(["write".to_owned(), path].into_iter().chain(fields).collect::<Vec<_>>())
        };
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let sweep = format!("{OPERATOR}-sweep");
        let reads = "policy=path \"secret/data/shop/read\" { capabilities = [\"read\"] }";
        for command in [
            words("auth enable kubernetes"),
            words("write auth/kubernetes/config kubernetes_host=https://kubernetes.default.svc"),
            policy(OPERATOR, "policy.hcl")?,
            policy("vault-token-base", "base-policy.hcl")?,
            policy(&sweep, "sweep-policy.hcl")?,
            role(format!("auth/token/roles/{OPERATOR}-{CLUSTER}"), "token-role.json")?,
            role(format!("auth/kubernetes/role/{OPERATOR}"), "auth-role.json")?,
            role(format!("auth/kubernetes/role/{sweep}"), "sweep-auth-role.json")?,
            words("kv put -mount=secret shop/read greeting=hello"),
            vec!["write".to_owned(), "sys/policies/acl/shop-read".to_owned(), reads.to_owned()],
        ] {
            self.bao(&command.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// Runs a command of OpenBao's in its pod, which has to succeed.
    async fn bao(&self, arguments: &[&str]) -> Result<String, Error> {
        let exec = ["exec", "vault", "-n", NAMESPACE, "-c", "openbao", "--", "bao"];
        self.kubectl.must(&[&exec, arguments].concat()).await
    }

    /// README.md, "Install it in a cluster", steps 3 and 4.
    async fn install(&self) -> Result<(), Error> {
        let folder = self.folder.path();
        let (name, tag) = self.images.operator.rsplit_once(':').unwrap_or((&self.images.operator, "latest"));
        let kustomization = json!({
            "resources": [project::path_from(folder, "config")?],
            "images": [{ "name": OPERATOR, "newName": name, "newTag": tag }],
            "configMapGenerator": [{
                "name": OPERATOR, "namespace": OPERATOR, "behavior": "merge",
                "literals": [format!("VTO_CLUSTER={CLUSTER}"), format!("VAULT_ADDR={VAULT}")],
            }],
        });
        let file = folder.join("kustomization.yaml");
        std::fs::write(&file, kustomization.to_string()).map_err(Error::path("could not write", &file))?;
        self.kubectl.must(&["apply", "--server-side", "-f", &of_project("crds")]).await?;
        self.kubectl.must(&["apply", "--server-side", "-k", &folder.to_string_lossy()]).await?;
        self.give_ca(OPERATOR).await?;
        let deployment = format!("deployment/{OPERATOR}");
        self.kubectl.must(&["rollout", "status", &deployment, "-n", OPERATOR, "--timeout=100s"]).await.map(drop)
    }

    async fn give_ca(&self, namespace: &str) -> Result<(), Error> {
        let file = format!("--from-file=ca.crt={}", self.pki.ca().path.display());
        self.kubectl.must(&["create", "configmap", "vault-ca", "-n", namespace, &file]).await.map(drop)
    }

    async fn apply_text(&self, name: &str, text: &str) -> Result<String, Error> {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text).map_err(Error::path("could not write", &file))?;
        self.kubectl.must(&["apply", "-f", &file.to_string_lossy()]).await
    }
}

impl Stage for Existing {
    fn kubectl(&self) -> Kubectl {
        self.kubectl.clone()
    }

    fn namespace(&self) -> &str {
        NAMESPACE
    }

    async fn apply(&self) -> Result<String, Error> {
        let example = project::example(NAMESPACE, VAULT)?
            .replace("image: vault-token-operator:0.1.0\n", &format!("image: {}\n", self.images.operator))
            .replace("image: vault-example:0.1.0\n", &format!("image: {}\n", self.images.example));
        let said = self.apply_text("example.yaml", &example).await?;
        self.give_ca(NAMESPACE).await?;
        Ok(said)
    }

    async fn look_up(&self, accessor: &str) -> Result<Result<(), String>, Error> {
        let exec = ["exec", "vault", "-n", NAMESPACE, "-c", "openbao", "--", "bao", "write", LOOK_UP];
        let output = self.kubectl.run(&[&exec[..], &[&format!("accessor={accessor}")]].concat()).await?;
        match output.status.success() {
            true => Ok(Ok(())),
            // Whatever else keeps it from asking is no word of the token's death.
            false if output.stderr.contains("Code: 403") || output.stderr.contains("invalid accessor") => {
                Ok(Err(output.stderr.trim().to_owned()))
            }
            false => Err(Error::io("could not ask Vault")(std::io::Error::other(output.stderr))),
        }
    }
}

fn refused(why: String) -> Error {
    Error::io("the demo does not run in this cluster")(std::io::Error::other(why))
}

fn of_project(path: &str) -> String {
    project::root().join(path).to_string_lossy().into_owned()
}

/// A file of `config/vault/`.
fn text(file: &str) -> Result<String, Error> {
    let path = project::root().join("config/vault").join(file);
    std::fs::read_to_string(&path).map_err(Error::path("could not read", &path))
}

fn parsed(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::io("could not read JSON")(std::io::Error::other(error)))
}

/// A value as Vault's command line takes it.
fn plain(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
