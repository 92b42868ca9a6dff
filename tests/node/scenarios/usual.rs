//! What everybody does.

use super::{delete, phases, tokens, until_live, until_over};
use crate::cluster::Cluster;
use crate::workload::{SLEEPS, Workload, shell};
use serde_json::json;
use std::pin::pin;

/// The node itself.
pub async fn logs_exec_and_services_work(cluster: &Cluster) {
    cluster.must(&["create", "namespace", "node"]).await;
    let serve = "echo begun; exec busybox nc -ll -p 8080 -e busybox hostname";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "server", "labels": { "app": "server" } },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [shell("app", &["-c", serve])] },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "server" },
        "spec": { "selector": { "app": "server" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [pod, service] });
    cluster.apply("node", &list.to_string()).await;
    cluster.must(&["-n", "node", "wait", "--for=condition=Ready", "pod/server", "--timeout=60s"]).await;
    // Ready is a container that was started, which has said nothing yet.
    cluster
        .until("the server has begun", async || {
            let logs = cluster.must(&["-n", "node", "logs", "server"]).await;
            if logs.trim() == "begun" { Ok(()) } else { Err(logs) }
        })
        .await;
    let address = cluster.get(&["-n", "node", "service", "server"]).await["spec"]["clusterIP"].clone();
    let address = address.as_str().expect("an address");
    let ask = ["-n", "node", "exec", "server", "--", "/bin/busybox", "nc", "-w", "2", address, "80"];
    cluster
        .until("the Service leads to the server", async || match cluster.kubectl(&ask).await {
            Ok(answer) if answer.trim() == "server" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    delete(cluster, "node").await;
}

/// README.md, "Try the example in your cluster".
pub async fn the_example_gets_its_token_reads_its_secret_and_loses_it(cluster: &Cluster) {
    cluster.apply("shop", &cluster.example("shop")).await;
    cluster.give_ca("shop").await;
    cluster
        .until("the app reads its secret", async || {
            let logs = cluster.must(&["-n", "shop", "logs", "web", "-c", "app", "--ignore-errors"]).await;
            let read = logs.contains("secret/data/shop/read: {\"greeting\":\"hello from read\"}");
            if read { Ok(()) } else { Err(logs) }
        })
        .await;
    assert_eq!(cluster.live("shop").await, 1);
    let requests = cluster.get(&["-n", "shop", "vtr"]).await;
    assert_eq!(phases(&requests), ["Delivered"]);
    cluster.must(&["-n", "shop", "delete", "pod", "web", "--timeout=60s"]).await;
    until_over(cluster, "shop").await;
    delete(cluster, "shop").await;
}

/// Three replicas that are injected; a restart of all of them; none.
pub async fn each_pod_of_a_deployment_with_two_annotations_has_a_token_of_its_own(cluster: &Cluster) {
    let workload = Workload::allowed(cluster, "three").await;
    let template = workload.injected_template(&SLEEPS);
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": { "replicas": 3, "selector": { "matchLabels": { "app": "web" } }, "template": template },
    });
    cluster.apply("three", &deployment.to_string()).await;
    let rolled_out = ["-n", "three", "rollout", "status", "deployment/web", "--timeout=90s"];
    cluster.must(&rolled_out).await;
    let first = tokens(cluster, "three").await;
    assert_eq!(first.len(), 3, "each has its own");
    for token in &first {
        assert!(cluster.accepts(token).await, "the app reads its secret");
    }
    let read = cluster.must(&["-n", "three", "logs", "-l", "app=web", "-c", "reads"]).await;
    let lines = read.lines().filter(|line| line.contains("{\"greeting\":\"hello from read\"}"));
    assert_eq!(lines.count(), 3, "each app reads its secret: {read}");

    cluster.must(&["-n", "three", "rollout", "restart", "deployment/web"]).await;
    // New tokens come before old ones go: at no time are there fewer than pods that are to be ready.
    let mut rollout = pin!(cluster.must(&rolled_out));
    loop {
        tokio::select! {
            _ = &mut rollout => break,
            live = cluster.live("three") => assert!(live >= 3, "{live} tokens live"),
        }
    }
    until_live(cluster, "three", 3).await;
    let second = tokens(cluster, "three").await;
    assert!(second.len() == 3 && second.is_disjoint(&first));
    for token in &second {
        assert!(cluster.accepts(token).await);
    }

    cluster.must(&["-n", "three", "scale", "deployment/web", "--replicas=0"]).await;
    until_over(cluster, "three").await;
    // While its tokens live, too, a namespace goes.
    cluster.must(&["-n", "three", "scale", "deployment/web", "--replicas=2"]).await;
    cluster.must(&rolled_out).await;
    assert_eq!(cluster.live("three").await, 2);
    delete(cluster, "three").await;
}
