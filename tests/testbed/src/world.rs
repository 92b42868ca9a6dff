//! A world for a node: namespaces of its own for mounts, network, processes and names, in which a node changes what it likes. With the
//! last process in it everything in it is gone but files and cgroups, which are removed.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::components;
use crate::error::Error;
use crate::guard;
use crate::workdir::Workdir;

/// The address of the node, in a range that is for tests of networks (RFC 2544).
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The name of the node.
pub const NODE: &str = "testbed-node";

/// What tells the process inside that it is there, and the name of the cgroup that is for the world's pods.
pub(crate) const CGROUP_VARIABLE: &str = "TESTBED_WORLD_CGROUP";
/// Where the kernel shows cgroups: in a folder for each controller (version 1), or in one for all.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The programs of the machine that it takes, with Debian's packages.
const PROGRAMS: [(&str, &str); 7] = [
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("hostname", "hostname"),
    ("ip", "iproute2"),
    // The proxy of Services.
    ("nft", "nftables"),
    // What enforces NetworkPolicies.
    ("iptables", "iptables"),
    ("ipset", "ipset"),
];

/// The cgroup for the pods of the world that this process is in, if it is in one.
pub fn cgroup() -> Option<String> {
    std::env::var(CGROUP_VARIABLE).ok()
}

/// What a world takes that is not here, in words.
pub fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it takes root; run it by sudo, or in a virtual machine".to_owned());
    }
    let (program, package) = PROGRAMS.into_iter().find(|(program, _)| components::on_path(program).is_none())?;
    Some(format!("there is no `{program}` on PATH; install it (Debian's package {package})"))
}

/// Runs a program in a new world to its end.
pub async fn run(program: &Path, arguments: impl Iterator<Item = String>) -> Result<ExitStatus, Error> {
    if let Some(why) = lacking() {
        return Err(Error::io("cannot make a world for a node")(std::io::Error::other(why)));
    }
    let files = Workdir::new()?;
    let cgroups = Cgroups::new(&format!("testbed-{}", std::process::id()))?;
    let mut command = guard::command("unshare")?;
    command
        .args(["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "/bin/sh", "-c", include_str!("world.sh"), "world"])
        .arg(program)
        .args(arguments)
        .env(CGROUP_VARIABLE, &cgroups.name)
        .env("TESTBED_WORLD_NODE", NODE)
        .env("TESTBED_WORLD_ADDRESS", ADDRESS.to_string())
        .env("TMPDIR", files.path());
    let failed = "could not start a world for a node";
    let mut running = tokio::process::Command::from(command).spawn().map_err(Error::io(failed))?;
    let id = running.id();
    let status = running.wait().await.map_err(Error::io(failed))?;
    id.into_iter().for_each(guard::forget_process);
    cgroups.remove()?;
    files.remove()?;
    Ok(status)
}

/// Where cgroups lie: in the one hierarchy, or in that of each controller.
pub fn cgroup_roots() -> Result<Vec<PathBuf>, Error> {
    let (root, is_cgroup) = (Path::new(CGROUPS), |folder: &PathBuf| folder.join("cgroup.procs").exists());
    match is_cgroup(&root.to_owned()) {
        true => Ok(vec![root.to_owned()]),
        false => Ok(folders(root)?.into_iter().filter(is_cgroup).collect()),
    }
}

/// A cgroup of each controller.
struct Cgroups {
    name: String,
    folders: Vec<PathBuf>,
}

impl Cgroups {
    fn new(name: &str) -> Result<Self, Error> {
        let folders: Vec<PathBuf> = cgroup_roots()?.iter().map(|parent| parent.join(name)).collect();
        for folder in &folders {
            std::fs::create_dir(folder).map_err(Error::path("could not make the cgroup", folder))?;
            guard::remove_at_end(folder)?;
        }
        Ok(Self { name: name.to_owned(), folders })
    }

    fn remove(self) -> Result<(), Error> {
        self.folders.iter().try_for_each(|folder| remove_cgroup(folder))
    }
}

/// Removes a cgroup with those below it; the files in its folder go with it.
fn remove_cgroup(folder: &Path) -> Result<(), Error> {
    folders(folder)?.iter().try_for_each(|below| remove_cgroup(below))?;
    std::fs::remove_dir(folder).map_err(Error::path("could not remove the cgroup", folder))
}

/// The folders in a folder, links aside.
fn folders(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let entries = entries.map_err(Error::path("could not read", folder))?;
    let is_folder = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.iter().filter(|entry| is_folder(entry)).map(std::fs::DirEntry::path).collect())
}
