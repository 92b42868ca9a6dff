//! `vault-token-operator explain`: what a pod would be granted, by the very function by which the operator decides.

use super::rulebook::{binding, labels};
use crate::api::{Delivery, VaultPolicyBinding};
use crate::cluster::{self, Error, bounded};
use crate::domain::duration;
use crate::domain::grant::{Grant, Limits, Why, grant};
use crate::domain::pod::PodFacts;
use crate::domain::rules::{Rule, Rules};
use crate::yaml;
use clap::{ArgGroup, Args, ValueEnum};
use k8s_openapi::api::core::v1::{Container, Namespace, Pod};
use kube::api::ListParams;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

/// Where a kind of object has its pod's template.
const TEMPLATES: [&str; 2] = ["/spec/template", "/spec/jobTemplate/spec/template"];

/// Arguments of `vault-token-operator explain`.
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["pod", "file"])))]
pub struct Arguments {
    /// Name of a pod that is there
    #[arg(value_name = "POD")]
    pod: Option<String>,

    /// Manifest with pods, or with what makes pods (a Deployment, a Job, ...), that need not be there yet
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Namespace of the pod, and of objects in the manifest that name none [default: the kubeconfig's]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,

    /// How the init container gets its token [default: as its manifest says]
    #[arg(long, value_name = "HOW", value_enum)]
    delivery: Option<How>,

    /// The operator's token role: vault-token-operator- and the cluster's name, unless it has a setting of its own
    #[arg(
        long,
        env = "VTO_TOKEN_ROLE",
        value_name = "NAME",
        default_value = "vault-token-operator-main",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    token_role: String,

    /// The operator's setting of this name
    #[arg(long, env = "VTO_DEFAULT_TTL", value_name = "DURATION", default_value = "72h", value_parser = duration::parse)]
    default_ttl: Duration,

    /// The operator's setting of this name
    #[arg(long, env = "VTO_MAX_TTL", value_name = "DURATION", default_value = "768h", value_parser = duration::parse)]
    max_ttl: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    Push,
    Status,
}

/// A pod as it is, or would be.
struct Candidate {
    what: String,
    namespace: String,
    pod: Pod,
}

/// Says for each pod what it is granted; gives the text, and whether all are granted what they ask for.
///
/// # Errors
/// A sentence that says what could not be read.
pub async fn run(arguments: Arguments) -> Result<(String, bool), String> {
    let client = cluster::connect().await?;
    let home = arguments.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let candidates = match &arguments.file {
        Some(file) => {
            let unread = |error| format!("cannot read {}: {error}", file.display());
            let text = tokio::fs::read_to_string(file).await.map_err(unread)?;
            from_manifest(&text, &home).map_err(|why| format!("{}: {why}", file.display()))?
        }
        None => {
            let name = arguments.pod.clone().unwrap_or_default();
            let pods: Api<Pod> = Api::namespaced(client.clone(), &home);
            let found = bounded(pods.get_opt(&name)).await.map_err(|error| error.to_string())?;
            let pod = found.ok_or_else(|| format!("there is no pod {name} in the namespace {home}"))?;
            vec![Candidate { what: format!("pod {name}"), namespace: home.clone(), pod }]
        }
    };
    if candidates.is_empty() {
        return Err("there is no pod in the manifest, and nothing that makes pods".to_owned());
    }
    let limits = Limits::for_grants(arguments.default_ttl, arguments.max_ttl);
    let (mut text, mut all) = (String::new(), true);
    for Candidate { what, namespace, pod } in candidates {
        let rules =
            rules(&client, &namespace, &arguments.token_role, &limits).await.map_err(|error| error.to_string())?;
        let mut facts = PodFacts::read(&pod, "");
        if facts.service_account.is_empty() {
            facts.service_account = "default".to_owned();
        }
        let delivery = match arguments.delivery.unwrap_or_else(|| asked(&pod)) {
            How::Push => Delivery::Push,
            How::Status => Delivery::Status,
        };
        let granted = grant(&facts, &namespace, delivery, &rules, &limits);
        all &= granted.is_ok();
        text.push_str(&format!("{what} (namespace {namespace}, service account {}): ", facts.service_account));
        text.push_str(&words(granted));
        if !asks(&pod) {
            text.push_str(
                "  but nobody asks for it: there is no init container vault-init, nor one with VTO_CONTAINER_NAME or \
                 --container-name, nor the annotation vaultproject.io/inject\n",
            );
        }
    }
    Ok((text, all))
}

/// Whether there is an init container that may well be ours, or will be by injection.
fn asks(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let injected = annotations.and_then(|all| all.get("vaultproject.io/inject")).is_some_and(|value| value == "true");
    injected || ours(pod).next().is_some()
}

/// How the pod's init container asks, by its manifest.
fn asked(pod: &Pod) -> How {
    let status = ours(pod).any(|container| setting(container, "--delivery", "VTO_DELIVERY") == Some("status"));
    if status { How::Status } else { How::Push }
}

/// The init containers that may well be ours.
fn ours(pod: &Pod) -> impl Iterator<Item = &Container> {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    containers.filter(|it| it.name == "vault-init" || setting(it, "--container-name", "VTO_CONTAINER_NAME").is_some())
}

/// A setting as a container has it: its arguments go before its environment.
fn setting<'a>(container: &'a Container, flag: &str, variable: &str) -> Option<&'a str> {
    let mut arguments = container.command.iter().chain(&container.args).flatten();
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix(flag) {
            Some("") => return arguments.next().map(String::as_str),
            Some(rest) if rest.starts_with('=') => return Some(&rest[1..]),
            _ => {}
        }
    }
    let last = container.env.iter().flatten().rfind(|it| it.name == variable)?;
    Some(last.value.as_deref().unwrap_or_default())
}

fn words(granted: Result<Grant, Why>) -> String {
    match granted {
        Ok(grant) => format!(
            "granted\n  policies:   {}\n  ttl:        {}\n  by:         VaultPolicyBinding {}\n  token role: {}\n  renews:     {}\n",
            grant.policies.join(", "),
            duration::format(grant.ttl),
            grant.granted_by,
            grant.token_role,
            if grant.self_renewal { "the operator, and itself if a policy lets it" } else { "the operator" }
        ),
        Err(why) => format!("not granted\n  {}: {}\n", why.reason, why.message),
    }
}

/// What is granted in one namespace.
async fn rules(client: &Client, namespace: &str, token_role: &str, limits: &Limits) -> Result<Rules, Error> {
    let bindings: Api<DeserializeGuard<VaultPolicyBinding>> = Api::all(client.clone());
    let listed = bounded(bindings.list(&ListParams::default())).await?;
    let read = listed.items.into_iter().filter_map(binding);
    let rules = read.filter_map(|binding| {
        let name = binding.metadata.name.clone().unwrap_or_default();
        Rule::read(&binding, token_role, limits)
            .inspect_err(|why| tracing::warn!(binding = name, "it grants nothing: {why}"))
            .ok()
    });
    let rules = rules.collect();
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let found = bounded(namespaces.get_opt(namespace)).await?.and_then(labels);
    Ok(Rules::new(rules, found.map(|labels| (namespace.to_owned(), labels)).into_iter().collect::<HashMap<_, _>>()))
}

/// The pods of a manifest, and those that its objects would make.
fn from_manifest(text: &str, home: &str) -> Result<Vec<Candidate>, String> {
    let mut candidates = Vec::new();
    for document in yaml::documents(text)?.into_iter().flat_map(items) {
        let word = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
        let kind = word("/kind").unwrap_or_default().to_owned();
        let template = match kind.as_str() {
            "Pod" => Some(&document),
            _ => TEMPLATES.iter().find_map(|pointer| document.pointer(pointer)),
        };
        let Some(template) = template else { continue };
        let name = word("/metadata/name").unwrap_or("without a name");
        let what = format!("{} {name}", kind.to_lowercase());
        let namespace = word("/metadata/namespace").unwrap_or(home).to_owned();
        let pod = json!({ "metadata": template.get("metadata"), "spec": template.get("spec") });
        let pod =
            serde_json::from_value(pod).map_err(|error| format!("the {what} has no pod that can be read: {error}"))?;
        candidates.push(Candidate { what, namespace, pod });
    }
    Ok(candidates)
}

/// The objects of a List, or the one that it is.
fn items(mut document: Value) -> Vec<Value> {
    match document.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => vec![document],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_in_whatever_makes_them() {
        let text = "
kind: Namespace
metadata: {name: shop}
---
kind: Pod
metadata: {name: web, namespace: shop, annotations: {vaultproject.io/policies: a}}
spec: {serviceAccountName: web, containers: []}
---
kind: Deployment
metadata: {name: store}
spec:
  template:
    metadata: {annotations: {vaultproject.io/policies: b}}
    spec: {containers: []}
---
kind: List
items:
  - kind: CronJob
    metadata: {name: nightly}
    spec: {jobTemplate: {spec: {template: {spec: {containers: []}}}}}
";
        let found = from_manifest(text, "home").expect("candidates");
        let told: Vec<_> = found.iter().map(|it| (it.what.as_str(), it.namespace.as_str())).collect();
        assert_eq!(told, [("pod web", "shop"), ("deployment store", "home"), ("cronjob nightly", "home")]);
        assert_eq!(PodFacts::read(&found[1].pod, "").policies.as_deref(), Some("b"));
        assert!(from_manifest("kind: [", "home").is_err());
    }

    #[test]
    fn a_pod_without_an_init_container_of_ours_asks_for_nothing() {
        let asks = |containers: Value| {
            let pod = json!({ "metadata": {}, "spec": { "containers": [], "initContainers": containers } });
            asks(&serde_json::from_value(pod).expect("a pod"))
        };
        let injected = json!({ "metadata": { "annotations": { "vaultproject.io/inject": "true" } } });
        assert!(super::asks(&serde_json::from_value(injected).expect("a pod")));
        assert!(!asks(json!([])));
        assert!(!asks(json!([{ "name": "vault-int" }])));
        assert!(asks(json!([{ "name": "migrate" }, { "name": "vault-init" }])));
        assert!(asks(json!([{ "name": "ours", "env": [{ "name": "VTO_CONTAINER_NAME", "value": "ours" }] }])));
        assert!(asks(json!([{ "name": "ours", "args": ["init", "--container-name", "ours"] }])));
    }

    #[test]
    fn how_it_asks_is_read_from_its_arguments_and_its_environment() {
        let asked = |container: Value| {
            let pod = json!({ "spec": { "containers": [], "initContainers": [container] } });
            super::asked(&serde_json::from_value(pod).expect("a pod"))
        };
        let (status, push) = ("--delivery=status", json!([{ "name": "VTO_DELIVERY", "value": "push" }]));
        let by_status = json!([{ "name": "VTO_DELIVERY", "value": "status" }]);
        for container in [
            json!({ "name": "vault-init", "env": by_status }),
            json!({ "name": "vault-init", "args": ["init", status] }),
            json!({ "name": "vault-init", "args": ["init", "--delivery", "status"] }),
            json!({ "name": "vault-init", "command": ["/vault-token-operator", "init", status], "env": push }),
        ] {
            assert_eq!(asked(container.clone()), How::Status, "{container}");
        }
        for container in [
            json!({ "name": "vault-init" }),
            json!({ "name": "vault-init", "args": ["init", "--delivery=push"], "env": by_status }),
            json!({ "name": "vault-init", "args": ["init", "--delivery"] }),
            json!({ "name": "migrate", "args": [status] }),
        ] {
            assert_eq!(asked(container.clone()), How::Push, "{container}");
        }
    }
}
