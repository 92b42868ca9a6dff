//! Child processes: started through the guard, logged to a file, waited for by a condition, ended for certain.
//!
//! Everything here is of the standard library, so that a process may be started in one async runtime and stopped in
//! another, as tests that share one testbed do.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::error::Error;
use crate::guard;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How many log lines an error shows.
const TAIL_LINES: usize = 20;
/// How much of a log's end is read for them.
const TAIL_BYTES: u64 = 64 * 1024;

/// A running child in a process group of its own; dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    id: Pid,
    child: Mutex<State>,
}

#[derive(Debug)]
struct State {
    child: Child,
    status: Option<ExitStatus>,
}

/// What a command that ran to its end has written.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A command for `program` without this process's environment: proxies, VAULT_* and the like would change what a
/// component does, and a home folder would be written to.
pub fn clean_command(program: &Path, home: &Path) -> Result<Command, Error> {
    let mut command = guard::command(program)?;
    command.env_clear().env("HOME", home).env("TMPDIR", home).current_dir(home);
    Ok(command)
}

/// As [`clean_command`], for a binary of the product: with no certificate authorities of a system's, as in its image.
pub fn image_command(program: &Path, home: &Path) -> Result<Command, Error> {
    let mut command = clean_command(program, home)?;
    command.env("SSL_CERT_FILE", home.join("no-such-file")).env("SSL_CERT_DIR", home.join("no-such-folder"));
    Ok(command)
}

impl Process {
    /// Starts a command made by [`guard::command`], with its output appended to `log`.
    pub fn spawn(name: &str, command: Command, log: &Path) -> Result<Self, Error> {
        let output = File::options().create(true).append(true).open(log).map_err(Error::path("could not open", log))?;
        let errors = output.try_clone().map_err(Error::path("could not open", log))?;
        Self::spawn_to(name, command, output, errors, log)
    }

    fn spawn_to(name: &str, mut command: Command, stdout: File, stderr: File, log: &Path) -> Result<Self, Error> {
        let what = || format!("could not start {name}");
        let child = command.stdout(stdout).stderr(stderr).spawn().map_err(Error::io(what()))?;
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let id = id.ok_or_else(|| Error::io(what())(std::io::Error::other("its process id is out of range")))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), id, child: Mutex::new(State { child, status: None }) })
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        let mut state = self.state();
        if state.status.is_none()
            && let Ok(Some(status)) = state.child.try_wait()
        {
            self.reaped(&mut state, status);
        }
        state.status
    }

    /// Waits until `condition` holds. Fails at once when the process ends before that, and at the end of `limit`; the
    /// error then has the process's last log lines and what `condition` last missed.
    pub async fn wait_until_ready<C, F>(&self, limit: Duration, mut condition: C) -> Result<(), Error>
    where
        C: FnMut() -> F,
        F: Future<Output = Result<(), String>>,
    {
        let deadline = Instant::now() + limit;
        let mut reason = String::from("it was not asked");
        loop {
            if let Some(status) = self.exit_status() {
                return Err(self.ended(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, condition()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(missing)) if !left.is_zero() => reason = missing,
                Ok(Err(missing)) => return Err(self.not_ready(limit, missing)),
                Err(_) => return Err(self.not_ready(limit, reason)),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for its end.
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + limit;
        loop {
            match self.exit_status() {
                Some(status) => return Ok(status),
                None if Instant::now() >= deadline => return Err(self.not_ready(limit, "it still ran".into())),
                None => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// As [`Process::wait`], for code that is not async; `meanwhile` is called between two looks.
    pub fn wait_blocking(&self, limit: Duration, mut meanwhile: impl FnMut()) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + limit;
        loop {
            match self.exit_status() {
                Some(status) => return Ok(status),
                None if Instant::now() >= deadline => return Err(self.not_ready(limit, "it still ran".into())),
                None => std::thread::sleep(POLL),
            }
            meanwhile();
        }
    }

    /// Asks it to end (SIGTERM), waits, and kills it when it has not ended within `grace`.
    pub async fn stop(&self, grace: Duration) {
        {
            let state = self.state();
            if state.status.is_none() {
                // An error says that it has just ended, which is what is wanted.
                let _ = kill_process(self.id, Signal::TERM);
            }
        }
        if self.wait(grace).await.is_err() {
            self.kill();
        }
    }

    /// Does to it what Ctrl-C on its terminal does (SIGINT).
    pub fn interrupt(&self) {
        self.signal_group(Signal::INT);
    }

    /// Kills it and what it started (SIGKILL); it has ended when this returns.
    pub fn kill(&self) {
        let mut state = self.state();
        if state.status.is_some() {
            return;
        }
        let _ = kill_process_group(self.id, Signal::KILL);
        if let Ok(status) = state.child.wait() {
            self.reaped(&mut state, status);
        }
    }

    /// Stops the clock for it and what it started (SIGSTOP): it keeps its connections and answers nothing.
    pub fn pause(&self) {
        self.signal_group(Signal::STOP);
    }

    /// Lets it go on after [`Process::pause`] (SIGCONT).
    pub fn resume(&self) {
        self.signal_group(Signal::CONT);
    }

    /// The limits that the kernel holds it to.
    pub fn limits(&self) -> Result<String, Error> {
        let path = PathBuf::from(format!("/proc/{}/limits", self.id.as_raw_pid()));
        std::fs::read_to_string(&path).map_err(Error::path("could not read", &path))
    }

    /// The memory that it has filled itself, in bytes (`RssAnon` of proc_pid_status(5)). What it has read of its binary is not
    /// counted: that grows for as long as code runs that did not run before, and is the kernel's to take back.
    pub fn memory(&self) -> Result<u64, Error> {
        self.status("RssAnon")
    }

    /// The most memory that it has had at any time, in bytes, its binary included (`VmHWM`).
    pub fn peak_memory(&self) -> Result<u64, Error> {
        self.status("VmHWM")
    }

    /// An amount of memory in proc_pid_status(5), in bytes.
    fn status(&self, field: &'static str) -> Result<u64, Error> {
        let path = PathBuf::from(format!("/proc/{}/status", self.id.as_raw_pid()));
        let status = std::fs::read_to_string(&path).map_err(Error::path("could not read", &path))?;
        let amount = |line: &str| line.strip_prefix(field)?.strip_prefix(':')?.strip_suffix("kB")?.trim().parse().ok();
        let kibibytes: Option<u64> = status.lines().find_map(amount);
        Ok(kibibytes.ok_or(Error::Incomplete { what: path.display().to_string(), field })? * 1024)
    }

    /// The error that says it ended, with its last log lines.
    pub fn ended(&self, status: ExitStatus) -> Error {
        Error::Ended { name: self.name.clone(), status, tail: tail(&self.log) }
    }

    fn not_ready(&self, limit: Duration, reason: String) -> Error {
        Error::NotReady { name: self.name.clone(), seconds: limit.as_secs(), reason, tail: tail(&self.log) }
    }

    fn signal_group(&self, signal: Signal) {
        let state = self.state();
        if state.status.is_none() {
            let _ = kill_process_group(self.id, signal);
        }
    }

    /// The group's leader has ended: ends what it left in its group, and takes it off the guard's list.
    fn reaped(&self, state: &mut State, status: ExitStatus) {
        let _ = kill_process_group(self.id, Signal::KILL);
        state.status = Some(status);
        guard::forget_process(state.child.id());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command made by [`guard::command`] to its end, whatever that is, and returns what it wrote. `folder` is for
/// files that exist meanwhile: unlike pipes, they cannot fill up.
pub async fn capture(name: &str, command: Command, folder: &Path, limit: Duration) -> Result<Output, Error> {
    let captured = Captured::spawn(name, command, folder)?;
    captured.process.wait(limit).await.map(|status| captured.output(status))
}

/// As [`capture`], for code that is not async.
pub fn capture_blocking(name: &str, command: Command, folder: &Path, limit: Duration) -> Result<Output, Error> {
    let captured = Captured::spawn(name, command, folder)?;
    captured.process.wait_blocking(limit, || ()).map(|status| captured.output(status))
}

struct Captured {
    process: Process,
    stdout: tempfile::NamedTempFile,
    stderr: tempfile::NamedTempFile,
}

impl Captured {
    fn spawn(name: &str, command: Command, folder: &Path) -> Result<Self, Error> {
        let file = || tempfile::NamedTempFile::new_in(folder).map_err(Error::path("could not write to", folder));
        let reopen = |file: &tempfile::NamedTempFile| file.reopen().map_err(Error::path("could not open", file.path()));
        let (stdout, stderr) = (file()?, file()?);
        let process = Process::spawn_to(name, command, reopen(&stdout)?, reopen(&stderr)?, stderr.path())?;
        Ok(Self { process, stdout, stderr })
    }

    fn output(&self, status: ExitStatus) -> Output {
        let text = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        Output { status, stdout: text(self.stdout.path()), stderr: text(self.stderr.path()) }
    }
}

/// The last lines of a log; a log that cannot be read has none.
pub(crate) fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workdir::Workdir;

    fn shell(script: &str, workdir: &Workdir) -> Process {
        let mut command = guard::command("/bin/sh").unwrap();
        command.args(["-c", script]);
        Process::spawn("a script", command, &workdir.path().join("log")).unwrap()
    }

    #[tokio::test]
    async fn a_process_that_ends_early_is_an_error_with_its_last_lines() {
        let workdir = Workdir::new().unwrap();
        let process = shell("seq 1 100; echo no such flag >&2; exit 3", &workdir);
        let never = || std::future::ready(Err("it did not answer".to_owned()));
        let error = process.wait_until_ready(Duration::from_secs(10), never).await.unwrap_err().to_string();
        assert!(error.starts_with("a script ended (exit status: 3)"), "{error}");
        assert!(error.contains("\n100\n") && error.ends_with("no such flag"), "{error}");
        assert!(!error.contains("\n50\n"), "{error}");
    }

    #[tokio::test]
    async fn a_process_that_is_never_ready_is_an_error_that_says_what_was_missing() {
        let workdir = Workdir::new().unwrap();
        let process = shell("sleep 60", &workdir);
        let never = || std::future::ready(Err("it did not answer".to_owned()));
        let error = process.wait_until_ready(Duration::from_millis(50), never).await.unwrap_err().to_string();
        assert!(error.contains("it did not answer"), "{error}");
        assert!(process.exit_status().is_none());
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_killed_with_what_it_started() {
        let workdir = Workdir::new().unwrap();
        let process = shell("trap '' TERM; sleep 60 & echo $!; wait; wait", &workdir);
        let mut grandchild = None;
        while grandchild.is_none() {
            assert!(process.exit_status().is_none(), "{}", tail(process.log()));
            grandchild = tail(process.log()).parse().ok().and_then(Pid::from_raw);
            tokio::time::sleep(POLL).await;
        }
        process.stop(Duration::from_millis(50)).await;
        assert!(process.exit_status().is_some());
        let deadline = Instant::now() + Duration::from_secs(10);
        // Killed, but possibly not yet collected by its new parent: a zombie takes signals and has no command line.
        let alive = |pid: Pid| {
            std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| !line.is_empty())
        };
        while grandchild.is_some_and(alive) {
            assert!(Instant::now() < deadline, "the grandchild still runs");
            tokio::time::sleep(POLL).await;
        }
    }

    #[tokio::test]
    async fn a_paused_process_goes_on_when_it_is_resumed() {
        let workdir = Workdir::new().unwrap();
        let process = shell("sleep 0.05", &workdir);
        process.pause();
        assert!(process.wait(Duration::from_millis(200)).await.is_err());
        process.resume();
        assert!(process.wait(Duration::from_secs(10)).await.unwrap().success());
    }

    #[tokio::test]
    async fn captured_output_is_whole_and_a_command_that_hangs_is_ended() {
        let workdir = Workdir::new().unwrap();
        let mut command = guard::command("/bin/sh").unwrap();
        command.args(["-c", "seq 1 100000; echo oops >&2; cat; exit 2"]);
        let output = capture("seq", command, workdir.path(), Duration::from_secs(20)).await.unwrap();
        assert_eq!((output.stdout.lines().count(), output.stderr.as_str()), (100_000, "oops\n"));
        assert_eq!(output.status.code(), Some(2));

        let mut command = guard::command("/bin/sleep").unwrap();
        command.arg("60");
        assert!(capture("sleep", command, workdir.path(), Duration::from_millis(50)).await.is_err());
    }
}
