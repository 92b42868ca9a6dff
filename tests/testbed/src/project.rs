//! The project's own manifests and binaries, as a user gets them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::guard;
use crate::image;
use crate::process;
use crate::report::Activity;

/// How long a build of the operator may take on a slow machine, from nothing.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// What a build of the project needs of it.
const SOURCES: [&str; 7] = ["Cargo.toml", "Cargo.lock", "src", "config", "crds", "examples", "tests"];

/// A piece of the source that is another one in a copy of the project.
#[derive(Clone, Debug)]
pub struct Change {
    /// The file, from the project's folder on.
    pub file: &'static str,
    /// What stands there, once.
    pub code: &'static str,
    /// What stands in its place.
    pub instead: String,
}

/// The folder of the project that this crate is part of.
pub fn root() -> PathBuf {
    // tests/testbed
    Path::new(env!("CARGO_MANIFEST_DIR")).components().collect::<PathBuf>().join("../..")
}

/// The way from a folder to something in the project: kustomize takes no absolute paths.
pub fn path_from(folder: &Path, path: &str) -> Result<PathBuf, Error> {
    let to = root().join(path);
    let to = to.canonicalize().map_err(Error::path("could not find", &to))?;
    let up: PathBuf = folder.components().skip(1).map(|_| "..").collect();
    Ok(to.components().skip(1).fold(up, |way, component| way.join(component)))
}

/// `examples/shop.yaml` for this namespace and a Vault at this address.
pub fn example(namespace: &str, vault: &str) -> Result<String, Error> {
    let path = root().join("examples/shop.yaml");
    let text = std::fs::read_to_string(&path).map_err(Error::path("could not read", &path))?;
    Ok(text
        .replace("https://vault.vault.svc:8200", vault)
        .replace("namespace: shop\n", &format!("namespace: {namespace}\n"))
        .replace("name: shop\n", &format!("name: {namespace}\n"))
        .replace("name: shop-web\n", &format!("name: {namespace}-web\n"))
        .replace("[shop]", &format!("[{namespace}]")))
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
        Self::build_from(&root(), folder, &[])
    }

    /// Builds them so that the operator dies at named points, beside what is built without that. The operator is a copy in `folder`: it
    /// is started for half an hour, and what is beside may be built otherwise meanwhile.
    pub fn build_with_crash_points(folder: &Path) -> Result<Self, Error> {
        let features = ["--features", "crash-points"].map(OsStr::new);
        let beside = beside();
        let arguments = [&features[..], &["--target-dir".as_ref(), beside.as_ref()]].concat();
        let built = Self::build_from(&root(), folder, &arguments)?;
        let operator = folder.join("vault-token-operator");
        std::fs::copy(&built.operator, &operator).map_err(Error::path("could not copy the operator to", &operator))?;
        Ok(Self { operator, ..built })
    }

    /// Builds them from a copy of the project with these changes, beside what is built without them.
    pub fn build_changed(folder: &Path, changes: &[Change]) -> Result<Self, Error> {
        let copy = beside().join("source");
        std::fs::create_dir_all(&copy).map_err(Error::path("could not make the folder", &copy))?;
        for source in SOURCES {
            copy_changed(Path::new(source), &copy, changes)?;
        }
        Self::build_from(&copy, folder, &["--target-dir".as_ref(), beside().as_ref()])
    }

    /// Builds them as the Dockerfile does, for images: optimised, and with libc in them.
    pub fn build_for_images(folder: &Path) -> Result<Self, Error> {
        let flags = image::rustflags()?;
        let release = ["--release", "--locked", "--target", "host-tuple"].map(OsStr::new);
        Self::build_with(&root(), folder, &release, &[("RUSTFLAGS", &flags)])
    }

    fn build_from(source: &Path, folder: &Path, arguments: &[&OsStr]) -> Result<Self, Error> {
        Self::build_with(source, folder, arguments, &[])
    }

    fn build_with(
        source: &Path,
        folder: &Path,
        arguments: &[&OsStr],
        environment: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let activity = Activity::start("building vault-token-operator", "nothing to do when it is up to date");
        let mut command = guard::command(&cargo)?;
        command
            .current_dir(source)
            .args(["build", "--package", "vault-token-operator", "--bins", "--examples"])
            .args(["--message-format", "json-render-diagnostics"])
            .args(arguments)
            .envs(environment.iter().copied());
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

/// Where that is built which is not what users get.
fn beside() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(target).join("crash-points")
}

/// Brings a copy of a file, or of all files of a folder, up to date; what has not changed is not written, so that cargo sees that.
fn copy_changed(path: &Path, copy: &Path, changes: &[Change]) -> Result<(), Error> {
    let (from, to) = (root().join(path), copy.join(path));
    if from.is_dir() {
        std::fs::create_dir_all(&to).map_err(Error::path("could not make the folder", &to))?;
        for entry in std::fs::read_dir(&from).map_err(Error::path("could not read", &from))? {
            let entry = entry.map_err(Error::path("could not read", &from))?;
            copy_changed(&path.join(entry.file_name()), copy, changes)?;
        }
        return remove_others(&from, &to);
    }
    let mut content = std::fs::read(&from).map_err(Error::path("could not read", &from))?;
    for Change { code, instead, .. } in changes.iter().filter(|change| Path::new(change.file) == path) {
        let text = String::from_utf8_lossy(&content);
        if text.matches(code).count() != 1 {
            let why = std::io::Error::other(format!("this is not there exactly once: {code}"));
            return Err(Error::path("could not change", &from)(why));
        }
        content = text.replace(code, instead).into_bytes();
    }
    if std::fs::read(&to).is_ok_and(|there| there == content) {
        return Ok(());
    }
    std::fs::write(&to, content).map_err(Error::path("could not write", &to))
}

/// What an older state of the project has left in a copy of it.
fn remove_others(from: &Path, to: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(to).map_err(Error::path("could not read", to))? {
        let entry = entry.map_err(Error::path("could not read", to))?;
        if from.join(entry.file_name()).exists() {
            continue;
        }
        let other = entry.path();
        let removed = if other.is_dir() { std::fs::remove_dir_all(&other) } else { std::fs::remove_file(&other) };
        removed.map_err(Error::path("could not remove", &other))?;
    }
    Ok(())
}

/// The path of the executable `name`, if this line of cargo's output announces it.
fn executable(line: &str, name: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_it = message.pointer("/target/name")?.as_str()? == name;
    is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workdir::Workdir;

    #[test]
    fn a_copy_has_nothing_that_the_project_has_no_more() {
        let copy = Workdir::new().unwrap();
        let folder = copy.path().join("src/api");
        std::fs::create_dir_all(folder.join("gone")).unwrap();
        std::fs::write(folder.join("gone.rs"), "").unwrap();
        std::fs::write(folder.join("gone/mod.rs"), "").unwrap();
        copy_changed(Path::new("src/api"), copy.path(), &[]).unwrap();
        assert!(folder.join("mod.rs").exists());
        assert!(!folder.join("gone.rs").exists() && !folder.join("gone").exists());
    }
}
