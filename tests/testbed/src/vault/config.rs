//! Vault's configuration file.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::Error;
use crate::pki::{self, CaCertificate, KeyPairFiles};
use crate::settings::VaultKind;

/// A written configuration, and what others need to know of it.
#[derive(Debug)]
pub(super) struct Config {
    folder: PathBuf,
    path: PathBuf,
    address: String,
    strict_address: String,
    audit_log: PathBuf,
    plugins: PathBuf,
}

impl Config {
    /// Writes it, in JSON, which both kinds read as they read HCL. `other` is a server of the same Vault.
    pub(super) fn write(
        folder: &Path,
        kind: VaultKind,
        server: &KeyPairFiles,
        ca: &CaCertificate,
        host: Ipv4Addr,
        [port, cluster_port, strict_port, strict_cluster_port]: [u16; 4],
        other: Option<&Self>,
    ) -> Result<Self, Error> {
        let this = Self {
            folder: folder.to_owned(),
            path: folder.join("config.json"),
            address: format!("https://{host}:{port}"),
            strict_address: format!("https://{host}:{strict_port}"),
            // What the storage says of these holds for all servers of a Vault.
            audit_log: other.map_or_else(|| folder.join("audit.log"), |other| other.audit_log.clone()),
            plugins: other.map_or_else(|| folder.join("plugins"), |other| other.plugins.clone()),
        };
        let data = folder.join("data");
        for folder in [&data, &this.plugins] {
            std::fs::create_dir_all(folder).map_err(Error::path("could not make the folder", folder))?;
        }
        let listener = |port, cluster_port| {
            json!({
                "address": format!("{host}:{port}"),
                "cluster_address": format!("{host}:{cluster_port}"),
                "tls_cert_file": server.certificate,
                "tls_key_file": server.key,
            })
        };
        let mut strict = listener(strict_port, strict_cluster_port);
        strict["tls_require_and_verify_client_cert"] = json!(true);
        strict["tls_client_ca_file"] = json!(ca.path);
        let mut config = json!({
            "api_addr": this.address,
            "cluster_addr": format!("https://{host}:{cluster_port}"),
            "listener": [{ "tcp": listener(port, cluster_port) }, { "tcp": strict }],
            // On disk, so that data outlive a kill. The multiplier makes it elect itself in one second, not in five.
            "storage": { "raft": { "path": data, "node_id": this.address, "performance_multiplier": "1" } },
            "plugin_directory": this.plugins,
        });
        match kind {
            VaultKind::OpenBao => config["audit"] = this.declared_audit_log(),
            // OpenBao has no such thing; Vault refuses to start on raft unless it is said one way or the other.
            VaultKind::Vault => config["disable_mlock"] = json!(true),
        }
        pki::write(&this.path, &format!("{config:#}\n"))?;
        Ok(this)
    }

    fn declared_audit_log(&self) -> Value {
        json!([{ "type": "file", "path": "file", "options": { "file_path": self.audit_log } }])
    }

    /// Where all of the server's files are.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn strict_address(&self) -> &str {
        &self.strict_address
    }

    pub(super) fn audit_log(&self) -> &Path {
        &self.audit_log
    }

    pub(super) fn plugins(&self) -> &Path {
        &self.plugins
    }
}
