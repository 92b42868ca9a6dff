//! The demo in a cluster that is there already: in namespaces of its own, with a Vault of its own, and all of it removed in the end.

use std::path::Path;

use serde_json::{Value, json};

use super::pods::{self, LOOK_UP, Stage, UNKNOWN};
use crate::components::{self, Component};
use crate::error::Error;
use crate::kubectl::Kubectl;
use crate::pki::{Pki, Usage};
use crate::project;
use crate::report;
use crate::settings::Settings;
use crate::system::{self, OPERATOR};
use crate::workdir::Workdir;

/// Where Vault and the pod that asks are.
const NAMESPACE: &str = "vault-token-operator-demo";
/// Where it is for whoever is in its pod.
const INSIDE: &str = "127.0.0.1:8201";
/// The oldest version that the operator takes.
const MINOR: u32 = 33;
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
    /// The cluster of a context of the user's; as [`Existing::claim`].
    pub async fn of_context(context: &str, images: Images) -> Result<Self, Error> {
        let obtained =
            tokio::task::spawn_blocking(|| components::obtain(Component::Kubectl, &Settings::from_env()?)).await;
        let program = obtained.map_err(|error| Error::io("could not get kubectl")(std::io::Error::other(error)))??.path;
        let folder = Workdir::new()?;
        let kubectl = Kubectl::by_context(&program, folder.path(), context).await?;
        Self::claim(kubectl, folder, images).await
    }

    /// The cluster that kubectl reaches, unless there is already in it what the demo would make, and remove. The namespace of the demo is
    /// made, so that there are no two of them.
    pub async fn claim(kubectl: Kubectl, folder: Workdir, images: Images) -> Result<Self, Error> {
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
        // Where Vault is to be is not known yet.
        this.write_manifests("https://vault.invalid:8200").await?;
        let there = this.there().await?;
        if !there.is_empty() {
            let there = there.join(", ");
            return Err(refused(format!(
                "there is {there} in it, which the demo would make and remove; nothing was changed. If an earlier demo left it: {}",
                this.by_hand()
            )));
        }
        this.kubectl.must(&["create", "namespace", NAMESPACE]).await?;
        Ok(this)
    }

    /// Installs everything, and tells the story once.
    pub async fn tell(&self) -> Result<(), Error> {
        report::line("starting an OpenBao that keeps nothing on disk ...");
        self.start_vault().await?;
        report::line("installing crds/, config/ and config/vault/ ...");
        self.tell_vault().await?;
        self.install().await?;
        pods::tell(self).await?;
        // One that had started anew would have forgotten every token.
        let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
        match self.kubectl.must(&["get", "pod", "vault", "-n", NAMESPACE, "-o", restarts]).await?.as_str() {
            "0" => Ok(()),
            count => Err(Error::io("the story shows nothing")(std::io::Error::other(format!(
                "Vault started {count} times anew"
            )))),
        }
    }

    /// Removes everything, and looks whether it is gone. What fails keeps nothing else from being removed.
    pub async fn remove(&self) -> Result<(), Error> {
        report::line("removing all of it ...");
        let mut failed = Vec::new();
        for command in self.removal() {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            failed.extend(self.kubectl.must(&command).await.err().map(|error| format!("{error:?}")));
        }
        let left = self.there().await?;
        match left.is_empty() {
            true => {
                report::line("all that the demo made is gone");
                Ok(())
            }
            false => {
                failed.push(format!("left: {}; to remove it by hand: {}", left.join(", "), self.by_hand()));
                Err(Error::io("not all of it is gone")(std::io::Error::other(failed.join("; "))))
            }
        }
    }

    /// What a person can do whose demo could not remove it all.
    pub fn by_hand(&self) -> String {
        [
            &format!("kubectl delete vaulttokenrequests.vaultproject.io --all -n {NAMESPACE}"),
            "kubectl delete -k config/",
            "kubectl delete -f crds/",
            &format!("kubectl delete clusterrolebinding/{NAMESPACE} namespace/{NAMESPACE}"),
        ]
        .join("; ")
    }

    /// As README.md says: whoever asks anew no longer may, the operator revokes what is there, and then goes.
    fn removal(&self) -> Vec<Vec<String>> {
        let product = self.product();
        let requests = "vaulttokenrequests.vaultproject.io";
        let [wait, all] = ["--timeout=90s", "--ignore-not-found"];
        let commands: [&[&str]; 6] = [
            &["rolebinding", "vault-token-requester", "-n", NAMESPACE, all],
            &[requests, "--all", "-n", NAMESPACE, wait],
            &["-f", &product, all, wait],
            &["-f", &of_project("crds"), all, wait],
            &["clusterrolebinding", NAMESPACE, all],
            &["namespace", NAMESPACE, all, wait],
        ];
        let command = |what: &&[&str]| ["delete"].iter().chain(*what).map(|word| (*word).to_owned()).collect();
        commands.iter().map(command).collect()
    }

    /// What is in the cluster of what the demo makes: its namespace, and the very objects of `config/` and `crds/`.
    async fn there(&self) -> Result<Vec<String>, Error> {
        let (product, crds) = (self.product(), of_project("crds"));
        let mut there = Vec::new();
        for of in [&["-f", &product][..], &["-f", &crds], &["namespace", NAMESPACE], &["clusterrolebinding", NAMESPACE]]
        {
            let names = self.kubectl.must(&[&["get"], of, &["--ignore-not-found", "-o", "name"]].concat()).await?;
            there.extend(names.lines().map(str::to_owned));
        }
        Ok(there)
    }

    /// The file with all objects of `config/`.
    fn product(&self) -> String {
        self.folder.path().join("product.yaml").to_string_lossy().into_owned()
    }

    /// README.md, "Install it in a cluster", step 3.
    async fn write_manifests(&self, vault: &str) -> Result<(), Error> {
        let folder = self.folder.path();
        let (name, tag) = repository_and_tag(&self.images.operator);
        let mut kustomization = system::kustomization(folder, vault)?;
        kustomization["images"] = json!([{ "name": OPERATOR, "newName": name, "newTag": tag }]);
        let write = |path: &Path, text: &str| std::fs::write(path, text).map_err(Error::path("could not write", path));
        write(&folder.join("kustomization.yaml"), &kustomization.to_string())?;
        let product = self.kubectl.must(&["kustomize", &folder.to_string_lossy()]).await?;
        write(Path::new(&self.product()), &product)
    }

    /// OpenBao as a pod: for development, but with TLS to the cluster.
    async fn start_vault(&self) -> Result<(), Error> {
        let labels = json!({ "app": "vault" });
        let meta = |name: &str| json!({ "name": name, "namespace": NAMESPACE, "labels": labels });
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta("vault"),
            "spec": { "selector": labels, "ports": [{ "port": 8200 }] } });
        self.apply_text("service.json", &service.to_string()).await?;
        let server = self.pki.issue("vault", Usage::Server(&[&self.cluster_ip("vault", NAMESPACE).await?]))?;
        let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::path("could not read", path));
        let config = json!({ "listener": [{ "tcp": {
            "address": "0.0.0.0:8200", "tls_cert_file": "/etc/openbao/tls.crt", "tls_key_file": "/etc/openbao/tls.key",
        } }] });
        let token: String = std::iter::repeat_with(fastrand::alphanumeric).take(32).collect();
        let files = json!({
            "openbao.json": config.to_string(), "tls.crt": read(&server.certificate)?, "tls.key": read(&server.key)?,
            "token": token,
        });
        let command = ["bao", "server", "-dev", "-dev-no-store-token", "-config=/etc/openbao/openbao.json"];
        let environment =
            [("BAO_DEV_LISTEN_ADDRESS", INSIDE), ("BAO_ADDR", &format!("http://{INSIDE}")), ("HOME", "/tmp")];
        let plain = environment.iter().map(|(name, value)| json!({ "name": name, "value": value }));
        // Not in the pod itself, which more people may read, and which is shown where OpenBao does not get ready.
        let token = json!({ "secretKeyRef": { "name": "openbao", "key": "token" } });
        let secret = ["BAO_DEV_ROOT_TOKEN_ID", "BAO_TOKEN"].map(|name| json!({ "name": name, "valueFrom": token }));
        let environment: Vec<_> = plain.chain(secret).collect();
        let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("vault") },
            { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": NAMESPACE },
              "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator" },
              "subjects": [{ "kind": "ServiceAccount", "name": "vault", "namespace": NAMESPACE }] },
            { "apiVersion": "v1", "kind": "Secret", "metadata": meta("openbao"), "stringData": files },
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
        let api_server =
            format!("kubernetes_host=https://{}", bracketed(&self.cluster_ip("kubernetes", "default").await?));
        self.bao(&["auth", "enable", "kubernetes"]).await?;
        self.bao(&["write", "auth/kubernetes/config", &api_server]).await?;
        self.bao(&["kv", "put", "-mount=secret", "shop/read", "greeting=hello"]).await?;
        let reads = json!({ "policy": "path \"secret/data/shop/read\" { capabilities = [\"read\"] }" });
        for (path, body) in system::vault_setup()?.into_iter().chain([("sys/policies/acl/shop-read".to_owned(), reads)])
        {
            let fields = body.as_object().into_iter().flatten().map(|(name, value)| format!("{name}={}", plain(value)));
            let fields: Vec<String> = fields.collect();
            self.bao(&["write", &path].into_iter().chain(fields.iter().map(String::as_str)).collect::<Vec<_>>())
                .await?;
        }
        Ok(())
    }

    /// Runs a command of OpenBao's in its pod, which has to succeed.
    async fn bao(&self, arguments: &[&str]) -> Result<String, Error> {
        let exec = ["exec", "vault", "-n", NAMESPACE, "-c", "openbao", "--", "bao"];
        self.kubectl.must(&[&exec, arguments].concat()).await
    }

    /// README.md, "Install it in a cluster", step 4.
    async fn install(&self) -> Result<(), Error> {
        self.write_manifests(&self.vault().await?).await?;
        self.kubectl.must(&["apply", "--server-side", "-f", &of_project("crds")]).await?;
        self.kubectl.must(&["apply", "--server-side", "-f", &self.product()]).await?;
        self.give_ca(OPERATOR).await?;
        system::roll_out(&self.kubectl).await
    }

    /// Where Vault is, for whoever is in the cluster: by its address, since not every cluster has names.
    async fn vault(&self) -> Result<String, Error> {
        Ok(format!("https://{}:8200", bracketed(&self.cluster_ip("vault", NAMESPACE).await?)))
    }

    async fn cluster_ip(&self, service: &str, namespace: &str) -> Result<String, Error> {
        self.kubectl.must(&["get", "service", service, "-n", namespace, "-o", "jsonpath={.spec.clusterIP}"]).await
    }

    async fn give_ca(&self, namespace: &str) -> Result<(), Error> {
        system::give_ca(&self.kubectl, namespace, &self.pki.ca().path).await
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
        let example = project::example(NAMESPACE, &self.vault().await?)?
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
            false if output.stderr.contains(UNKNOWN) => Ok(Err(output.stderr.trim().to_owned())),
            false => Err(Error::io("could not ask Vault")(std::io::Error::other(output.stderr))),
        }
    }
}

/// An address as it stands in a URL.
fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn refused(why: String) -> Error {
    Error::io("the demo does not run in this cluster")(std::io::Error::other(why))
}

fn of_project(path: &str) -> String {
    project::root().join(path).to_string_lossy().into_owned()
}

/// The two parts of an image's name; a colon before the last slash is that of a port.
fn repository_and_tag(image: &str) -> (&str, &str) {
    image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((image, "latest"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_may_be_behind_a_port() {
        assert_eq!(repository_and_tag("operator:0.1.0"), ("operator", "0.1.0"));
        assert_eq!(repository_and_tag("registry:5000/operator"), ("registry:5000/operator", "latest"));
        assert_eq!(repository_and_tag("registry:5000/operator:2"), ("registry:5000/operator", "2"));
    }
}
