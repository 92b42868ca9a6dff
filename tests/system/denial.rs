//! I4, and what people are told when they do not get a token.

use crate::support::{LIMIT, alone, condition, ended, request_for, shared};
use kube::ResourceExt;
use kube::api::PostParams;
use serde_json::{Value, json};
use std::time::Instant;
use testbed::kubelet::{PodHandle, PodSpec};
use vault_token_operator::api::Phase;

/// Annotations, the reason of the denial, and words of its message.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

/// A pod of this name with these annotations.
fn annotated(namespace: &str, name: &str, annotations: &[(&str, &str)]) -> PodSpec {
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    PodSpec { annotations, ..PodSpec::new(namespace, name, "", "") }
}

#[tokio::test]
async fn i4_every_bad_annotation_is_denied_in_words_that_init_repeats() {
    let cluster = shared().await;
    let namespace = cluster.namespace("denied").await;
    let (policies, ttl) = ("vaultproject.io/policies", "vaultproject.io/ttl");
    let many = (0..10_000).map(|n| format!("p{n}")).collect::<Vec<_>>().join(",");
    let cases: [Case; 18] = [
        (&[], "PoliciesMissing", "the pod has no annotation vaultproject.io/policies"),
        (&[(policies, "")], "PoliciesInvalid", "names no policy"),
        (&[(policies, "root")], "PoliciesInvalid", "the policy \"root\" is never given to a pod"),
        (&[(policies, "vault-token-operator")], "PoliciesInvalid", "the operator's own, and never given to a pod"),
        (&[(policies, "shop-read,default")], "PoliciesInvalid", "the policy \"default\" is never given to a pod"),
        (&[(policies, "shop-read,shop-read")], "PoliciesInvalid", "names the policy \"shop-read\" twice"),
        (&[(policies, "Shop-Read")], "PoliciesInvalid", "\"Shop-Read\" has upper-case letters"),
        (&[(policies, "shop-read,../sys")], "PoliciesInvalid", "has \"..\" in it"),
        (&[(policies, "shop\u{7}-read")], "PoliciesInvalid", "has the character \"\\u{7}\""),
        (&[(policies, "shop-read,")], "PoliciesInvalid", "an empty name between its commas"),
        (&[(policies, &many)], "PoliciesInvalid", "names 10000 policies; at most 32 are allowed"),
        (&[(policies, "shop-read"), (ttl, "0")], "TTLInvalid", "\"0\" is too short: it must be from 10s to 768h"),
        (&[(policies, "shop-read"), (ttl, "-1h")], "TTLInvalid", "\"-1h\" is not a duration: it is negative"),
        (&[(policies, "shop-read"), (ttl, "1y")], "TTLInvalid", "there is no unit \"y\"; write h, m or s"),
        (&[(policies, "shop-read"), (ttl, "3000000h")], "TTLInvalid", "longer than 292 years"),
        (&[(policies, "shop-read"), (ttl, "769h")], "TTLInvalid", "\"769h\" is too long: it must be from 10s to 768h"),
        // These pass the operator's own checks; Vault's token role is the second stop.
        (
            &[(policies, "kv-admin")],
            "VaultRefused",
            "the token role vault-token-operator-main decides which policies it gives",
        ),
        (&[(policies, "kv-admin,shop-read")], "VaultRefused", "(allowed_policies_glob)"),
    ];
    for (number, (annotations, reason, words)) in cases.into_iter().enumerate() {
        let pod = cluster.pod(&annotated(&namespace, &format!("web-{number}"), annotations)).await;
        let init = cluster.init(&pod).await;
        assert!(!ended(&init).await.success(), "{reason}: {words}");
        let request = cluster.until_phase(&pod, Phase::Denied).await;
        let (value, why, message) = condition(&request, "Authorized");
        assert_eq!((value.as_str(), why.as_str()), ("False", reason), "{message}");
        assert!(message.contains(words), "{message}");
        assert!(message.len() < 1024 && !message.chars().any(char::is_control), "{message:?}");
        let told = init.termination_message();
        assert!(told.contains(&message), "the termination log says: {told}");
        assert!(cluster.init_log(&pod).contains(words), "{}", cluster.init_log(&pod));
        assert!(!pod.volume.join("token").exists());
        let released = |request: &vault_token_operator::api::VaultTokenRequest| request.finalizers().is_empty();
        cluster.until(&pod, "finalizer gone", released).await;
    }
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, 0);
    let told = cluster.kubectl(&["describe", "pod", "web-0", "-n", &namespace]).await;
    assert!(told.contains("PoliciesMissing"), "{told}");
}

#[tokio::test]
async fn pods_that_are_not_to_be_served_are_told_why() {
    let cluster = shared().await;
    let namespace = cluster.namespace("not-served").await;
    let spec = |name: &str, patch: Value| PodSpec { patch, ..PodSpec::new(&namespace, name, "shop-read", "1h") };
    let initializing = async |spec: PodSpec| {
        let pod = cluster.pod(&spec).await;
        cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
        pod
    };
    let denied = async |pod: &PodHandle, phase: Phase, reason: &str, words: &str| {
        let request = cluster.until_phase(pod, phase).await;
        let kind = if phase == Phase::Denied { "Authorized" } else { "Issued" };
        let (_, why, message) = condition(&request, kind);
        assert_eq!(why, reason, "{message}");
        assert!(message.contains(words), "{message}");
    };

    let missing = PodHandle { name: "nobody".to_owned(), ..initializing(spec("other", json!({}))).await };
    cluster.ask(&missing, |_| ()).await;
    denied(&missing, Phase::Denied, "PodNotFound", "there is no pod nobody in namespace not-served").await;

    let stolen = initializing(spec("stolen", json!({}))).await;
    let stolen = PodHandle { uid: "00000000-0000-4000-8000-000000000000".to_owned(), ..stolen };
    cluster.ask(&stolen, |_| ()).await;
    denied(&stolen, Phase::Denied, "PodUIDMismatch", "it is another pod of the same name").await;

    let host = initializing(spec("host", json!({ "spec": { "hostNetwork": true } }))).await;
    cluster.ask(&host, |_| ()).await;
    denied(&host, Phase::Denied, "PodHostNetwork", "uses hostNetwork").await;

    let terminating = initializing(spec("terminating", json!({}))).await;
    cluster.kubelet.terminate(cluster.plane(), &terminating).await.expect("terminating");
    cluster.ask(&terminating, |_| ()).await;
    denied(&terminating, Phase::Failed, "PodTerminating", "is being deleted").await;

    let finished = initializing(spec("finished", json!({}))).await;
    cluster.kubelet.report_end(cluster.plane(), &finished, "Succeeded").await.expect("a status");
    cluster.ask(&finished, |_| ()).await;
    denied(&finished, Phase::Failed, "PodFinished", "has finished").await;

    let running = initializing(spec("running", json!({}))).await;
    cluster.kubelet.report_running(cluster.plane(), &running).await.expect("a status");
    cluster.ask(&running, |_| ()).await;
    denied(&running, Phase::Denied, "InitContainerEnded", "has ended; tokens go to it alone").await;

    let misnamed = initializing(spec("misnamed", json!({}))).await;
    cluster.ask(&misnamed, |request| request["spec"]["initContainer"] = json!("other")).await;
    denied(&misnamed, Phase::Denied, "InitContainerNotFound", "no init container other; set VTO_CONTAINER_NAME").await;

    let bare = initializing(spec("bare", json!({}))).await;
    cluster.ask(&bare, |request| request["metadata"]["finalizers"] = json!([])).await;
    denied(&bare, Phase::Denied, "FinalizerMissing", "let the init container create it").await;
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, 0);
}

#[tokio::test]
async fn i5_an_address_that_no_pod_can_have_gets_nothing() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    // As by default: loopback is not where pods live.
    cluster.system.start_operator(&[("VTO_POD_NETWORKS", "10.244.0.0/16")]).await.expect("the operator starts");
    let namespace = cluster.namespace("address").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    assert!(!ended(&init).await.success());
    assert!(init.termination_message().contains("which no pod can have here; see --pod-network"));
    assert_eq!(cluster.live_tokens(&pod).await, 0);
}

#[tokio::test]
async fn a_service_account_without_the_role_is_told_which_role_it_lacks() {
    let cluster = shared().await;
    cluster.plane().create_namespace("no-role").await.expect("a namespace");
    let pod = cluster.pod(&PodSpec::new("no-role", "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    assert!(!ended(&init).await.success());
    let told = init.termination_message();
    let command =
        "kubectl create rolebinding vault-token-requester-default -n no-role --clusterrole=vault-token-requester";
    assert!(told.contains(command), "{told}");
}

#[tokio::test]
async fn an_init_container_that_is_over_a_quota_says_so_and_is_served_when_there_is_room() {
    let cluster = shared().await;
    let namespace = cluster.namespace("quota").await;
    let counted = "count/vaulttokenrequests.vaultproject.io";
    cluster.kubectl(&["create", "quota", "requests", "-n", &namespace, &format!("--hard={counted}=1")]).await;
    let (first, second) = (
        cluster.pod(&PodSpec::new(&namespace, "first", "shop-read", "1h")).await,
        cluster.pod(&PodSpec::new(&namespace, "second", "shop-read", "1h")).await,
    );
    let request = serde_json::from_value(request_for(&second, 9)).expect("a request");
    // What the controller of quotas writes, which this control plane has not; the API server goes by it a moment later.
    let room = async |hard: u8| {
        let status = json!({ "status": { "hard": { counted: hard.to_string() }, "used": { counted: "0" } } });
        let patch = ["patch", "quota", "requests", "--subresource=status", "--type=merge", "-n", &namespace];
        cluster.kubectl(&[&patch[..], &["-p", &status.to_string()]].concat()).await;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let deadline = Instant::now() + LIMIT;
        while cluster.requests(&namespace).create(&params, &request).await.is_ok() != (hard > 0) {
            assert!(Instant::now() < deadline, "the API server does not go by the quota");
        }
    };
    let refused = async |pod: &PodHandle, words: &str| {
        let init = cluster.init(pod).await;
        assert!(!ended(&init).await.success());
        let told = init.termination_message();
        assert!(told.starts_with("the API server refuses the request: ") && told.contains(words), "{told}");
    };
    room(0).await;
    refused(&first, "exceeded quota: requests").await;
    room(1).await;
    let again = cluster.init(&first).await;
    cluster.ended_well(&first, &again).await;
    refused(&second, &format!("used: {counted}=1, limited: {counted}=1")).await;
}
