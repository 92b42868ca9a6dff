//! The story where pods are real, whatever cluster they are in.

use std::time::{Duration, Instant};

use super::show::{self, Story};
use super::{LIMIT, POD};
use crate::error::Error;
use crate::kubectl::Kubectl;
use crate::report;
use crate::system::OPERATOR;

/// Where Vault says what it knows of the token of an accessor.
pub(super) const LOOK_UP: &str = "auth/token/lookup-accessor";

/// Vault's word for an accessor that it has no live token of.
pub(super) const UNKNOWN: &str = "invalid accessor";

/// A cluster with the product on it, and its Vault.
pub(super) trait Stage {
    /// The kubectl of an administrator.
    fn kubectl(&self) -> Kubectl;

    /// Where the pod is.
    fn namespace(&self) -> &str;

    /// Applies the example workload for the Vault that is here, with the authority of its certificate; gives what kubectl said.
    async fn apply(&self) -> Result<String, Error>;

    /// Whether Vault knows a live token of this accessor; its words if not.
    async fn look_up(&self, accessor: &str) -> Result<Result<(), String>, Error>;
}

/// Tells it once.
pub(super) async fn tell(stage: &impl Stage) -> Result<(), Error> {
    let started = Instant::now();
    let (kubectl, namespace) = (stage.kubectl(), stage.namespace());
    let story = Story::new(kubectl.clone(), namespace);
    story.chapter("The operator runs");
    story.kubectl(&["get", "pods", "-n", OPERATOR, "-o", "wide"], None).await?;

    let rows = story.pod_asks(stage.apply()).await?;
    rows.show_until("Delivered", LIMIT).await?;
    story.kubectl(&["describe", "vtr", "-n", namespace], Some("Status:")).await?;

    story.chapter("The app reads its secret with the token");
    let logs = ["logs", POD, "-n", namespace, "-c", "app"];
    let read = async || Ok(kubectl.run(&logs).await?.stdout.contains("secret/data/shop/read: "));
    until("the app should read its secret", read).await?;
    story.kubectl(&logs, None).await?;

    story.chapter("The pod is deleted");
    // A request from before the admission policy was in force has none.
    let accessor = "jsonpath={.items[?(@.status.phase==\"Delivered\")].status.tokenAccessor}";
    let recorded = ["get", "vtr", "-n", namespace, "-o", accessor];
    let accessor = kubectl.must(&recorded).await?;
    if let Err(words) = stage.look_up(&accessor).await? {
        return Err(Error::io("the token should live")(std::io::Error::other(words)));
    }
    story.kubectl(&["delete", "pod", POD, "-n", namespace], None).await?;
    let deleted = Instant::now();

    story.chapter("The token is dead");
    until("the token should be dead", async || Ok(stage.look_up(&accessor).await?.is_err())).await?;
    let after = deleted.elapsed().as_millis();
    report::output(&format!("$ vault write {LOOK_UP} accessor={accessor}"));
    story.say(&stage.look_up(&accessor).await?.err().unwrap_or_default());
    report::output(&format!("({after} ms after the pod was gone)"));
    story.request_stays(&rows).await?;
    show::came_true(started);
    Ok(())
}

async fn until(what: &str, holds: impl AsyncFn() -> Result<bool, Error>) -> Result<(), Error> {
    let deadline = Instant::now() + LIMIT;
    while !holds().await? {
        if Instant::now() > deadline {
            return Err(Error::Timeout { what: what.to_owned(), seconds: LIMIT.as_secs() });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
