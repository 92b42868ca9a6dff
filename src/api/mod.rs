//! The Kubernetes API of this project: what users write, read and `kubectl explain`.
//!
//! `crds/` is generated from these types by `vault-token-operator crds`.

mod binding;
mod reason;
mod request;

pub use binding::{
    NamespaceSelector, SelfRenewal, Subject, Value, VaultPolicyBinding, VaultPolicyBindingSpec,
    VaultPolicyBindingStatus,
};
pub use reason::{BindingReason, ConditionType, Reason};
pub use request::{
    Attempt, AttemptOutcome, Delivery, Phase, VaultTokenRequest, VaultTokenRequestSpec, VaultTokenRequestStatus,
};

/// The API group of every resource, annotation and finalizer of this project.
pub const GROUP: &str = "vaultproject.io";

/// Pod annotation: the Vault policies that the pod's token shall have, separated by commas. Required.
pub const POLICIES_ANNOTATION: &str = "vaultproject.io/policies";

/// Pod annotation: the period of the pod's token as a Go duration (`24h`, `1h30m`). Optional.
pub const TTL_ANNOTATION: &str = "vaultproject.io/ttl";

/// Finalizer on a request: it stays until Vault has confirmed that the request's token is dead.
pub const FINALIZER: &str = "vaultproject.io/revoke-token";

/// How many requests one pod can make: the last digit of [`request_name`].
pub const REQUESTS_PER_POD: u8 = 10;

/// Longest pod name that leaves room for the suffix of [`request_name`] in an object's name (253 characters).
pub const MAX_POD_NAME: usize = 242;

/// The name of a pod's request number `digit`: `<pod name>-<first 8 of the pod's UID>-<digit>`.
///
/// The UID in it keeps anyone from taking the name before the pod exists, and the digit lets a create be
/// repeated without making a second request.
pub fn request_name(pod_name: &str, pod_uid: &str, digit: u8) -> String {
    let uid_start: String = pod_uid.chars().take(8).collect();
    format!("{pod_name}-{uid_start}-{digit}")
}

/// The definitions that `crds/` holds, in the order in which they are printed.
pub fn custom_resource_definitions()
-> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> {
    use kube::CustomResourceExt;
    vec![VaultPolicyBinding::crd(), VaultTokenRequest::crd()]
}
