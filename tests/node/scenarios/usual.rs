//! What everybody does.

use super::{delete, phases, ready, token, tokens, until_live, until_over};
use crate::cluster::Cluster;
use crate::readme;
use crate::workload::{SLEEPS, Workload, shell};
use serde_json::json;

/// Why the token of a pod goes that is replaced: its kubelet may say that it has ended before it is gone.
const OVER: [&str; 2] = ["PodFinished", "PodDeleted"];

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
    // It ends, and is started again and again, with the one token.
    cluster
        .until("it was started four times", async || {
            let pod = cluster.get(&["-n", "shop", "pod", "web"]).await;
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            if restarts.as_u64() >= Some(3) { Ok(()) } else { Err(restarts.to_string()) }
        })
        .await;
    assert_eq!(cluster.live("shop").await, 1);
    let requests = cluster.get(&["-n", "shop", "vtr"]).await;
    assert_eq!(phases(&requests), ["Delivered"]);
    cluster.must(&["-n", "shop", "delete", "pod", "web", "--timeout=60s"]).await;
    until_over(cluster, "shop").await;
    delete(cluster, "shop").await;
}

/// README.md, "A workload", without injection.
pub async fn the_manifest_by_hand_gets_its_token(cluster: &Cluster) {
    Workload::new(cluster, "by-hand").await;
    let part = readme::part("README.md", "the manifest says it all itself:\n", "\nIn a Deployment, a Job");
    let filling = [("<your registry>/", ""), ("https://vault.vault.svc:8200", cluster.vault().address())];
    let text = readme::file(&part, "metadata:", &filling);
    let mut pod = vault_token_operator::yaml::documents(&text).expect("YAML").remove(0);
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("web");
    let app = shell("app", &SLEEPS);
    for field in ["image", "args", "env"] {
        pod["spec"]["containers"][0][field] = app[field].clone();
    }
    cluster.apply("by-hand", &pod.to_string()).await;
    ready(cluster, "by-hand", "web").await;
    assert!(cluster.accepts(&token(cluster, "by-hand", "web").await).await);
    delete(cluster, "by-hand").await;
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
    cluster.must(&rolled_out).await;
    until_live(cluster, "three", 3).await;
    // New tokens come before old ones go: whenever one had gone, as many others had come.
    let requests = cluster.get(&["-n", "three", "vtr"]).await;
    let of = |phase: &str| {
        let statuses = requests["items"].as_array().expect("a list").iter().map(|request| &request["status"]);
        statuses.filter(|status| status["phase"] == phase).collect::<Vec<_>>()
    };
    let times = |phase: &str, field: &str| {
        let mut times: Vec<_> = of(phase).iter().map(|status| status[field].as_str().expect("a time")).collect();
        times.sort();
        times
    };
    let (came, gone) = (times("Delivered", "deliveredAt"), times("Revoked", "revokedAt"));
    assert!(came.len() == 3 && gone.len() == 3, "{requests:#}");
    assert!(came.iter().zip(&gone).all(|(came, gone)| came <= gone), "came {came:?}, gone {gone:?}");
    let reasons = of("Revoked").into_iter().map(|status| status["reason"].as_str().unwrap_or_default());
    assert!(reasons.clone().all(|reason| OVER.contains(&reason)), "{:?}", reasons.collect::<Vec<_>>());
    let second = tokens(cluster, "three").await;
    assert!(second.len() == 3 && second.is_disjoint(&first));
    for token in &second {
        assert!(cluster.accepts(token).await);
    }

    cluster.must(&["-n", "three", "scale", "deployment/web", "--replicas=0"]).await;
    until_over(cluster, "three").await;
    delete(cluster, "three").await;
}
