//! helm, which installs the chart.

use std::time::Duration;

use crate::Testbed;
use crate::components::{self, Component};
use crate::error::Error;
use crate::process::{self, Output};
use crate::settings::Settings;

/// How long it may take, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

impl Testbed {
    /// Runs helm to its end, as an administrator of the control plane.
    pub async fn helm(&self, arguments: &[&str]) -> Result<Output, Error> {
        let obtain = || components::obtain(Component::Helm, &Settings::from_env()?);
        let obtained = tokio::task::spawn_blocking(obtain).await;
        let binary = obtained.map_err(|error| Error::io("could not get helm")(std::io::Error::other(error)))??.path;
        let folder = self.run().folder("helm")?;
        let mut command = process::clean_command(&binary, &folder)?;
        command.args(arguments).env("KUBECONFIG", self.control_plane().admin_kubeconfig());
        process::capture("helm", command, &folder, LIMIT).await
    }
}
