//! How the story is shown: chapters, commands with what they print, and requests as they change.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control_plane::ControlPlane;
use crate::error::Error;
use crate::process::Process;
use crate::report;
use crate::system::must_succeed;

/// Shows the story of one control plane.
pub(super) struct Story<'a> {
    plane: &'a ControlPlane,
}

/// `kubectl get --watch`, as it goes on.
pub(super) struct Rows {
    process: Process,
    log: PathBuf,
    shown: std::sync::atomic::AtomicUsize,
}

impl<'a> Story<'a> {
    pub(super) fn new(plane: &'a ControlPlane) -> Self {
        Self { plane }
    }

    pub(super) fn chapter(&self, title: &str) {
        report::output("");
        report::output(&format!("== {title}"));
    }

    pub(super) fn say(&self, text: &str) {
        for line in text.lines() {
            report::output(&format!("  {line}"));
        }
    }

    /// Shows the lines of a file from the one that begins with `from`, and so many more.
    pub(super) fn show_file(&self, file: &Path, from: &str, more: usize) -> Result<(), Error> {
        let text = std::fs::read_to_string(file).map_err(Error::path("could not read", file))?;
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with(from)).take(more + 1).collect();
        self.say(&lines.join("\n"));
        Ok(())
    }

    /// Shows a file's size and permissions, and not its content.
    pub(super) fn show_metadata(&self, file: &Path) -> Result<(), Error> {
        let metadata = std::fs::metadata(file).map_err(Error::path("there is no", file))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mode = metadata.permissions().mode() & 0o7777;
        self.say(&format!("/var/run/secrets/vaultproject.io/{name}: {} bytes, mode {mode:04o}", metadata.len()));
        Ok(())
    }

    /// Runs kubectl and shows what it prints, from the line that begins with `from` if that is given.
    pub(super) async fn kubectl(&self, arguments: &[&str], from: Option<&str>) -> Result<(), Error> {
        report::output(&format!("$ kubectl {}", arguments.join(" ")));
        let text = must_succeed(self.plane.kubectl(arguments).await?, "kubectl")?;
        let lines: Vec<&str> =
            text.lines().skip_while(|line| from.is_some_and(|from| !line.starts_with(from))).collect();
        self.say(&lines.join("\n"));
        Ok(())
    }

    /// Begins to follow the requests of a namespace.
    pub(super) fn watch_requests(&self, namespace: &str) -> Result<Rows, Error> {
        let (process, log) = self.plane.kubectl_watch(&["get", "vtr", "-n", namespace, "--watch"])?;
        Ok(Rows { process, log, shown: std::sync::atomic::AtomicUsize::new(0) })
    }
}

impl Rows {
    /// Shows new rows until there is one with this phase.
    pub(super) async fn show_until(&self, phase: &str, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        loop {
            let text = std::fs::read_to_string(&self.log).map_err(Error::path("could not read", &self.log))?;
            let shown = self.shown.load(std::sync::atomic::Ordering::Relaxed);
            let rows: Vec<&str> = text.lines().skip(shown).collect();
            for row in &rows {
                report::output(&format!("  {row}"));
            }
            self.shown.fetch_add(rows.len(), std::sync::atomic::Ordering::Relaxed);
            if rows.iter().any(|row| row.contains(phase)) {
                return Ok(());
            }
            if let Some(status) = self.process.exit_status() {
                return Err(self.process.ended(status));
            }
            if Instant::now() > deadline {
                let what = format!("the request does not become {phase}");
                return Err(Error::Timeout { what, seconds: limit.as_secs() });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
