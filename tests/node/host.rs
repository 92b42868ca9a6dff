//! The machine that a node's world is on: nothing of a node is to be left there, however it ends.

use crate::scenarios::FIRST;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testbed::world;

/// How long it may take until nothing is left of a run that was killed.
const LIMIT: Duration = Duration::from_secs(30);

/// How long it may take until a run has pods: on a new machine, everything is built first.
const START: Duration = Duration::from_secs(3600);

/// What runs in a world, and nowhere else here.
const PROGRAMS: [&str; 11] = [
    "containerd",
    "containerd-shim",
    "runc",
    "etcd",
    "kube-apiserver",
    "kube-controller",
    "kube-scheduler",
    "kube-proxy",
    "kube-router",
    "kubelet",
    "bao",
];

/// Where the parts of a node keep things, unless they are told otherwise, and sometimes then.
const PLACES: [&str; 9] = [
    "/etc/cni",
    "/etc/containerd",
    "/etc/kubernetes",
    "/opt",
    "/usr/libexec/kubernetes",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kube-router",
    "/var/lib/kubelet",
];

/// What they set for the whole machine, below `/proc/sys`.
const SETTINGS: [&str; 8] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// What a node could leave behind, each thing a line.
pub fn state() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    lines.extend(mounts.lines().map(str::to_owned));
    for (program, arguments) in [
        ("iptables", &["-S"][..]),
        ("iptables", &["-t", "nat", "-S"]),
        ("ipset", &["list", "-n"]),
        ("nft", &["-s", "list", "ruleset"]),
    ] {
        let listed = Command::new(program).args(arguments).stdin(Stdio::null()).output().expect(program);
        assert!(listed.status.success(), "{program}: {}", String::from_utf8_lossy(&listed.stderr));
        let rules = String::from_utf8_lossy(&listed.stdout).into_owned();
        lines.extend(rules.lines().map(|line| format!("{program} {}: {line}", arguments.join(" "))));
    }
    let named = |folder: &Path, prefix: &str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| file(path).starts_with(prefix)).map(|path| path.display().to_string()).collect::<Vec<_>>()
    };
    lines.extend(named(Path::new("/sys/class/net"), ""));
    lines.extend(named(&std::env::temp_dir(), "testbed-"));
    lines.extend(world::cgroup_roots().expect("cgroups").iter().flat_map(|root| named(root, "testbed-")));
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube"));
    PLACES.iter().map(|place| Path::new(place).to_owned()).chain(home).for_each(|place| below(&place, &mut lines));
    lines.extend(SETTINGS.iter().map(|name| {
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(name)).expect("a setting");
        format!("{name} = {}", value.trim())
    }));
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    lines.extend(processes.filter_map(|process| {
        let name = std::fs::read_to_string(process.join("comm")).ok()?;
        PROGRAMS
            .iter()
            .any(|program| name.trim().starts_with(program))
            .then(|| format!("{} {}", process.display(), name.trim()))
    }));
    lines
}

/// A folder with all that is in it, or nothing.
fn below(folder: &Path, lines: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    lines.insert(folder.display().to_string());
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => below(&entry.path(), lines),
            _ => drop(lines.insert(entry.path().display().to_string())),
        }
    }
}

/// What is there now, and was not before, or the other way round.
pub fn changes(before: &BTreeSet<String>) -> Vec<String> {
    state().symmetric_difference(before).cloned().collect()
}

/// Kills a run of this suite in the midst of its work; gives what is left of it.
pub fn kill_one(before: &BTreeSet<String>) -> Vec<String> {
    let program = std::env::current_exe().expect("this program");
    let mut run = Command::new(program).arg(FIRST[0].name).stdin(Stdio::null()).spawn().expect("a run");
    let own = format!("testbed-{}", run.id());
    let roots = world::cgroup_roots().expect("cgroups");
    let has_pods = || roots.iter().any(|root| has_processes(&root.join(&own), 0));
    let deadline = Instant::now() + START;
    while !has_pods() {
        let ended = run.try_wait().expect("a status");
        if Instant::now() > deadline || ended.is_some() {
            run.kill().expect("killed");
            panic!("it has no pods: {ended:?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    run.kill().expect("killed");
    run.wait().expect("ended");
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = changes(before);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Whether a cgroup has processes in the second level below it, or deeper: that is where pods are.
fn has_processes(folder: &Path, depth: u32) -> bool {
    let here = || std::fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty());
    let below = || std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    (depth > 1 && here()) || below().filter(|path| path.is_dir()).any(|path| has_processes(&path, depth + 1))
}

fn file(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
