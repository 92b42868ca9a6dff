//! The certificates of a run: one authority, and a certificate for each server and each client.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::error::Error;

/// The names and addresses under which every server of a run is reached, beside the run's own.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The certificate authority of a run, with a folder for what it issues.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
    names: Vec<String>,
    authority: CertifiedIssuer<'static, KeyPair>,
    certificate: CaCertificate,
}

/// The authority's certificate, in the forms that its users want.
#[derive(Clone, Debug)]
pub struct CaCertificate {
    /// A PEM file.
    pub path: PathBuf,
    /// That file's content.
    pub pem: String,
    /// The bare certificate.
    pub der: Vec<u8>,
}

/// A certificate and its key, as the paths of PEM files.
#[derive(Clone, Debug)]
pub struct KeyPairFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key, which only its owner can read.
    pub key: PathBuf,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug)]
pub enum Usage<'a> {
    /// A server, which has these names as well.
    Server(&'a [&'a str]),
    /// A client, in this group (`O`) if any.
    Client(Option<&'a str>),
    /// An etcd member, which is a server to its peers and a client of them.
    Peer,
}

impl Pki {
    /// A new authority that keeps its files in `folder`, which must be there, for servers on loopback.
    pub fn new(folder: &Path) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("testbed CA", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let (path, pem, der) = (folder.join("ca.crt"), authority.pem(), authority.der().to_vec());
        write(&path, &pem)?;
        let names = LOOPBACK_NAMES.map(str::to_owned).to_vec();
        Ok(Self { folder: folder.to_owned(), names, authority, certificate: CaCertificate { path, pem, der } })
    }

    /// For servers on this address, too.
    pub fn with_address(mut self, address: Ipv4Addr) -> Self {
        let address = address.to_string();
        if !self.names.contains(&address) {
            self.names.push(address);
        }
        self
    }

    /// The authority's certificate.
    pub fn ca(&self) -> &CaCertificate {
        &self.certificate
    }

    /// Issues a certificate for a new key.
    pub fn issue(&self, common_name: &str, usage: Usage<'_>) -> Result<KeyPairFiles, Error> {
        let (names, group) = match usage {
            Usage::Server(names) => {
                let own = self.names.iter().cloned();
                (own.chain(names.iter().map(|name| (*name).to_owned())).collect(), None)
            }
            Usage::Client(group) => (Vec::new(), group),
            Usage::Peer => (self.names.clone(), None),
        };
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = name(common_name, group);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match usage {
            Usage::Server(_) => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Peer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        self.store(common_name, ("crt", &certificate.pem()), ("key", &key.serialize_pem()))
    }

    /// A key pair that signs tokens; the "certificate" is the bare public key.
    pub fn signing_key(&self, name: &str) -> Result<KeyPairFiles, Error> {
        let key = KeyPair::generate()?;
        self.store(name, ("pub", &key.public_key_pem()), ("key", &key.serialize_pem()))
    }

    fn store(&self, name: &str, public: (&str, &str), private: (&str, &str)) -> Result<KeyPairFiles, Error> {
        let path = |extension| self.folder.join(format!("{name}.{extension}"));
        let files = KeyPairFiles { certificate: path(public.0), key: path(private.0) };
        write(&files.certificate, public.1)?;
        write(&files.key, private.1)?;
        Ok(files)
    }
}

fn name(common_name: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

/// Writes a file that only its owner can read; keys and kubeconfigs are secrets.
pub(crate) fn write(path: &Path, content: &str) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(Error::path("could not write", path))
}
