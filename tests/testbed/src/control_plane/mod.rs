//! A real control plane: etcd and kube-apiserver, with TLS and RBAC.
//!
//! There is no kube-controller-manager: nothing makes a namespace's `default` ServiceAccount but
//! [`ControlPlane::create_namespace`], nothing empties a deleted namespace, collects what a deleted owner owned, or fills
//! the aggregated ClusterRoles `admin`, `edit` and `view`.

mod access;
mod apiserver;
mod etcd;
mod jwt;

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::config::AuthInfo;
use kube::{Api, Client};
use serde_json::json;

use crate::error::Error;
use crate::kubectl::Kubectl;
use crate::pki::KeyPairFiles;
use crate::process::Output;
use crate::run::Run;
pub use access::BearerToken;
pub(crate) use access::CONTEXT;
use apiserver::ApiServer;
use etcd::Etcd;

/// How long the API server may take to answer one request of the testbed's.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// The binaries that a control plane needs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The store.
    pub etcd: PathBuf,
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// The command line client.
    pub kubectl: PathBuf,
}

/// What etcd held at one time.
#[derive(Debug)]
pub struct Backup(PathBuf);

/// A running control plane; dropping it kills it.
#[derive(Debug)]
pub struct ControlPlane {
    // In this order: the API server is to end before its store.
    apiserver: ApiServer,
    etcd: Etcd,
    folder: PathBuf,
    kubectl: PathBuf,
    admin_kubeconfig: PathBuf,
}

impl ControlPlane {
    /// Starts etcd and the API server, and waits until clients can use them.
    pub async fn start(run: &Run, binaries: &Binaries) -> Result<Self, Error> {
        let folder = run.folder("control-plane")?;
        let etcd = Etcd::start(run, &folder, &binaries.etcd).await?;
        let apiserver = ApiServer::start(run, &folder, &binaries.kube_apiserver, &etcd).await?;
        let admin_kubeconfig = folder.join("admin.kubeconfig");
        apiserver.access().write_certificate_kubeconfig(&admin_kubeconfig, &apiserver.access().admin)?;
        let this = Self { apiserver, etcd, folder, kubectl: binaries.kubectl.clone(), admin_kubeconfig };
        this.wait_until_usable().await?;
        Ok(this)
    }

    /// A client that may do everything. It belongs to the async runtime that is current: so it is a new one each time.
    pub fn admin_client(&self) -> Result<Client, Error> {
        self.apiserver.access().admin_client()
    }

    /// A client that shows this bearer token; it, too, belongs to the current async runtime.
    pub fn client_for_token(&self, token: &str) -> Result<Client, Error> {
        self.apiserver.access().client(AuthInfo { token: Some(token.into()), ..AuthInfo::default() })
    }

    /// A kubeconfig that may do everything.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin_kubeconfig
    }

    /// The command line client that is used here.
    pub fn kubectl_binary(&self) -> &Path {
        &self.kubectl
    }

    /// The API server's address: `https://<address>:<port>`.
    pub fn server_url(&self) -> &str {
        &self.apiserver.access().url
    }

    /// The certificate of the authority that the API server is verified with, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.apiserver.access().ca.pem
    }

    /// The API server's audit log: a line of JSON for each request about the product's resources.
    pub fn audit_log(&self) -> PathBuf {
        self.apiserver.audit_log()
    }

    /// The public key that ServiceAccount tokens are verified with, as a PEM file.
    pub fn token_key_path(&self) -> &Path {
        &self.apiserver.token_signing().certificate
    }

    /// The private key that they are signed with, as a PEM file.
    pub(crate) fn token_signing_key_path(&self) -> &Path {
        &self.apiserver.token_signing().key
    }

    /// Writes a kubeconfig of this name that shows a client certificate.
    pub(crate) fn kubeconfig_for_certificate(&self, name: &str, files: &KeyPairFiles) -> Result<PathBuf, Error> {
        let path = self.folder.join(format!("{name}.kubeconfig"));
        self.apiserver.access().write_certificate_kubeconfig(&path, files)?;
        Ok(path)
    }

    /// Writes a kubeconfig of this name, at home in this namespace, that shows a bearer token.
    pub fn kubeconfig_for_token(&self, name: &str, namespace: &str, token: BearerToken<'_>) -> Result<PathBuf, Error> {
        let path = self.folder.join(format!("{name}.kubeconfig"));
        self.apiserver.access().write_token_kubeconfig(&path, namespace, token)?;
        Ok(path)
    }

    /// A token of a ServiceAccount by the TokenRequest API, as a kubelet gets it for a pod; bound to a pod when its name
    /// and UID are given. No audience means the API server's own. The API server takes no fewer than 600 seconds.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        service_account: &str,
        audiences: &[&str],
        bound_pod: Option<(&str, &str)>,
        seconds: i64,
    ) -> Result<String, Error> {
        let what = format!("could not get a token of the ServiceAccount {namespace}/{service_account}");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audiences.iter().map(ToString::to_string).collect(),
                bound_object_ref: bound_pod.map(|(name, uid)| BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(name.into()),
                    uid: Some(uid.into()),
                }),
                expiration_seconds: Some(seconds),
            },
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.admin_client()?, namespace);
        let params = PostParams::default();
        let answer = within(&what, accounts.create_token_request(service_account, &params, &request)).await?;
        answer.status.map(|status| status.token).ok_or(Error::Incomplete { what, field: "status" })
    }

    /// A token of a ServiceAccount in a Secret, of the kind that is bound to nothing and never ends. The controller manager fills such
    /// Secrets in; what it would write is made here, with the key that it would sign with.
    pub async fn legacy_token(&self, namespace: &str, service_account: &str) -> Result<String, Error> {
        let what = format!("could not make a Secret with a token of the ServiceAccount {namespace}/{service_account}");
        let client = self.admin_client()?;
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
        let uid = within(&what, accounts.get(service_account)).await?.metadata.uid.unwrap_or_default();
        let name = format!("{service_account}-token");
        let claims = json!({
            "iss": "kubernetes/serviceaccount",
            "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": name,
            "kubernetes.io/serviceaccount/service-account.name": service_account,
            "kubernetes.io/serviceaccount/service-account.uid": uid,
        });
        let token = jwt::signed(self.token_signing_key_path(), &claims)?;
        let annotations = [("name", service_account), ("uid", &uid)];
        let annotations =
            annotations.map(|(key, value)| (format!("kubernetes.io/service-account.{key}"), value.to_owned()));
        let secret = Secret {
            metadata: ObjectMeta { annotations: Some(annotations.into()), ..named(&name) },
            type_: Some("kubernetes.io/service-account-token".to_owned()),
            string_data: Some([("token".to_owned(), token.clone())].into()),
            ..Secret::default()
        };
        let secrets = Api::<Secret>::namespaced(client, namespace);
        within(&what, secrets.create(&PostParams::default(), &secret)).await?;
        Ok(token)
    }

    /// Creates a namespace, and its `default` ServiceAccount as the controller manager would.
    pub async fn create_namespace(&self, name: &str) -> Result<(), Error> {
        let namespaces = Api::<Namespace>::all(self.admin_client()?);
        let namespace = Namespace { metadata: named(name), ..Namespace::default() };
        let what = format!("could not create the namespace {name}");
        within(&what, namespaces.create(&PostParams::default(), &namespace)).await?;
        self.create_service_account(name, "default").await
    }

    /// Creates a ServiceAccount.
    pub async fn create_service_account(&self, namespace: &str, name: &str) -> Result<(), Error> {
        let accounts = Api::<ServiceAccount>::namespaced(self.admin_client()?, namespace);
        let account = ServiceAccount { metadata: named(name), ..ServiceAccount::default() };
        let what = format!("could not create the ServiceAccount {namespace}/{name}");
        within(&what, accounts.create(&PostParams::default(), &account)).await.map(drop)
    }

    /// Runs kubectl, which may do everything, to its end.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<Output, Error> {
        self.admin_kubectl().run(arguments).await
    }

    /// Runs kubectl with a kubeconfig to its end.
    pub async fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Output, Error> {
        Kubectl::by_kubeconfig(&self.kubectl, &self.folder, kubeconfig).run(arguments).await
    }

    /// The kubectl of somebody who may do everything.
    pub fn admin_kubectl(&self) -> Kubectl {
        Kubectl::by_kubeconfig(&self.kubectl, &self.folder, &self.admin_kubeconfig)
    }

    /// Ends the API server; etcd and the data stay.
    pub async fn stop_apiserver(&self) {
        self.apiserver.stop().await;
    }

    /// Starts the API server again after [`ControlPlane::stop_apiserver`], on the same port and the same data.
    pub async fn start_apiserver(&self) -> Result<(), Error> {
        self.apiserver.start_again().await
    }

    /// Saves what etcd holds, as a backup does; both servers are away meanwhile.
    pub async fn save(&self) -> Result<Backup, Error> {
        let folder = self.folder.join("backup");
        self.stop().await;
        self.etcd.save(&folder)?;
        self.start_again().await?;
        Ok(Backup(folder))
    }

    /// Goes back to what etcd held then, as a restore from a backup does.
    pub async fn restore(&self, backup: Backup) -> Result<(), Error> {
        self.stop().await;
        self.etcd.restore(&backup.0)?;
        std::fs::remove_dir_all(&backup.0).map_err(Error::path("could not remove", &backup.0))?;
        self.start_again().await
    }

    /// Kills both servers, as a machine's end would.
    pub fn kill(&self) {
        self.apiserver.process().kill();
        self.etcd.process().kill();
    }

    /// Starts both again, on the same ports and the same data.
    pub async fn start_again(&self) -> Result<(), Error> {
        self.etcd.start_again().await?;
        self.start_apiserver().await
    }

    /// Ends both servers, the API server first.
    pub async fn stop(&self) {
        self.apiserver.stop().await;
        self.etcd.stop().await;
    }

    /// The API server makes its own namespaces a little after it is ready; the controller manager would then make the
    /// ServiceAccount that pods in `default` run as.
    async fn wait_until_usable(&self) -> Result<(), Error> {
        let namespaces = Api::<Namespace>::all(self.admin_client()?);
        let there = || async {
            match namespaces.get("default").await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("the namespace default: {error}")),
            }
        };
        self.apiserver.process().wait_until_ready(REQUEST_LIMIT, there).await?;
        self.create_service_account("default", "default").await
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// A request to the API server with a time limit, which the client itself does not have.
pub(crate) async fn within<T>(what: &str, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => answer.map_err(Error::kubernetes(what)),
        Err(_) => Err(Error::Timeout { what: what.to_owned(), seconds: REQUEST_LIMIT.as_secs() }),
    }
}
