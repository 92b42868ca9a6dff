//! What all servers of one run share: a folder and a certificate authority.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::pki::Pki;
use crate::workdir::Workdir;

/// The folder, the authority and the address of one run.
#[derive(Debug)]
pub struct Run {
    workdir: Workdir,
    pki: Pki,
    address: Ipv4Addr,
}

impl Run {
    /// A run with a new folder and a new authority, whose servers listen on this address.
    pub fn new(address: Ipv4Addr) -> Result<Self, Error> {
        // Whichever crate opens the first TLS connection finds one provider; an earlier caller may have installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let workdir = Workdir::new()?;
        let pki = Pki::new(&make_folder(workdir.path(), "pki")?)?.with_address(address);
        Ok(Self { workdir, pki, address })
    }

    /// Where its servers listen.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The certificate authority.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Where the run's files are.
    pub fn path(&self) -> &Path {
        self.workdir.path()
    }

    /// A new folder of this name in the run's folder.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        make_folder(self.workdir.path(), name)
    }

    /// Removes the run's files, and says so when that fails.
    pub fn remove(self) -> Result<(), Error> {
        self.workdir.remove()
    }
}

fn make_folder(parent: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = parent.join(name);
    std::fs::create_dir_all(&path).map_err(Error::path("could not make the folder", &path))?;
    Ok(path)
}
