//! Injection, as the API server does it: `config/injection`. What becomes of such pods is seen on the real node (`cargo testbed node`).

use crate::support::{Cluster, LIMIT, shared};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::PostParams;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testbed::project;
use testbed::settings::{KubernetesVersion, Settings};

const TOKEN: &str = "/var/run/secrets/vaultproject.io";
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\nof the cluster's Vault\n-----END CERTIFICATE-----\n";

/// A pod that wants to be injected, with this changed.
fn annotated(change: impl FnOnce(&mut Value)) -> Value {
    let annotations = json!({ "vaultproject.io/inject": "true", "vaultproject.io/policies": "shop-read" });
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "annotations": annotations },
        "spec": { "containers": [{ "name": "app", "image": "app:1" }] } });
    change(&mut pod);
    pod
}

/// What the API server makes of it, or says to it. It is not kept.
async fn made(cluster: &Cluster, namespace: &str, pod: &Value) -> Result<Pod, String> {
    let pod = serde_json::from_value(pod.clone()).expect("a pod");
    let params = PostParams { dry_run: true, ..PostParams::default() };
    cluster.pods(namespace).create(&params, &pod).await.map_err(|error| error.to_string())
}

/// Waits until something becomes of the pod: what is new of the policies is in force after some seconds.
async fn until<T>(cluster: &Cluster, namespace: &str, wanted: impl Fn(Result<Pod, String>) -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match wanted(made(cluster, namespace, &annotated(|_| {})).await) {
            Ok(found) => return found,
            Err(other) => assert!(Instant::now() < deadline, "not within {LIMIT:?}: {other}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn refused(words: &str) -> impl Fn(Result<Pod, String>) -> Result<(), String> {
    move |made| match made {
        Err(said) if said.contains(words) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn inits(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default()
}

fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default()
}

/// What a container has of this name, or nothing.
fn setting(container: &Container, name: &str) -> Option<String> {
    let settings = container.env.as_deref().unwrap_or_default();
    settings.iter().find(|setting| setting.name == name).and_then(|setting| setting.value.clone())
}

/// The volume that a container has there, and whether for reading only.
fn mounted(container: &Container, path: &str) -> Option<(String, bool)> {
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    let mount = mounts.iter().find(|mount| mount.mount_path == path)?;
    Some((mount.name.clone(), mount.read_only.unwrap_or_default()))
}

#[tokio::test]
async fn two_annotations_are_all_that_a_pod_needs_to_be_injected() {
    let cluster = shared().await;
    let namespace = cluster.namespace("injected").await;
    let config = project::root().join("config/injection/injection.yaml");
    let applied = cluster.kubectl(&["apply", "--server-side", "-f", &config.to_string_lossy()]).await;
    if Settings::from_env().expect("settings").kubernetes == KubernetesVersion::V1_33 {
        assert!(applied.contains("no matches for kind \"MutatingAdmissionPolicy\""), "{applied}");
        return;
    }
    assert_eq!(applied.matches("serverside-applied").count(), 6, "{applied}");

    // Nobody has said yet what is to be injected: the pods that want it are told, and no others are concerned.
    until(cluster, &namespace, refused("nothing was injected: the cluster's administrator")).await;
    let plain = annotated(|pod| pod["metadata"]["annotations"] = json!({ "vaultproject.io/policies": "shop-read" }));
    let pod = made(cluster, &namespace, &plain).await.expect("a pod");
    assert!(inits(&pod).is_empty() && mounted(&containers(&pod)[0], TOKEN).is_none());
    let declined = annotated(|pod| pod["metadata"]["annotations"]["vaultproject.io/inject"] = json!("false"));
    assert!(inits(&made(cluster, &namespace, &declined).await.expect("a pod")).is_empty());

    let given = json!({ "image": "registry/vault-token-operator:1", "VAULT_ADDR": "https://vault:8200", "VTO_TIMEOUT": "5m",
        "ca.crt": AUTHORITY });
    let given =
        json!([{ "op": "replace", "path": "/spec/variables/0/expression", "value": given.to_string() }]).to_string();
    cluster.kubectl(&["patch", "mutatingadmissionpolicy", "vault-token-injection", "--type=json", "-p", &given]).await;
    let pod = until(cluster, &namespace, |made| made).await;
    for others in [&plain, &declined] {
        let pod = made(cluster, &namespace, others).await.expect("a pod");
        assert!(inits(&pod).is_empty() && mounted(&containers(&pod)[0], TOKEN).is_none(), "{pod:#?}");
        assert!(!pod.metadata.annotations.expect("annotations").contains_key("vaultproject.io/vault-ca"));
    }

    let init = &inits(&pod)[0];
    assert_eq!((init.name.as_str(), init.image.as_deref()), ("vault-init", Some("registry/vault-token-operator:1")));
    for (name, value) in [
        ("VAULT_ADDR", "https://vault:8200"),
        ("VAULT_CACERT", "/etc/vault/ca.crt"),
        ("VTO_TIMEOUT", "5m"),
        ("VTO_FILE_MODE", "0444"),
    ] {
        assert_eq!(setting(init, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(mounted(init, TOKEN), Some(("vault-token".into(), false)));
    // The identity that it shows to the API server is its own, and bound to this pod.
    assert_eq!(mounted(init, ACCOUNT), Some(("vault-api-access".into(), true)));
    let app = &containers(&pod)[0];
    assert_eq!(mounted(app, TOKEN), Some(("vault-token".into(), true)));
    assert_eq!(mounted(app, "/etc/vault"), Some(("vault-ca".into(), true)));
    let mounts = app.volume_mounts.iter().flatten();
    assert!(mounts.into_iter().all(|mount| mount.name != "vault-api-access"), "init's API token is in init alone");
    assert_eq!(setting(app, "VAULT_ADDR").as_deref(), Some("https://vault:8200"));
    assert_eq!((setting(app, "VTO_TIMEOUT"), setting(app, "VTO_FILE_MODE")), (None, None));
    let annotations = pod.metadata.annotations.as_ref().expect("annotations");
    assert_eq!(annotations["vaultproject.io/vault-ca"], AUTHORITY);
    let spec = pod.spec.as_ref().expect("a spec");
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == "vault-token").expect("a volume");
    assert_eq!(volume.empty_dir.as_ref().and_then(|volume| volume.medium.as_deref()), Some("Memory"));

    what_is_there_is_left_alone(cluster, &namespace).await;
    what_cannot_be_injected_is_refused(cluster, &namespace).await;
    the_authority_does_not_change(cluster, &namespace).await;
    injected_pods_are_restricted(cluster, &namespace).await;
}

/// Neither by who may change pods, nor by who may write their statuses.
async fn the_authority_does_not_change(cluster: &Cluster, namespace: &str) {
    let pod = serde_json::from_value(annotated(|pod| pod["metadata"]["name"] = json!("kept"))).expect("a pod");
    cluster.pods(namespace).create(&PostParams::default(), &pod).await.expect("a pod");
    let other = json!({ "metadata": { "annotations": { "vaultproject.io/vault-ca": "another" } } }).to_string();
    let none = json!({ "metadata": { "annotations": { "vaultproject.io/vault-ca": null } } }).to_string();
    for change in [&other, &none] {
        for part in [&[][..], &["--subresource=status"]] {
            let patch = ["patch", "pod", "kept", "-n", namespace, "--type=merge", "--dry-run=server", "-p", change];
            let patch = [&patch[..], part].concat();
            cluster.until_said(&patch, "does not change as long as the pod lives").await;
        }
    }
    let label = cluster.kubectl(&["label", "pod", "kept", "-n", namespace, "a=b"]).await;
    assert!(label.contains("labeled"), "{label}");
}

async fn what_is_there_is_left_alone(cluster: &Cluster, namespace: &str) {
    let pod = made(
        cluster,
        namespace,
        &annotated(|pod| {
            pod["spec"] = json!({
                "automountServiceAccountToken": false,
                "securityContext": { "runAsUser": 1000, "fsGroup": 2000 },
                "initContainers": [
                    { "name": "sidecar", "image": "sidecar:1", "restartPolicy": "Always" },
                    { "name": "migrate", "image": "app:1", "env": [{ "name": "VAULT_ADDR", "value": "https://another" }] },
                ],
                "containers": [
                    { "name": "app", "image": "app:1", "envFrom": [{ "configMapRef": { "name": "settings" } }],
                        "volumeMounts": [{ "name": "own", "mountPath": "/etc/vault/" }] },
                    { "name": "other", "image": "app:1" },
                ],
                "volumes": [{ "name": "own", "emptyDir": {} }, { "name": "vault-token", "emptyDir": { "medium": "Memory", "sizeLimit": "2Mi" } }],
            });
        }),
    )
    .await
    .expect("a pod");
    let names: Vec<_> = inits(&pod).iter().map(|container| container.name.as_str()).collect();
    assert_eq!(names, ["vault-init", "sidecar", "migrate"], "before all that may want the token");
    let init = &inits(&pod)[0];
    assert_eq!(setting(init, "VTO_FILE_MODE").as_deref(), Some("0440"), "readable to the pod's group");
    assert_eq!(init.security_context.as_ref().and_then(|context| context.run_as_user), Some(1000));
    let migrate = &inits(&pod)[2];
    assert_eq!(setting(migrate, "VAULT_ADDR").as_deref(), Some("https://another"));
    assert_eq!(setting(migrate, "VAULT_CACERT"), None, "it may be another Vault's");
    assert!(mounted(migrate, TOKEN).is_some() && mounted(&inits(&pod)[1], TOKEN).is_some());
    let [app, other] = containers(&pod) else { panic!("two containers") };
    assert_eq!(mounted(app, "/etc/vault/"), Some(("own".into(), false)));
    assert_eq!(mounted(app, "/etc/vault"), None, "it is the same place");
    assert_eq!(setting(app, "VAULT_ADDR"), None, "the ConfigMap may have one");
    assert_eq!(setting(other, "VAULT_ADDR").as_deref(), Some("https://vault:8200"));
    let account = |container: &Container| mounted(container, ACCOUNT);
    assert_eq!((account(app), account(other), account(migrate)), (None, None, None), "they need no API token");
    let volumes: Vec<_> = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).collect();
    let sources = volumes[3].projected.iter().flat_map(|volume| volume.sources.iter().flatten());
    let lives: Vec<_> =
        sources.filter_map(|source| source.service_account_token.as_ref()?.expiration_seconds).collect();
    assert_eq!(lives, [3600], "init's API token is short-lived");
    let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["own", "vault-token", "vault-ca", "vault-api-access"]);
    let size = volumes[1].empty_dir.as_ref().and_then(|volume| volume.size_limit.as_ref());
    assert_eq!(size.map(|size| size.0.as_str()), Some("2Mi"));

    let own = json!({ "name": "vault-init", "image": "mine:1", "args": ["init"] });
    let pod = made(cluster, namespace, &annotated(|pod| pod["spec"]["initContainers"] = json!([own]))).await;
    let pod = pod.expect("a pod");
    let [init] = inits(&pod) else { panic!("one init container") };
    assert_eq!((init.image.as_deref(), init.env.as_ref()), (Some("mine:1"), None));
    assert!(mounted(init, TOKEN).is_none(), "it is all its maker's");
}

async fn what_cannot_be_injected_is_refused(cluster: &Cluster, namespace: &str) {
    let with = |name: &'static str, value: Option<&'static str>| {
        annotated(move |pod| match value {
            Some(value) => pod["metadata"]["annotations"][name] = json!(value),
            None => drop(pod["metadata"]["annotations"].as_object_mut().and_then(|all| all.remove(name))),
        })
    };
    let host = annotated(|pod| pod["spec"]["hostNetwork"] = json!(true));
    let windows = annotated(|pod| pod["spec"]["os"] = json!({ "name": "windows" }));
    let volume = |volume: Value| annotated(|pod| pod["spec"]["volumes"] = json!([volume]));
    // As a kubelet shows a static pod to the API server.
    let mut mirror = with("kubernetes.io/config.mirror", Some("a"));
    mirror["spec"]["nodeName"] = json!("node");
    for (pod, words) in [
        (with("vaultproject.io/inject", Some("yes")), "is \"true\" or \"false\", not \"yes\""),
        (with("vaultproject.io/policies", None), "needs vaultproject.io/policies, too"),
        (mirror, "a static pod cannot have a Vault token"),
        (host, "VTO_DELIVERY=status"),
        (windows, "is for Linux"),
        (volume(json!({ "name": "vault-token", "emptyDir": {} })), "on no disk"),
        (volume(json!({ "name": "vault-token", "hostPath": { "path": "/tmp" } })), "on no disk"),
        (volume(json!({ "name": "vault-api-access", "emptyDir": {} })), "the volume vault-api-access"),
        (volume(json!({ "name": "vault-api-access", "secret": { "secretName": "a" } })), "the volume vault-api-access"),
    ] {
        let said = made(cluster, namespace, &pod).await.expect_err("refused");
        assert!(said.contains("vault-token-injected") && said.contains(words), "{said}");
    }
}

/// An app that is restricted is so with what is injected.
async fn injected_pods_are_restricted(cluster: &Cluster, namespace: &str) {
    let label = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", namespace, label]).await;
    let lax = made(cluster, namespace, &annotated(|_| {})).await.expect_err("refused");
    assert!(lax.contains("violates PodSecurity") && !lax.contains("vault-init"), "{lax}");
    let restricted = json!({ "runAsNonRoot": true, "runAsUser": 1000, "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" } });
    let pod = annotated(|pod| pod["spec"]["containers"][0]["securityContext"] = restricted);
    made(cluster, namespace, &pod).await.expect("a pod");
}
