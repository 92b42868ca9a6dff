//! The body of a push. `SEALED` in it stands for what the operator sealed, so that seeds can hold what differs in every run.

use crate::text;
use http::Request;
use std::collections::HashSet;
use std::sync::LazyLock;
use vault_token_operator::api::VaultTokenRequest;
use vault_token_operator::init::Intake;
use vault_token_operator::seal::{OneTimeKey, Receipt, seal};
use vault_token_operator::wire::{PUSH_PATH, Parcel, Push};

const UID: &str = "6f0e8f3c-request";
const OLDER: &str = "1b7a90d2-older";
const ATTEMPT: u32 = 2;
const WRAPPING_TOKEN: &str = "hvs.EXAMPLE";

/// What one init container waits with, and what the operator sealed for it.
static WAITING: LazyLock<(Intake, String)> = LazyLock::new(|| {
    let key = OneTimeKey::generate().expect("a key");
    let request: VaultTokenRequest = serde_json::from_value(serde_json::json!({
        "apiVersion": "vaultproject.io/v1alpha1", "kind": "VaultTokenRequest", "metadata": {"name": "web", "uid": UID},
        "spec": {
            "podName": "web", "podUID": "pod", "sequence": 1, "initContainer": "vault-init", "publicKey": key.public(), "port": 8245
        }
    }))
    .expect("a request");
    let public = key.public().to_owned();
    let intake = Intake::new(key, &request, HashSet::from([OLDER.to_owned()]));
    let parcel = Parcel {
        wrapping_token: WRAPPING_TOKEN.into(),
        creation_path: "auth/token/create/role".to_owned(),
        receipt: Receipt::generate().expect("a receipt").encoded().into(),
    };
    let sealed = seal(&public, intake.subject(ATTEMPT), &parcel).expect("sealed");
    (intake, sealed)
});

pub static INTAKE: LazyLock<&'static Intake> = LazyLock::new(|| &WAITING.0);

/// What was sealed for this attempt of this request is opened, and nothing else.
pub fn hold(input: &[u8]) {
    let (intake, sealed) = &*WAITING;
    let body = match std::str::from_utf8(input) {
        Ok(text) => text.replace("SEALED", sealed).into_bytes(),
        Err(_) => input.to_vec(),
    };
    let genuine = Push { request_uid: UID.to_owned(), attempt: ATTEMPT, sealed: sealed.clone() };
    let push = serde_json::from_slice::<Push>(&body).ok();
    let request = Request::post(PUSH_PATH).body(body.into()).expect("a request");
    match intake.admit(&request) {
        Ok(opened) => {
            assert_eq!(push, Some(genuine));
            assert_eq!(opened.attempt, ATTEMPT);
            let printed = format!("{opened:?}");
            assert!(!printed.contains(WRAPPING_TOKEN), "{printed}");
        }
        Err(refusal) => {
            assert_ne!(push, Some(genuine), "{}", text(input));
            assert!(refusal.status.is_client_error(), "{refusal:?}");
            assert_eq!(refusal.foreign, push.is_none_or(|push| push.request_uid != OLDER), "{refusal:?}");
        }
    }
}
