//! What the operator and the init container say to each other: one HTTP exchange.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

/// The path that the operator posts to, on the pod's address and the request's port.
pub const PUSH_PATH: &str = "/v1/wrapping-token";

/// Longest push or answer, in bytes.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// The operator's push.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Push {
    /// UID of the request that is answered.
    #[serde(rename = "requestUID")]
    pub request_uid: String,
    /// The attempt that the wrapping token belongs to.
    pub attempt: u32,
    /// The single-use wrapping token.
    #[serde(serialize_with = "expose")]
    pub wrapping_token: SecretString,
    /// The path that made the token; Vault must say the same.
    pub creation_path: String,
}

/// What the init container answers, with HTTP status 200 whenever it understood the push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PushAnswer {
    /// What became of the wrapping token.
    pub outcome: Outcome,
    /// A sentence for people.
    #[serde(default)]
    pub message: String,
}

/// What became of a wrapping token that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Unwrapped, verified and written to the files.
    Stored,
    /// Not used; another try may go better (Vault could not be reached, for example).
    Unused,
    /// Used up, by this init container or by somebody else, and no token came of it.
    Lost,
}

fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i9_a_push_cannot_be_printed() {
        let push = Push {
            request_uid: "r".to_owned(),
            attempt: 1,
            wrapping_token: "hvs.secret".into(),
            creation_path: "auth/token/create/x".to_owned(),
        };
        assert!(!format!("{push:?}").contains("hvs.secret"));
        let sent = serde_json::to_string(&push).expect("JSON");
        let got: Push = serde_json::from_str(&sent).expect("a push");
        assert_eq!(got.wrapping_token.expose_secret(), "hvs.secret");
    }
}
