//! What NetworkPolicies let through.

use super::restarts::{send, until_restarted};
use super::{delete, ready, token, until_described, until_live};
use crate::cluster::Cluster;
use crate::workload::{self, SLEEPS, Workload, shell as shell_container};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Command;
use testbed::world;

const OPERATOR: &str = "vault-token-operator";
/// Where init containers wait for the push, and where nobody of the product listens.
const PUSH: u16 = 8245;
const OTHER: u16 = 8181;
/// Where the operator tells how it is.
const HEALTH: u16 = 8080;
/// The kubelet's own.
const KUBELET: u16 = 10250;

/// A pod that listens at all of these ports, labelled as the operator's are.
fn server(name: &str) -> Value {
    let listen = [PUSH, OTHER, HEALTH].map(|port| format!("busybox nc -ll -p {port} -e busybox hostname & "));
    let command = format!("{}exec busybox sleep 3600", listen.concat());
    let mut container = workload::shell("app", &["-c", &command]);
    container["securityContext"] = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app.kubernetes.io/name": OPERATOR } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [container],
        },
    })
}

/// Where a pod is.
async fn address(cluster: &Cluster, namespace: &str, pod: &str) -> String {
    let pod = cluster.get(&["-n", namespace, "pod", pod]).await;
    pod["status"]["podIP"].as_str().expect("an address").to_owned()
}

/// What a shell in a pod prints for this command.
async fn shell(cluster: &Cluster, (namespace, pod): (&str, &str), command: &str) -> String {
    cluster.must(&["-n", namespace, "exec", pod, "-c", "app", "--", "/bin/sh", "-c", command]).await
}

/// Waits until a pod can connect to this address, or cannot.
async fn until_connects(cluster: &Cluster, from: (&str, &str), address: &str, port: u16, wanted: bool) {
    let command = format!("busybox nc -w 2 {address} {port} >/dev/null 2>&1 && echo true || echo false");
    let what = format!("that a connection from {from:?} to {address}:{port} is made is {wanted}");
    cluster
        .until(&what, async || {
            let connects = shell(cluster, from, &command).await;
            if connects.trim() == wanted.to_string() { Ok(()) } else { Err(format!("it is {connects}")) }
        })
        .await;
}

/// `examples/network-policy.yaml`. Nothing is let into a namespace; then the operator is, and nobody else.
pub async fn a_network_policy_that_lets_only_the_operator_in_lets_tokens_in(cluster: &Cluster) {
    let workload = Workload::new(cluster, "closed").await;
    cluster.must(&["create", "namespace", "stranger"]).await;
    cluster.apply("stranger", &server("server").to_string()).await;
    cluster.apply("closed", &server("server").to_string()).await;
    let mut unlabelled = server("unlabelled");
    unlabelled["metadata"]["labels"] = json!({});
    for pod in [server("probe"), unlabelled] {
        cluster.apply(OPERATOR, &pod.to_string()).await;
    }
    let (stranger, probe, unlabelled) = (("stranger", "server"), (OPERATOR, "probe"), (OPERATOR, "unlabelled"));
    for (namespace, pod) in [stranger, probe, unlabelled, ("closed", "server")] {
        ready(cluster, namespace, pod).await;
    }
    let closed = address(cluster, "closed", "server").await;
    for from in [stranger, probe, unlabelled] {
        for port in [PUSH, OTHER] {
            until_connects(cluster, from, &closed, port, true).await;
        }
    }

    let nothing = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "nothing" },
        "spec": { "podSelector": {}, "policyTypes": ["Ingress"] },
    });
    cluster.apply("closed", &nothing.to_string()).await;
    until_connects(cluster, stranger, &closed, PUSH, false).await;
    // The policy is in force for a pod some time after it has its address; until then ours is not to ask.
    let mut pod = workload.pod("web", &SLEEPS);
    let gate = shell_container("gate", &["-c", "trap 'exit 0' TERM; while :; do busybox sleep 0.1; done"]);
    pod["spec"]["initContainers"].as_array_mut().expect("init containers").insert(0, gate);
    cluster.apply("closed", &pod.to_string()).await;
    let enforced = async || {
        let pod = cluster.get(&["-n", "closed", "pod", "web"]).await;
        let address = pod["status"]["podIP"].as_str().ok_or("no address")?.to_owned();
        let rules = Command::new("iptables").arg("-S").output().expect("iptables").stdout;
        let known = String::from_utf8_lossy(&rules).lines().any(|rule| rule.contains(&format!(" -d {address}/32 ")));
        if known { Ok(()) } else { Err(format!("no rule has {address}")) }
    };
    cluster.until("the policy is in force for the pod", enforced).await;
    cluster.must(&["-n", "closed", "exec", "web", "-c", "gate", "--", "/bin/sh", "-c", "kill -TERM 1"]).await;
    until_described(cluster, "closed", &["vtr"], "PushFailed").await;

    let path = testbed::project::root().join("examples/network-policy.yaml");
    let policy =
        std::fs::read_to_string(path).expect("the example").replace("namespace: shop\n", "namespace: closed\n");
    cluster.apply("closed", &policy).await;
    ready(cluster, "closed", "web").await;
    assert!(cluster.accepts(&token(cluster, "closed", "web").await).await);
    // It is a policy of its own, too.
    cluster.must(&["-n", "closed", "delete", "networkpolicy", "nothing"]).await;
    cluster.apply("closed", &workload.pod("next", &SLEEPS).to_string()).await;
    ready(cluster, "closed", "next").await;
    // The operator's label is worth nothing in another namespace, nor its namespace without the label.
    for from in [stranger, unlabelled] {
        for port in [PUSH, OTHER] {
            until_connects(cluster, from, &closed, port, false).await;
        }
    }
    until_connects(cluster, probe, &closed, PUSH, true).await;
    until_connects(cluster, probe, &closed, OTHER, false).await;

    cluster.must(&["-n", "closed", "delete", "networkpolicy", OPERATOR]).await;
    until_connects(cluster, stranger, &closed, OTHER, true).await;
    cluster.must(&["-n", OPERATOR, "delete", "pod", "probe", "unlabelled", "--timeout=60s"]).await;
    delete(cluster, "closed").await;
    delete(cluster, "stranger").await;
}

/// `config/network-policy`, with the ports that the API server and Vault have here. A pod that is labelled as the operator's shows what
/// goes to them, and from them.
pub async fn the_operator_in_its_own_network_policy_does_all_it_does(cluster: &Cluster) {
    let workload = Workload::new(cluster, "served").await;
    cluster.apply("served", &server("server").to_string()).await;
    cluster.apply(OPERATOR, &server("probe").to_string()).await;
    ready(cluster, "served", "server").await;
    ready(cluster, OPERATOR, "probe").await;
    let (served, probe) = (("served", "server"), (OPERATOR, "probe"));
    let served_address = address(cluster, "served", "server").await;
    let probe_address = address(cluster, OPERATOR, "probe").await;
    let node = world::ADDRESS.to_string();
    // Each that is refused below, as long as it is not.
    until_connects(cluster, served, &probe_address, OTHER, true).await;
    until_connects(cluster, probe, &served_address, OTHER, true).await;
    until_connects(cluster, probe, &node, KUBELET, true).await;

    let installed = cluster.install_network_policy().await;
    until_connects(cluster, served, &probe_address, OTHER, false).await;
    until_connects(cluster, probe, &served_address, OTHER, false).await;
    until_connects(cluster, probe, &node, KUBELET, false).await;
    until_connects(cluster, served, &probe_address, HEALTH, true).await;
    until_connects(cluster, probe, &served_address, PUSH, true).await;

    for port in cluster.server_ports() {
        until_connects(cluster, probe, &node, port, true).await;
    }

    // Connections that it has are left to it, and a new pod can make some before its rules are there: it makes all of them anew where
    // they are.
    let of_deployment = format!("app.kubernetes.io/name={OPERATOR},pod-template-hash");
    let replicas = cluster.get(&["-n", OPERATOR, "pods", "-l", &of_deployment]).await;
    let replicas = replicas["items"].as_array().expect("a list");
    assert_eq!(replicas.len(), 2);
    for replica in replicas {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let (name, address) = (text(&replica["metadata"]["name"]), text(&replica["status"]["podIP"]));
        send(Signal::TERM, &text(&replica["metadata"]["uid"]), "/vault-token-operator run");
        until_restarted(cluster, OPERATOR, &name, "containerStatuses", 1).await;
        // The end of what it reads would be the end of the connection, too, so that nothing of it is piped in.
        let get = "printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n'; busybox cat >&2";
        let ask = format!("busybox nc -w 5 {address} {HEALTH} -e /bin/sh -c \"{get}\" 2>&1; true");
        cluster
            .until("the replica is ready for whoever asks", async || {
                let said = shell(cluster, served, &ask).await;
                if said.contains(" 200 OK") { Ok(()) } else { Err(said) }
            })
            .await;
    }
    cluster.roll_out().await;
    cluster.apply("served", &workload.pod("web", &SLEEPS).to_string()).await;
    ready(cluster, "served", "web").await;
    assert!(cluster.accepts(&token(cluster, "served", "web").await).await);
    cluster.must(&["-n", "served", "delete", "pod", "web", "--timeout=60s"]).await;
    until_live(cluster, "served", 0).await;

    cluster.must(&["delete", "-k", &installed]).await;
    until_connects(cluster, probe, &served_address, OTHER, true).await;
    cluster.must(&["-n", OPERATOR, "delete", "pod", "probe", "--timeout=60s"]).await;
    delete(cluster, "served").await;
}
