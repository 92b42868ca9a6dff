//! `VaultTokenRequest`: one pod's request for a token, and the record of what became of it.

use super::{ConditionType, Reason};
use crate::wire::Answer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::fmt;

/// What a pod asks for. The pod's init container writes it once; nobody changes it afterwards.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "vaultproject.io",
    version = "v1alpha1",
    kind = "VaultTokenRequest",
    plural = "vaulttokenrequests",
    namespaced,
    status = "VaultTokenRequestStatus",
    shortname = "vtr",
    category = "vault",
    doc = "A pod's request for a Vault token of its own, and the record of what became of it. The pod's init \
           container creates it; the operator verifies the pod, issues the token, and revokes it when the pod is gone.",
    derive = "PartialEq",
    validation = Rule::new("self.spec.podUID.size() < 8 || self.metadata.name.startsWith(self.spec.podName + '-' + self.spec.podUID.substring(0, 8) + '-') && self.metadata.name.size() == self.spec.podName.size() + 11 && self.metadata.name.matches('[0-9]$')").message("metadata.name must be <spec.podName>-<first 8 characters of spec.podUID>-<one digit>"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.podName", description = "The pod that asks"),
    printcolumn(name = "ServiceAccount", type_ = "string", json_path = ".status.serviceAccountName", description = "The pod's service account"),
    printcolumn(name = "Policies", type_ = "string", json_path = ".status.policies", description = "The Vault policies of the token"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where the request is in its life"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt", description = "When Vault ends the token unless it is renewed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Since when the request is there"),
    printcolumn(name = "Accessor", type_ = "string", json_path = ".status.tokenAccessor", description = "Joins Vault's audit log", priority = 1),
    printcolumn(name = "Binding", type_ = "string", json_path = ".status.grantedBy", description = "The VaultPolicyBinding that grants the policies", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", description = "Why the request is in this phase", priority = 1)
)]
#[x_kube(validation = Rule::new("self == oldSelf").message("spec is immutable: create another request instead"))]
#[x_kube(validation = Rule::new("(self.delivery == 'Push') == has(self.port)").message("port belongs to the delivery Push, and only to it"))]
#[serde(rename_all = "camelCase")]
pub struct VaultTokenRequestSpec {
    /// Name of the pod that asks, in the request's own namespace.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.size() <= 242").message("podName must have at most 242 characters, so that the request's name fits"))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message("podName must be the name of a pod: lower-case letters, digits, '-' and '.'"))]
    pub pod_name: String,

    /// UID of that pod (`metadata.uid`): a pod of the same name that is made later is another one.
    #[serde(rename = "podUID")]
    #[schemars(length(max = 36))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')").message("podUID must be the pod's metadata.uid: a UUID in lower case"))]
    pub pod_uid: String,

    /// Orders the requests of one pod; the init container takes its clock, in nanoseconds since 1970.
    #[x_kube(validation = Rule::new("self > 0 && self < 9000000000000000000").message("sequence must be nanoseconds since 1970"))]
    pub sequence: i64,

    /// Name of the init container that asks and that receives the wrapping token.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("initContainer must be the name of a container: lower-case letters, digits and '-'"))]
    pub init_container: String,

    /// One-time X25519 key, 32 bytes in base64: what is sent to the init container is sealed to it (HPKE, RFC 9180), so that nobody
    /// between the operator and the init container can read it.
    #[schemars(length(max = 44))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9+/]{43}=$')").message("publicKey must be an X25519 public key: 32 bytes in base64"))]
    pub public_key: String,

    /// How the init container gets its wrapping token.
    #[serde(default)]
    pub delivery: Delivery,

    /// TCP port on the pod's address where the init container waits for the wrapping token, with the delivery `Push`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 65535").message("port must be from 1 to 65535"))]
    pub port: Option<i32>,
}

/// How an init container gets its wrapping token.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Delivery {
    /// The operator posts it to the pod's address and `spec.port`.
    #[default]
    Push,
    /// The operator writes it, sealed, to `status.sealedToken`, where it cannot reach pods.
    Status,
}

/// What the operator did about the request. Only the operator writes it, and it never holds a token.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultTokenRequestStatus {
    /// Where the request is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// Why it is there, in one word of docs/reasons.md; the conditions say it in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    /// Authorized, Issued, Delivered, Revoked and Compromised, each with a reason and a message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// The generation of the request that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// How many times the operator set out to make a token for this request.
    #[serde(skip_serializing_if = "is_zero")]
    #[schemars(with = "i32", range(min = 0))]
    pub attempts: u32,

    /// When the last attempt began. Its token's metadata says the same, which tells it from an attempt of the same number in
    /// requests that were restored from a backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt_started_at: Option<MicroTime>,

    /// The pod's service account, as verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,

    /// The node that the pod runs on, as verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,

    /// The Vault policies of the token, as verified.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,

    /// The binding that grants them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted_by: Option<String>,

    /// The token's period, in Go's notation: how long it lives without being renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,

    /// Whether the token may renew itself, if its policies let it: nothing but Vault's word says then that it is dead.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub self_renewal: bool,

    /// Accessor of the wrapping token. It cannot be used to read anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrapping_accessor: Option<String>,

    /// Accessor of the token itself: joins Vault's audit log, and revokes the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_accessor: Option<String>,

    /// When Vault made the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Time>,

    /// The wrapping token, sealed to `spec.publicKey`, while the init container is to take it from here (delivery `Status`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed_token: Option<String>,

    /// What the init container made of it, under a mark that only who opened the seal can make. It is the only field of a status
    /// that the init container writes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "readable")]
    pub answer: Option<Answer>,

    /// When the wrapping token ends, unwrapped or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrapping_expires_at: Option<Time>,

    /// When the init container confirmed that it holds the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<Time>,

    /// When the operator renewed the token last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewed_at: Option<Time>,

    /// When Vault ends the token unless it is renewed; the operator renews it while its pod lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,

    /// When Vault confirmed that the token is dead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,

    /// When the request came to its end; it is deleted some time after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,

    /// The last attempts that ended without a token in the init container's hands, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Attempt>,
}

/// An attempt that came to nothing.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Its number.
    #[schemars(with = "i32", range(min = 1))]
    pub number: u32,

    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_at: Option<MicroTime>,

    /// What became of it.
    pub outcome: AttemptOutcome,

    /// Accessor of its token, if one was recorded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token_accessor: Option<String>,

    /// When it was known to be over.
    pub time: Time,
}

/// What became of an attempt that came to nothing.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum AttemptOutcome {
    /// Its token was recorded and did not reach the init container; Vault confirmed that it is dead.
    Undelivered,
    /// Nothing was recorded: Vault or the operator was gone in the midst of it.
    Unrecorded,
}

/// Where a request is in its life.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Phase {
    /// Nothing was minted yet, or an abandoned attempt was cleared away.
    #[default]
    Pending,
    /// An attempt is under way; its outcome is not recorded yet.
    Minting,
    /// A token exists and is recorded; the init container does not hold it yet.
    Issued,
    /// The init container holds the token.
    Delivered,
    /// An attempt was abandoned; its token is being revoked.
    Revoking,
    /// The token is dead. Final.
    Revoked,
    /// The pod may not have what it asks for. Final, unless it is for want of a grant.
    Denied,
    /// The request came to its end without a token. Final.
    Failed,
}

impl Phase {
    /// Whether a request in this phase never changes any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Revoked | Self::Denied | Self::Failed)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl VaultTokenRequest {
    /// The request's phase; a request without a status is [`Phase::Pending`].
    pub fn phase(&self) -> Phase {
        self.status.as_ref().and_then(|status| status.phase).unwrap_or_default()
    }

    /// Whether somebody else has used the wrapping token of one of its attempts.
    pub fn is_compromised(&self) -> bool {
        self.status.as_ref().is_some_and(VaultTokenRequestStatus::is_compromised)
    }

    /// Whether it records a token that may be alive.
    pub fn holds_token(&self) -> bool {
        let recorded = self.status.as_ref().is_some_and(|status| status.token_accessor.is_some());
        recorded && matches!(self.phase(), Phase::Issued | Phase::Delivered | Phase::Revoking)
    }

    /// Whether the request has come to its end. One that is denied for want of a grant has not: a binding may grant it yet.
    pub fn is_over(&self) -> bool {
        self.phase().is_final() && !self.status.as_ref().is_some_and(VaultTokenRequestStatus::awaits_grant)
    }

    /// Whether the request's finalizer is in place.
    pub fn has_finalizer(&self) -> bool {
        self.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == super::FINALIZER)
    }
}

impl VaultTokenRequestStatus {
    /// Whether it is denied for want of a grant.
    pub fn awaits_grant(&self) -> bool {
        self.phase == Some(Phase::Denied) && self.reason.as_deref() == Some(Reason::NotGranted.as_str())
    }

    /// The condition of this type, if it has one.
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == kind.as_str())
    }

    /// Whether the condition Compromised is there.
    pub fn is_compromised(&self) -> bool {
        self.condition(ConditionType::Compromised).is_some_and(|condition| condition.status == "True")
    }
}

/// A pod writes it: one that cannot be read is none, and must not make the whole request unreadable.
fn readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Answer>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).ok())
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_that_cannot_be_read_does_not_make_its_request_unreadable() {
        let good = json!({ "attempt": 1, "outcome": "Stored", "mac": "AAAA" });
        let read = |answer: Value| {
            let status = json!({ "phase": "Delivered", "answer": answer });
            serde_json::from_value::<VaultTokenRequestStatus>(status).expect("a status").answer
        };
        assert!(read(good.clone()).is_some());
        for (field, value) in
            [("refused", json!(u64::MAX)), ("outcome", json!("Else")), ("attempt", json!(-1)), ("x", json!(1))]
        {
            let mut bad = good.clone();
            bad[field] = value;
            assert_eq!(read(bad), None, "{field}");
        }
        assert_eq!(read(Value::Null), None);
    }
}
