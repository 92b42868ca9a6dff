//! The demo without a node: init containers and the operator are processes beside the control plane.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};

use super::show::{self, LeftRunning, Story};
use super::{LIMIT, MANIFEST, NAMESPACE, POD};
use crate::bed::Testbed;
use crate::components;
use crate::error::Error;
use crate::kubelet::{Kubelet, Node};
use crate::process;
use crate::project::{self, Binaries};
use crate::report;
use crate::system::{System, must_succeed};

/// The demo with everything that it runs on.
#[derive(Debug)]
pub struct Demo {
    system: System,
    kubelet: Kubelet,
    binaries: Binaries,
}

impl Demo {
    /// Gets the components, builds the product, starts all of it and installs the product.
    pub async fn start() -> Result<Self, Error> {
        report::line("starting etcd, a Kubernetes API server and a Vault server on loopback ...");
        let testbed = Testbed::start().await?;
        let folder = testbed.run().folder("demo")?;
        let built = tokio::task::spawn_blocking(move || Binaries::build(&folder)).await;
        let binaries = built.map_err(|error| Error::io("could not build")(std::io::Error::other(error)))??;
        let kubelet = Kubelet::new(testbed.run(), &binaries.operator)?;
        report::line("installing crds/, config/ and config/vault/ ...");
        let system = System::install(testbed, &binaries.operator).await?;
        system.start_operator(&[("VTO_LOG", "info")]).await?;
        Ok(Self { system, kubelet, binaries })
    }

    /// Tells the story once, from the pod that asks to the token that is dead.
    pub async fn tell(&self) -> Result<(), Error> {
        let started = Instant::now();
        let node = Node::new(&self.kubelet, self.system.testbed());
        tokio::select! {
            ended = node.run() => ended?,
            told = self.story() => told?,
        }
        show::came_true(started);
        Ok(())
    }

    /// Starts the pod once more, and leaves everything running for the user.
    pub async fn keep(&self) -> Result<(), Error> {
        let node = Node::new(&self.kubelet, self.system.testbed());
        let serve = async {
            self.apply().await?;
            let token_file = self.token_file().await?;
            self.show_what_runs(&token_file);
            std::future::pending::<Result<(), Error>>().await
        };
        tokio::select! {
            ended = node.run_any() => ended,
            served = serve => served,
        }
    }

    /// Says how clients reach what runs, and what it is not.
    fn show_what_runs(&self, token_file: &Path) {
        let (plane, vault) = (self.system.testbed().control_plane(), self.system.testbed().vault());
        let binary = plane.kubectl_binary();
        show::left_running(&LeftRunning {
            kubeconfig: plane.admin_kubeconfig(),
            // What else is on PATH may be too old or too new for the API server.
            kubectl: (components::on_path("kubectl").as_deref() != Some(binary)).then_some(binary),
            vault_address: vault.address(),
            vault_ca: vault.ca_path(),
            token_file,
            operator_log: self.system.operator_logs().last().map_or(Path::new(""), PathBuf::as_path),
            pods: self.kubelet.folder(),
        });
    }

    /// Ends everything.
    pub async fn stop(self) -> Result<(), Error> {
        self.system.stop().await
    }

    async fn story(&self) -> Result<(), Error> {
        let story = Story::new(self.system.testbed().control_plane().admin_kubectl(), NAMESPACE);
        let rows = story.pod_asks(self.apply()).await?;
        let token_file = self.token_file().await?;
        rows.show_until("Delivered", LIMIT).await?;

        story.chapter("The token is in the pod's volume");
        story.kubectl(&["describe", "vtr", "-n", NAMESPACE], Some("Status:")).await?;
        story.show_metadata(&token_file)?;

        story.chapter("The app reads its secret with it");
        let said = self.app(&token_file).await?;
        story.say(&must_succeed(said, "the example app")?);

        story.chapter("The pod is deleted");
        let kept = token_file.with_extension("stolen");
        std::fs::copy(&token_file, &kept).map_err(Error::path("could not copy", &token_file))?;
        story.kubectl(&["delete", "pod", POD, "-n", NAMESPACE], None).await?;
        let deleted = Instant::now();

        story.chapter("The token is dead, for whoever may have kept it");
        let refused = loop {
            let said = self.app(&kept).await?;
            if !said.status.success() {
                break said.stderr;
            }
            if deleted.elapsed() > LIMIT {
                let what = "the token should be dead".to_owned();
                return Err(Error::Timeout { what, seconds: LIMIT.as_secs() });
            }
        };
        story.say(&refused);
        if !refused.contains("403") {
            return Err(Error::Incomplete { what: "Vault should refuse the token".into(), field: "403 Forbidden" });
        }
        report::output(&format!("({} ms after the pod was gone)", deleted.elapsed().as_millis()));
        story.request_stays(&rows).await
    }

    /// Applies the example workload.
    async fn apply(&self) -> Result<String, Error> {
        let manifest = project::root().join(MANIFEST);
        let output =
            self.system.testbed().control_plane().kubectl(&["apply", "-f", &manifest.to_string_lossy()]).await?;
        must_succeed(output, "kubectl apply")
    }

    /// Waits until the pod runs; gives the file with its token.
    async fn token_file(&self) -> Result<PathBuf, Error> {
        let pods: Api<Pod> = Api::namespaced(self.system.testbed().control_plane().admin_client()?, NAMESPACE);
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let pod = pods.get(POD).await.map_err(Error::kubernetes("could not read the pod"))?;
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            if phase == Some("Running") && pod.metadata.deletion_timestamp.is_none() {
                return Ok(self.kubelet.volume(&pod.uid().unwrap_or_default()).join("token"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Error::Timeout { what: format!("the pod {POD} does not run"), seconds: LIMIT.as_secs() })
    }

    /// Runs the example app with this token file.
    async fn app(&self, token_file: &Path) -> Result<process::Output, Error> {
        let testbed = self.system.testbed();
        let folder = testbed.run().path();
        let mut command = process::clean_command(&self.binaries.example, folder)?;
        command
            .env("TOKEN_FILE", token_file)
            .env("VAULT_ADDR", testbed.vault().address())
            .env("VAULT_CACERT", testbed.vault().ca_path());
        process::capture("vault-example", command, folder, LIMIT).await
    }
}
