//! A cluster with one real node, and the product installed on it as README.md says.

use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use testbed::demo::Existing;
use testbed::node::Node;
use testbed::process::Process;
use testbed::project;
use testbed::vault::{StatusCode, VaultServer};
use testbed::{Error, Testbed, report, world};

/// How long anything may take that should take seconds, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);

/// The cluster, its Vault and the product on it; whatever fails is a panic.
pub struct Cluster {
    cluster: testbed::node::Cluster,
    files: AtomicU32,
}

impl Cluster {
    pub async fn start() -> Result<Self, Error> {
        Ok(Self { cluster: testbed::node::Cluster::start().await?, files: AtomicU32::new(0) })
    }

    pub fn image_size(&self) -> u64 {
        self.cluster.image_size()
    }

    /// Where a user's own files are that he installs with.
    pub fn own_folder(&self) -> String {
        self.cluster.installation().expect("a folder").to_string_lossy().into_owned()
    }

    /// The example in this namespace.
    pub fn example(&self, namespace: &str) -> String {
        self.cluster.example(namespace).expect("the example")
    }

    /// The demo in this cluster.
    pub async fn demo(&self) -> Result<Existing, Error> {
        self.cluster.demo().await
    }

    /// The demo in this cluster by its command.
    pub fn demo_command(&self) -> Process {
        self.cluster.demo_command().expect("it starts")
    }

    /// Where the API server and Vault listen, at the node's address.
    pub fn server_ports(&self) -> [u16; 2] {
        [self.testbed().control_plane().server_url(), self.vault().address()].map(|address| {
            let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
            port.expect("a port")
        })
    }

    /// README.md, "Variants": a NetworkPolicy, patched as its file says, and with the ports that there are here. Gives the folder that is
    /// applied.
    pub async fn install_network_policy(&self) -> String {
        let folder = self.testbed().run().folder("network-policy").expect("a folder");
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

    /// Runs helm as an administrator.
    pub async fn helm(&self, arguments: &[&str]) {
        let output = self.testbed().helm(arguments).await.expect("helm runs");
        assert!(output.status.success(), "helm {arguments:?}: {}{}", output.stdout, output.stderr);
    }

    /// Runs Vault's command line as its administrator.
    pub async fn tell_vault(&self, arguments: &[&str]) {
        let output = self.vault().command(arguments).await.expect("it runs");
        assert!(output.status.success(), "vault {arguments:?}: {}{}", output.stdout, output.stderr);
    }

    /// Waits until all of the operator's replicas are as they should be.
    pub async fn roll_out(&self) {
        self.cluster.roll_out().await.expect("rolled out");
    }

    /// Changes how many there are.
    pub async fn scale_operator(&self, replicas: u32) {
        let wanted = format!("--replicas={replicas}");
        self.must(&["-n", "vault-token-operator", "scale", "deployment/vault-token-operator", &wanted]).await;
        self.roll_out().await;
        // Those that are to go still work until they hear of it.
        let gone = async || match self.operators().await.len() {
            there if there == replicas as usize => Ok(()),
            there => Err(format!("there are {there}")),
        };
        self.until("the others are gone", gone).await;
    }

    /// The pods of its replicas, those included that are to go.
    pub async fn operators(&self) -> Vec<Value> {
        let labelled = ["-n", "vault-token-operator", "pods", "-l", "app.kubernetes.io/name=vault-token-operator"];
        self.get(&labelled).await["items"].as_array().expect("a list").clone()
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
        self.cluster.node()
    }

    fn testbed(&self) -> &Testbed {
        self.cluster.testbed()
    }

    pub async fn uid(&self, namespace: &str, pod: &str) -> String {
        let pod = self.get(&["-n", namespace, "pod", pod]).await;
        pod["metadata"]["uid"].as_str().expect("a UID").to_owned()
    }

    /// The ConfigMap with the authority of Vault's certificate.
    pub async fn give_ca(&self, namespace: &str) {
        self.cluster.give_ca(namespace).await.expect("given");
    }

    pub fn vault(&self) -> &VaultServer {
        self.cluster.vault()
    }

    /// Runs kubectl as an administrator, which has to succeed; gives what it printed.
    pub async fn must(&self, arguments: &[&str]) -> String {
        self.kubectl(arguments).await.unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// Runs kubectl as an administrator; gives what it printed, or what went wrong.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.kubectl(arguments).await.map_err(|error| format!("{error:?}"))
    }

    /// Applies a manifest, in this namespace where it names none.
    pub async fn apply(&self, namespace: &str, manifest: &str) {
        self.must(&["apply", "--server-side", "-n", namespace, "-f", &self.file(manifest)]).await;
    }

    /// A file with this in it.
    pub fn file(&self, content: &str) -> String {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let file = self.testbed().run().path().join(format!("manifest-{number}.yaml"));
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
        let plane = self.testbed().control_plane();
        for arguments in [
            &["get", "pods,vtr", "-A", "-o", "wide"][..],
            &["get", "events", "-A"],
            &["describe", "pods", "-n", "vault-token-operator"],
            &["-n", "vault-token-operator", "logs", "-l", "app.kubernetes.io/name=vault-token-operator", "--tail=30"],
        ] {
            let output = plane.kubectl(arguments).await.expect("kubectl runs");
            report::line(&format!("{}{}", output.stdout, output.stderr));
        }
        for log in self.node().logs() {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            report::line(&format!("{}:\n{}", log.display(), lines[lines.len().saturating_sub(15)..].join("\n")));
        }
    }
}
