//! Finds components that the machine already has.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::components::{Component, Version};
use crate::process;
use crate::settings::KubernetesVersion;
use crate::workdir::Workdir;

/// How long a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// The first binary of the component, in KUBEBUILDER_ASSETS and then on PATH, that tells a fitting version.
pub(super) fn find(component: Component, kubernetes: KubernetesVersion) -> Option<PathBuf> {
    component.version_arguments()?;
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    assets
        .into_iter()
        .chain(path_folders())
        .filter_map(|folder| executable(&folder, component.name()))
        .find(|binary| told_version(component, binary).is_some_and(|version| component.fits(version, kubernetes)))
}

/// What a binary says its version is. A file that merely has the name may say anything, hang or fail.
pub(super) fn told_version(component: Component, binary: &Path) -> Option<Version> {
    let folder = Workdir::new().ok()?;
    let mut command = process::clean_command(binary, folder.path()).ok()?;
    command.args(component.version_arguments()?);
    let output = process::capture_blocking(component.name(), command, folder.path(), VERSION_LIMIT).ok()?;
    output.status.success().then(|| Version::in_text(&output.stdout)).flatten()
}

/// The program of this name on PATH.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    path_folders().find_map(|folder| executable(&folder, name))
}

fn path_folders() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(OsStr::new(&path)).collect::<Vec<_>>().into_iter()
}

fn executable(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = std::path::absolute(folder.join(name)).ok()?;
    let metadata = path.metadata().ok()?;
    (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then_some(path)
}
