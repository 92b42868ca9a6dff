//! How clients reach the API server: where it is, how it is verified, and who they are.

use std::path::Path;

use kube::config::AuthInfo;
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::error::Error;
use crate::pki::{self, CaCertificate, KeyPairFiles};

/// The context of every kubeconfig of a run.
pub(crate) const CONTEXT: &str = "testbed";

/// The API server's address and authority, and the administrator's certificate.
#[derive(Debug)]
pub(super) struct Access {
    pub url: String,
    pub ca: CaCertificate,
    pub admin: KeyPairFiles,
}

/// A bearer token for a kubeconfig.
#[derive(Clone, Copy)]
pub enum BearerToken<'a> {
    /// The token itself.
    Inline(&'a str),
    /// A file that holds it and that clients read anew from time to time.
    File(&'a Path),
}

impl Access {
    pub(super) fn admin_client(&self) -> Result<Client, Error> {
        let path = |path: &Path| Some(path.to_string_lossy().into_owned());
        self.client(AuthInfo {
            client_certificate: path(&self.admin.certificate),
            client_key: path(&self.admin.key),
            ..AuthInfo::default()
        })
    }

    /// A client that trusts nothing but the run's authority.
    pub(super) fn client(&self, auth_info: AuthInfo) -> Result<Client, Error> {
        let what = "could not make a client of the API server";
        let url = self.url.parse().map_err(|error| Error::io(what)(std::io::Error::other(error)))?;
        let mut config = Config::new(url);
        config.root_cert = Some(vec![self.ca.der.clone()]);
        config.auth_info = auth_info;
        // A test is to see the API server's own answers.
        config.default_retry = false;
        Client::try_from(config).map_err(Error::kubernetes(what))
    }

    pub(super) fn write_certificate_kubeconfig(&self, path: &Path, files: &KeyPairFiles) -> Result<(), Error> {
        let KeyPairFiles { certificate, key } = files;
        self.write_kubeconfig(path, "default", &json!({ "client-certificate": certificate, "client-key": key }))
    }

    pub(super) fn write_token_kubeconfig(
        &self,
        path: &Path,
        namespace: &str,
        token: BearerToken<'_>,
    ) -> Result<(), Error> {
        let user = match token {
            BearerToken::Inline(token) => json!({ "token": token }),
            BearerToken::File(file) => json!({ "tokenFile": file }),
        };
        self.write_kubeconfig(path, namespace, &user)
    }

    /// In JSON, which every reader of YAML takes.
    fn write_kubeconfig(&self, path: &Path, namespace: &str, user: &Value) -> Result<(), Error> {
        let cluster = json!({ "server": self.url, "certificate-authority": self.ca.path });
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "testbed", "cluster": cluster }],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": CONTEXT, "context": { "cluster": "testbed", "user": "user", "namespace": namespace } }],
            "current-context": CONTEXT,
        });
        pki::write(path, &format!("{kubeconfig:#}\n"))
    }
}
