//! The connection to the Kubernetes API server, and what can go wrong with it.

mod anew;
mod calls;

pub use anew::watch_anew;
pub use calls::{Call, Listener};

use crate::text::one_line;
use calls::Counting;
use kube::client::ClientBuilder;
use kube::runtime::watcher;
use kube::{Client, Config};
use std::sync::Arc;
use std::time::Duration;

/// The name that the API server keeps with what this program writes (`metadata.managedFields`).
pub const FIELD_MANAGER: &str = "vault-token-operator";

/// No call to the API server but a watch takes longer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a watch goes on before it is taken up again where it ended, in seconds: one whose connection is dead without a word is
/// found out by then.
const WATCH_SECONDS: u32 = 30;

/// How many objects are listed at a time. Each is as large as its maker wants: up to 1.5 MiB for etcd, and six times that in an answer,
/// where every `<` is escaped. While an answer is read, it takes about four times its size, which has to fit into the limit that config/
/// sets.
const PAGE: u32 = 8;

/// No connection to the API server is silent for longer while an answer is awaited; watches end before that by themselves.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);

/// How anything is watched.
pub fn watch() -> watcher::Config {
    watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS)
}

/// Connects with the kubeconfig that KUBECONFIG names, or from inside a cluster with the pod's ServiceAccount.
///
/// # Errors
/// A sentence that says what was looked for.
pub async fn connect() -> Result<Client, String> {
    connect_counted(Arc::new(|_| {})).await
}

/// As [`connect`], and tells `listener` of every call.
///
/// # Errors
/// A sentence that says what was looked for.
pub async fn connect_counted(listener: Listener) -> Result<Client, String> {
    let mut config = Config::infer().await.map_err(|error| {
        format!("no way to the Kubernetes API server: neither KUBECONFIG nor a ServiceAccount is there ({error})")
    })?;
    // Its retries would repeat guarded writes that had taken effect, and hide for minutes what is wrong.
    config.default_retry = false;
    // A list or the start of a watch that is never answered would hold its watch up for ever. Counted from the last write: a
    // connection that was idle before has all of it.
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    let builder = ClientBuilder::try_from(config)
        .map_err(|error| format!("the connection to the Kubernetes API server is set wrong: {error}"))?;
    Ok(builder.with_layer(&Counting(listener)).build())
}

/// A call to the API server that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error, or could not be reached.
    #[error("the Kubernetes API server: {}", words(.0))]
    Api(#[from] kube::Error),
    /// No answer came in time.
    #[error("the Kubernetes API server did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
}

impl Error {
    /// Whether the call certainly changed nothing: the server refused it, or was not reached.
    pub fn had_no_effect(&self) -> bool {
        match self {
            Self::Api(kube::Error::Api(status)) => (400..500).contains(&status.code),
            Self::Api(kube::Error::Service(error)) => {
                let first: &(dyn std::error::Error + 'static) = &**error;
                let mut causes = std::iter::successors(Some(first), |error| error.source());
                let connecting = causes.find_map(|error| error.downcast_ref::<hyper_util::client::legacy::Error>());
                connecting.is_some_and(|error| error.is_connect())
            }
            _ => false,
        }
    }

    /// Whether the answer came and is none that can be read.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Api(kube::Error::SerdeError(_)))
    }

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

/// An error in words: the server's own message, or the cause at the bottom of a connection that failed. kube's own text
/// has the whole answer in Rust's notation.
pub fn words(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return match status.code {
            404 if status.message.contains("page not found") => {
                "404: it knows no VaultTokenRequest; apply crds/ first".to_owned()
            }
            403 => format!("403: {}; compare its rights with config/rbac.yaml", one_line(&status.message)),
            code => format!("{code}: {}", one_line(&status.message)),
        };
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    one_line(&cause.to_string())
}

/// As [`words`], for a watch.
pub fn watch_words(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => words(error),
        watcher::Error::WatchError(status) => format!("{}: {}", status.code, one_line(&status.message)),
        other => one_line(&other.to_string()),
    }
}
