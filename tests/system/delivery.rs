//! The way of a request when all goes well.

use crate::support::{Delivered, condition, name, shared, token_of};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use testbed::kubelet::PodSpec;
use vault_token_operator::api::{FINALIZER, Phase};

#[tokio::test]
async fn a_pod_gets_the_token_that_its_annotations_ask_for() {
    let cluster = shared().await;
    let namespace = cluster.namespace("delivery").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", " shop-read , shop-db", "1h30m")).await;
    let Delivered { pod, token, request } = &delivered;
    let status = delivered.status();

    // The record.
    assert_eq!(status.policies, ["shop-read", "shop-db"]);
    assert_eq!((status.ttl.as_deref(), status.attempts), (Some("1h30m"), 1));
    assert_eq!(status.service_account_name.as_deref(), Some("default"));
    assert_eq!(status.node_name.as_deref(), Some("testbed-node"));
    assert_eq!(status.observed_generation, Some(1));
    for (kind, reason) in [("Authorized", "PodVerified"), ("Issued", "TokenIssued"), ("Delivered", "TokenDelivered")] {
        let (value, why, _) = condition(request, kind);
        assert_eq!((value.as_str(), why.as_str()), ("True", reason));
    }
    assert!(request.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER));

    // The token, as Vault knows it.
    let known = cluster.look_up(delivered.accessor()).await.expect("a live token");
    assert_eq!(known["policies"], json!(["shop-db", "shop-read", "vault-token-base"]), "and not the policy default");
    assert_eq!((&known["orphan"], &known["period"], &known["type"]), (&json!(true), &json!(5400), &json!("service")));
    assert_eq!(known["display_name"], json!("token-web"));
    let expected = json!({
        "cluster": "main", "namespace": namespace, "pod_name": "web", "pod_uid": pod.uid,
        "pod_ip": pod.address.to_string(), "host_ip": "127.0.0.1", "service_account": "default",
        "attempt_started_at": status.attempt_started_at.as_ref().expect("a time").0.to_string(),
        "init_container": "vault-init", "request_name": name(&delivered.request),
        "request_sequence": request.spec.sequence.to_string(),
        "request_uid": request.metadata.uid, "attempt": "1",
    });
    assert_eq!(known["meta"], expected);
    let expires: jiff::Timestamp = known["expire_time"].as_str().expect("a time").parse().expect("a time");
    let recorded = status.expires_at.as_ref().expect("a time").0;
    assert_eq!(recorded.as_second(), expires.as_second(), "expiresAt is what Vault says");

    // The files.
    let secret = std::fs::read_to_string(pod.volume.join("secret.json")).expect("a file");
    let secret: Value = serde_json::from_str(&secret).expect("JSON");
    assert_eq!(secret["auth"]["client_token"], json!(token.expose_secret()));
    assert_eq!(secret["auth"]["lease_duration"], json!(5400));
    assert_eq!(secret["auth"]["accessor"], json!(delivered.accessor()));
    for file in ["token", "secret.json"] {
        let mode = std::fs::metadata(pod.volume.join(file)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o440, "{file}");
    }

    // The token opens what its policies allow, and nothing else.
    let get = reqwest::Method::GET;
    let read = |path| cluster.vault().request_as(Some(token), get.clone(), path, None);
    let (answer, body) = read("secret/data/shop/read").await.expect("an answer");
    assert_eq!((answer.as_u16(), &body["data"]["data"]["greeting"]), (200, &json!("hello from read")));
    let (answer, _) = read("secret/data/other").await.expect("an answer");
    assert_eq!(answer.as_u16(), 403);
}

#[tokio::test]
async fn the_record_reads_well() {
    let cluster = shared().await;
    let namespace = cluster.namespace("record").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "24h")).await;
    let table = cluster.kubectl(&["get", "vtr", "-n", &namespace]).await;
    let mut lines = table.lines();
    let columns: Vec<&str> = lines.next().expect("a header").split_whitespace().collect();
    assert_eq!(columns, ["NAME", "POD", "SERVICEACCOUNT", "POLICIES", "PHASE", "EXPIRES", "AGE"]);
    let row: Vec<&str> = lines.next().expect("a row").split_whitespace().collect();
    assert_eq!(row[..5], [name(&delivered.request).as_str(), "web", "default", "[\"shop-read\"]", "Delivered"]);
    let wide = cluster.kubectl(&["get", "vault", "-n", &namespace, "-o", "wide"]).await;
    assert!(wide.contains(delivered.accessor()), "the category vault, and the accessor: {wide}");
    assert!(wide.contains("TokenDelivered"), "{wide}");

    // Events tell the story, on the request and on the pod.
    for about in ["vtr", "pod"] {
        let of = if about == "pod" { delivered.pod.name.clone() } else { name(&delivered.request) };
        let mut text = String::new();
        for _ in 0..500 {
            text = cluster.kubectl(&["describe", about, &of, "-n", &namespace]).await;
            if text.contains("TokenDelivered") && text.contains("issued a token with the policies shop-read") {
                break;
            }
        }
        assert!(text.contains("the init container confirmed that it holds the token"), "{about}: {text}");
        assert!(text.contains("issued a token with the policies shop-read and a ttl of 24h"), "{about}: {text}");
    }
    let waited = ["wait", "--for=condition=Delivered", "--timeout=5s", "vtr", "--all", "-n", &namespace];
    assert!(cluster.kubectl(&waited).await.contains("condition met"));
}

#[tokio::test]
async fn a_restarted_init_container_finds_its_token_and_ends_at_once() {
    let cluster = shared().await;
    let namespace = cluster.namespace("restart").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "24h")).await;
    let again = cluster.init(&delivered.pod).await;
    cluster.ended_well(&delivered.pod, &again).await;
    assert!(cluster.request(&delivered.pod, 1).await.is_none(), "no second request was made");
    assert!(cluster.accepts(&delivered.token).await);
    assert_eq!(token_of(&delivered.pod).expose_secret(), delivered.token.expose_secret());
}

#[tokio::test]
async fn i6_a_token_file_that_no_request_records_is_removed_and_a_new_token_asked_for() {
    let cluster = shared().await;
    let namespace = cluster.namespace("foreign-file").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "24h")).await;
    let volume = &delivered.pod.volume;
    // A live token of somebody else's: not to be trusted for being alive.
    let made = cluster.vault().must(reqwest::Method::POST, "auth/token/create", Some(&json!({ "ttl": "1h" }))).await;
    let made = made.expect("a token");
    std::fs::remove_file(volume.join("token")).expect("removed");
    std::fs::remove_file(volume.join("secret.json")).expect("removed");
    std::fs::write(volume.join("secret.json"), made.to_string()).expect("written");
    std::fs::write(volume.join("token"), made["auth"]["client_token"].as_str().expect("a token")).expect("written");
    let init = cluster.init(&delivered.pod).await;
    cluster.ended_well(&delivered.pod, &init).await;
    let second = cluster.request(&delivered.pod, 1).await.expect("a second request");
    assert_eq!(second.phase(), Phase::Delivered);
    assert_ne!(token_of(&delivered.pod).expose_secret(), made["auth"]["client_token"].as_str().expect("a token"));
    assert!(cluster.accepts(&token_of(&delivered.pod)).await);
}

#[tokio::test]
async fn pods_with_ipv6_addresses_are_served() {
    let cluster = shared().await;
    let namespace = cluster.namespace("ipv6").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "24h")).await;
    let [port] = testbed::port::free().expect("a port");
    let listen = format!("[::1]:{port}");
    let init = cluster
        .kubelet
        .start_init(cluster.plane(), cluster.vault(), &pod, &[("VTO_LISTEN", &listen)])
        .await
        .expect("init starts");
    // Dual stack: the IPv4 address is the primary one, and nobody listens there.
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    let both = json!({ "podIPs": [{ "ip": pod.address }, { "ip": "::1" }] });
    cluster.kubelet.report(cluster.plane(), &pod, &both).await.expect("a status");
    cluster.ended_well(&pod, &init).await;
    assert!(cluster.accepts(&token_of(&pod)).await);
}

#[tokio::test]
async fn many_pods_at_once_each_get_their_own() {
    let cluster = shared().await;
    let namespace = cluster.namespace("many").await;
    let specs: Vec<PodSpec> =
        (0..20).map(|n| PodSpec::new(&namespace, &format!("web-{n}"), "shop-read", "1h")).collect();
    let all = futures::future::join_all(specs.iter().map(|spec| cluster.deliver(spec))).await;
    let mut accessors: Vec<&str> = all.iter().map(Delivered::accessor).collect();
    accessors.sort_unstable();
    accessors.dedup();
    assert_eq!(accessors.len(), 20);
    for delivered in &all {
        let known = cluster.look_up(delivered.accessor()).await.expect("a live token");
        assert_eq!(known["meta"]["pod_uid"], json!(delivered.pod.uid));
    }
}
