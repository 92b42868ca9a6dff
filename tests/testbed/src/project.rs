//! The project's own manifests and binaries, as a user gets them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::guard;
use crate::process;
use crate::report::Activity;

/// How long a build of the operator may take on a slow machine, from nothing.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// The folder of the project that this crate is part of.
pub fn root() -> PathBuf {
    // tests/testbed
    Path::new(env!("CARGO_MANIFEST_DIR")).components().collect::<PathBuf>().join("../..")
}

/// The operator's binary and the example app's, built if they are not.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `vault-token-operator`, which is operator and init container.
    pub operator: PathBuf,
    /// The example app.
    pub example: PathBuf,
}

impl Binaries {
    /// Builds them with the cargo that runs this process, or the one on PATH.
    pub fn build(folder: &Path) -> Result<Self, Error> {
        Self::build_with(folder, &[])
    }

    /// Builds them so that the operator dies at named points, beside what is built without that.
    pub fn build_with_crash_points(folder: &Path) -> Result<Self, Error> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        let target = target.join("crash-points");
        Self::build_with(
            folder,
            &["--features".as_ref(), "crash-points".as_ref(), "--target-dir".as_ref(), target.as_ref()],
        )
    }

    fn build_with(folder: &Path, arguments: &[&OsStr]) -> Result<Self, Error> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let activity = Activity::start("building vault-token-operator", "nothing to do when it is up to date");
        let mut command = guard::command(&cargo)?;
        command
            .current_dir(root())
            .args(["build", "--package", "vault-token-operator", "--bins", "--examples"])
            .args(["--message-format", "json-render-diagnostics"])
            .args(arguments);
        let output = process::capture_blocking("cargo build", command, folder, BUILD_LIMIT)?;
        if !output.status.success() {
            let name = "cargo build".to_owned();
            return Err(Error::Ended { name, status: output.status, tail: output.stderr });
        }
        activity.finish();
        let executable = |name: &'static str| {
            let found = output.stdout.lines().find_map(|line| executable(line, name));
            found.ok_or(Error::Incomplete { what: "cargo build".to_owned(), field: name })
        };
        Ok(Self { operator: executable("vault-token-operator")?, example: executable("vault-example")? })
    }
}

/// The path of the executable `name`, if this line of cargo's output announces it.
fn executable(line: &str, name: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_it = message.pointer("/target/name")?.as_str()? == name;
    is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from)).flatten()
}
