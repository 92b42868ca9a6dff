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
