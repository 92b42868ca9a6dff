//! How the story is shown: chapters, commands with what they print, and requests as they change.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{LIMIT, MANIFEST, POD};
use crate::error::Error;
use crate::kubectl::Kubectl;
use crate::process::Process;
use crate::project;
use crate::report;

/// Shows the story of one cluster.
pub(super) struct Story<'a> {
    kubectl: Kubectl,
    /// Where the pod is.
    namespace: &'a str,
}

/// What runs on when the story has ended.
pub(super) struct LeftRunning<'a> {
    pub kubeconfig: &'a Path,
    /// The kubectl to use, where it is not the one that a shell runs anyway.
    pub kubectl: Option<&'a Path>,
    pub vault_address: &'a str,
    pub vault_ca: &'a Path,
    /// The token of the pod that runs.
    pub token_file: &'a Path,
    pub operator_log: &'a Path,
    /// The folder with the pods' volumes and the logs of their init containers.
    pub pods: &'a Path,
}

/// `kubectl get --watch`, as it goes on.
pub(super) struct Rows {
    process: Process,
    log: PathBuf,
    shown: std::sync::atomic::AtomicUsize,
}

/// Says how clients reach what runs, and what is not there. The lines to paste have no comments, which not every shell
/// takes.
pub(super) fn left_running(it: &LeftRunning<'_>) {
    let quoted = |path: &Path| report::quoted(&path.to_string_lossy());
    let kubectl = it.kubectl.map(|kubectl| format!("\nalias kubectl={}", quoted(kubectl))).unwrap_or_default();
    report::output(&format!(
        r#"
Left running, with the pod started anew. Paste into another shell:

export KUBECONFIG={kubeconfig}{kubectl}
export VAULT_ADDR={address}
export VAULT_CACERT={ca}
export VAULT_TOKEN="$(cat {token})"

VAULT_TOKEN is the token of the pod that runs now. Then, for instance, in the project's folder:

kubectl get vtr -A
curl --cacert "$VAULT_CACERT" -H "X-Vault-Token: $VAULT_TOKEN" "$VAULT_ADDR/v1/secret/data/shop/read"
kubectl delete pod web -n shop
kubectl apply -f examples/shop.yaml

After the pod is deleted, the same curl is refused; a new pod gets a token of its own.

What is different from a cluster: the operator is a process beside the control plane, and so is the init container of
each pod; kubectl finds neither as a pod of its own. There is no kubelet, and apps are not run: the column READY,
kubectl logs and kubectl exec do not work. There are no controllers: a Deployment makes no pods, and a new namespace
has no ServiceAccount "default". A pod without an init container of the image vault-token-operator is left alone.

The operator's log:                          {log}
The pods' volumes and init containers' logs: {pods}/<UID of the pod>, .../<UID of the pod>.log

Ctrl-C stops all of it and removes its files."#,
        kubeconfig = quoted(it.kubeconfig),
        address = report::quoted(it.vault_address),
        ca = quoted(it.vault_ca),
        token = quoted(it.token_file),
        log = it.operator_log.display(),
        pods = it.pods.display(),
    ));
}

/// The end of a story that began then.
pub(super) fn came_true(started: Instant) {
    report::output("");
    report::output(&format!("All of it came true, in {:.1} s.", started.elapsed().as_secs_f64()));
}

impl<'a> Story<'a> {
    pub(super) fn new(kubectl: Kubectl, namespace: &'a str) -> Self {
        Self { kubectl, namespace }
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
    fn show_file(&self, file: &Path, from: &str, more: usize) -> Result<(), Error> {
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
        let text = self.kubectl.must(arguments).await?;
        let lines: Vec<&str> =
            text.lines().skip_while(|line| from.is_some_and(|from| !line.starts_with(from))).collect();
        self.say(&lines.join("\n"));
        Ok(())
    }

    /// The first chapters: the example workload is applied, and its requests are followed from then on.
    pub(super) async fn pod_asks(&self, apply: impl Future<Output = Result<String, Error>>) -> Result<Rows, Error> {
        self.chapter("A pod whose annotations ask for a Vault policy");
        self.show_file(&project::root().join(MANIFEST), "  annotations:", 2)?;
        let rows = self.watch_requests()?;
        report::output(&format!("$ kubectl apply -f {MANIFEST}"));
        self.say(&apply.await?);

        self.chapter("Its init container asks, the operator answers: the request as it changes");
        Ok(rows)
    }

    /// The last chapter, once the token is dead.
    pub(super) async fn request_stays(&self, rows: &Rows) -> Result<(), Error> {
        rows.show_until("Revoked", LIMIT).await?;

        self.chapter("The request stays, for audit");
        self.kubectl(&["get", "vtr", "-A", "-o", "wide"], None).await?;
        self.kubectl(&["events", "-n", self.namespace, "--for", &format!("pod/{POD}")], None).await
    }

    /// Begins to follow the requests of the pod's namespace.
    fn watch_requests(&self) -> Result<Rows, Error> {
        let (process, log) = self.kubectl.watch(&["get", "vtr", "-n", self.namespace, "--watch"])?;
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
            let rows: Vec<&str> = written(&text).skip(shown).collect();
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

/// The rows that are complete: kubectl writes one in several pieces.
fn written(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|row| row.strip_suffix('\n'))
}

#[cfg(test)]
mod tests {
    use super::written;

    #[test]
    fn a_row_is_shown_once_all_of_it_is_written() {
        let rows = |text| written(text).collect::<Vec<_>>();
        assert_eq!(rows("NAME   PHASE\nweb-0"), ["NAME   PHASE"]);
        assert_eq!(rows("NAME   PHASE\nweb-0   Delivered\n"), ["NAME   PHASE", "web-0   Delivered"]);
    }
}
