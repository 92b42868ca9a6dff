//! The one error type of the testbed, worded for the person who ran it.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitStatus;

/// What went wrong; [`fmt::Display`] says it without its cause, [`fmt::Debug`] with every cause.
#[derive(thiserror::Error)]
pub enum Error {
    /// An environment variable has a value that cannot be used.
    #[error("{variable}={value}: {reason}")]
    Variable {
        /// The variable's name.
        variable: &'static str,
        /// The value that it has.
        value: String,
        /// Why that cannot be used, and what could.
        reason: String,
    },
    /// A component is not here, and what is needed to get it is not here either.
    #[error("{component} is not here: {reason}, or set {variable} to a binary of it")]
    MissingTool {
        /// The component and its version.
        component: String,
        /// What is missing and what to install.
        reason: String,
        /// The variable that names a binary of the component.
        variable: &'static str,
    },
    /// A command failed, or a component ended that should run on.
    #[error("{name} ended ({status}); its last lines:\n{tail}")]
    Ended {
        /// The command or component.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote.
        tail: String,
    },
    /// A command or a component took longer than it may.
    #[error("{name} was not ready within {seconds} s: {reason}; its last lines:\n{tail}")]
    NotReady {
        /// The command or component.
        name: String,
        /// The time that it had.
        seconds: u64,
        /// What was still missing.
        reason: String,
        /// The last lines that it wrote.
        tail: String,
    },
    /// A file, a process or a socket could not be used.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A certificate or a key could not be made.
    #[error("could not make a certificate")]
    Pki(#[from] rcgen::Error),
    /// A request to the API server failed.
    #[error("{what}")]
    Kubernetes {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// A request to Vault got no answer.
    #[error("{what}")]
    Http {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// Vault refused a request that the testbed needs.
    #[error("{what}: Vault answered {status}: {errors}")]
    Vault {
        /// What was tried.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The `errors` of the answer, never its data.
        errors: String,
    },
    /// A request took longer than it may.
    #[error("{what}: no answer within {seconds} s")]
    Timeout {
        /// What was tried.
        what: String,
        /// The time that it had.
        seconds: u64,
    },
    /// An answer lacks what the testbed needs of it.
    #[error("{what}: the answer has no {field}")]
    Incomplete {
        /// What was tried.
        what: String,
        /// The field that is missing.
        field: &'static str,
    },
}

impl Error {
    /// For `map_err`: an I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// For `map_err`: an I/O error with what was tried on a path.
    pub fn path(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("{what} {}", path.display()))
    }

    /// For `map_err`: a failed request to the API server.
    pub fn kubernetes(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Kubernetes { what, source: Box::new(source) }
    }

    /// For one line: the API server's own words where there are some, which its client buries in the whole answer.
    pub(crate) fn in_one_line(&self) -> String {
        match self {
            Self::Kubernetes { what, source } if let kube::Error::Api(status) = source.as_ref() => {
                format!("{what}: {}", status.message)
            }
            _ => format!("{self:?}"),
        }
    }
}

/// Written by hand, because tests show errors by `unwrap`: log lines stay lines, and causes are shown.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
