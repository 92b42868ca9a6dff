//! Pods of other shapes than the example's.

use super::{delete, phases, ready, token, until_described, until_live};
use crate::cluster::Cluster;
use crate::workload::{SLEEPS, Workload, shell};
use serde_json::json;

/// Each start of its init container asks, up to ten times, however often the kubelet starts it.
pub async fn a_pod_that_is_denied_again_and_again_is_bounded(cluster: &Cluster) {
    let workload = Workload::new(cluster, "denied").await;
    let mut pod = workload.pod("web", &SLEEPS);
    pod["metadata"]["annotations"]["vaultproject.io/policies"] = json!("Shop-Read");
    cluster.apply("denied", &pod.to_string()).await;
    // Its owner sees why.
    for words in ["PoliciesInvalid", "has made 10 requests"] {
        until_described(cluster, "denied", &["pod", "web"], words).await;
    }
    let restarts = async || {
        let pod = cluster.get(&["-n", "denied", "pod", "web"]).await;
        pod["status"]["initContainerStatuses"][0]["restartCount"].as_u64().expect("a number")
    };
    let before = restarts().await;
    cluster
        .until("it goes on", async || match restarts().await {
            now if now >= before + 3 => Ok(()),
            now => Err(format!("{now} restarts")),
        })
        .await;
    let requests = phases(&cluster.get(&["-n", "denied", "vtr"]).await);
    assert_eq!(requests, ["Denied"; 10]);
    assert_eq!(cluster.live("denied").await, 0);
    delete(cluster, "denied").await;
}

/// It has no service account, and whoever writes to its machine's disk makes it.
pub async fn a_static_pod_gets_no_token(cluster: &Cluster) {
    let workload = Workload::allowed(cluster, "static").await;
    let mut pod = workload.injected_pod("web", &SLEEPS);
    pod["metadata"]["namespace"] = json!("static");
    pod["spec"].as_object_mut().expect("a spec").remove("serviceAccountName");
    let file = cluster.node().static_pods().join("web.json");
    std::fs::write(&file, pod.to_string()).expect("written");
    cluster
        .until("the API server does not take it", async || {
            let log = std::fs::read_to_string(cluster.node().kubelet_log()).expect("a log");
            if log.contains("a static pod cannot have a Vault token") {
                Ok(())
            } else {
                Err("nothing is said of it".to_owned())
            }
        })
        .await;
    assert!(phases(&cluster.get(&["-n", "static", "vtr"]).await).is_empty());
    std::fs::remove_file(file).expect("removed");
    delete(cluster, "static").await;
}

/// In the events of what was to make the pod: there is none.
pub async fn what_cannot_be_injected_is_said_where_its_owner_looks(cluster: &Cluster) {
    let workload = Workload::allowed(cluster, "refused").await;
    let mut template = workload.injected_template(&SLEEPS);
    template["metadata"]["annotations"].as_object_mut().expect("annotations").remove("vaultproject.io/policies");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": { "replicas": 1, "selector": { "matchLabels": { "app": "web" } }, "template": template },
    });
    cluster.apply("refused", &deployment.to_string()).await;
    until_described(cluster, "refused", &["replicaset"], "needs vaultproject.io/policies").await;
    delete(cluster, "refused").await;
}

/// The pod's group is all that they share.
pub async fn an_app_of_another_user_reads_its_token_and_nobody_else_does(cluster: &Cluster) {
    let workload = Workload::new(cluster, "users").await;
    let mut pod = workload.pod("web", &SLEEPS);
    pod["spec"]["containers"][0]["securityContext"]["runAsUser"] = json!(10001);
    cluster.apply("users", &pod.to_string()).await;
    ready(cluster, "users", "web").await;
    assert!(cluster.accepts(&token(cluster, "users", "web").await).await);
    let stat = ["/bin/busybox", "stat", "-c", "%a %u %g", "/var/run/secrets/vaultproject.io/token"];
    let said = cluster.must(&[&["-n", "users", "exec", "web", "-c", "app", "--"], &stat[..]].concat()).await;
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words, ["440", "65532", "65532"]);
    // The app has no identity to ask the API server with: that is init's alone.
    let list = ["/bin/busybox", "ls", "/var/run/secrets"];
    let said = cluster.must(&[&["-n", "users", "exec", "web", "-c", "app", "--"], &list[..]].concat()).await;
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["vaultproject.io"]);
    delete(cluster, "users").await;
}

pub async fn other_init_containers_and_sidecars_run_beside_it(cluster: &Cluster) {
    let workload = Workload::new(cluster, "beside").await;
    let mut pod = workload.pod("web", &SLEEPS);
    let example = workload.example_app();
    let mut sidecar = shell("sidecar", &SLEEPS);
    sidecar["restartPolicy"] = json!("Always");
    let mut reads = example;
    reads["name"] = json!("reads");
    let ours = pod["spec"]["initContainers"][0].clone();
    pod["spec"]["initContainers"] = json!([shell("before", &["-c", "exit 0"]), sidecar, ours, reads]);
    cluster.apply("beside", &pod.to_string()).await;
    ready(cluster, "beside", "web").await;
    let read = cluster.must(&["-n", "beside", "logs", "web", "-c", "reads"]).await;
    assert!(read.contains("{\"greeting\":\"hello from read\"}"), "{read}");
    assert_eq!(cluster.live("beside").await, 1);
    delete(cluster, "beside").await;
}

/// Its address is its node's: nothing is pushed there.
pub async fn a_pod_on_its_nodes_network_takes_its_token_from_the_status(cluster: &Cluster) {
    let workload = Workload::new(cluster, "host").await;
    let mut pod = workload.pod("web", &SLEEPS);
    pod["spec"]["hostNetwork"] = json!(true);
    cluster.apply("host", &pod.to_string()).await;
    until_described(cluster, "host", &["pod", "web"], "PodHostNetwork").await;
    cluster.must(&["-n", "host", "delete", "pod", "web", "--timeout=60s"]).await;
    workload.allow_status(cluster, "host").await;
    let environment = pod["spec"]["initContainers"][0]["env"].as_array_mut().expect("variables");
    environment.push(json!({ "name": "VTO_DELIVERY", "value": "status" }));
    cluster.apply("host", &pod.to_string()).await;
    ready(cluster, "host", "web").await;
    assert!(cluster.accepts(&token(cluster, "host", "web").await).await);
    until_live(cluster, "host", 1).await;
    delete(cluster, "host").await;
}
