//! The connection to the Kubernetes API server, and what can go wrong with it.

use kube::{Client, Config};
use std::time::Duration;

/// The name that the API server keeps with what this program writes (`metadata.managedFields`).
pub const FIELD_MANAGER: &str = "vault-token-operator";

/// No call to the API server but a watch takes longer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects with the kubeconfig that KUBECONFIG names, or from inside a cluster with the pod's ServiceAccount.
///
/// # Errors
/// A sentence that says what was looked for.
pub async fn connect() -> Result<Client, String> {
    let mut config = Config::infer().await.map_err(|error| {
        format!("no way to the Kubernetes API server: neither KUBECONFIG nor a ServiceAccount is there ({error})")
    })?;
    // Its retries would repeat guarded writes that had taken effect, and hide for minutes what is wrong.
    config.default_retry = false;
    Client::try_from(config)
        .map_err(|error| format!("the connection to the Kubernetes API server is set wrong: {error}"))
}

/// A call to the API server that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error, or could not be reached.
    #[error("the Kubernetes API server: {0}")]
    Api(#[from] kube::Error),
    /// No answer came in time.
    #[error("the Kubernetes API server did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
}

impl Error {
    /// The HTTP status of the server's answer, if it answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// A call with its time limit.
pub async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| Error::Timeout)?.map_err(Error::from)
}
