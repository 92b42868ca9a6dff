//! A world of its own for each test: its temporary files, its cache, and a PATH on which there is what the test put there.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testbed::guard;
use testbed::workdir::Workdir;

/// How long anything may take that should take seconds at most, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);
/// What decides what a run uses; it is for the tests to set, not for the one who runs them.
const VARIABLES: [&str; 9] = [
    "KUBEBUILDER_ASSETS",
    "TESTBED_KUBERNETES",
    "TESTBED_VAULT",
    "TESTBED_ETCD",
    "TESTBED_KUBE_APISERVER",
    "TESTBED_KUBECTL",
    "TESTBED_BAO",
    "TESTBED_VAULT_BINARY",
    "TESTBED_VAULT_PLUGIN",
];

/// A test's world.
pub struct World {
    folder: Workdir,
}

impl World {
    /// A world with nothing in it.
    pub fn new() -> Self {
        let folder = Workdir::new().unwrap();
        for name in ["bin", "temporary"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    /// A world with a Go and a Python that build in no time, once they [may](Self::let_builds_finish).
    pub fn with_tools() -> Self {
        let this = Self::new();
        this.put("go");
        this.write("bin/go.version", "go1.99.0\n");
        this.put("python3");
        this
    }

    /// Puts one of the tools that are played on PATH. A link, since a file that was just written cannot always be run:
    /// another thread's child may still hold it open.
    pub fn put(&self, tool: &str) {
        symlink(fake(tool), self.path("bin").join(tool)).unwrap();
    }

    /// Puts a component on PATH, or in another folder, that says `version`.
    pub fn put_component(&self, folder: &str, name: &str, version: &str) -> PathBuf {
        let path = self.path(folder).join(name);
        fs::create_dir_all(self.path(folder)).unwrap();
        symlink(fake("component"), &path).unwrap();
        self.write(&format!("{folder}/{name}.version"), version);
        path
    }

    /// Lets the builds that have begun, and all later ones, come to their end.
    pub fn let_builds_finish(&self) {
        self.write("bin/finish", "");
    }

    /// What was built, each time it was.
    pub fn built(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("bin/calls")).unwrap_or_default();
        let mut built: Vec<_> = calls.lines().map(str::to_owned).collect();
        built.sort();
        built
    }

    /// What is in the cache beside locks, which stay.
    pub fn cached(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("cache")).into_iter().flatten().map(|entry| entry.unwrap().path());
        entries.filter(|entry| entry.extension().is_none_or(|extension| extension != "lock")).collect()
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Where something of this world is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts `testbed components`.
    pub fn components(&self, settings: &[(&str, &str)]) -> Run {
        self.with("components", settings)
    }

    /// Starts `testbed demo` with what is in this world.
    pub fn demo(&self) -> Run {
        self.with("demo", &[])
    }

    fn with(&self, subcommand: &str, settings: &[(&str, &str)]) -> Run {
        self.start(subcommand, |command| {
            for variable in VARIABLES {
                command.env_remove(variable);
            }
            command.env("PATH", self.path("bin")).env("TESTBED_CACHE", self.path("cache"));
            command.envs(settings.iter().copied());
        })
    }

    /// Starts `testbed up` with the components that the one who runs the tests has chosen.
    pub fn up(&self) -> Run {
        self.start("up", |_| ())
    }

    fn start(&self, subcommand: &str, change: impl FnOnce(&mut std::process::Command)) -> Run {
        let output = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let (stdout, stderr) = (output.join("stdout"), output.join("stderr"));
        let mut command = guard::command(env!("CARGO_BIN_EXE_testbed")).unwrap();
        command.arg(subcommand).env("TMPDIR", self.path("temporary"));
        command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        change(&mut command);
        Run { child: command.spawn().unwrap(), stdout, stderr }
    }

    /// The command lines of all processes that belong to this world: those that mention it, in them or in their
    /// environment, which children inherit.
    pub fn processes(&self) -> Vec<String> {
        let world = self.folder.path().as_os_str().as_encoded_bytes();
        let mentions = |text: &[u8]| text.windows(world.len()).any(|window| window == world);
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let process = entry.unwrap().path();
            // One that has just ended cannot be read, one that nobody has waited for yet is empty, and neither counts.
            let read = |name| fs::read(process.join(name)).unwrap_or_default();
            let command_line = read("cmdline");
            let is_here = mentions(&command_line) || mentions(&read("environ"));
            is_here.then(|| String::from_utf8_lossy(&command_line).replace('\0', " "))
        });
        processes.collect()
    }

    /// What lies about among the temporary files.
    pub fn temporary_files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("temporary")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Waits until no process and no temporary file is left.
    pub fn until_nothing_is_left(&self) {
        until(|| {
            let (processes, files) = (self.processes(), self.temporary_files());
            if processes.is_empty() && files.is_empty() { Ok(()) } else { Err(format!("{processes:#?} {files:?}")) }
        });
    }
}

/// A running testbed; dropping it kills it.
pub struct Run {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Run {
    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Waits until a condition holds, which it has to while this runs.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        until(|| {
            let ended = self.child.try_wait().unwrap();
            if condition(self) {
                return Ok(());
            }
            assert!(ended.is_none(), "ended ({ended:?}) before {what}: {}", self.stderr());
            Err(format!("{what}: {}", self.stderr()))
        });
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        until(|| self.child.try_wait().unwrap().ok_or_else(|| format!("it still runs: {}", self.stderr())))
    }

    /// Waits for its end, which has to be a failure; gives what it said.
    pub fn refused(mut self) -> String {
        let status = self.ended();
        assert_eq!((status.code(), self.stdout().as_str()), (Some(1), ""), "{}", self.stderr());
        self.stderr()
    }

    /// Waits for its end, which has to be a success; gives what it wrote to standard output.
    pub fn succeeded(mut self) -> String {
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.stderr());
        self.stdout()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It has usually ended.
        let _ = self.child.kill();
        if self.child.wait().is_ok() {
            guard::forget_process(self.child.id());
        }
    }
}

/// Waits until `condition` gives a value; what it last missed is what the test fails with.
pub fn until<T>(mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(missing) => assert!(Instant::now() < deadline, "{missing}"),
        }
        std::thread::sleep(POLL);
    }
}

fn fake(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fakes").join(name)
}
