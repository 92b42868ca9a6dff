//! What others write into requests and pods costs the operator no memory.

use crate::support::{Cluster, alone, request_for};
use futures::stream::{self, StreamExt};
use kube::api::PostParams;
use serde_json::json;
use testbed::kubelet::PodSpec;

/// The most that one object's annotations may have together.
const ANNOTATIONS: usize = 250 * 1024;

async fn mebibytes(cluster: &Cluster) -> u64 {
    // Ready is who has listed everything.
    cluster.until_healthy("this replica leads").await;
    cluster.system.operator_memory().expect("a number").expect("an operator") >> 20
}

#[tokio::test]
async fn requests_with_huge_metadata_cost_the_operator_no_memory() {
    const REQUESTS: usize = 400;
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("heavy").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let text = "x".repeat(ANNOTATIONS);
    let create = async |number: usize| {
        let mut request = request_for(&pod, 0);
        // Of pods that are not there.
        let uid = format!("{number:08x}{}", &pod.uid[8..]);
        request["metadata"]["name"] = json!(format!("web-{number:08x}-0"));
        request["metadata"]["annotations"] = json!({ "note": text });
        request["spec"]["podUID"] = json!(uid);
        let request = serde_json::from_value(request).expect("a request");
        cluster.requests(&namespace).create(&PostParams::default(), &request).await.expect("created");
    };
    let before = mebibytes(cluster).await;
    stream::iter(0..REQUESTS).for_each_concurrent(4, create).await;
    cluster.restart(&[]).await;
    let after = mebibytes(cluster).await;
    // A page of them is there for a moment while they are listed.
    let limit = (REQUESTS * ANNOTATIONS) as u64 >> 20;
    assert!(after < before + limit, "{before} MiB became {after} MiB, by {REQUESTS} requests of {ANNOTATIONS} bytes");
    let text = cluster.kubectl(&["delete", "vtr", "--all", "-n", &namespace, "--wait=false"]).await;
    assert!(text.contains("deleted"), "{text}");
}

#[tokio::test]
async fn pods_with_huge_metadata_cost_the_operator_little_memory_even_while_they_are_listed() {
    const PODS: usize = 100;
    /// What the API server makes of a `<`.
    const ESCAPED: usize = "\\u003c".len();
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("heavy-pods").await;
    let peak = async || {
        cluster.restart(&[]).await;
        mebibytes(cluster).await;
        cluster.system.operator_peak_memory().expect("a number").expect("an operator") >> 20
    };
    let before = peak().await;
    let create = async |number: usize| {
        let mut spec = PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h");
        spec.patch = json!({ "metadata": { "annotations": { "note": "<".repeat(ANNOTATIONS) } } });
        cluster.pod(&spec).await
    };
    let pods: Vec<_> = stream::iter(0..PODS).map(create).buffer_unordered(4).collect().await;
    let after = peak().await;
    // Read as a whole, the list would be in memory twice.
    let limit = (PODS * ANNOTATIONS * ESCAPED) as u64 >> 20;
    assert!(after < before + limit / 2, "{before} MiB became {after} MiB; all of them are {limit} MiB on the wire");

    // Nor do they while they are looked at.
    stream::iter(&pods).for_each_concurrent(8, |pod| cluster.ask(pod, |_| ())).await;
    for pod in &pods {
        cluster.until(pod, "look", |request| request.status.is_some()).await;
    }
    let looked = cluster.system.operator_peak_memory().expect("a number").expect("an operator") >> 20;
    assert!(looked < before + limit / 2, "{before} MiB became {looked} MiB; all of them are {limit} MiB on the wire");
    cluster.kubectl(&["delete", "pods", "--all", "-n", &namespace, "--wait=false"]).await;
}
