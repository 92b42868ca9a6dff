//! Builds a component from its Go module.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::components::recipe::GoModule;
use crate::components::{Job, Version, machine};
use crate::error::Error;
use crate::guard;
use crate::process::{self, Process};
use crate::report::Activity;

/// Far more than the slowest component takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(3600);
/// How long `go` may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(60);

/// Builds the module's package to `binary`, in `folder`, which gets the module's files.
pub(super) fn build(job: &Job<'_>, module: &GoModule, folder: &Path, binary: &Path) -> Result<(), Error> {
    check_toolchain(job, module, folder)?;
    for (name, content) in [("go.mod", module.go_mod), ("go.sum", module.go_sum)] {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(Error::path("could not write", &path))?;
    }
    let mut activity = job.activity("building");
    activity.step("fetching its modules");
    let packages = stale_packages(module, folder, &mut activity)?;

    // With -v it writes a line for each package that it compiles.
    let mut command = go(folder)?;
    command.args(["build", "-v"]).args(module.flags).arg("-o").arg(binary).arg(module.package);
    let build = Process::spawn("go build", command, &folder.join("build.log"))?;
    let status = build.wait_blocking(LIMIT, || {
        let compiled = std::fs::read(build.log()).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count();
        match compiled as u64 {
            compiled if compiled < packages => activity.progress(compiled, packages, "packages compiled"),
            _ => activity.step("linking"),
        }
        std::thread::sleep(Duration::from_millis(100));
    })?;
    if !status.success() {
        return Err(build.ended(status));
    }
    activity.finish();
    Ok(())
}

/// How many packages Go's own build cache does not have yet, the one that is to be linked aside: it is in no cache. To
/// find out, Go fetches the modules.
fn stale_packages(module: &GoModule, folder: &Path, activity: &mut Activity) -> Result<u64, Error> {
    let mut command = go(folder)?;
    command.args(["list", "-deps", "-f", "{{if .Stale}}stale{{end}}"]).args(module.flags).arg(module.package);
    // The list is the only output that is wanted, and progress of downloads is the other: one file is enough.
    let list = Process::spawn("go list", command, &folder.join("list.log"))?;
    let status = list.wait_blocking(LIMIT, || activity.step("fetching its modules"))?;
    if !status.success() {
        return Err(list.ended(status));
    }
    let text = std::fs::read_to_string(list.log()).map_err(Error::path("could not read", list.log()))?;
    let stale = text.lines().filter(|line| *line == "stale").count() as u64;
    Ok(stale.saturating_sub(1))
}

fn check_toolchain(job: &Job<'_>, module: &GoModule, folder: &Path) -> Result<(), Error> {
    let wanted = module.go_mod.lines().find_map(|line| line.strip_prefix("go ")).unwrap_or_default();
    let install = |found: &str| job.missing(format!("it is built with Go {wanted} or newer, and {found}; install Go"));
    if machine::program("go").is_none() {
        return Err(install("there is no `go` on PATH"));
    }
    let mut command = go(folder)?;
    command.args(["env", "GOVERSION"]);
    let told = process::capture_blocking("go env GOVERSION", command, folder, VERSION_LIMIT)?.stdout;
    let (found, needed) = (Version::in_text(&told), Version::in_text(wanted));
    if found < needed {
        return Err(install(&format!("the `go` on PATH is {}", told.trim())));
    }
    Ok(())
}

/// `go` with what decides the outcome fixed: no C compiler is needed, no workspace and no other toolchain interferes.
fn go(folder: &Path) -> Result<Command, Error> {
    let mut command = guard::command("go")?;
    command.env("CGO_ENABLED", "0").env("GOWORK", "off").env("GOTOOLCHAIN", "local").current_dir(folder);
    Ok(command)
}
