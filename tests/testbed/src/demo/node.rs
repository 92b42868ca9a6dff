//! The demo on a real node: the operator in its Deployment, and a pod that a kubelet runs.

use std::time::Instant;

use serde_json::{Value, json};

use super::show::{self, Story};
use super::{LIMIT, NAMESPACE, POD};
use crate::error::Error;
use crate::node::{self, Cluster};
use crate::report;
use crate::vault::{Method, StatusCode};

/// Where Vault says what it knows of the token of an accessor.
const LOOK_UP: &str = "auth/token/lookup-accessor";

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
    let started = Instant::now();
    Demo { cluster: &cluster, story: Story::new(cluster.testbed().control_plane()) }.story().await?;
    show::came_true(started);
    Ok(())
}

struct Demo<'a> {
    cluster: &'a Cluster,
    story: Story<'a>,
}

impl Demo<'_> {
    async fn story(&self) -> Result<(), Error> {
        let story = &self.story;
        story.chapter("The operator runs");
        story.kubectl(&["get", "pods", "-n", "vault-token-operator", "-o", "wide"], None).await?;

        let rows = story.pod_asks(self.apply()).await?;
        rows.show_until("Delivered", LIMIT).await?;
        story.kubectl(&["describe", "vtr", "-n", NAMESPACE], Some("Status:")).await?;

        story.chapter("The app reads its secret with the token");
        let logs = ["logs", POD, "-n", NAMESPACE, "-c", "app"];
        self.until("the app should read its secret", async || {
            let said = self.cluster.testbed().control_plane().kubectl(&logs).await?;
            Ok(said.stdout.contains("secret/data/shop/read: "))
        })
        .await?;
        story.kubectl(&logs, None).await?;

        story.chapter("The pod is deleted");
        let accessor = self.accessor().await?;
        let (status, answer) = self.look_up(&accessor).await?;
        if status != StatusCode::OK {
            return Err(Error::Vault { what: "the token".into(), status: status.as_u16(), errors: answer.to_string() });
        }
        story.kubectl(&["delete", "pod", POD, "-n", NAMESPACE], None).await?;
        let deleted = Instant::now();

        story.chapter("The token is dead");
        let dead = async || Ok(self.look_up(&accessor).await?.0 != StatusCode::OK);
        self.until("the token should be dead", dead).await?;
        let after = deleted.elapsed().as_millis();
        let (status, answer) = self.look_up(&accessor).await?;
        report::output(&format!("$ vault write {LOOK_UP} accessor={accessor}"));
        story.say(&format!("{status}: {}", answer["errors"]));
        report::output(&format!("({after} ms after the pod was gone)"));
        story.request_stays(&rows).await
    }

    /// Applies the example workload for the Vault that is here, with the authority of its certificate.
    async fn apply(&self) -> Result<String, Error> {
        let file = self.cluster.testbed().run().path().join("shop.yaml");
        std::fs::write(&file, self.cluster.example()?).map_err(Error::path("could not write", &file))?;
        let said = self.cluster.kubectl(&["apply", "-f", &file.to_string_lossy()]).await?;
        self.cluster.give_ca(NAMESPACE).await?;
        Ok(said)
    }

    /// What the request records.
    async fn accessor(&self) -> Result<String, Error> {
        let path = "jsonpath={.items[0].status.tokenAccessor}";
        self.cluster.kubectl(&["get", "vtr", "-n", NAMESPACE, "-o", path]).await
    }

    async fn look_up(&self, accessor: &str) -> Result<(StatusCode, Value), Error> {
        self.cluster.vault().request(Method::POST, LOOK_UP, Some(&json!({ "accessor": accessor }))).await
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> Result<bool, Error>) -> Result<(), Error> {
        let deadline = Instant::now() + LIMIT;
        while !holds().await? {
            if Instant::now() > deadline {
                return Err(Error::Timeout { what: what.to_owned(), seconds: LIMIT.as_secs() });
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
