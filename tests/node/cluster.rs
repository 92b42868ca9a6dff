//! A cluster with one real node, and the product installed on it as README.md says.

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use testbed::image::Image;
use testbed::node::{self, Node, PAUSE_IMAGE};
use testbed::project::{self, Binaries};
use testbed::vault::{StatusCode, VaultServer};
use testbed::{Error, Testbed, components, report, system, world};

/// How long anything may take that should take seconds, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);

/// The project's images, by the names that its manifests have for them.
const OPERATOR: &str = "vault-token-operator:0.1.0";
const EXAMPLE: &str = "vault-example:0.1.0";
/// The operator's image once more, for upgrades.
pub const NEXT_OPERATOR: &str = "vault-token-operator:0.1.1";
/// An image with a shell and its commands, for apps of tests.
pub const SHELL: &str = "testbed/shell:1";

/// The images that pods are of.
pub struct Images(Vec<Image>);

impl Images {
    /// Builds what is in them.
    pub fn make() -> Result<Self, Error> {
        let folder = testbed::workdir::Workdir::new()?;
        let binaries = Binaries::build_for_images(folder.path())?;
        let here = |name: &str| match name {
            "vault-token-operator" => Some(binaries.operator.clone()),
            "vault-example" => Some(binaries.example.clone()),
            _ => None,
        };
        let operator = Image::of_dockerfile(OPERATOR, None, here)?;
        let example = Image::of_dockerfile(EXAMPLE, Some("example"), here)?;
        let shell = components::on_path("busybox").ok_or_else(|| {
            let why = "there is no `busybox` on PATH; install it, statically linked (Debian's package busybox-static)";
            Error::io("cannot make the images of tests")(std::io::Error::other(why))
        })?;
        let of_shell = |name: &str, command: &[&str]| Image {
            name: name.to_owned(),
            files: vec![(shell.clone(), "/bin/busybox".to_owned()), (shell.clone(), "/bin/sh".to_owned())],
            entrypoint: command.iter().map(|word| (*word).to_owned()).collect(),
            user: "65534:65534".to_owned(),
        };
        let pause = of_shell(PAUSE_IMAGE, &["/bin/busybox", "sleep", "2147483647"]);
        let next = Image { name: NEXT_OPERATOR.to_owned(), ..operator.clone() };
        Ok(Self(vec![operator, next, example, pause, of_shell(SHELL, &["/bin/sh"])]))
    }
}

/// The cluster, its Vault and the product on it.
pub struct Cluster {
    node: Node,
    testbed: Testbed,
    /// Of the operator's image, in bytes.
    image_size: u64,
    files: AtomicU32,
}

impl Cluster {
    pub async fn start() -> Result<Self, Error> {
        let testbed = Testbed::start_on(world::ADDRESS).await?;
        let blocking = tokio::task::spawn_blocking(|| Ok::<_, Error>((node::obtain()?, Images::make()?)));
        let (binaries, images) =
            blocking.await.map_err(|error| Error::io("could not build")(std::io::Error::other(error)))??;
        let node = Node::start(testbed.run(), testbed.control_plane(), &binaries).await?;
        for image in &images.0 {
            node.import(image).await?;
        }
        system::prepare_vault(&testbed).await?;
        let operator = images.0.iter().find(|image| image.name == OPERATOR).expect("the operator's image");
        Ok(Self { node, testbed, image_size: operator.size()?, files: AtomicU32::new(0) })
    }

    pub fn image_size(&self) -> u64 {
        self.image_size
    }

    /// README.md, "Install it in a cluster", steps 3 and 4, and "Injection".
    pub async fn install(&self) {
        let folder = self.installation();
        let address = self.vault().address();
        let authority = std::fs::read_to_string(self.vault().ca_path()).expect("an authority");
        let given = json!({ "image": OPERATOR, "VAULT_ADDR": address, "ca.crt": authority }).to_string();
        let given = json!([{ "op": "replace", "path": "/spec/variables/0/expression", "value": given }]);
        let way = |part: &str| project::path_from(&folder, part).expect("a path");
        let kustomization = json!({
            "resources": [way("config")],
            "components": [way("config/injection")],
            "configMapGenerator": [{
                "name": "vault-token-operator", "namespace": "vault-token-operator", "behavior": "merge",
                "literals": ["VTO_CLUSTER=main", format!("VAULT_ADDR={address}")],
            }],
            "patches": [{
                "target": { "kind": "MutatingAdmissionPolicy", "name": "vault-token-injection" },
                "patch": given.to_string(),
            }],
        });
        std::fs::write(folder.join("kustomization.yaml"), kustomization.to_string()).expect("written");
        let crds = project::root().join("crds");
        self.must(&["apply", "--server-side", "-f", &crds.to_string_lossy()]).await;
        self.must(&["apply", "--server-side", "-k", &folder.to_string_lossy()]).await;
        self.give_ca("vault-token-operator").await;
        self.roll_out().await;
    }

    /// Where the API server and Vault listen, at the node's address.
    pub fn server_ports(&self) -> [u16; 2] {
        [self.testbed.control_plane().server_url(), self.vault().address()].map(|address| {
            let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
            port.expect("a port")
        })
    }

    /// README.md, "Variants": a NetworkPolicy, patched as its file says, and with the ports that there are here. Gives the folder that is
    /// applied.
    pub async fn install_network_policy(&self) -> String {
        let folder = self.testbed.run().folder("network-policy").expect("a folder");
        let [api_server, vault] = self.server_ports();
        let there = json!([{ "ipBlock": { "cidr": format!("{}/32", world::ADDRESS) } }]);
        let patch = json!([
            { "op": "replace", "path": "/spec/egress/2/ports/1/port", "value": api_server },
            { "op": "add", "path": "/spec/egress/3/to", "value": there },
            { "op": "replace", "path": "/spec/egress/3/ports/0/port", "value": vault },
        ]);
        let kustomization = json!({
            "components": [project::path_from(&folder, "config/network-policy").expect("a path")],
            "patches": [{
                "target": { "kind": "NetworkPolicy", "name": "vault-token-operator" },
                "patch": patch.to_string(),
            }],
        });
        std::fs::write(folder.join("kustomization.yaml"), kustomization.to_string()).expect("written");
        let folder = folder.to_string_lossy().into_owned();
        self.must(&["apply", "--server-side", "-k", &folder]).await;
        folder
    }

    /// README.md, "Upgrade and uninstall", once all requests are deleted.
    pub async fn uninstall(&self) {
        self.must(&["delete", "-k", &self.installation().to_string_lossy(), "--timeout=90s"]).await;
        let crds = project::root().join("crds");
        self.must(&["delete", "-f", &crds.to_string_lossy(), "--timeout=60s"]).await;
    }

    fn installation(&self) -> PathBuf {
        self.testbed.run().folder("install").expect("a folder")
    }

    /// Waits until all of the operator's replicas are as they should be.
    pub async fn roll_out(&self) {
        let rollout = ["rollout", "status", "deployment/vault-token-operator", "-n", "vault-token-operator"];
        self.must(&[&rollout[..], &["--timeout=90s"]].concat()).await;
    }

    /// Changes how many there are.
    pub async fn scale_operator(&self, replicas: u32) {
        let replicas = format!("--replicas={replicas}");
        let operator = ["-n", "vault-token-operator"];
        self.must(&[&operator[..], &["scale", "deployment/vault-token-operator", &replicas]].concat()).await;
        self.roll_out().await;
    }

    /// The replica that leads, once one does.
    pub async fn leader(&self) -> String {
        let holder = async || {
            let lease = self.get(&["-n", "vault-token-operator", "lease", "vault-token-operator-leader"]).await;
            lease["spec"]["holderIdentity"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
        };
        self.until("a replica leads", async || holder().await.map(drop).ok_or_else(|| "none does".to_owned())).await;
        holder().await.expect("a leader")
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    pub async fn uid(&self, namespace: &str, pod: &str) -> String {
        let pod = self.get(&["-n", namespace, "pod", pod]).await;
        pod["metadata"]["uid"].as_str().expect("a UID").to_owned()
    }

    /// The ConfigMap with the authority of Vault's certificate.
    pub async fn give_ca(&self, namespace: &str) {
        let file = format!("--from-file=ca.crt={}", self.vault().ca_path().display());
        self.must(&["-n", namespace, "create", "configmap", "vault-ca", &file]).await;
    }

    pub fn vault(&self) -> &VaultServer {
        self.testbed.vault()
    }

    /// Runs kubectl as an administrator, which has to succeed; gives what it printed.
    pub async fn must(&self, arguments: &[&str]) -> String {
        let output = self.testbed.control_plane().kubectl(arguments).await.expect("kubectl runs");
        assert!(output.status.success(), "kubectl {arguments:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// Applies a manifest, in this namespace where it names none.
    pub async fn apply(&self, namespace: &str, manifest: &str) {
        self.must(&["apply", "--server-side", "-n", namespace, "-f", &self.file(manifest)]).await;
    }

    /// A file with this in it.
    pub fn file(&self, content: &str) -> String {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let file = self.testbed.run().path().join(format!("manifest-{number}.yaml"));
        std::fs::write(&file, content).expect("written");
        file.to_string_lossy().into_owned()
    }

    /// What kubectl gives of something in JSON.
    pub async fn get(&self, arguments: &[&str]) -> Value {
        let text = self.must(&[&["get", "-o", "json"], arguments].concat()).await;
        serde_json::from_str(&text).expect("JSON")
    }

    /// Waits until something holds, which `look` says, or what is wrong.
    pub async fn until<F: Future<Output = Result<(), String>>>(&self, what: &str, look: impl Fn() -> F) {
        let deadline = Instant::now() + LIMIT;
        while let Err(missing) = look().await {
            assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}: {missing}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many live tokens Vault has for a namespace.
    pub async fn live(&self, namespace: &str) -> usize {
        self.vault().live_tokens_where("namespace", namespace).await.expect("a list").len()
    }

    /// Whether Vault lets this token read the secret that the policy shop-read is about.
    pub async fn accepts(&self, token: &str) -> bool {
        let token = SecretString::from(token.trim());
        let path = "secret/data/shop/read";
        let answer = self.vault().request_as(Some(&token), Method::GET, path, None).await;
        answer.expect("an answer").0 == StatusCode::OK
    }

    /// What helps to see why something failed.
    pub async fn tell(&self) {
        let plane = self.testbed.control_plane();
        for arguments in [
            &["get", "pods,vtr", "-A", "-o", "wide"][..],
            &["get", "events", "-A"],
            &["describe", "pods", "-n", "vault-token-operator"],
            &["-n", "vault-token-operator", "logs", "-l", "app.kubernetes.io/name=vault-token-operator", "--tail=30"],
        ] {
            let output = plane.kubectl(arguments).await.expect("kubectl runs");
            report::line(&format!("{}{}", output.stdout, output.stderr));
        }
        for log in self.node.logs() {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            report::line(&format!("{}:\n{}", log.display(), lines[lines.len().saturating_sub(15)..].join("\n")));
        }
    }
}
