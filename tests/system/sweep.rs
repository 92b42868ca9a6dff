//! I2, and the brakes of the sweep (rules 9 and 10).

use crate::ha;
use crate::rights::without;
use crate::support::{Cluster, LIMIT, alone, lines_of, name, reason, token_of};
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use testbed::kubelet::{Init, PodHandle, PodSpec};
use testbed::proxy::{Break, Fault, Proxy};
use testbed::system::CLUSTER;
use vault_token_operator::api::Phase;

/// Where the operator makes tokens.
pub const ROLE_PATH: &str = "auth/token/create/vault-token-operator-main";

/// What the operator writes into the metadata of a token for this pod's first request.
pub fn meta(pod: &PodHandle, request_uid: &str, attempt_started_at: &str) -> Value {
    json!({
        "cluster": CLUSTER, "namespace": pod.namespace, "pod_name": pod.name, "pod_uid": pod.uid,
        "init_container": "vault-init", "request_uid": request_uid, "request_sequence": "1", "attempt": "1",
        "request_name": vault_token_operator::api::request_name(&pod.name, &pod.uid, 0),
        "attempt_started_at": attempt_started_at,
    })
}

/// Makes a token by hand; gives its accessor.
pub async fn token(cluster: &Cluster, path: &str, meta: &Value) -> String {
    let order = json!({ "policies": ["shop-read"], "period": "1h", "meta": meta });
    let made = cluster.vault().must(Method::POST, path, Some(&order)).await.expect("a token");
    made["auth"]["accessor"].as_str().expect("an accessor").to_owned()
}

#[tokio::test]
async fn i2_tokens_that_no_request_records_die_and_nobody_elses_do() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("orphans").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "delivered", "shop-read", "1h")).await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let gone = cluster.pod(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone).await.expect("removed");
    cluster.ask(&pod, |_| ()).await;
    cluster.until(&pod, "status", |request| request.status.is_some()).await;
    cluster.system.kill_operator();
    let request = cluster.request(&pod, 0).await.expect("a request");
    let uid = request.metadata.uid.clone().expect("a UID");
    let closed_at = "2026-01-01T00:00:01Z";
    let status = json!({ "status": {
        "phase": "Pending", "attempts": 2, "attemptStartedAt": "2026-01-01T00:00:02.500000Z",
        "history": [
            { "number": 1, "startedAt": "2026-01-01T00:00:01.000000Z", "outcome": "Unrecorded", "time": closed_at },
            { "number": 2, "startedAt": "2026-01-01T00:00:02.500000Z", "outcome": "Unrecorded", "time": closed_at },
        ],
    } });
    let requests = cluster.requests(&namespace);
    requests.patch_status(&name(&request), &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");

    let closed = token(cluster, ROLE_PATH, &meta(&pod, &uid, closed_at)).await;
    let unclaimed = token(cluster, ROLE_PATH, &meta(&gone, "no-such-request", closed_at)).await;
    let unproved = token(cluster, "auth/token/create", &meta(&gone, "no-such-request", closed_at)).await;
    let mut others = meta(&gone, "no-such-request", closed_at);
    others["cluster"] = json!("another");
    let others = token(cluster, ROLE_PATH, &others).await;
    // An attempt that the request does not know, of a pod that lives.
    let forgotten = token(cluster, ROLE_PATH, &meta(&pod, &uid, "2026-01-01T00:00:03Z")).await;

    cluster.system.start_operator(&[]).await.expect("the operator starts");
    cluster.until_dead(&closed).await;
    cluster.until_dead(&unclaimed).await;
    // It may meet what other tests' killed operators left; of this test's tokens it revoked these two.
    cluster.until_health("one kept", |text| number(text, " kept") >= 1).await;
    let lines = cluster.audit_lines("namespace", &namespace);
    let swept = lines.iter().filter(|line| line["step"] == "OrphanRevoked").map(|line| &line["token_accessor"]);
    assert_eq!(swept.collect::<HashSet<_>>(), HashSet::from([&json!(closed), &json!(unclaimed)]));
    let log = cluster.system.operator_logs().pop().expect("a log");
    let revoked = || lines_of(&log).iter().filter(|line| line["step"] == "OrphanRevoked").count();
    cluster.until_counted(|| format!("sweep_orphans_revoked_total {}", revoked())).await;
    for (kept, why) in [(&unproved, "unproved"), (&others, "another cluster's"), (&forgotten, "forgotten")] {
        assert!(cluster.lives(kept).await, "{why}");
    }
    assert!(cluster.accepts(&delivered.token).await, "I7: a recorded token stays");
    cluster.until_described("pod", "web", &namespace, "OrphanRevoked").await;
    cluster.until_described("pod", "web", &namespace, "OrphanKept").await;
    for accessor in [unproved, others, forgotten] {
        let body = json!({ "accessor": accessor });
        cluster.vault().must(Method::POST, "auth/token/revoke-accessor", Some(&body)).await.expect("revoked");
    }
}

/// The number before these words in what the health says of the sweep.
fn number(text: &str, words: &str) -> usize {
    let before = text.split_once(words).map_or("", |(before, _)| before);
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// How old a backup is at least that costs no pod its token.
const YOUNGEST_BACKUP: Duration = Duration::from_secs(120);

/// What is said of a token that its pod runs with though no request says so.
const IN_USE: &str = "its pod has had a token, and no request says so";

/// The pods of which the present operator says that they run with a token that no request records, and what to do.
fn kept_for_good(cluster: &Cluster, namespace: &str) -> HashSet<String> {
    let log = cluster.system.operator_logs().pop().expect("a log");
    let lines = lines_of(&log).into_iter().filter(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["namespace"] == namespace && message.contains(IN_USE) && message.contains("Restart the pod")
    });
    lines.filter_map(|line| line["pod"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn i7_a_restored_etcd_costs_no_running_pod_its_token() {
    const PODS: usize = 50;
    const AT_ONCE: usize = 10;
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("restored").await;
    let create = async |number| {
        let pod = cluster.pod(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h")).await;
        cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
        pod
    };
    let mut pods: Vec<_> = stream::iter(0..PODS).map(create).buffer_unordered(AT_ONCE).collect().await;
    // One is in the midst of its delivery, another will still be when etcd is restored.
    let (halfway, waiting) = (create(PODS).await, create(PODS + 1).await);
    let held_up = async |pod: &PodHandle, fault: Fault| {
        let (push, listen) = Proxy::before_init(pod.address).await.expect("a proxy");
        push.follow(move |_| fault);
        let init = cluster.init_with(pod, &[("VTO_LISTEN", &listen)]).await;
        (push, init, cluster.until_phase(pod, Phase::Issued).await)
    };
    // The first one stores its token, and nobody hears of that; the second one has none.
    let ((_lost, init, issued), (no_push, waits, _)) = tokio::join!(
        held_up(&halfway, Fault::After(Break::Silence)),
        held_up(&waiting, Fault::Before(Break::Silence)),
    );
    let deadline = Instant::now() + LIMIT;
    while !halfway.volume.join("token").exists() {
        assert!(Instant::now() < deadline, "it stores no token: {}", cluster.operator_said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.system.kill_operator();
    let backup = cluster.plane().save().await.expect("saved");
    let saved = Instant::now();
    // The operator cannot lead through a backup for certain, and another would give the attempt up. That it was heard after all is written
    // by hand; no test of what comes then sees it.
    let heard =
        json!({ "status": { "phase": "Delivered", "reason": "TokenDelivered", "deliveredAt": Timestamp::now() } });
    let requests = cluster.requests(&namespace);
    requests.patch_status(&name(&issued), &PatchParams::default(), &Patch::Merge(&heard)).await.expect("a status");
    let issued = issued.status.expect("a status");
    let (operator, health) = cluster.system.spawn_operator(&[]).expect("it starts");
    ha::until(&health, "this replica leads").await;
    let ended_well = async |pod: &PodHandle, init: Init| {
        cluster.ended_well(pod, &init).await;
        cluster.kubelet.report_running(cluster.plane(), pod).await.expect("a status");
    };
    ended_well(&halfway, init).await;
    let delivered = cluster.until_phase(&halfway, Phase::Delivered).await.status.expect("a status");
    assert_eq!(delivered.token_accessor, issued.token_accessor, "it has the token that the backup knows of");
    assert!(cluster.accepts(&token_of(&halfway)).await);
    stream::iter(&pods).for_each_concurrent(AT_ONCE, async |pod| ended_well(pod, cluster.init(pod).await).await).await;
    pods.push(halfway);
    // What is younger tells nothing of what came of an attempt.
    tokio::time::sleep(YOUNGEST_BACKUP.saturating_sub(saved.elapsed())).await;
    let assert_all_live = async || {
        for pod in &pods {
            assert!(cluster.accepts(&token_of(pod)).await, "the token of {} is dead", pod.name);
        }
    };
    cluster.plane().restore(backup).await.expect("restored");
    assert!(cluster.request(&pods[0], 0).await.is_none(), "the requests are lost");
    assert_eq!(cluster.request(&pods[PODS], 0).await.expect("a request").phase(), Phase::Issued);
    no_push.follow(|_| Fault::None);
    // Its watches would bring nothing any more.
    let status = operator.wait(LIMIT).await.expect("it ends by itself");
    assert_eq!(status.code(), Some(1));
    let said = std::fs::read_to_string(operator.log()).expect("a log");
    assert!(said.contains("etcd was restored from a backup"), "{status}");

    // So many without a request are more than a person would believe in, who has set a lower limit.
    cluster.system.start_operator(&[("VTO_SWEEP_LIMIT", "10")]).await.expect("the operator starts");
    cluster.until_healthy("stopped: ").await;
    assert_all_live().await;
    cluster.system.kill_operator();

    // Before the kubelet has said again what runs, and after.
    cluster.system.start_operator(&[]).await.expect("the operator starts");
    // Other tests' pods that were given a token meanwhile may be among them.
    cluster.until_health("all kept", |text| number(text, " kept") >= PODS).await;
    // Nobody knows whether these two have had theirs. Who waits asks anew.
    let forgotten = cluster.until(&pods[PODS], "doubt", |it| reason(it) == "DeliveryForgotten").await;
    assert_eq!(forgotten.status.expect("a status").token_accessor, issued.token_accessor);
    cluster.ended_well(&waiting, &waits).await;
    let number = cluster.requests(&namespace).list(&Default::default()).await.expect("a list").items.len();
    assert_eq!(number, 3, "its second one");
    let first = cluster.until_phase(&waiting, Phase::Revoked).await;
    assert_eq!(reason(&first), "Superseded");
    assert!(cluster.accepts(&token_of(&waiting)).await, "the token of {} is dead", waiting.name);
    for pod in &pods {
        cluster.kubelet.report_running(cluster.plane(), pod).await.expect("a status");
    }
    cluster.until_described("pod", "web-0", &namespace, "OrphanKept").await;
    cluster.restart(&[]).await;
    // For good, and not only until a second look: that the pods run with them is seen, and what to do is said of each.
    let deadline = Instant::now() + LIMIT;
    let names: HashSet<_> = pods[..PODS].iter().map(|pod| pod.name.clone()).collect();
    while kept_for_good(cluster, &namespace) != names {
        assert!(
            Instant::now() < deadline,
            "only {:?} are\n{}",
            kept_for_good(cluster, &namespace),
            cluster.operator_said()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.until_described("pod", "web-0", &namespace, IN_USE).await;
    assert_all_live().await;
    // Other tests are not to meet so many that look like orphans.
    pods.push(waiting);
    for pod in &pods {
        cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
    }
    cluster.restart(&[]).await;
    cluster.until_live(&namespace, 0).await;
}

#[tokio::test]
async fn more_orphans_than_can_be_left_by_accident_are_kept_until_a_person_says_so() {
    const ORPHANS: usize = 12;
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("many-orphans").await;
    let gone = cluster.pod(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone).await.expect("removed");
    let mut orphans = Vec::new();
    for _ in 0..ORPHANS {
        orphans.push(token(cluster, ROLE_PATH, &meta(&gone, "no-such-request", "2026-01-01T00:00:01Z")).await);
    }
    cluster.system.kill_operator();
    let few = ("VTO_SWEEP_LIMIT", "10");
    cluster.system.start_operator(&[few]).await.expect("the operator starts");
    let health = cluster.until_healthy("stopped: ").await;
    assert!(health.starts_with("ok") && health.contains("--sweep-limit"), "{health}");
    cluster.assert_counted(&["sweeps_total{result=\"stopped\"} 1", "sweep_orphans_kept 12", "sweep_permitted 1"]).await;
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, ORPHANS);
    // Whoever is to decide can see which they are.
    let said = cluster.operator_said();
    for accessor in &orphans {
        assert!(said.contains(accessor.as_str()), "{said}");
    }
    cluster.restart(&[]).await;
    cluster.until_live(&namespace, 0).await;
}

#[tokio::test]
async fn i2_orphans_whose_requests_explain_them_are_revoked_however_many_they_are() {
    const ORPHANS: usize = 12;
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("explained").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.ask(&pod, |_| ()).await;
    cluster.until(&pod, "status", |request| request.status.is_some()).await;
    cluster.system.kill_operator();
    let request = cluster.request(&pod, 0).await.expect("a request");
    let uid = request.metadata.uid.clone().expect("a UID");
    let began = "2026-01-01T00:00:01Z";
    let status = json!({ "status": { "phase": "Pending", "attempts": 1, "history": [
        { "number": 1, "startedAt": "2026-01-01T00:00:01.000000Z", "outcome": "Unrecorded", "time": began },
    ] } });
    let requests = cluster.requests(&namespace);
    requests.patch_status(&name(&request), &PatchParams::default(), &Patch::Merge(&status)).await.expect("a status");
    for _ in 0..ORPHANS {
        token(cluster, ROLE_PATH, &meta(&pod, &uid, began)).await;
    }
    cluster.system.start_operator(&[("VTO_SWEEP_LIMIT", "10")]).await.expect("the operator starts");
    cluster.until_live(&namespace, 0).await;
}

#[tokio::test]
async fn a_sweep_that_breaks_off_says_what_it_has_done_and_is_repeated_soon() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("broken-sweep").await;
    let gone = cluster.pod(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone).await.expect("removed");
    let mut orphans = Vec::new();
    for _ in 0..3 {
        orphans.push(token(cluster, ROLE_PATH, &meta(&gone, "no-such-request", "2026-01-01T00:00:01Z")).await);
    }
    let plane = cluster.plane().server_url();
    let proxy = Proxy::before_server(cluster.system.testbed().run(), plane).await.expect("a proxy");
    let mut looks = 0;
    // Nobody but the sweep asks for a pod that is gone: once for each orphan.
    proxy.follow(move |call| {
        looks += u32::from(call.path.ends_with("/broken-sweep/pods/gone"));
        match call.path.ends_with("/broken-sweep/pods/gone") && looks == 2 {
            true => Fault::Before(Break::Answer(StatusCode::INTERNAL_SERVER_ERROR)),
            false => Fault::None,
        }
    });
    cluster.system.kill_operator();
    let kubeconfig = cluster.system.operator_kubeconfig_at(&proxy.url()).expect("a kubeconfig");
    // The next sweep by the clock would be in a quarter of an hour.
    let settings = [("KUBECONFIG", &*kubeconfig.to_string_lossy()), ("VTO_SWEEP_INTERVAL", "15m")];
    cluster.system.start_operator(&settings).await.expect("the operator starts");
    let health = cluster.until_healthy("broke off, and is repeated").await;
    assert!(number(&health, " without a request revoked") >= 1, "{health}");
    let began = Instant::now();
    // The pod is gone; its Events are not.
    while !cluster.kubectl(&["get", "events", "-n", &namespace]).await.contains("OrphanRevoked") {
        assert!(began.elapsed() < LIMIT, "nobody is told");
    }
    for orphan in &orphans {
        while cluster.lives(orphan).await {
            assert!(began.elapsed() < Duration::from_secs(90), "the orphan {orphan} is still alive");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test]
async fn an_operator_that_may_not_list_tokens_says_so_and_goes_on() {
    let (cluster, _guard) = alone().await;
    cluster.restart(&[("VTO_VAULT_SWEEP_ROLE", "no-such-role")]).await;
    let health = cluster.until_healthy("may not list tokens").await;
    assert!(health.starts_with("ok") && health.contains("config/vault/"), "{health}");
    cluster.assert_counted(&["sweeps_total{result=\"forbidden\"} 1", "sweep_permitted 0", "leader 1"]).await;
    let namespace = cluster.namespace("no-sweep").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    assert_eq!(delivered.request.phase(), Phase::Delivered);
}

#[tokio::test]
async fn a_login_for_the_sweep_that_may_not_list_is_said_once_and_the_operator_goes_on() {
    let (cluster, _guard) = alone().await;
    let policy = std::fs::read_to_string(testbed::project::root().join("config/vault/sweep-policy.hcl"));
    let policy = without(&policy.expect("a policy"), "auth/token/accessors");
    let body = json!({ "policy": without(&policy, "auth/token/accessors/") });
    cluster.system.kill_operator();
    let path = "sys/policies/acl/vault-token-operator-sweep";
    cluster.vault().must(Method::PUT, path, Some(&body)).await.expect("a policy");
    cluster.system.start_operator(&[("VTO_SWEEP_INTERVAL", "10s")]).await.expect("the operator starts");

    // It has logged in: what Vault forbids is the list.
    let health = cluster.until_healthy("may not list tokens (Vault forbids auth/token/accessors").await;
    assert!(health.starts_with("ok") && health.contains("config/vault/"), "{health}");
    cluster.assert_counted(&["sweep_permitted 0", "leader 1"]).await;
    let namespace = cluster.namespace("may-not-list").await;
    cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    // The second sweep finds the same, and it is no news.
    cluster.until_counted(|| "sweeps_total{result=\"forbidden\"} 2".to_owned()).await;
    let log = cluster.system.operator_logs().pop().expect("a log");
    let may_not =
        |line: &&Value| line["message"].as_str().is_some_and(|message| message.contains("may not list tokens"));
    let lines = lines_of(&log);
    let said: Vec<_> = lines.iter().filter(may_not).collect();
    assert!(said.len() == 1 && said[0]["level"] == "WARN", "{said:#?}");
    cluster.system.tell_vault_again().await.expect("told");
}
