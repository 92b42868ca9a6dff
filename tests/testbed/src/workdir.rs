//! The temporary folder of a run.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::guard;

/// A folder that only its owner can read, removed when it is dropped, and by the guard when it is not.
#[derive(Debug)]
pub struct Workdir {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Workdir {
    /// A new folder among the machine's temporary files.
    pub fn new() -> Result<Self, Error> {
        Self::new_in(&std::env::temp_dir())
    }

    /// A new folder in `parent`, for what is then renamed into place there.
    pub fn new_in(parent: &Path) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("testbed-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(Error::path("could not make a folder in", parent))?;
        guard::remove_at_end(folder.path())?;
        // Without symbolic links: Vault refuses a plugin folder that is reached through one.
        let path = folder.path().canonicalize().map_err(Error::path("could not resolve", folder.path()))?;
        Ok(Self { folder, path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, and says so when that fails.
    pub fn remove(self) -> Result<(), Error> {
        self.folder.close().map_err(Error::path("could not remove", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_can_read_it_and_it_goes_with_what_is_in_it() {
        let workdir = Workdir::new().unwrap();
        let path = workdir.path().to_owned();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::create_dir_all(path.join("one/two")).unwrap();
        drop(workdir);
        assert!(!path.exists());

        let workdir = Workdir::new().unwrap();
        let path = workdir.path().to_owned();
        workdir.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn its_path_has_no_symbolic_links() {
        let parent = Workdir::new().unwrap();
        let (real, link) = (parent.path().join("real"), parent.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let workdir = Workdir::new_in(&link).unwrap();
        assert!(workdir.path().starts_with(&real), "{}", workdir.path().display());
    }

    #[test]
    fn a_parent_that_is_not_there_is_named() {
        let parent = Path::new("/nowhere");
        assert_eq!(Workdir::new_in(parent).unwrap_err().to_string(), "could not make a folder in /nowhere");
    }
}
