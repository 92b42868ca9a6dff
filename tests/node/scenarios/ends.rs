//! Pods that come to their end.

use super::{delete, evict, phases, ready, until_over};
use crate::cluster::Cluster;
use crate::workload::{SLEEPS, Workload};
use serde_json::json;

/// Reads the token's file, as an app does that has all it needs.
const READS: [&str; 2] = ["-c", "busybox test -s /var/run/secrets/vaultproject.io/token"];

/// No sidecar holds it.
pub async fn a_job_completes_and_its_token_is_revoked(cluster: &Cluster) {
    let workload = Workload::new(cluster, "job").await;
    let mut template = workload.template(&READS);
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "once" },
        "spec": { "backoffLimit": 0, "template": template },
    });
    cluster.apply("job", &job.to_string()).await;
    cluster.must(&["-n", "job", "wait", "--for=condition=Complete", "job/once", "--timeout=90s"]).await;
    until_over(cluster, "job").await;
    let requests = cluster.get(&["-n", "job", "vtr"]).await;
    assert_eq!(requests["items"][0]["status"]["reason"], "PodFinished");
    delete(cluster, "job").await;
}

/// Each minute one.
pub async fn a_cron_jobs_pods_have_tokens_of_their_own(cluster: &Cluster) {
    let workload = Workload::new(cluster, "cron").await;
    let mut template = workload.template(&READS);
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "minutely" },
        "spec": { "schedule": "* * * * *", "jobTemplate": { "spec": { "template": template } } },
    });
    cluster.apply("cron", &job.to_string()).await;
    cluster
        .until("a job of it has completed", async || {
            let requests = phases(&cluster.get(&["-n", "cron", "vtr"]).await);
            if requests.iter().any(|phase| phase == "Revoked") { Ok(()) } else { Err(format!("{requests:?}")) }
        })
        .await;
    delete(cluster, "cron").await;
}

pub async fn pods_that_fail_or_are_evicted_lose_their_tokens(cluster: &Cluster) {
    let workload = Workload::new(cluster, "ends").await;
    let mut fails = workload.pod("fails", &["-c", "exit 1"]);
    fails["spec"]["restartPolicy"] = json!("Never");
    let mut late = workload.pod("late", &SLEEPS);
    late["spec"]["activeDeadlineSeconds"] = json!(5);
    let evicted = workload.pod("evicted", &SLEEPS);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [fails, late, evicted] });
    cluster.apply("ends", &list.to_string()).await;
    ready(cluster, "ends", "evicted").await;
    assert_eq!(evict(cluster, "ends", "evicted").await, Ok(()));
    for (pod, phase) in [("fails", "Failed"), ("late", "Failed")] {
        let condition = format!("--for=jsonpath={{.status.phase}}={phase}");
        cluster.must(&["-n", "ends", "wait", &condition, &format!("pod/{pod}"), "--timeout=90s"]).await;
    }
    until_over(cluster, "ends").await;
    let requests = cluster.get(&["-n", "ends", "vtr"]).await;
    assert_eq!(phases(&requests), ["Revoked"; 3]);
    delete(cluster, "ends").await;
}
