//! `VaultPolicyBinding`: who may have which Vault policies. Without one, nobody gets a token.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::Delivery;

/// What pods of some service accounts may have. Several bindings add up only as alternatives: one of them must grant all that a
/// pod asks for.
#[allow(clippy::duplicated_attributes, reason = "each column has a type")]
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "vaultproject.io",
    version = "v1alpha1",
    kind = "VaultPolicyBinding",
    plural = "vaultpolicybindings",
    status = "VaultPolicyBindingStatus",
    shortname = "vpb",
    category = "vault",
    doc = "Grants Vault policies to pods by their namespace and service account. A pod gets a token if one binding grants all \
           that it asks for; without any, it gets none. Whoever may create pods in a namespace may use its service accounts: a \
           grant to one of them is a grant to those people.",
    derive = "PartialEq",
    printcolumn(
        name = "Policies",
        type_ = "string",
        json_path = ".spec.policies",
        description = "The Vault policies that it grants"
    ),
    printcolumn(
        name = "MaxTTL",
        type_ = "string",
        json_path = ".spec.maxTTL",
        description = "The longest ttl that it grants"
    ),
    printcolumn(
        name = "Namespaces",
        type_ = "integer",
        json_path = ".status.namespaces",
        description = "How many namespaces it reaches"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "Whether it grants anything"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when it is there"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        description = "Why",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct VaultPolicyBindingSpec {
    /// Whose pods it is for: any of these.
    #[schemars(length(min = 1, max = 32))]
    pub subjects: Vec<Subject>,

    /// The policies that it grants. `*` stands for any characters, also for none and for `/`; everything else stands for itself.
    /// `root`, `default` and the operator's own policies are never granted, whatever matches them.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 128), regex(pattern = r"^[a-z0-9._:@/*-]+$")))]
    pub policies: Vec<String>,

    /// The longest ttl that a pod can ask for, a Go duration of whole seconds. Without it, the operator's `--max-ttl`.
    #[serde(rename = "maxTTL", skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(max = 32))]
    pub max_ttl: Option<String>,

    /// The ttl of pods that ask for none. Without it the operator's `--default-ttl`, or maxTTL if that is shorter.
    #[serde(rename = "defaultTTL", skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(max = 32))]
    pub default_ttl: Option<String>,

    /// The ways in which init containers may get their wrapping tokens. Whoever may create tokens of the pod's service account
    /// in its namespace can take one that is delivered by `Status`.
    #[serde(default = "push_only")]
    #[schemars(length(min = 1, max = 2))]
    pub deliveries: Vec<Delivery>,

    /// Whether tokens can renew themselves. One that can outlives its pod if the operator loses sight of it.
    #[serde(default)]
    pub self_renewal: SelfRenewal,

    /// A Vault token role of its own for these tokens, so that tenants are apart in Vault, too. Its name must begin with that of
    /// the operator's `--token-role` and `-`. Without it, that role.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    pub token_role: Option<String>,
}

fn push_only() -> Vec<Delivery> {
    vec![Delivery::Push]
}

/// Service accounts of some namespaces.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = Rule::new("has(self.namespaces) != has(self.namespaceSelector)").message("give either namespaces or a namespaceSelector"))]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// The names of namespaces.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
    )]
    pub namespaces: Option<Vec<String>>,

    /// The labels of namespaces.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub namespace_selector: Option<NamespaceSelector>,

    /// The names of service accounts there, or `*` for all of them.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 253), regex(pattern = r"^([*]|[a-z0-9]([-a-z0-9.]*[a-z0-9])?)$"))
    )]
    pub service_accounts: Vec<String>,
}

/// Namespaces by their labels.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// The labels that a namespace must have, all of them: `kubernetes.io/metadata.name`, and those under `vaultproject.io/`, which
    /// only who has the verb `grant` can set. Any other label may be one that a tenant gives to a namespace of its own.
    #[schemars(extend("maxProperties" = 16, "minProperties" = 1))]
    #[x_kube(validation = Rule::new("self.all(label, label == 'kubernetes.io/metadata.name' || label.startsWith('vaultproject.io/'))").message("namespaces can be selected by kubernetes.io/metadata.name and by labels under vaultproject.io/ only: a tenant could set others itself"))]
    pub match_labels: BTreeMap<String, Value>,
}

/// A label's value.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(transparent)]
pub struct Value(#[schemars(length(max = 63))] pub String);

/// Whether tokens can renew themselves.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum SelfRenewal {
    /// Only the operator renews them, while their pods live.
    #[default]
    Deny,
    /// They can, if one of their policies lets them.
    Allow,
}

/// What the operator makes of a binding.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultPolicyBindingStatus {
    /// `Ready`: whether it grants anything, and if not, why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// The generation of the binding that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// How many namespaces its subjects match.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>")]
    pub namespaces: Option<u32>,
}
