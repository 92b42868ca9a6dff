//! The custom resource as the API server enforces and explains it, and the rights of everybody concerned.

use crate::support::{Cluster, LIMIT, request_for, shared};
use serde_json::{Value, json};
use testbed::control_plane::BearerToken;
use testbed::kubelet::{PodHandle, PodSpec};

/// What kubectl says of this object.
async fn apply(cluster: &Cluster, object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().expect("a name");
    let file = cluster.system.testbed().run().path().join(format!("{name}.json"));
    std::fs::write(&file, object.to_string()).expect("written");
    cluster.kubectl(&["apply", "-f", file.to_str().expect("a path")]).await
}

async fn pod(cluster: &Cluster, namespace: &str) -> PodHandle {
    let namespace = cluster.namespace(namespace).await;
    cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await
}

#[test]
fn the_definitions_in_crds_are_those_of_the_code() {
    let printed = std::process::Command::new(env!("CARGO_BIN_EXE_vault-token-operator")).arg("crds").output();
    let printed = String::from_utf8(printed.expect("it runs").stdout).expect("text");
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vaultproject.io.yaml"));
    assert!(kept.expect("a file") == printed, "crds/ is stale: cargo run -- crds > crds/vaultproject.io.yaml");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_in_words() {
    let cluster = shared().await;
    let pod = pod(cluster, "invalid").await;
    for (change, words) in [
        (json!({ "spec": { "podUID": "X" } }), "podUID must be the pod's metadata.uid: a UUID in lower case"),
        (json!({ "spec": { "podName": "Web" } }), "podName must be the name of a pod"),
        (json!({ "spec": { "podName": "x".repeat(250) } }), "podName must have at most 242 characters"),
        (json!({ "spec": { "sequence": 0 } }), "sequence must be nanoseconds since 1970"),
        (json!({ "spec": { "port": 0 } }), "port must be from 1 to 65535"),
        (json!({ "spec": { "initContainer": "a b" } }), "initContainer must be the name of a container"),
        (json!({ "metadata": { "name": "web-squatted" } }), "metadata.name must be <spec.podName>-<first 8"),
        (json!({ "metadata": { "name": "web-00000000-0" } }), "metadata.name must be <spec.podName>-<first 8"),
        (json!({ "spec": { "port": null } }), "port belongs to the delivery Push, and only to it"),
        (json!({ "spec": { "delivery": "Status" } }), "port belongs to the delivery Push, and only to it"),
        (json!({ "spec": { "publicKey": "AAAA" } }), "publicKey must be an X25519 public key: 32 bytes in base64"),
        (json!({ "spec": { "publicKey": null } }), "spec.publicKey: Required value"),
    ] {
        let mut request = request_for(&pod, 0);
        json_patch::merge(&mut request, &change);
        let said = apply(cluster, &request).await;
        assert!(said.contains(words), "{change}: {said}");
        assert!(!said.contains("created"), "{said}");
    }
    let request = request_for(&pod, 0);
    let said = apply(cluster, &request).await;
    assert!(said.contains("created") && !said.contains("Warning"), "{said}");
    let mut changed = request;
    changed["spec"]["port"] = json!(1);
    let said = apply(cluster, &changed).await;
    assert!(said.contains("spec is immutable: create another request instead"), "{said}");
}

#[tokio::test]
async fn kubectl_explain_reads_well() {
    let cluster = shared().await;
    // The API server publishes a new resource's schema a little after it serves the resource.
    let deadline = std::time::Instant::now() + LIMIT;
    let mut text = String::new();
    while !text.contains("FIELDS") && std::time::Instant::now() < deadline {
        text = cluster.kubectl(&["explain", "vtr.spec"]).await;
    }
    for field in ["podName", "podUID", "sequence", "initContainer", "publicKey", "delivery", "port"] {
        assert!(text.contains(field), "{text}");
    }
    assert!(text.contains("Name of the pod that asks"), "{text}");
    assert!(cluster.kubectl(&["explain", "vtr.status.tokenAccessor"]).await.contains("joins Vault's audit log"));
}

#[tokio::test]
async fn rights_are_no_wider_than_they_need_to_be() {
    let cluster = shared().await;
    let pod = pod(cluster, "rights").await;
    let plane = cluster.plane();
    let token = plane.service_account_token(&pod.namespace, "default", &[], None, 600).await.expect("a token");
    let workload = plane.kubeconfig_for_token("rights", "default", BearerToken::Inline(&token)).expect("a kubeconfig");
    let can = async |kubeconfig: &std::path::Path, question: &str| {
        let mut arguments = vec!["auth", "can-i", "-n", pod.namespace.as_str()];
        arguments.extend(question.split(' '));
        let answer = plane.kubectl_as(kubeconfig, &arguments).await.expect("kubectl runs");
        match answer.stdout.trim() {
            "yes" => true,
            "no" => false,
            _ => panic!("{question}: {answer:?}"),
        }
    };
    let operator = cluster.system.operator_kubeconfig();
    let vtr = "vaulttokenrequests.vaultproject.io";
    for verb in ["create", "get"] {
        assert!(can(&workload, &format!("{verb} {vtr}")).await, "a workload must {verb}");
    }
    for verb in ["list", "watch", "update", "patch", "delete", "deletecollection"] {
        assert!(!can(&workload, &format!("{verb} {vtr}")).await, "a workload can {verb}");
    }
    for verb in ["update", "patch"] {
        assert!(!can(&workload, &format!("{verb} {vtr} --subresource=status")).await, "a workload can {verb} status");
    }
    for question in ["get pods", "list pods", "watch pods", "list vpb", "watch namespaces"] {
        assert!(can(operator, question).await, "{question}");
    }
    for question in [
        "get secrets",
        "list secrets",
        "create pods",
        "delete pods",
        "patch pods",
        "create pods --subresource=exec",
        "create serviceaccounts --subresource=token",
        "impersonate users",
    ] {
        assert!(!can(operator, question).await, "the operator can {question}");
    }
    assert!(!can(operator, &format!("create {vtr}")).await);
    assert!(!can(operator, &format!("deletecollection {vtr}")).await);
}
