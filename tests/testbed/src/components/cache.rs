//! The folder in which built components are kept, safe for several runs at once.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use crate::error::Error;
use crate::report;
use crate::workdir::Workdir;

/// The variable that names the folder.
pub const VARIABLE: &str = "TESTBED_CACHE";

/// The folder: what the variable names, else one in the user's cache folder.
pub(super) fn root() -> Result<PathBuf, Error> {
    if let Some(folder) = std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty()) {
        return std::path::absolute(&folder).map_err(Error::path("could not resolve", Path::new(&folder)));
    }
    let strategy = etcetera::choose_base_strategy().map_err(|error| Error::Io {
        what: format!("could not find the user's cache folder; set {VARIABLE}"),
        source: std::io::Error::other(error),
    })?;
    Ok(strategy.cache_dir().join("vault-token-operator").join("testbed"))
}

/// The binary of this name in the entry of this key. When there is no such entry, `make` gets a folder to work in and
/// the path at which it is to put the binary. An entry is there whole or not at all.
pub(super) fn get_or_make(
    root: &Path,
    key: &str,
    name: &str,
    make: impl FnOnce(&Path, &Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let entry = root.join(key);
    let binary = entry.join(name);
    if binary.is_file() {
        return Ok(binary);
    }
    fs::create_dir_all(root).map_err(Error::path("could not make the cache folder", root))?;
    let _lock = lock(&root.join(format!("{key}.lock")), name)?;
    // Another run may have made it while this one waited.
    if binary.is_file() {
        return Ok(binary);
    }
    // In the same folder, since a rename does not cross file systems.
    let work = Workdir::new_in(root)?;
    let new = work.path().join("entry");
    fs::create_dir(&new).map_err(Error::path("could not make the folder", &new))?;
    make(work.path(), &new.join(name))?;
    fs::rename(&new, &entry).map_err(Error::path("could not put in place", &entry))?;
    Ok(binary)
}

/// Held as long as the file is open, that is until the process ends at the latest.
fn lock(path: &Path, name: &str) -> Result<File, Error> {
    let what = || Error::path("could not lock", path);
    let file = File::options().create(true).append(true).open(path).map_err(what())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            report::line(&format!("waiting for {name}, which another run is getting ..."));
            file.lock().map_err(what())?;
        }
        Err(TryLockError::Error(error)) => return Err(what()(error)),
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn two_runs_at_once_build_once() {
        let folder = Workdir::new().unwrap();
        let root = folder.path().join("cache");
        let (builds, together) = (AtomicU32::new(0), Barrier::new(2));
        let obtain = || {
            together.wait();
            get_or_make(&root, "thing-1", "thing", |_, binary| {
                builds.fetch_add(1, Ordering::Relaxed);
                fs::write(binary, "built").map_err(Error::path("could not write", binary))
            })
        };
        thread::scope(|scope| {
            for run in [scope.spawn(obtain), scope.spawn(obtain)] {
                assert_eq!(fs::read(run.join().unwrap().unwrap()).unwrap(), b"built");
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }

    #[test]
    fn a_build_that_fails_leaves_nothing_and_the_next_one_succeeds() {
        let folder = Workdir::new().unwrap();
        let fail = |work: &Path, binary: &Path| {
            fs::write(binary, "half").map_err(Error::path("could not write", binary))?;
            Err(Error::path("could not build in", work)(std::io::Error::other("the disk is full")))
        };
        assert!(get_or_make(folder.path(), "thing-1", "thing", fail).is_err());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["thing-1.lock"]);

        let succeed = |_: &Path, binary: &Path| fs::write(binary, "").map_err(Error::path("could not write", binary));
        assert!(get_or_make(folder.path(), "thing-1", "thing", succeed).unwrap().is_file());
    }
}
