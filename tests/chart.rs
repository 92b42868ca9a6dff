//! `charts/` and `config/`: that they are the same, by the real helm and the real kustomize, and that a real API server takes them.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use testbed::Testbed;
use testbed::control_plane::ControlPlane;
use testbed::process::Output;
use testbed::project;
use vault_token_operator::yaml;

const NAME: &str = "vault-token-operator";
const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\nof Vault's\n-----END CERTIFICATE-----\n";
const INJECTION: &str = "MutatingAdmissionPolicy /vault-token-injection";

async fn testbed() -> &'static Testbed {
    Testbed::shared().await.expect("the testbed starts")
}

async fn plane() -> &'static ControlPlane {
    testbed().await.control_plane()
}

fn chart() -> String {
    project::root().join("charts").join(NAME).to_string_lossy().into_owned()
}

async fn helm(arguments: &[&str]) -> Output {
    testbed().await.helm(arguments).await.expect("helm runs")
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    output.stdout
}

/// Values that make of the chart what `config/` is, with a change.
fn values(change: &Value) -> String {
    let mut values = json!({
        "cluster": "main",
        "vault": { "address": "https://vault.vault.svc:8200" },
        "image": { "repository": NAME },
    });
    json_patch::merge(&mut values, change);
    values.to_string()
}

/// Runs `helm template`, with such values.
async fn render(chart: &str, namespace: &str, change: &Value) -> Output {
    helm(&["template", NAME, chart, "--namespace", namespace, "--set-json", &values(change)]).await
}

/// Objects by kind, namespace and name.
type Objects = BTreeMap<String, Value>;

fn objects(manifests: &str) -> Objects {
    let mut objects = Objects::new();
    for object in yaml::documents(manifests).expect("documents") {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let key = format!("{} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        assert!(objects.insert(key.clone(), object).is_none(), "{key} is there twice");
    }
    objects
}

async fn chart_objects(change: &Value) -> Objects {
    objects(&succeeded(render(&chart(), NAME, change).await))
}

fn deployment(objects: &mut Objects) -> &mut Value {
    objects.get_mut("Deployment vault-token-operator/vault-token-operator").expect("a Deployment")
}

/// The settings in the policy that injects.
fn given(policy: &mut Value) -> &mut Value {
    let first = &mut policy["spec"]["variables"][0];
    assert_eq!(first["name"], "given");
    &mut first["expression"]
}

/// A kustomization of a user's own with these components of `config/`.
async fn kustomization(components: &[&str]) -> PathBuf {
    let folder = testbed().await.run().folder(&format!("config-{}", components.join("-"))).expect("a folder");
    let way = |path: &str| project::path_from(&folder, path).expect("a path");
    let components: Vec<_> = components.iter().map(|component| way(&format!("config/{component}"))).collect();
    let kustomization = json!({ "resources": [way("config")], "components": components });
    std::fs::write(folder.join("kustomization.yaml"), kustomization.to_string()).expect("written");
    folder
}

async fn config_objects(components: &[&str]) -> Objects {
    let folder = kustomization(components).await;
    let output = plane().await.kubectl(&["kustomize", &folder.to_string_lossy()]).await;
    let manifests = succeeded(output.expect("kubectl runs"));
    // Its name says what is in it, so that pods start anew when that changes.
    let hashed = objects(&manifests).into_iter().find_map(|(key, object)| {
        let settings = key.starts_with("ConfigMap ") && object["data"]["VTO_CLUSTER"].is_string();
        settings.then(|| object["metadata"]["name"].as_str().map(str::to_owned))?
    });
    let hashed = hashed.expect("a ConfigMap with settings");
    objects(&manifests.replace(&hashed, NAME))
}

#[tokio::test]
async fn the_chart_is_what_config_is() {
    for (change, components) in [
        (json!({}), &[][..]),
        (json!({ "replicas": 1 }), &["plain"]),
        (json!({ "networkPolicy": { "enabled": true } }), &["network-policy"]),
        (json!({ "injection": { "enabled": true, "caCert": AUTHORITY } }), &["injection"]),
        (json!({ "monitoring": { "enabled": true } }), &["monitoring"]),
    ] {
        let (mut chart, mut config) = (chart_objects(&change).await, config_objects(components).await);
        // Written by hand, or by a kustomization of one's own.
        for objects in [&mut chart, &mut config] {
            objects.get_mut(INJECTION).map(|policy| given(policy).take());
        }
        // helm makes namespaces by itself, or not at all.
        config.remove("Namespace /vault-token-operator").expect("a namespace");
        // In place of the name of the ConfigMap.
        let template = &mut deployment(&mut chart)["spec"]["template"];
        let annotations = template["metadata"].as_object_mut().and_then(|metadata| metadata.remove("annotations"));
        assert!(annotations.expect("annotations")["checksum/settings"].is_string());
        assert_eq!(chart.keys().collect::<Vec<_>>(), config.keys().collect::<Vec<_>>(), "{change}");
        for (key, object) in &chart {
            assert_eq!(object, &config[key], "{change}: {key}");
        }
    }
}

#[tokio::test]
async fn the_operator_runs_with_no_more_than_it_needs_and_is_looked_after() {
    let mut objects = config_objects(&[]).await;
    let budget = objects["PodDisruptionBudget vault-token-operator/vault-token-operator"]["spec"].clone();
    let deployment = &deployment(&mut objects)["spec"];
    assert_eq!((&deployment["replicas"], &budget["maxUnavailable"]), (&json!(2), &json!(1)));
    assert_eq!(budget["selector"], deployment["selector"]);
    let pod = &deployment["template"]["spec"];
    let context = json!({ "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": { "type": "RuntimeDefault" } });
    assert_eq!(pod["securityContext"], context);
    let spread = &pod["topologySpreadConstraints"][0];
    assert_eq!((&spread["topologyKey"], &spread["maxSkew"]), (&json!("kubernetes.io/hostname"), &json!(1)));
    assert_eq!(spread["labelSelector"], deployment["selector"]);
    assert_eq!(spread["matchLabelKeys"], json!(["pod-template-hash"]));
    assert_eq!(spread["whenUnsatisfiable"], "ScheduleAnyway");
    let container = &pod["containers"][0];
    let context = json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } });
    assert_eq!(container["securityContext"], context);
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"], json!({ "path": path, "port": "health" }));
    }
    assert!(container["resources"]["limits"]["memory"].is_string());
}

#[tokio::test]
async fn each_value_has_its_place() {
    let mut rendered = chart_objects(&json!({
        "cluster": "east",
        "vault": { "address": "https://vault.example", "caConfigMap": "authority" },
        "image": { "repository": "localhost:5000/operator", "tag": "1", "pullPolicy": "Always", "pullSecrets": ["pull"] },
        "settings": { "VTO_SWEEP_LIMIT": "1000", "VTO_LOG_FORMAT": "text" },
        "resources": { "limits": { "memory": "1Gi" } },
        "nodeSelector": { "for": "infrastructure" },
        "tolerations": [{ "key": "infrastructure", "operator": "Exists" }],
        "networkPolicy": { "enabled": true },
        "injection": { "enabled": true, "caCert": AUTHORITY, "settings": { "VTO_TIMEOUT": "5m" } },
        "monitoring": { "enabled": true, "labels": { "release": "prometheus" } },
        "global": {},
    }))
    .await;
    let settings = &rendered["ConfigMap vault-token-operator/vault-token-operator"]["data"];
    assert_eq!(
        settings,
        &json!({
            "VTO_CLUSTER": "east",
            "VAULT_ADDR": "https://vault.example",
            "VAULT_CACERT": "/etc/vault-token-operator/ca.crt",
            "VTO_LOG_FORMAT": "text",
            "VTO_SERVICE_ACCOUNT_TOKEN_FILE": "/var/run/secrets/vault-login/token",
            "VTO_SWEEP_LIMIT": "1000",
        })
    );
    let injected = given(rendered.get_mut(INJECTION).expect("a policy")).as_str().expect("an expression").to_owned();
    assert_eq!(
        serde_json::from_str::<Value>(&injected).expect("JSON"),
        json!({ "VAULT_ADDR": "https://vault.example", "VTO_TIMEOUT": "5m", "ca.crt": AUTHORITY,
            "image": "localhost:5000/operator:1" })
    );
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        let labels = &rendered[&format!("{kind} vault-token-operator/vault-token-operator")]["metadata"]["labels"];
        assert_eq!(labels, &json!({ "app.kubernetes.io/name": NAME, "release": "prometheus" }));
    }
    let egress = &rendered["NetworkPolicy vault-token-operator/vault-token-operator"]["spec"]["egress"];
    assert_eq!(egress[3]["ports"][0]["port"], 443, "the port of Vault's address");
    let pod = &deployment(&mut rendered)["spec"]["template"]["spec"];
    let operator = &pod["containers"][0];
    for (found, expected) in [
        (&operator["image"], json!("localhost:5000/operator:1")),
        (&operator["imagePullPolicy"], json!("Always")),
        (&pod["imagePullSecrets"], json!([{ "name": "pull" }])),
        (&operator["resources"]["limits"], json!({ "memory": "1Gi" })),
        (&operator["resources"]["requests"]["memory"], json!("64Mi")),
        (&pod["nodeSelector"], json!({ "for": "infrastructure" })),
        (&pod["tolerations"], json!([{ "key": "infrastructure", "operator": "Exists" }])),
        (&pod["volumes"][0]["configMap"], json!({ "name": "authority" })),
    ] {
        assert_eq!(found, &expected);
    }
}

/// By names and labels, each of which could be written otherwise without anybody's complaint.
#[tokio::test]
async fn prometheus_finds_every_replica_by_the_service_monitor() {
    let mut objects = config_objects(&["monitoring"]).await;
    let template = deployment(&mut objects)["spec"]["template"].take();
    let service = &objects["Service vault-token-operator/vault-token-operator-metrics"];
    let monitor = &objects["ServiceMonitor vault-token-operator/vault-token-operator"]["spec"];
    let within = |selector: &Value, labels: &Value| {
        let selector = selector.as_object().expect("labels");
        !selector.is_empty() && selector.iter().all(|(label, value)| &labels[label] == value)
    };
    assert!(within(&monitor["selector"]["matchLabels"], &service["metadata"]["labels"]));
    assert!(within(&service["spec"]["selector"], &template["metadata"]["labels"]));
    let endpoint = &monitor["endpoints"][0];
    assert_eq!(endpoint["path"], "/metrics");
    let named = |ports: &Value, key: &str, name: &Value| {
        ports.as_array().expect("ports").iter().find(|port| &port[key] == name).cloned().expect("a port of that name")
    };
    let port = named(&service["spec"]["ports"], "name", &endpoint["port"]);
    named(&template["spec"]["containers"][0]["ports"], "name", &port["targetPort"]);
}

#[tokio::test]
async fn pods_start_anew_when_a_setting_changes() {
    let template = async |settings: Value| {
        let mut rendered = chart_objects(&json!({ "settings": settings })).await;
        deployment(&mut rendered)["spec"]["template"].take()
    };
    assert_ne!(template(json!({})).await, template(json!({ "VTO_SWEEP_LIMIT": "1000" })).await);
}

#[tokio::test]
async fn a_wrong_value_is_refused_in_words() {
    for (change, words) in [
        (json!({ "replica": 1 }), "additional properties 'replica' not allowed"),
        (json!({ "cluster": null }), "missing property 'cluster'"),
        (json!({ "cluster": "a b" }), "at '/cluster': 'a b' does not match pattern"),
        (json!({ "vault": { "address": null } }), "at '/vault': missing property 'address'"),
        (json!({ "vault": { "address": "vault:8200" } }), "at '/vault/address': 'vault:8200' does not match pattern"),
        (json!({ "image": { "repository": null } }), "at '/image': missing property 'repository'"),
        (json!({ "image": { "repository": "operator:1" } }), "at '/image/repository': 'operator:1' does not match"),
        (json!({ "replicas": 0 }), "at '/replicas': minimum"),
        (json!({ "settings": { "VTO_SWEEP_LIMIT": 1000 } }), "at '/settings/VTO_SWEEP_LIMIT': got number, want string"),
        (json!({ "settings": { "sweepLimit": "1000" } }), "'sweepLimit' does not match pattern"),
        (json!({ "settings": { "VTO_CLUSTER": "other" } }), "invalid propertyName 'VTO_CLUSTER'"),
        (json!({ "injection": { "enabled": true } }), "--set-file injection.caCert=<its file>"),
        (json!({ "injection": { "enabled": true, "caCert": "ca.crt" } }), "at '/injection/caCert'"),
    ] {
        let output = render(&chart(), NAME, &change).await;
        assert!(!output.status.success() && output.stderr.contains(words), "{change}: {}", output.stderr);
    }
}

#[tokio::test]
async fn injection_into_an_older_cluster_is_refused_in_words() {
    for (version, works) in [("v1.33.5", false), ("v1.36.0-eks-1", true), ("v1.36.0", true)] {
        let values = values(&json!({ "injection": { "enabled": true, "caCert": AUTHORITY } }));
        let output = helm(&["template", NAME, &chart(), "--kube-version", version, "--set-json", &values]).await;
        assert_eq!(output.status.success(), works, "{version}: {}", output.stderr);
        let told = output.stderr.contains("injection takes Kubernetes 1.36 or newer, and this is v1.33.5");
        assert_eq!(told, !works, "{version}: {}", output.stderr);
    }
}

/// All values of keys of this name, however deep.
fn all<'a>(name: &str, value: &'a Value) -> Vec<&'a Value> {
    match value {
        Value::Object(fields) => {
            let own = fields.iter().filter(|(key, _)| *key == name).map(|(_, value)| value);
            own.chain(fields.values().flat_map(|value| all(name, value))).collect()
        }
        Value::Array(items) => items.iter().flat_map(|value| all(name, value)).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn nothing_is_left_of_the_usual_namespace_in_another_one() {
    let injection = json!({ "enabled": true, "caCert": AUTHORITY });
    let change =
        json!({ "networkPolicy": { "enabled": true }, "injection": injection, "monitoring": { "enabled": true } });
    let rendered = objects(&succeeded(render(&chart(), "elsewhere", &change).await));
    let count = |objects: &Objects| objects.values().map(|object| all("namespace", object).len()).sum::<usize>();
    assert_eq!(count(&rendered), count(&chart_objects(&change).await));
    for (key, object) in &rendered {
        assert!(all("namespace", object).into_iter().all(|namespace| namespace == "elsewhere"), "{key}: {object:#}");
        assert!(!object.to_string().contains("-n vault-token-operator"), "{key} tells of another: {object:#}");
    }
}

#[tokio::test]
async fn helm_finds_nothing_to_say_against_the_chart() {
    succeeded(helm(&["lint", "--strict", &chart(), "--set-json", &values(&json!({}))]).await);
}

#[tokio::test]
async fn a_packed_chart_has_all_that_it_needs_in_it() {
    let folder = testbed().await.run().folder("packed").expect("a folder");
    succeeded(helm(&["package", &chart(), "--destination", &folder.to_string_lossy()]).await);
    // The chart's version and the operator's are the crate's.
    let packed = folder.join(concat!("vault-token-operator-", env!("CARGO_PKG_VERSION"), ".tgz"));
    let packed = packed.to_string_lossy();
    let told = succeeded(helm(&["show", "chart", &packed]).await);
    assert_eq!(yaml::documents(&told).expect("YAML")[0]["appVersion"], env!("CARGO_PKG_VERSION"));
    let rendered = succeeded(render(&packed, NAME, &json!({})).await);
    assert_eq!(rendered, succeeded(render(&chart(), NAME, &json!({})).await));
    let definitions = std::fs::read_to_string(project::root().join("crds/vaultproject.io.yaml")).expect("a file");
    assert_eq!(objects(&succeeded(helm(&["show", "crds", &packed]).await)), objects(&definitions));
}

/// Runs kubectl as an administrator; gives how it ended and all that it printed.
async fn kubectl(arguments: &[&str]) -> (bool, String) {
    let output = plane().await.kubectl(arguments).await.expect("kubectl runs");
    (output.status.success(), format!("{}{}", output.stdout, output.stderr))
}

/// Applies manifests with nothing for the API server to warn of.
async fn apply(arguments: &[&str]) {
    let (succeeded, said) = kubectl(&[&["apply", "--server-side"], arguments].concat()).await;
    assert!(succeeded && !said.contains("Warning"), "{said}");
}

/// A file with this in it.
async fn file(name: &str, content: &str) -> String {
    let file = testbed().await.run().path().join(name);
    std::fs::write(&file, content).expect("written");
    file.to_string_lossy().into_owned()
}

#[tokio::test]
async fn a_real_api_server_takes_the_chart_and_config() {
    apply(&["-f", &project::root().join("config/namespace.yaml").to_string_lossy()]).await;
    let kinds = "deployments,configmaps,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies,\
        clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings,\
        mutatingadmissionpolicies,mutatingadmissionpolicybindings";
    let there = async || kubectl(&["get", kinds, "-n", NAME, "-o", "name"]).await.1;
    let before = there().await;

    let install = ["install", NAME, &chart(), "--namespace", NAME, "--set-json"];
    let injection = json!({ "enabled": true, "caCert": AUTHORITY });
    let with_all = values(&json!({ "networkPolicy": { "enabled": true }, "injection": injection }));
    succeeded(helm(&[&install[..], &[&with_all]].concat()).await);
    // What comes with an upgrade: definitions that are no longer those that helm made.
    let definitions = std::fs::read_to_string(project::root().join("crds/vaultproject.io.yaml")).expect("a file");
    let changed = file("crds.yaml", &definitions.replace("name: Age", "name: Since")).await;
    apply(&["--force-conflicts", "-f", &changed]).await;
    let upgrade = [&["upgrade"], &install[1..]].concat();
    succeeded(helm(&[&upgrade[..], &[&values(&json!({ "replicas": 1 }))]].concat()).await);
    let installed = there().await;
    assert!(installed.contains("deployment.apps/vault-token-operator"), "{installed}");
    assert!(
        !installed.contains("poddisruptionbudget")
            && !installed.contains("networkpolicy")
            && !installed.contains("inject"),
        "{installed}"
    );
    succeeded(helm(&["uninstall", NAME, "--namespace", NAME]).await);
    assert_eq!(there().await, before);
    assert!(kubectl(&["get", "vtr"]).await.0, "its requests would be gone with the definition");

    apply(&["-k", &kustomization(&["plain", "network-policy", "injection"]).await.to_string_lossy()]).await;
    // The namespace takes no pods but restricted ones, and takes the operator's.
    let mut rendered = chart_objects(&json!({})).await;
    let mut pod = deployment(&mut rendered)["spec"]["template"].take();
    json_patch::merge(
        &mut pod,
        &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "operator", "namespace": NAME } }),
    );
    assert_eq!(create(&pod).await, "pod/operator created (server dry run)\n");
    pod["spec"]["securityContext"]["seccompProfile"] = Value::Null;
    let said = create(&pod).await;
    assert!(said.contains("violates PodSecurity \"restricted:latest\": seccompProfile"), "{said}");
}

/// What kubectl says of an object that it would create.
async fn create(object: &Value) -> String {
    kubectl(&["create", "--dry-run=server", "-f", &file("object.json", &object.to_string()).await]).await.1
}
