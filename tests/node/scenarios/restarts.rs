//! What is killed and starts again.

use super::{delete, phases, ready, token, until_live, until_over};
use crate::cluster::Cluster;
use crate::workload::{SLEEPS, Workload};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::path::PathBuf;

/// Kills the process of a pod whose command has this in it, as the kernel does when memory runs out.
fn kill(pod_uid: &str, command: &str) {
    send(Signal::KILL, pod_uid, command);
}

/// Sends a signal to the process of a pod whose command has this in it.
pub fn send(signal: Signal, pod_uid: &str, command: &str) {
    let id = process(pod_uid, command);
    kill_process(Pid::from_raw(id).expect("an id"), signal).expect("it was there");
}

/// The process of a pod whose command has this in it.
pub fn process(pod_uid: &str, command: &str) -> i32 {
    let processes: Vec<_> = std::fs::read_dir("/proc")
        .expect("processes")
        .filter_map(|entry| entry.expect("an entry").file_name().to_str()?.parse::<i32>().ok())
        .filter(|id| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{id}/{name}")).unwrap_or_default();
            read("cgroup").contains(&format!("pod{pod_uid}/")) && read("cmdline").replace('\0', " ").contains(command)
        })
        .collect();
    let [id] = processes[..] else { panic!("{command} of {pod_uid} runs as {processes:?}") };
    id
}

/// Waits until a container of a pod was started so many times more.
pub async fn until_restarted(cluster: &Cluster, namespace: &str, pod: &str, containers: &str, times: u64) {
    cluster
        .until("it starts again", async || {
            let pod = cluster.get(&["-n", namespace, "pod", pod]).await;
            let container = &pod["status"][containers][0];
            let running = container["state"]["running"].is_object();
            let restarts = container["restartCount"].as_u64().unwrap_or_default();
            if restarts >= times && running {
                Ok(())
            } else {
                Err(format!("{restarts} restarts: {}", container["state"]))
            }
        })
        .await;
}

/// Before it has its token; once it has it, it has ended.
pub async fn an_init_container_that_is_killed_asks_again_and_one_token_lives(cluster: &Cluster) {
    let workload = Workload::new(cluster, "killed").await;
    cluster.scale_operator(0).await;
    cluster.apply("killed", &workload.pod("web", &SLEEPS).to_string()).await;
    let asked = async |times: usize| {
        let what = format!("{times} requests");
        cluster
            .until(&what, async || match phases(&cluster.get(&["-n", "killed", "vtr"]).await).len() {
                count if count == times => Ok(()),
                count => Err(format!("{count} requests")),
            })
            .await;
    };
    for times in 1..=2 {
        asked(usize::try_from(times).expect("few")).await;
        let uid = cluster.uid("killed", "web").await;
        kill(&uid, "/vault-token-operator init");
        until_restarted(cluster, "killed", "web", "initContainerStatuses", times).await;
    }
    asked(3).await;
    cluster.scale_operator(2).await;
    ready(cluster, "killed", "web").await;
    assert!(cluster.accepts(&token(cluster, "killed", "web").await).await);
    until_live(cluster, "killed", 1).await;
    let phases = phases(&cluster.get(&["-n", "killed", "vtr"]).await);
    assert_eq!(phases.iter().filter(|phase| *phase == "Delivered").count(), 1, "{phases:?}");
    cluster.must(&["-n", "killed", "delete", "pod", "web", "--timeout=60s"]).await;
    until_over(cluster, "killed").await;
    delete(cluster, "killed").await;
}

/// The first, as an app does that crashes; then what holds the pod together, so that its init container runs again.
pub async fn a_restarted_container_and_a_new_sandbox_keep_the_one_token(cluster: &Cluster) {
    let workload = Workload::new(cluster, "restarts").await;
    cluster.apply("restarts", &workload.pod("web", &SLEEPS).to_string()).await;
    ready(cluster, "restarts", "web").await;
    let uid = cluster.uid("restarts", "web").await;
    let first = token(cluster, "restarts", "web").await;

    kill(&uid, "sleep 3600");
    until_restarted(cluster, "restarts", "web", "containerStatuses", 1).await;
    assert_eq!(token(cluster, "restarts", "web").await, first);
    assert!(cluster.accepts(&first).await);
    assert_eq!(cluster.live("restarts").await, 1);

    kill(&uid, "sleep 2147483647");
    until_restarted(cluster, "restarts", "web", "containerStatuses", 2).await;
    let pod = cluster.get(&["-n", "restarts", "pod", "web"]).await;
    assert!(pod["status"]["initContainerStatuses"][0]["restartCount"].as_u64() >= Some(1), "it has run again: {pod:#}");
    assert_eq!(token(cluster, "restarts", "web").await, first, "it was still good");
    assert!(cluster.accepts(&first).await);
    assert_eq!(cluster.live("restarts").await, 1);

    // As when its machine starts again: what was in memory is lost.
    for file in ["token", "secret.json"] {
        std::fs::remove_file(volume(&uid).join(file)).expect("removed");
    }
    kill(&uid, "sleep 2147483647");
    until_restarted(cluster, "restarts", "web", "containerStatuses", 3).await;
    until_live(cluster, "restarts", 1).await;
    let second = token(cluster, "restarts", "web").await;
    assert!(second != first && cluster.accepts(&second).await);
    assert!(!cluster.accepts(&first).await, "the newer one has taken its place");
    delete(cluster, "restarts").await;
}

/// The folder of a pod's volume in memory that its token is in.
fn volume(pod_uid: &str) -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    let mut folders = mounts.lines().filter_map(|mount| mount.split(' ').nth(1));
    let tokens = |folder: &&str| folder.ends_with(&format!("{pod_uid}/volumes/kubernetes.io~empty-dir/vault-token"));
    folders.find(tokens).expect("the volume of a pod that runs").into()
}

/// When its token is made and has not reached it, and when it has stored it and nobody has written that down yet.
pub async fn an_init_container_that_is_killed_on_either_side_of_its_push_leaves_one_token(cluster: &Cluster) {
    const INIT: &str = "/vault-token-operator init";
    let workload = Workload::new(cluster, "pushed").await;
    let phases_of = async |pod: &str| {
        let requests = cluster.get(&["-n", "pushed", "vtr"]).await;
        let own = requests["items"].as_array().expect("a list").iter().filter(|it| it["spec"]["podName"] == pod);
        phases(&json!({ "items": own.collect::<Vec<_>>() }))
    };
    let until_phases = async |pod: &str, wanted: &[&str]| {
        let what = format!("the requests of {pod} are {wanted:?}");
        cluster
            .until(&what, async || match phases_of(pod).await {
                phases if phases == wanted => Ok(()),
                phases => Err(format!("{phases:?}")),
            })
            .await;
    };
    // They have asked, and take nothing.
    cluster.scale_operator(0).await;
    let mut uids = Vec::new();
    for pod in ["issued", "stored"] {
        cluster.apply("pushed", &workload.pod(pod, &SLEEPS).to_string()).await;
        until_phases(pod, &[""]).await;
        uids.push(cluster.uid("pushed", pod).await);
        send(Signal::STOP, &uids[uids.len() - 1], INIT);
    }
    cluster.scale_operator(2).await;
    for pod in ["issued", "stored"] {
        until_phases(pod, &["Issued"]).await;
    }

    kill(&uids[0], INIT);
    ready(cluster, "pushed", "issued").await;
    until_phases("issued", &["Revoked", "Delivered"]).await;

    // From now on nothing of what becomes of the other one can be written down.
    let mut whole = cluster.get(&["clusterrole", "vault-token-operator"]).await;
    whole["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    let mut less = whole.clone();
    let rules = less["rules"].as_array_mut().expect("rules");
    let before = rules.len();
    rules.retain(|rule| !rule["resources"].to_string().contains("vaulttokenrequests/status"));
    assert_eq!(rules.len(), before - 1);
    cluster.must(&["replace", "-f", &cluster.file(&less.to_string())]).await;
    send(Signal::CONT, &uids[1], INIT);
    cluster
        .until("it has stored its token", async || match volume(&uids[1]).join("token").exists() {
            true => Ok(()),
            false => Err("there is no file".to_owned()),
        })
        .await;
    kill(&uids[1], INIT);
    until_restarted(cluster, "pushed", "stored", "initContainerStatuses", 1).await;
    cluster.must(&["replace", "-f", &cluster.file(&whole.to_string())]).await;
    ready(cluster, "pushed", "stored").await;
    until_phases("stored", &["Revoked", "Delivered"]).await;

    until_live(cluster, "pushed", 2).await;
    for pod in ["issued", "stored"] {
        assert!(cluster.accepts(&token(cluster, "pushed", pod).await).await, "{pod}");
    }
    delete(cluster, "pushed").await;
}

/// The machine is away: nobody ends its containers, and the pods are taken away by force.
pub async fn pods_of_a_node_that_is_gone_lose_their_tokens(cluster: &Cluster) {
    let workload = Workload::new(cluster, "gone").await;
    cluster.apply("gone", &workload.pod("web", &SLEEPS).to_string()).await;
    ready(cluster, "gone", "web").await;
    let stolen = token(cluster, "gone", "web").await;
    cluster.node().stop_kubelet().await;
    cluster.must(&["-n", "gone", "delete", "pod", "web", "--force", "--grace-period=0", "--timeout=60s"]).await;
    until_over(cluster, "gone").await;
    assert!(!cluster.accepts(&stolen).await);
    cluster.node().start_kubelet().expect("it starts");
    cluster.must(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=90s"]).await;
    delete(cluster, "gone").await;
}
