//! The operator's own life, and Vault's.

use super::restarts::{process, send, until_restarted};
use super::{delete, evict, phases, ready, token, until_described, until_over};
use crate::cluster::{Cluster, LIMIT};
use crate::readme;
use crate::workload::{SLEEPS, Workload};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};
use testbed::node::NEXT_OPERATOR_IMAGE;
use testbed::project;

/// README.md, "Install it in a cluster" with a `kustomization.yaml` of one's own, and config/vault/README.md. Its second step, in which an
/// image is built, is the testbed's.
pub async fn the_operator_is_installed_as_the_readme_says(cluster: &Cluster) {
    // There is nothing else in it, and nothing that grows unseen.
    let size = cluster.image_size();
    assert!(size < 15_000_000, "the operator's image has {size} bytes");

    readme::run(cluster, &vaults_part(), "", &[]).await;
    let own = cluster.own_folder();
    let config = project::path_from(Path::new(&own), "config").expect("a way").to_string_lossy().into_owned();
    let ca = cluster.vault().ca_path();
    let pem = std::fs::read_to_string(ca).expect("a certificate");
    let filling = [
        ("<the project's folder, by a path that is relative to this file's>/config", &*config),
        ("<your registry>/", ""),
        ("<name>", "main"),
        ("<address>", cluster.vault().address()),
        ("<the CA, as PEM, indented as this line is>", pem.trim_end()),
    ];
    let steps = readme::part("README.md", "\n## Install it in a cluster\n", "\n### With Helm\n");
    let mine = readme::file(&steps, "resources: [", &filling);
    let injection = readme::part("README.md", "\n### Injection\n", "\nFurther entries");
    let patches = readme::file(&injection, "patches:", &filling);
    let kustomization = format!("{mine}\ncomponents: [{config}/injection]\n{patches}\n");
    std::fs::write(format!("{own}/kustomization.yaml"), kustomization).expect("written");
    let (install, allow) = steps.split_once("\n5. ").expect("a fifth step");
    let install = readme::commands(install);
    assert_eq!(install.len(), 4, "{install:?}");
    readme::run(cluster, &install, &own, &[(AUTHORITY, &ca.to_string_lossy())]).await;

    // What the operator says then, and what its workloads may do.
    let logs = "kubectl -n vault-token-operator logs -l app.kubernetes.io/name=vault-token-operator --prefix --tail=-1";
    assert!(steps.contains(&format!("`{logs}`")));
    let words: Vec<_> = logs.split(' ').skip(1).collect();
    cluster
        .until("the operator says what it should", async || {
            let log = cluster.must(&words).await;
            let said = ["logged in to Vault", "the admission policy is in force", "this replica leads"];
            if said.iter().all(|words| log.contains(words) && steps.contains(&format!("`{words}`"))) {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;

    // A service account that was there before: nothing is granted to it yet.
    let workload = Workload::new(cluster, "fifth").await;
    cluster.must(&["-n", "fifth", "delete", "rolebinding", "vault-token-requester"]).await;
    cluster.must(&["delete", "vpb", "fifth-web"]).await;
    let filling = [("<namespace>", "fifth"), ("<service account>", "web")];
    std::fs::write(format!("{own}/binding.yaml"), readme::file(allow, "apiVersion: ", &filling)).expect("written");
    let allow = readme::commands(allow);
    assert_eq!(allow.len(), 2, "{allow:?}");
    readme::run(cluster, &allow, &own, &filling).await;
    cluster.apply("fifth", &workload.pod("web", &SLEEPS).to_string()).await;
    ready(cluster, "fifth", "web").await;
    delete(cluster, "fifth").await;
}

/// What the documents call the file with Vault's authority.
const AUTHORITY: &str = "<file with the CA of Vault's certificate>";

/// config/vault/README.md, "The operator".
fn vaults_part() -> Vec<String> {
    let commands = readme::commands(&readme::part("config/vault/README.md", "\n## The operator\n", "\n- `policy.hcl`"));
    assert_eq!(commands.len(), 7, "{commands:?}");
    commands
}

/// README.md, "Upgrade and uninstall": its commands, and those that stand in the place of some after an installation by helm.
fn uninstall() -> [Vec<String>; 2] {
    let part = readme::part("README.md", "\nTo uninstall, let the operator", "\nWhat you made beside that");
    let (usual, helms) = part.split_once("\nWith Helm, in place of the two lines with `config/`").expect("helm's part");
    [usual, helms].map(readme::commands)
}

/// Waits until nothing is left of the product in the cluster, nor in Vault.
async fn until_nothing_is_left(cluster: &Cluster) {
    let left = async || {
        let kinds = "customresourcedefinitions,clusterroles,clusterrolebindings,namespaces,validatingadmissionpolicies,\
                     validatingadmissionpolicybindings,mutatingadmissionpolicies,mutatingadmissionpolicybindings";
        let left = cluster.must(&["get", kinds, "-o", "name"]).await;
        assert!(left.contains("clusterrole"), "{left}");
        // Vault's own place in the cluster aside.
        let of_vault = ["namespace/vault", "clusterrolebinding.rbac.authorization.k8s.io/vault-auth-delegator"];
        let ours = left.lines().filter(|line| line.contains("vault") && !of_vault.contains(line)).collect::<Vec<_>>();
        let tokens = cluster.vault().live_tokens_where("cluster", "main").await.expect("a list").len();
        // Each gives its login back when it ends.
        let mut logins = 0;
        for role in ["vault-token-operator", "vault-token-operator-sweep"] {
            logins += cluster.vault().live_tokens_where("role", role).await.expect("a list").len();
        }
        let nothing = ours.is_empty() && (tokens, logins) == (0, 0);
        if nothing { Ok(()) } else { Err(format!("{ours:?}, {tokens} tokens, {logins} logins")) }
    };
    cluster.until("nothing is left", left).await;
}

/// README.md, "With Helm", and "Upgrade and uninstall".
pub async fn helm_installs_and_uninstalls_it_as_the_readme_says(cluster: &Cluster) {
    readme::run(cluster, &vaults_part(), "", &[]).await;
    let own = cluster.own_folder();
    let part = readme::part("README.md", "\n### With Helm\n", "\n### Variants\n");
    let filling = [("<name>", "main"), ("<address>", cluster.vault().address()), ("<your registry>/", "")];
    std::fs::write(format!("{own}/values.yaml"), readme::file(&part, "cluster: ", &filling)).expect("written");
    let commands = readme::commands(&part);
    assert_eq!(commands.len(), 3, "{commands:?}");
    readme::run(cluster, &commands, &own, &[(AUTHORITY, &cluster.vault().ca_path().to_string_lossy())]).await;
    cluster.roll_out().await;
    let workload = Workload::new(cluster, "helmed").await;
    cluster.apply("helmed", &workload.pod("web", &SLEEPS).to_string()).await;
    ready(cluster, "helmed", "web").await;
    assert!(cluster.accepts(&token(cluster, "helmed", "web").await).await);

    let [usual, helms] = uninstall();
    let (before, after): (Vec<_>, Vec<_>) =
        usual.into_iter().partition(|command| command.contains(" rolebinding ") || command.contains(" vtr "));
    let after = after.into_iter().filter(|command| !command.contains("config/")).collect::<Vec<_>>();
    let filling = [("<its name>", "vault-token-requester"), ("<namespace>", "helmed")];
    readme::run(cluster, &[before, helms, after].concat(), &own, &filling).await;
    cluster.must(&["delete", "namespace", "helmed", "--timeout=60s"]).await;
    until_nothing_is_left(cluster).await;
}
/// Once the product is not there any more.
pub async fn the_demo_leaves_a_cluster_that_was_there_before_as_it_was(cluster: &Cluster) {
    // Where the scenarios before it were left out.
    if cluster.must(&["get", "crds", "-o", "name"]).await.contains("vaulttokenrequests") {
        let (own, [commands, _]) = (cluster.own_folder(), uninstall());
        readme::run(cluster, &commands[1..], &own, &[]).await;
    }
    cluster.node().import(&testbed::node::openbao_image().expect("an image")).await.expect("imported");
    let before = objects(cluster).await;
    let demo = cluster.demo().await.expect("nothing of the demo's is there");
    let told = demo.tell().await;
    demo.remove().await.expect("removed");
    told.expect("all of it came true");
    until_objects_are(cluster, &before).await;

    // One that came to nothing, in the midst of it: the namespace is there, and nothing else.
    let demo = cluster.demo().await.expect("nothing of the demo's is there");
    let another = refusal(cluster).await;
    assert!(another.contains("namespace/vault-token-operator-demo in it"), "{another}");
    demo.remove().await.expect("removed");
    until_objects_are(cluster, &before).await;

    // One that its user ends by Ctrl-C.
    let demo = cluster.demo_command();
    let said = || std::fs::read_to_string(demo.log()).expect("a log");
    let installs = async || if said().contains("installing crds/") { Ok(()) } else { Err(said()) };
    cluster.until("the demo installs", installs).await;
    demo.interrupt();
    let ended = demo.wait(2 * LIMIT).await.expect("it ends");
    let (said, words) = (said(), ["stopped before it was done", "all that the demo made is gone"]);
    assert!(!ended.success() && words.iter().all(|words| said.contains(words)), "{ended}: {said}");
    until_objects_are(cluster, &before).await;

    // What others have under a name of the product's.
    let labels = r#"{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "vault-namespace-labels"}, "spec": {"validations": [{"expression": "true"}],
        "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["deployments"]}]}}}"#;
    cluster.apply("default", labels).await;
    let planted = objects(cluster).await;
    let refused = refusal(cluster).await;
    assert!(refused.contains("/vault-namespace-labels in it"), "{refused}");
    assert_eq!(objects(cluster).await, planted);
    cluster.must(&["delete", "validatingadmissionpolicy", "vault-namespace-labels"]).await;
}

/// Why the demo does not run in this cluster.
async fn refusal(cluster: &Cluster) -> String {
    cluster.demo().await.err().map(|error| format!("{error:?}")).unwrap_or_default()
}

/// All objects of the cluster, by kind, namespace, name, UID and generation, but those that come and go by themselves.
async fn objects(cluster: &Cluster) -> BTreeSet<String> {
    let kinds = cluster.must(&["api-resources", "--verbs=list", "-o", "name"]).await;
    let comes_and_goes = ["events", "events.events.k8s.io", "leases.coordination.k8s.io"];
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !comes_and_goes.contains(kind)).collect();
    let columns = "jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name} {.metadata.uid} {.metadata.generation}{\"\\n\"}{end}";
    let objects = cluster.must(&["get", &kinds.join(","), "-A", "--ignore-not-found", "-o", columns]).await;
    objects.lines().map(str::to_owned).collect()
}

/// The API server takes its time to forget a kind.
async fn until_objects_are(cluster: &Cluster, before: &BTreeSet<String>) {
    let as_before = async || match objects(cluster).await {
        after if after == *before => Ok(()),
        after => Err(format!("{:?}", after.symmetric_difference(before).collect::<Vec<_>>())),
    };
    cluster.until("the cluster is as it was", as_before).await;
}

/// README.md, "Upgrade and uninstall".
pub async fn the_operator_is_uninstalled_as_the_readme_says(cluster: &Cluster) {
    let workload = Workload::new(cluster, "last").await;
    cluster.apply("last", &workload.pod("web", &SLEEPS).to_string()).await;
    ready(cluster, "last", "web").await;
    // The demo does not remove in the end what others have installed.
    let refused = refusal(cluster).await;
    assert!(refused.contains("namespace/vault-token-operator") && refused.contains("nothing was changed"), "{refused}");
    let [commands, _] = uninstall();
    assert_eq!(commands.len(), 11, "{commands:?}");
    let filling = [("<its name>", "vault-token-requester"), ("<namespace>", "last")];
    readme::run(cluster, &commands, &cluster.own_folder(), &filling).await;
    cluster.must(&["delete", "namespace", "last", "--timeout=60s"]).await;
    until_nothing_is_left(cluster).await;
}

pub async fn pods_wait_while_vault_is_away_and_say_so(cluster: &Cluster) {
    let workload = Workload::new(cluster, "away").await;
    cluster.vault().pause();
    cluster.apply("away", &workload.pod("web", &SLEEPS).to_string()).await;
    for what in ["pod", "vtr"] {
        until_described(cluster, "away", &[what], "VaultUnavailable").await;
    }
    let pod = cluster.get(&["-n", "away", "pod", "web"]).await;
    assert!(pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object(), "{pod:#}");
    dumps_no_core(process(&cluster.uid("away", "web").await, "vault-token-operator init"));
    let leader = cluster.leader().await;
    dumps_no_core(process(&cluster.uid("vault-token-operator", &leader).await, "vault-token-operator run"));
    cluster.vault().resume();
    ready(cluster, "away", "web").await;
    assert!(cluster.accepts(&token(cluster, "away", "web").await).await);
    delete(cluster, "away").await;
}

/// I9: the kernel asks a limit of nothing where it pipes core dumps to a program. What belongs to root in the place of its user in
/// proc_pid(5) is a process that is not dumped at all.
fn dumps_no_core(id: i32) {
    let file = format!("/proc/{id}/status");
    let status = std::fs::read_to_string(&file).expect("a process");
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().next());
    assert_eq!((user, std::fs::metadata(&file).expect("a file").uid()), (Some("65532"), 0), "{status}");
}

/// From one image to another, then its leader is deleted, and then its node is drained, while pods start.
pub async fn an_operator_that_is_upgraded_or_deleted_loses_no_request(cluster: &Cluster) {
    let workload = Workload::new(cluster, "upgrade").await;
    let start = async |first: usize| {
        let pods: Vec<_> = (first..first + 6).map(|number| workload.pod(&format!("web-{number}"), &SLEEPS)).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": pods });
        cluster.apply("upgrade", &list.to_string()).await;
    };
    let operator = ["-n", "vault-token-operator"];
    start(0).await;
    // README.md, "Upgrade and uninstall".
    let own = cluster.own_folder();
    let (_, tag) = NEXT_OPERATOR_IMAGE.rsplit_once(':').expect("a tag");
    let file = format!("{own}/kustomization.yaml");
    let text = std::fs::read_to_string(&file).expect("a file");
    let (before, after) = text.split_once("newName: vault-token-operator\n").expect("an image");
    let indentation = before.rsplit('\n').next().expect("a line");
    let named = format!("{before}newName: vault-token-operator\n{indentation}newTag: \"{tag}\"\n{after}");
    std::fs::write(&file, named).expect("written");
    let part = readme::part("README.md", "\n## Upgrade and uninstall\n", "\nand if you have set up injection");
    let commands = readme::commands(&part);
    assert_eq!(commands.len(), 2, "{commands:?}");
    readme::run(cluster, &commands, &own, &[]).await;
    start(6).await;
    cluster.roll_out().await;
    let pods = cluster.operators().await;
    let stay = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let images: Vec<_> = stay.map(|pod| pod["spec"]["containers"][0]["image"].clone()).collect();
    assert_eq!(images, [NEXT_OPERATOR_IMAGE; 2]);
    let leader = cluster.leader().await;
    start(12).await;
    cluster.must(&[&operator[..], &["delete", "pod", &leader]].concat()).await;
    cluster.roll_out().await;
    start(18).await;
    drain(cluster).await;
    cluster.roll_out().await;
    let mut tokens = HashSet::new();
    for number in 0..24 {
        let name = format!("web-{number}");
        ready(cluster, "upgrade", &name).await;
        let token = token(cluster, "upgrade", &name).await;
        assert!(cluster.accepts(&token).await, "{name}");
        tokens.insert(token);
    }
    assert_eq!(tokens.len(), 24);
    assert_eq!(phases(&cluster.get(&["-n", "upgrade", "vtr"]).await), ["Delivered"; 24], "none was asked for twice");
    super::until_live(cluster, "upgrade", 24).await;
    cluster.must(&["-n", "upgrade", "delete", "pods", "--all", "--timeout=60s"]).await;
    until_over(cluster, "upgrade").await;
    delete(cluster, "upgrade").await;
    cluster.roll_out().await;
}

/// Evicts all of the operator's pods, as whoever drains their node does: one after the other, since the PodDisruptionBudget wants it so.
async fn drain(cluster: &Cluster) {
    let pods = cluster.operators().await;
    let pods: Vec<_> = pods.iter().map(|pod| pod["metadata"]["name"].as_str().expect("a name")).collect();
    assert_eq!(pods.len(), 2);
    assert_eq!(evict(cluster, "vault-token-operator", pods[0]).await, Ok(()));
    let refused = evict(cluster, "vault-token-operator", pods[1]).await.expect_err("both at once");
    assert!(refused.contains("disruption budget"), "{refused}");
    cluster
        .until("the other one is evicted, too", async || evict(cluster, "vault-token-operator", pods[1]).await)
        .await;
}

/// It says nothing any more; the kubelet sees that, and the other replica does its work meanwhile.
pub async fn a_replica_that_does_nothing_is_started_anew(cluster: &Cluster) {
    let workload = Workload::new(cluster, "stopped").await;
    let leader = cluster.leader().await;
    let uid = cluster.uid("vault-token-operator", &leader).await;
    send(Signal::STOP, &uid, "/vault-token-operator run");
    cluster.apply("stopped", &workload.pod("web", &SLEEPS).to_string()).await;
    ready(cluster, "stopped", "web").await;
    until_described(cluster, "vault-token-operator", &["pod", &leader], "Liveness probe failed").await;
    // It does not hear that it is to end.
    until_described(cluster, "vault-token-operator", &["pod", &leader], "Killing").await;
    until_restarted(cluster, "vault-token-operator", &leader, "containerStatuses", 1).await;
    cluster.roll_out().await;
    delete(cluster, "stopped").await;
    // Killed, it gave its login back to nobody.
    cluster.scale_operator(0).await;
    let logins = async || cluster.vault().live_tokens_where("role", "vault-token-operator").await.expect("a list");
    let one = async || match logins().await.len() {
        1 => Ok(()),
        count => Err(format!("{count} logins")),
    };
    cluster.until("the others have given theirs back", one).await;
    for login in logins().await {
        let body = json!({ "accessor": login.accessor });
        cluster.vault().must(Method::POST, "auth/token/revoke-accessor", Some(&body)).await.expect("revoked");
    }
    cluster.scale_operator(2).await;
}

/// It is renewed again and again.
pub async fn a_token_of_twenty_seconds_lives_as_long_as_its_pod(cluster: &Cluster) {
    let workload = Workload::new(cluster, "renewed").await;
    let mut pod = workload.pod("web", &SLEEPS);
    pod["metadata"]["annotations"]["vaultproject.io/ttl"] = json!("20s");
    cluster.apply("renewed", &pod.to_string()).await;
    ready(cluster, "renewed", "web").await;
    let request = async || cluster.get(&["-n", "renewed", "vtr"]).await["items"][0]["status"].clone();
    let first = request().await;
    assert_eq!(first["ttl"], "20s");
    let accessor = json!({ "accessor": first["tokenAccessor"] });
    let known =
        cluster.vault().must(Method::POST, "auth/token/lookup-accessor", Some(&accessor)).await.expect("a token");
    assert_eq!(known["data"]["period"], 20);
    let (token, begun) = (token(cluster, "renewed", "web").await, Instant::now());
    while begun.elapsed() < Duration::from_secs(300) {
        assert!(cluster.accepts(&token).await, "dead after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let last = request().await;
    assert_eq!(phases(&cluster.get(&["-n", "renewed", "vtr"]).await), ["Delivered"]);
    assert_eq!(last["tokenAccessor"], first["tokenAccessor"], "it is the same one");
    assert_ne!(last["expiresAt"], first["expiresAt"]);
    delete(cluster, "renewed").await;
    assert!(!cluster.accepts(&token).await);
}
