//! Pods that come to their end.

use super::{delete, evict, phases, ready, token, until_described, until_over};
use crate::cluster::Cluster;
use crate::workload::{SLEEPS, Workload};
use serde_json::{Value, json};
use std::collections::HashSet;

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
    for wanted in 1..=2 {
        cluster
            .until(&format!("{wanted} jobs of it have completed"), async || {
                let jobs = cluster.get(&["-n", "cron", "jobs"]).await;
                let complete = |job: &&Value| job["status"]["completionTime"].is_string();
                let count = jobs["items"].as_array().expect("a list").iter().filter(complete).count();
                if count >= wanted { Ok(()) } else { Err(format!("{jobs:#}")) }
            })
            .await;
    }
    cluster.must(&["-n", "cron", "patch", "cronjob", "minutely", "--patch={\"spec\":{\"suspend\":true}}"]).await;
    until_over(cluster, "cron").await;
    let requests = cluster.get(&["-n", "cron", "vtr"]).await;
    let requests = requests["items"].as_array().expect("a list");
    assert!(requests.iter().all(|request| request["status"]["reason"] == "PodFinished"), "{requests:#?}");
    let accessors: HashSet<_> = requests.iter().filter_map(|it| it["status"]["tokenAccessor"].as_str()).collect();
    assert!(accessors.len() >= 2 && accessors.len() == requests.len(), "{requests:#?}");
    delete(cluster, "cron").await;
}

/// One that has its token, and one that does not get any.
pub async fn a_namespace_that_is_deleted_takes_its_tokens_with_it(cluster: &Cluster) {
    let workload = Workload::new(cluster, "leaves").await;
    let mut denied = workload.pod("denied", &SLEEPS);
    denied["metadata"]["annotations"]["vaultproject.io/policies"] = json!("payroll-read");
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [workload.pod("web", &SLEEPS), denied] });
    cluster.apply("leaves", &list.to_string()).await;
    ready(cluster, "leaves", "web").await;
    until_described(cluster, "leaves", &["pod", "denied"], "NotGranted").await;
    let token = token(cluster, "leaves", "web").await;
    assert!(cluster.accepts(&token).await);
    delete(cluster, "leaves").await;
    assert!(!cluster.accepts(&token).await);
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
