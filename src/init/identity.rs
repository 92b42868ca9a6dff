//! Which pod this is: what the bound ServiceAccount token says. It needs no checking here, since the API server
//! checks it with every call.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use std::path::Path;

/// The pod that this process runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its name.
    pub pod_name: String,
    /// Its UID.
    pub pod_uid: String,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaims,
}

#[derive(Deserialize)]
struct KubernetesClaims {
    namespace: String,
    pod: Option<Named>,
    serviceaccount: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    uid: String,
}

impl Identity {
    /// Reads the identity from the token in `file`.
    ///
    /// # Errors
    /// A sentence that says what kind of token is needed.
    pub async fn read(file: &Path) -> Result<Self, String> {
        let token = tokio::fs::read_to_string(file).await.map_err(|error| {
            format!("cannot read the pod's ServiceAccount token from {}: {error}; is it mounted?", file.display())
        })?;
        Self::of(token.trim()).map_err(|why| format!("the ServiceAccount token in {} {why}", file.display()))
    }

    fn of(token: &str) -> Result<Self, &'static str> {
        let payload = token.split('.').nth(1).ok_or("is no JSON web token")?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| "is no JSON web token")?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| "has no Kubernetes claims")?;
        let Claims { kubernetes } = claims;
        let pod = kubernetes.pod.filter(|pod| !pod.uid.is_empty());
        let pod = pod.ok_or("is not bound to a pod: use the token that the kubelet mounts, or a projected one")?;
        Ok(Self {
            namespace: kubernetes.namespace,
            service_account: kubernetes.serviceaccount.name,
            pod_name: pod.name,
            pod_uid: pod.uid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_bound_token_names_its_pod() {
        let claims = r#"{"kubernetes.io": {"namespace": "shop", "node": {"name": "n", "uid": "u"},
            "pod": {"name": "web", "uid": "8f1c"}, "serviceaccount": {"name": "web-sa", "uid": "s"}}}"#;
        let identity = Identity::of(&token(claims)).expect("an identity");
        assert_eq!((identity.namespace.as_str(), identity.service_account.as_str()), ("shop", "web-sa"));
        assert_eq!((identity.pod_name.as_str(), identity.pod_uid.as_str()), ("web", "8f1c"));
    }

    #[test]
    fn other_tokens_are_refused_in_words() {
        let unbound = r#"{"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "s"}}}"#;
        for (token, words) in [
            (token(unbound), "not bound to a pod"),
            (token("{}"), "no Kubernetes claims"),
            ("secret".to_owned(), "no JSON web token"),
            ("a.!.b".to_owned(), "no JSON web token"),
        ] {
            let error = Identity::of(&token).expect_err("it was taken");
            assert!(error.contains(words), "{error}");
        }
    }
}
