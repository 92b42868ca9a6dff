//! The demo on a real node: the operator in its Deployment, and a pod that a kubelet runs.

use serde_json::json;

use super::NAMESPACE;
use super::pods::{self, LOOK_UP, Stage, UNKNOWN};
use crate::error::Error;
use crate::kubectl::Kubectl;
use crate::node::{self, Cluster};
use crate::report;
use crate::vault::{Method, StatusCode};

/// Gets what is not there yet, and tells the story in a world of its own.
pub async fn outside() -> Result<(), Error> {
    let status = node::in_world(["demo".to_owned()].into_iter()).await?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::io("not all of it came true")(std::io::Error::other(status.to_string()))),
    }
}

/// Tells the story once, in the world that this process is in.
pub async fn tell() -> Result<(), Error> {
    report::line("starting a Kubernetes control plane, a Vault server and a node ...");
    let cluster = Cluster::start().await?;
    report::line("installing crds/, config/ and config/vault/ ...");
    cluster.install().await?;
    pods::tell(&cluster).await
}

impl Stage for Cluster {
    fn kubectl(&self) -> Kubectl {
        self.testbed().control_plane().admin_kubectl()
    }

    fn namespace(&self) -> &str {
        NAMESPACE
    }

    async fn apply(&self) -> Result<String, Error> {
        let file = self.testbed().run().path().join("shop.yaml");
        std::fs::write(&file, self.example(NAMESPACE)?).map_err(Error::path("could not write", &file))?;
        let said = Cluster::kubectl(self, &["apply", "-f", &file.to_string_lossy()]).await?;
        self.give_ca(NAMESPACE).await?;
        Ok(said)
    }

    async fn look_up(&self, accessor: &str) -> Result<Result<(), String>, Error> {
        let (status, answer) =
            self.vault().request(Method::POST, LOOK_UP, Some(&json!({ "accessor": accessor }))).await?;
        let words = format!("{status}: {}", answer["errors"]);
        match status {
            StatusCode::OK => Ok(Ok(())),
            _ if words.contains(UNKNOWN) => Ok(Err(words)),
            _ => Err(Error::io("could not ask Vault")(std::io::Error::other(words))),
        }
    }
}
