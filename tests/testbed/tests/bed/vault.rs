//! Vault.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};
use testbed::Testbed;
use testbed::settings::Settings;
use testbed::vault::{Method, StatusCode};

use crate::{alone, shared};

#[tokio::test]
async fn it_is_of_the_kind_that_was_asked_for_and_logs_every_request() {
    let (bed, _running) = shared().await;
    let vault = bed.vault();
    assert_eq!(vault.kind(), Settings::from_env().unwrap().vault);
    vault.must(Method::POST, "sys/mounts/logged", Some(&json!({ "type": "kv" }))).await.unwrap();
    let log = std::fs::read_to_string(vault.audit_log()).unwrap();
    assert!(log.lines().any(|line| line.contains(r#""path":"sys/mounts/logged""#)), "{log}");
}

#[tokio::test]
async fn a_service_account_logs_in_by_the_role_that_names_it_and_no_other_does() {
    let (bed, _running) = shared().await;
    let (control_plane, vault) = (bed.control_plane(), bed.vault());
    control_plane.create_namespace("login").await.unwrap();
    control_plane.create_service_account("login", "other").await.unwrap();
    let role = json!({
        "bound_service_account_names": "default",
        "bound_service_account_namespaces": "login",
        "audience": "vault",
        "token_policies": "default",
    });
    vault.must(Method::POST, "auth/kubernetes/role/login", Some(&role)).await.unwrap();

    let (status, answer) = login(bed, "default", "vault").await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["auth"]["metadata"]["service_account_name"], "default");
    let token = SecretString::from(answer["auth"]["client_token"].as_str().unwrap());
    let (status, own) = vault.request_as(Some(&token), Method::GET, "auth/token/lookup-self", None).await.unwrap();
    assert_eq!((status, &own["data"]["policies"]), (StatusCode::OK, &json!(["default"])));
    let (status, _) = vault.request_as(Some(&token), Method::GET, "sys/mounts", None).await.unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);

    for (service_account, audience) in [("other", "vault"), ("default", "somebody-else")] {
        let (status, answer) = login(bed, service_account, audience).await;
        assert!(status.is_client_error(), "{service_account} for {audience}: {status} {answer}");
    }
}

#[tokio::test]
async fn secrets_can_be_written_as_soon_as_they_are_mounted() {
    let (bed, _running) = shared().await;
    let vault = bed.vault();
    for attempt in 0..5 {
        let mount = format!("kv-{attempt}");
        vault.mount_kv(&mount).await.unwrap();
        let secret = json!({ "data": { "answer": "42" } });
        let path = format!("{mount}/data/one");
        vault.must(Method::POST, &path, Some(&secret)).await.unwrap();
        assert_eq!(vault.must(Method::GET, &path, None).await.unwrap()["data"]["data"], secret["data"]);
    }
}

#[tokio::test]
async fn it_keeps_its_data_over_a_kill() {
    let (bed, _alone) = alone().await;
    let vault = bed.vault();
    let data = json!({ "answer": "42" });
    vault.must(Method::POST, "sys/mounts/kept", Some(&json!({ "type": "kv" }))).await.unwrap();
    vault.must(Method::POST, "kept/one", Some(&data)).await.unwrap();
    vault.kill();
    assert!(vault.request(Method::GET, "kept/one", None).await.is_err());
    vault.start_again().await.unwrap();
    assert_eq!(vault.must(Method::GET, "kept/one", None).await.unwrap()["data"], data);
}

#[tokio::test]
async fn while_it_is_sealed_it_answers_nothing() {
    let (bed, _alone) = alone().await;
    let vault = bed.vault();
    vault.seal().await.unwrap();
    let (status, _) = vault.request(Method::GET, "sys/mounts", None).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    vault.unseal().await.unwrap();
    vault.must(Method::GET, "sys/mounts", None).await.unwrap();
}

#[tokio::test]
async fn while_it_is_paused_it_does_not_answer_and_then_it_does() {
    let (bed, _alone) = alone().await;
    let vault = bed.vault();
    vault.pause();
    let unanswered = vault.must(Method::GET, "sys/mounts", None);
    tokio::pin!(unanswered);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut unanswered).await;
    vault.resume();
    assert!(early.is_err());
    unanswered.await.unwrap();
}

async fn login(bed: &Testbed, service_account: &str, audience: &str) -> (StatusCode, Value) {
    let audiences = [audience];
    let token = bed.control_plane().service_account_token("login", service_account, &audiences, None, 600);
    let body = json!({ "role": "login", "jwt": token.await.unwrap() });
    bed.vault().request_as(None, Method::POST, "auth/kubernetes/login", Some(&body)).await.unwrap()
}
