//! The API server.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::control_plane::BearerToken;
use testbed::settings::Settings;

use crate::{alone, shared};

#[tokio::test]
async fn it_is_ready_and_has_the_version_that_was_asked_for() {
    let (bed, _running) = shared().await;
    let client = bed.control_plane().admin_client().unwrap();
    let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
    assert_eq!(client.request_text(request).await.unwrap(), "ok");
    let version = client.apiserver_version().await.unwrap();
    let minor = Settings::from_env().unwrap().kubernetes.minor().to_string();
    assert_eq!((version.major.as_str(), version.minor), ("1", minor));
}

#[tokio::test]
async fn a_token_that_is_bound_to_a_pod_tells_which() {
    let (bed, _running) = shared().await;
    let control_plane = bed.control_plane();
    control_plane.create_namespace("bound").await.unwrap();
    let pods = Api::<Pod>::namespaced(control_plane.admin_client().unwrap(), "bound");
    let pod = json!({
        "metadata": { "name": "web-0" },
        "spec": { "nodeName": "testbed-node", "containers": [{ "name": "app", "image": "app" }] },
    });
    let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let uid = pod.uid().unwrap();
    let bound = Some(("web-0", uid.as_str()));
    let token = control_plane.service_account_token("bound", "default", &[], bound, 600).await.unwrap();

    let reviews = Api::<SelfSubjectReview>::all(control_plane.client_for_token(&token).unwrap());
    let ask = async || reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
    let user = ask().await.unwrap().status.unwrap().user_info.unwrap();
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:bound:default"));
    let extra = user.extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [uid]);
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["web-0"]);
}

#[tokio::test]
async fn a_service_account_may_do_only_what_it_is_bound_to() {
    let (bed, _running) = shared().await;
    let control_plane = bed.control_plane();
    control_plane.create_namespace("unbound").await.unwrap();
    let token = control_plane.service_account_token("unbound", "default", &[], None, 600).await.unwrap();
    let secrets = Api::<Secret>::namespaced(control_plane.client_for_token(&token).unwrap(), "unbound");
    let refused = secrets.list(&ListParams::default()).await.unwrap_err().to_string();
    let who = r#"User "system:serviceaccount:unbound:default" cannot list resource "secrets""#;
    assert!(refused.contains(who), "{refused}");

    let kubeconfig = control_plane.kubeconfig_for_token("unbound", "default", BearerToken::Inline(&token)).unwrap();
    let refused = control_plane.kubectl_as(&kubeconfig, &["get", "secrets", "-n", "unbound"]).await.unwrap();
    assert!(!refused.status.success() && refused.stderr.contains(who), "{refused:?}");
    let allowed = control_plane.kubectl(&["get", "secrets", "-n", "unbound"]).await.unwrap();
    assert!(allowed.status.success(), "{allowed:?}");
}

#[tokio::test]
async fn nobody_is_let_in_without_credentials_or_believed_without_the_authority() {
    let (bed, _running) = shared().await;
    let control_plane = bed.control_plane();
    let client = control_plane.client_for_token("not-a-token").unwrap();
    let namespaces = Api::<Namespace>::all(client);
    assert!(matches!(namespaces.get("default").await.unwrap_err(), kube::Error::Api(status) if status.code == 401));
    for address in [control_plane.server_url(), bed.vault().address()] {
        // It knows the authorities of the machine only.
        let refused = reqwest::Client::builder().no_proxy().build().unwrap().get(address).send().await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnknownIssuer"), "{refused:?}");
    }
}

#[tokio::test]
async fn it_keeps_its_data_while_it_is_stopped() {
    let (bed, _alone) = alone().await;
    let control_plane = bed.control_plane();
    control_plane.create_namespace("kept").await.unwrap();
    control_plane.stop_apiserver().await;
    let namespaces = Api::<Namespace>::all(control_plane.admin_client().unwrap());
    assert!(namespaces.get("kept").await.is_err());
    control_plane.start_apiserver().await.unwrap();
    let namespaces = Api::<Namespace>::all(control_plane.admin_client().unwrap());
    assert_eq!(namespaces.get("kept").await.unwrap().name_any(), "kept");
}
