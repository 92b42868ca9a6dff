//! kubectl, for one cluster and one user of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::error::Error;
use crate::guard;
use crate::pki;
use crate::process::{self, Output, Process};
use crate::system::must_succeed;

/// How long one kubectl may run.
const LIMIT: Duration = Duration::from_secs(120);

/// Which cluster, and who asks.
#[derive(Clone, Debug)]
enum Access {
    /// What this file says, and nothing of this process's environment.
    Kubeconfig(PathBuf),
    /// What this file says, with this process's environment: the user's kubeconfig may name programs that log him in.
    Users(PathBuf),
}

/// Runs kubectl.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    access: Access,
    /// For what is kept of its output, and what it keeps itself.
    folder: PathBuf,
}

impl Kubectl {
    /// By a kubeconfig.
    pub fn by_kubeconfig(program: &Path, folder: &Path, kubeconfig: &Path) -> Self {
        let access = Access::Kubeconfig(kubeconfig.to_owned());
        Self { program: program.to_owned(), access, folder: folder.to_owned() }
    }

    /// By a context of the user's, as it is now: whatever his kubeconfig says later, it is the same cluster.
    pub async fn by_context(program: &Path, folder: &Path, context: &str) -> Result<Self, Error> {
        let mut command = guard::command(program)?;
        command.args(["--context", context, "config", "view", "--minify", "--flatten", "--raw"]);
        let text = must_succeed(process::capture("kubectl", command, folder, LIMIT).await?, "kubectl config view")?;
        let path = folder.join("context.kubeconfig");
        pki::write(&path, &text)?;
        Ok(Self { program: program.to_owned(), access: Access::Users(path), folder: folder.to_owned() })
    }

    /// Runs it to its end.
    pub async fn run(&self, arguments: &[&str]) -> Result<Output, Error> {
        process::capture("kubectl", self.command(arguments)?, &self.folder, LIMIT).await
    }

    /// As [`Kubectl::run`], and it has to succeed; gives what it printed.
    pub async fn must(&self, arguments: &[&str]) -> Result<String, Error> {
        must_succeed(self.run(arguments).await?, "kubectl")
    }

    /// Starts one that goes on until it is dropped, and gives the file that it writes to.
    pub fn watch(&self, arguments: &[&str]) -> Result<(Process, PathBuf), Error> {
        let log = self.folder.join("kubectl-watch.log");
        Ok((Process::spawn("kubectl", self.command(arguments)?, &log)?, log))
    }

    fn command(&self, arguments: &[&str]) -> Result<Command, Error> {
        let (mut command, path) = match &self.access {
            Access::Kubeconfig(path) => (process::clean_command(&self.program, &self.folder)?, path),
            Access::Users(path) => {
                let mut command = guard::command(&self.program)?;
                // What it learns of this cluster goes when the demo goes.
                command.arg("--cache-dir").arg(self.folder.join("kubectl-cache"));
                (command, path)
            }
        };
        command.arg("--kubeconfig").arg(path).args(arguments);
        Ok(command)
    }
}
