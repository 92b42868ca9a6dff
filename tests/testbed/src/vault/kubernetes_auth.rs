//! Vault's Kubernetes auth method, set up as a Vault administrator does it.

use std::fs;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::json;

use crate::control_plane::{ControlPlane, within};
use crate::error::Error;
use crate::vault::{Binaries, Method, VaultServer};

/// The namespace and the ServiceAccount by which Vault asks the API server about tokens.
const NAMESPACE: &str = "vault";
const SERVICE_ACCOUNT: &str = "vault";
/// How long Vault's own token lives: longer than any run.
const REVIEWER_SECONDS: i64 = 24 * 3600;
/// The name that the plugin gets in Vault's catalog.
const PLUGIN: &str = "vault-plugin-auth-kubernetes";

impl VaultServer {
    /// Enables the auth method at `auth/kubernetes`, for the ServiceAccounts of this control plane.
    pub async fn enable_kubernetes_auth(&self, control_plane: &ControlPlane) -> Result<(), Error> {
        control_plane.create_namespace(NAMESPACE).await?;
        control_plane.create_service_account(NAMESPACE, SERVICE_ACCOUNT).await?;
        allow_token_reviews(control_plane).await?;
        let token =
            control_plane.service_account_token(NAMESPACE, SERVICE_ACCOUNT, &[], None, REVIEWER_SECONDS).await?;

        let method = match &self.binaries {
            Binaries::OpenBao(_) => "kubernetes",
            Binaries::Vault { kubernetes_auth, .. } => {
                self.register_plugin(kubernetes_auth).await?;
                PLUGIN
            }
        };
        self.must(Method::POST, "sys/auth/kubernetes", Some(&json!({ "type": method }))).await?;
        let config = json!({
            "kubernetes_host": control_plane.server_url(),
            "kubernetes_ca_cert": control_plane.ca_pem(),
            "token_reviewer_jwt": token,
            // It runs in no pod.
            "disable_local_ca_jwt": true,
        });
        self.must(Method::POST, "auth/kubernetes/config", Some(&config)).await.map(drop)
    }

    /// Vault runs only what is in its plugin folder and has the registered hash; a link out of the folder is refused.
    async fn register_plugin(&self, binary: &Path) -> Result<(), Error> {
        let copy = self.config.plugins().join(PLUGIN);
        fs::copy(binary, &copy).map_err(Error::path("could not copy", binary))?;
        let content = fs::read(&copy).map_err(Error::path("could not read", &copy))?;
        let sha256: String = digest(&SHA256, &content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let plugin = json!({ "command": PLUGIN, "sha256": sha256 });
        self.must(Method::PUT, &format!("sys/plugins/catalog/auth/{PLUGIN}"), Some(&plugin)).await.map(drop)
    }
}

async fn allow_token_reviews(control_plane: &ControlPlane) -> Result<(), Error> {
    let bindings = Api::<ClusterRoleBinding>::all(control_plane.admin_client()?);
    let binding = ClusterRoleBinding {
        metadata: ObjectMeta { name: Some("vault-auth-delegator".into()), ..ObjectMeta::default() },
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "ClusterRole".into(),
            name: "system:auth-delegator".into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: SERVICE_ACCOUNT.into(),
            namespace: Some(NAMESPACE.into()),
            ..Subject::default()
        }]),
    };
    let params = PostParams::default();
    within("could not bind Vault's ServiceAccount", bindings.create(&params, &binding)).await.map(drop)
}
