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

/// The roles of Kubernetes that gather the rules of others by a label.
const GATHERING: &str = "rbac.authorization.k8s.io/aggregate-to-";

#[test]
fn nothing_is_aggregated_into_what_tenants_have_but_reading_into_view() {
    let mut gathered = Vec::new();
    let mut folders = vec![testbed::project::root().join("config")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let text = std::fs::read_to_string(&path).expect("a manifest");
                for role in vault_token_operator::yaml::documents(&text).expect("documents") {
                    let labels = role["metadata"]["labels"].as_object().cloned().unwrap_or_default();
                    let into = labels.iter().filter_map(|(label, _)| label.strip_prefix(GATHERING));
                    gathered.extend(into.map(|into| (into.to_owned(), role.clone())));
                }
            }
        }
    }
    let [(into, role)] = &gathered[..] else { panic!("{gathered:#?}") };
    assert_eq!((into.as_str(), role["metadata"]["name"].as_str()), ("view", Some("vault-token-viewer")));
    for rule in role["rules"].as_array().expect("rules") {
        let verbs = rule["verbs"].as_array().expect("verbs");
        assert!(verbs.iter().all(|verb| ["get", "list", "watch"].iter().any(|read| verb == read)), "{rule}");
        assert_eq!(rule["apiGroups"], json!(["vaultproject.io"]), "{rule}");
    }
}

/// The testbed has no controller that gathers them: what it would find is asked for as it does.
#[tokio::test]
async fn what_is_installed_gives_admin_and_edit_nothing_and_view_no_more_than_reading() {
    let cluster = shared().await;
    for (into, gathered) in [("admin", false), ("edit", false), ("view", true)] {
        let labelled = format!("{GATHERING}{into}=true");
        let listed = cluster.kubectl(&["get", "clusterroles", "-l", &labelled, "-o", "json"]).await;
        let listed: Value = serde_json::from_str(&listed).expect("a list");
        let roles = listed["items"].as_array().expect("roles");
        // Those of Kubernetes' own make sure that this is how they are found.
        assert!(
            roles.iter().any(|role| role["metadata"]["name"].as_str() == Some(&format!("system:aggregate-to-{into}")))
        );
        let ours: Vec<_> = roles.iter().flat_map(|role| role["rules"].as_array().into_iter().flatten()).collect();
        let ours = ours.iter().filter(|rule| rule["apiGroups"].to_string().contains("vaultproject.io"));
        let verbs: std::collections::BTreeSet<_> =
            ours.flat_map(|rule| rule["verbs"].as_array().into_iter().flatten()).filter_map(Value::as_str).collect();
        let expected: &[&str] = if gathered { &["get", "list", "watch"] } else { &[] };
        assert_eq!(verbs.into_iter().collect::<Vec<_>>(), expected, "{into}");
    }
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
