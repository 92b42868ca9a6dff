//! What the operator and the init container say to each other: one HTTP exchange, or one field of the request's status each.

use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// The path that the operator posts to, on the pod's address and the request's port.
pub const PUSH_PATH: &str = "/v1/wrapping-token";

/// Longest push or answer, in bytes.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// The operator's push. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Push {
    /// UID of the request that is answered.
    #[serde(rename = "requestUID")]
    pub request_uid: String,
    /// The attempt that the wrapping token belongs to.
    pub attempt: u32,
    /// A [`Parcel`], sealed to the request's public key.
    pub sealed: String,
}

/// What is in a seal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parcel {
    /// The single-use wrapping token.
    #[serde(serialize_with = "expose")]
    pub wrapping_token: SecretString,
    /// The path that made the token; Vault must say the same.
    pub creation_path: String,
    /// What marks the answer as that of who opened the seal.
    #[serde(serialize_with = "expose")]
    pub receipt: SecretString,
}

/// What the init container answers once it has opened a seal: with HTTP status 200, or in `status.answer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Answer {
    /// The attempt that it is about.
    #[schemars(with = "i32", range(min = 1))]
    pub attempt: u32,
    /// What became of the wrapping token.
    pub outcome: Outcome,
    /// A sentence for people.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// How many pushes the init container has refused so far that were not the operator's.
    #[serde(default)]
    #[schemars(with = "i64", range(min = 0, max = u32::MAX))]
    pub refused: u32,
    /// The receipt's mark over all of this, in base64.
    #[schemars(length(max = 64))]
    pub mac: String,
}

/// What became of a wrapping token that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// Unwrapped, verified and written to the files.
    Stored,
    /// Not used; another try may go better (Vault could not be reached, for example).
    Unused,
    /// Used up by this init container, and no token came of it.
    Lost,
    /// Used before this init container tried it for the first time.
    Intercepted,
}

fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}
