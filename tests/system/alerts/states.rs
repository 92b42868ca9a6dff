//! The states that the alerts are about, each made for real.

use super::samples::{Case, Scrape};
use crate::ha;
use crate::push::waiting;
use crate::rights::{policy, restart_with, without};
use crate::sealed::{Played, unwrap};
use crate::stranger::post;
use crate::support::{Cluster, LIMIT};
use crate::sweep::{ROLE_PATH, meta, token};
use futures::stream::{self, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use testbed::process::Process;
use testbed::project;
use testbed::proxy::{Break, Fault, Proxy};
use testbed::system::System;
use vault_token_operator::api::{Phase, request_name};
use vault_token_operator::seal::Receipt;
use vault_token_operator::wire::{Outcome, PUSH_PATH};

/// Longer than deliveries and revocations may take before somebody is told.
const OUTAGE: Duration = Duration::from_secs(32);

/// Longer than any watch goes without being taken up before somebody is told, and before the replica is to be started anew.
const SILENCE: Duration = Duration::from_secs(182);

/// How many requests wait for Vault at once: more than may wait for their turn for long, and than have one.
const CROWD: usize = 90;

/// What a person's first look finds in order.
const WELL: [(&str, f64); 5] = [
    ("leader", 1.0),
    ("vault_available", 1.0),
    ("admission_in_force", 1.0),
    ("sweeps_total{result=\"complete\"}", 1.0),
    ("vault_rights{kind=\"missing\"}", 0.0),
];

/// All of them, and what a replica tells that stands by. The last one of an operator's states is followed by another operator.
pub async fn all(cluster: &Cluster) -> (Vec<Case>, Scrape) {
    start(cluster, &[]).await;
    let well = until(cluster, "all is well", |scrape| scrape.tells(&WELL)).await;
    let (stopped, standby) = Stopped::new(cluster).await;
    let mut cases = vec![usual(cluster).await, denied(cluster).await, token_gone(cluster).await];
    cases.extend(intercepted(cluster).await);
    cases.push(used_up(cluster).await);
    cases.extend([foreign_push(cluster).await, false_answer(cluster).await, unchecked(cluster).await]);
    cases.extend([lacks_rights(cluster).await, has_rights(cluster).await, may_not_sweep(cluster).await]);
    cases.extend([lost_grants(cluster).await, held_grants(cluster).await, many_orphans(cluster).await]);
    cases.extend(outage(cluster).await);
    cases.push(ending(cluster).await);
    cases.push(waived(cluster).await);
    cases.extend([sweep_fails(cluster).await, no_leader(cluster, well.clone()).await]);
    cases.push(stopped.told(&well).await);
    // Nothing holds a look or a sweep up for so long: the numbers alone are not the operator's.
    for (name, series, seconds) in [
        ("a look has stopped", "longest_look_seconds", 301.0),
        ("the sweep has stopped", "sweep_overdue_seconds", 1801.0),
    ] {
        let (before, after) = (well.clone(), well.told(series, seconds));
        cases.push(Case { name, before, after, fires: vec!["VaultTokenOperatorSilent"] });
    }
    cluster.system.kill_operator();
    let fires = vec!["VaultTokenOperatorAway"];
    cases.push(Case { name: "no operator", before: well, after: Scrape::of(cluster).await, fires });
    (cases, standby)
}

/// A second replica, which does nothing while all else happens.
struct Stopped {
    process: Process,
    health: String,
    api: Proxy,
    since: Instant,
}

impl Stopped {
    /// Gives what it has told before, too.
    async fn new(cluster: &Cluster) -> (Self, Scrape) {
        let api = Proxy::before_server(cluster.system.testbed().run(), cluster.plane().server_url()).await;
        let api = api.expect("a proxy");
        let kubeconfig = cluster.system.operator_kubeconfig_at(&api.url()).expect("a kubeconfig");
        let settings = [("VTO_IDENTITY", "stopped"), ("KUBECONFIG", &*kubeconfig.to_string_lossy())];
        let (process, health) = cluster.system.spawn_operator(&settings).expect("it starts");
        ha::until(&health, "this replica stands by").await;
        ha::until(&health, "admission: in force").await;
        let standby = Scrape::at(&health).await;
        process.pause();
        (Self { process, health, api, since: Instant::now() }, standby)
    }

    /// What it tells of itself once it goes on, before it is answered anything.
    async fn told(self, well: &Scrape) -> Case {
        tokio::time::sleep(SILENCE.saturating_sub(self.since.elapsed())).await;
        self.api.follow(|_| Fault::Before(Break::Silence));
        self.process.resume();
        let (healthy, text) = System::probe(&self.health, "healthz").await.expect("an answer");
        assert!(healthy == StatusCode::SERVICE_UNAVAILABLE && text.contains("was not taken up"), "{healthy}: {text}");
        let after = well.with(&Scrape::at(&self.health).await, "watch_silence_seconds");
        Case { name: "a replica has stopped", before: well.clone(), after, fires: vec!["VaultTokenOperatorSilent"] }
    }
}

/// Starts the operator anew; gives what it tells once it leads.
async fn start(cluster: &Cluster, settings: &[(&str, &str)]) -> Scrape {
    cluster.restart(settings).await;
    until(cluster, "it leads", steady).await
}

/// It works.
fn steady(scrape: &Scrape) -> bool {
    scrape.tells(&[("leader", 1.0), ("admission_in_force", 1.0)])
}

/// What the operator tells once this holds of it.
async fn until(cluster: &Cluster, what: &str, holds: impl Fn(&Scrape) -> bool) -> Scrape {
    let deadline = Instant::now() + LIMIT;
    loop {
        let scrape = Scrape::of(cluster).await;
        if holds(&scrape) {
            return scrape;
        }
        assert!(Instant::now() < deadline, "the metrics do not say that {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn usual(cluster: &Cluster) -> Case {
    let before = Scrape::of(cluster).await;
    let namespace = cluster.namespace("usual").await;
    cluster.deliver(&PodSpec::new(&namespace, "stays", "shop-read", "1h")).await;
    let gone = cluster.deliver(&PodSpec::new(&namespace, "goes", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone.pod).await.expect("removed");
    cluster.until_phase(&gone.pod, Phase::Revoked).await;
    let after = until(cluster, "one token lives", |scrape| scrape.value("tokens_live") == 1.0).await;
    let counted = |series| after.value(series) - before.value(series);
    assert_eq!((counted("tokens_issued_total"), counted("tokens_delivered_total")), (2.0, 2.0));
    assert_eq!(counted("tokens_revoked_total{reason=\"PodDeleted\"}"), 1.0);
    assert_eq!((counted("delivery_seconds_count"), counted("revocation_seconds_count")), (2.0, 1.0));
    assert_eq!(counted("vault_requests_total{operation=\"mint\",result=\"ok\"}"), 2.0);
    let updates = "api_requests_total{operation=\"update\",resource=\"vaulttokenrequests/status\",result=\"ok\"}";
    assert!(counted(updates) >= 7.0, "{}", counted(updates));
    Case { name: "all is well", before, after, fires: vec![] }
}

async fn denied(cluster: &Cluster) -> Case {
    let before = Scrape::of(cluster).await;
    let namespace = cluster.namespace("denied").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "root", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    cluster.until_phase(&pod, Phase::Denied).await;
    let series = "requests_denied_total{reason=\"PoliciesInvalid\"}";
    let after = until(cluster, "a request was denied", |scrape| scrape.value(series) == 1.0).await;
    Case { name: "a pod asks for what nobody gets", before, after, fires: vec!["VaultTokenRequestsDenied"] }
}

async fn token_gone(cluster: &Cluster) -> Case {
    let before = Scrape::of(cluster).await;
    let namespace = cluster.namespace("gone").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "10s")).await;
    let accessor = json!({ "accessor": delivered.accessor() });
    cluster.vault().must(Method::POST, "auth/token/revoke-accessor", Some(&accessor)).await.expect("revoked");
    let series = "tokens_revoked_total{reason=\"TokenExpired\"}";
    let after = until(cluster, "a token is gone", |scrape| scrape.value(series) == 1.0).await;
    Case { name: "somebody revoked a token", before, after, fires: vec!["VaultTokenGone"] }
}

/// The request says so, and the count of such tokens; each of the two alone, too.
async fn intercepted(cluster: &Cluster) -> [Case; 3] {
    let before = Scrape::of(cluster).await;
    let namespace = cluster.namespace("intercepted").await;
    let played = Played::new(cluster, &namespace).await;
    played
        .answer(async |parcel, receipt, attempt| {
            unwrap(cluster, &parcel).await;
            played.signed(&receipt, attempt, Outcome::Intercepted)
        })
        .await;
    cluster.until_phase(&played.pod, Phase::Failed).await;
    let series = "requests_failed_total{reason=\"WrappingTokenUsed\"}";
    let failed = |scrape: &Scrape| scrape.value(series) == 1.0 && scrape.value("requests_compromised") == 1.0;
    let after = until(cluster, "a request failed", failed).await;
    assert_eq!(after.value("tokens_compromised_total"), 1.0);
    assert_eq!(after.value("tokens_revoked_total{reason=\"WrappingTokenUsed\"}"), 1.0);
    let name = request_name(&played.pod.name, &played.pod.uid, 0);
    cluster.kubectl(&["delete", "vtr", &name, "-n", &namespace, "--timeout=30s"]).await;
    let looked = until(cluster, "somebody has looked", |scrape| scrape.value("requests_compromised") == 0.0).await;
    let fires = vec!["VaultTokenCompromised", "VaultTokenRequestsFailing"];
    let alone = vec!["VaultTokenCompromised"];
    [
        Case { name: "nobody has looked for long", before: after.clone(), after: after.clone(), fires: alone },
        Case { name: "somebody used a wrapping token", before: before.clone(), after, fires: fires.clone() },
        Case { name: "somebody has looked at once", before, after: looked, fires },
    ]
}

async fn foreign_push(cluster: &Cluster) -> Case {
    let before = Scrape::of(cluster).await;
    let (pod, init) = waiting(cluster, "foreign").await;
    post(&pod, PUSH_PATH, "nonsense").await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ended_well(&pod, &init).await;
    let series = "alarms_total{kind=\"foreign_push\"}";
    let after = until(cluster, "a push was refused", |scrape| scrape.value(series) == 1.0).await;
    Case { name: "somebody pushes", before, after, fires: vec!["VaultTokenForeignPushes"] }
}

/// Somebody used a wrapping token, and Vault does not know what was in it any more.
async fn used_up(cluster: &Cluster) -> Case {
    let before = Scrape::of(cluster).await;
    let namespace = cluster.namespace("used-up").await;
    let played = Played::new(cluster, &namespace).await;
    played
        .answer(async |parcel, receipt, attempt| {
            let made = unwrap(cluster, &parcel).await;
            let accessor = json!({ "accessor": made["auth"]["accessor"] });
            cluster.vault().must(Method::POST, "auth/token/revoke-accessor", Some(&accessor)).await.expect("revoked");
            played.signed(&receipt, attempt, Outcome::Intercepted)
        })
        .await;
    let series = "alarms_total{kind=\"token_gone\"}";
    let after = until(cluster, "a token is gone", |scrape| scrape.value(series) == 1.0).await;
    cluster.kubelet.remove(cluster.plane(), &played.pod).await.expect("removed");
    Case { name: "somebody used a wrapping token up", before, after, fires: vec!["VaultTokenGone"] }
}

/// Somebody answers for an init container who has not opened what was pushed.
async fn false_answer(cluster: &Cluster) -> Case {
    let before = Scrape::of(cluster).await;
    let namespace = cluster.namespace("false-answer").await;
    let played = Played::new(cluster, &namespace).await;
    let other = Receipt::generate().expect("a receipt");
    played.answer(async |_, _, attempt| played.signed(&other, attempt, Outcome::Stored)).await;
    let series = "alarms_total{kind=\"answer_unconfirmed\"}";
    let after = until(cluster, "an answer was not confirmed", |scrape| scrape.value(series) == 1.0).await;
    cluster.kubelet.remove(cluster.plane(), &played.pod).await.expect("removed");
    Case { name: "somebody answers", before, after, fires: vec!["VaultTokenForeignPushes"] }
}

async fn unchecked(cluster: &Cluster) -> Case {
    let before = Scrape::of(cluster).await;
    let policy = ["validatingadmissionpolicybinding", "vault-token-requests"];
    cluster.kubectl(&["delete", policy[0], policy[1]]).await;
    let after = until(cluster, "nothing is checked", |scrape| scrape.value("admission_in_force") == 0.0).await;
    let file = project::root().join("config/admission.yaml");
    cluster.kubectl(&["apply", "--server-side", "-f", &file.to_string_lossy()]).await;
    Case { name: "no admission policy", before, after, fires: vec!["VaultTokenOperatorAdmissionNotInForce"] }
}

/// Nothing is checked, and that was meant.
async fn waived(cluster: &Cluster) -> Case {
    let settings = [("VTO_TRUST_UNVERIFIED_REQUESTS", "true")];
    cluster.restart(&settings).await;
    let works = [("admission_waived", 1.0), ("leader", 1.0), ("vault_available", 1.0)];
    let after = until(cluster, "it works though nothing is checked", |scrape| scrape.tells(&works)).await;
    Case { name: "no admission policy wanted", before: after.clone(), after, fires: vec![] }
}

async fn lacks_rights(cluster: &Cluster) -> Case {
    let before = start(cluster, &[]).await;
    restart_with(cluster, &without(&policy(), "auth/token/renew-accessor")).await;
    let right = "vault_rights{kind=\"missing\"}";
    let after = until(cluster, "a right is missing", |scrape| steady(scrape) && scrape.value(right) == 1.0).await;
    cluster.system.tell_vault_again().await.expect("told");
    Case { name: "a right too few", before, after, fires: vec!["VaultTokenOperatorRightsMissing"] }
}

async fn has_rights(cluster: &Cluster) -> Case {
    let before = start(cluster, &[]).await;
    restart_with(cluster, &(policy() + "path \"auth/token/create\" { capabilities = [\"update\"] }")).await;
    let right = "vault_rights{kind=\"excess\"}";
    let after = until(cluster, "a right is too many", |scrape| steady(scrape) && scrape.value(right) == 1.0).await;
    cluster.system.tell_vault_again().await.expect("told");
    Case { name: "a right too many", before, after, fires: vec!["VaultTokenOperatorRightsExcess"] }
}

async fn may_not_sweep(cluster: &Cluster) -> Case {
    let before = start(cluster, &[("VTO_VAULT_SWEEP_ROLE", "no-such-role")]).await;
    let series = "sweeps_total{result=\"forbidden\"}";
    let after = until(cluster, "the sweep is forbidden", |scrape| scrape.value(series) == 1.0).await;
    Case { name: "no login for the sweep", before, after, fires: vec!["VaultTokenSweepNotPermitted"] }
}

async fn lost_grants(cluster: &Cluster) -> Case {
    grants(cluster, "lost", "20", "tokens_ungranted", vec!["VaultTokenGrantsLost"]).await
}

async fn held_grants(cluster: &Cluster) -> Case {
    let fires = vec!["VaultTokenGrantsHeld", "VaultTokenGrantsLost"];
    grants(cluster, "held", "0", "tokens_ungranted_held", fires).await
}

async fn grants(cluster: &Cluster, name: &'static str, limit: &str, series: &str, fires: Vec<&'static str>) -> Case {
    let before = start(cluster, &[("VTO_UNGRANTED_LIMIT", limit)]).await;
    let namespace = cluster.namespace(name).await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubectl(&["delete", "vpb", &namespace]).await;
    let after = until(cluster, "a token has lost its grant", |scrape| scrape.value(series) == 1.0).await;
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    cluster.until_phase(&delivered.pod, Phase::Revoked).await;
    Case { name, before, after, fires }
}

async fn many_orphans(cluster: &Cluster) -> Case {
    let namespace = cluster.namespace("orphans").await;
    let gone = cluster.pod(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone).await.expect("removed");
    let meta = meta(&gone, "no-such-request", "2026-01-01T00:00:01Z");
    let orphans = [token(cluster, ROLE_PATH, &meta).await, token(cluster, ROLE_PATH, &meta).await];
    let before = start(cluster, &[("VTO_SWEEP_LIMIT", "1")]).await;
    let series = "sweeps_total{result=\"stopped\"}";
    let after = until(cluster, "the sweep stopped", |scrape| scrape.value(series) == 1.0).await;
    for accessor in orphans {
        let body = json!({ "accessor": accessor });
        cluster.vault().must(Method::POST, "auth/token/revoke-accessor", Some(&body)).await.expect("revoked");
    }
    Case { name: "many orphans", before, after, fires: vec!["VaultTokenSweepStopped", "VaultTokenOrphansKept"] }
}

/// Vault is away while pods come and go, and is back.
async fn outage(cluster: &Cluster) -> [Case; 3] {
    // No sweep falls into it.
    start(cluster, &[("VTO_SWEEP_INTERVAL", "1h")]).await;
    until(cluster, "it has swept", |scrape| scrape.value("sweep_permitted") == 1.0).await;
    let namespace = cluster.namespace("outage").await;
    let mut gone = Vec::new();
    let mut late = Vec::new();
    for number in 0..3 {
        gone.push(cluster.deliver(&PodSpec::new(&namespace, &format!("gone-{number}"), "shop-read", "1h")).await);
        late.push(cluster.pod(&PodSpec::new(&namespace, &format!("late-{number}"), "shop-read", "1h")).await);
    }
    let crowded = cluster.namespace("crowd").await;
    let names = (0..CROWD).map(|number| PodSpec::new(&crowded, &format!("web-{number}"), "shop-read", "1h"));
    let create = async |spec: PodSpec| {
        let pod = cluster.pod(&spec).await;
        cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
        pod
    };
    let crowd: Vec<_> = stream::iter(names).map(create).buffer_unordered(8).collect().await;
    let before = Scrape::of(cluster).await;

    cluster.vault().pause();
    stream::iter(&crowd).for_each_concurrent(16, |pod| cluster.ask(pod, |_| ())).await;
    let waiting = |scrape: &Scrape| scrape.value("queue_depth") > 50.0 && scrape.value("longest_look_seconds") > 1.0;
    let queued = until(cluster, "many wait for their turn, and looks take long", waiting).await;
    let mut inits = Vec::new();
    for pod in &late {
        inits.push(cluster.init(pod).await);
    }
    let asked = Instant::now();
    let remove = async |pod| cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
    stream::iter(gone.iter().map(|delivered| &delivered.pod)).for_each_concurrent(3, remove).await;
    let state = [("vault_available", 0.0), ("tokens_outliving_pods", 3.0), ("queue_depth", 0.0)];
    let away = |scrape: &Scrape| scrape.tells(&state);
    until(cluster, "Vault is away", away).await;
    stream::iter(&crowd).for_each_concurrent(16, remove).await;
    tokio::time::sleep(OUTAGE.saturating_sub(asked.elapsed())).await;
    // Calls without an answer may have left tokens: the search for them fails, too.
    let long_away = |scrape: &Scrape| {
        let at_least = [("longest_outliving_seconds", 31.0), ("sweeps_total{result=\"failed\"}", 1.0)];
        away(scrape) && at_least.iter().all(|(series, value)| scrape.value(series) >= *value)
    };
    let settled = until(cluster, "Vault has been away for long", long_away).await;
    cluster.vault().resume();
    for (pod, init) in late.iter().zip(&inits) {
        cluster.ended_well(pod, init).await;
    }
    let back = |scrape: &Scrape| scrape.value("tokens_outliving_pods") == 0.0 && scrape.value("vault_available") == 1.0;
    let back = until(cluster, "Vault is back", back).await;
    let fires = vec!["VaultTokenDeliverySlow", "VaultTokenRevocationSlow"];
    let outage = vec!["VaultTokenOperatorVaultUnavailable", "VaultTokensOutlivePods", "VaultTokenSweepFailing"];
    [
        Case {
            name: "many wait",
            before: before.clone(),
            after: queued,
            fires: vec!["VaultTokenOperatorQueueGrowing"],
        },
        Case { name: "Vault is away", before, after: settled.clone(), fires: outage },
        Case { name: "Vault is back", before: settled, after: back, fires },
    ]
}

/// Vault lets no token live for much longer than this one's ttl.
async fn ending(cluster: &Cluster) -> Case {
    let before = start(cluster, &[]).await;
    let bound = async |max: &str| {
        let tune = json!({ "max_lease_ttl": max });
        cluster.vault().must(Method::POST, "sys/auth/token/tune", Some(&tune)).await.expect("tuned");
    };
    bound("45s").await;
    let namespace = cluster.namespace("ending").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "40s")).await;
    let after = until(cluster, "a token is ending", |scrape| scrape.value("tokens_ending") == 1.0).await;
    cluster.until_described("pod", "web", &namespace, "TokenEnding").await;
    bound("8760h").await;
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    cluster.until_phase(&delivered.pod, Phase::Revoked).await;
    Case { name: "a token comes to its end", before, after, fires: vec!["VaultTokenEnding"] }
}

async fn sweep_fails(cluster: &Cluster) -> Case {
    cluster.system.kill_operator();
    cluster.vault().pause();
    let before = start(cluster, &[]).await;
    until(cluster, "the sweep waits for Vault", |scrape| scrape.value("sweep_overdue_seconds") >= 1.0).await;
    let over = [("sweeps_total{result=\"failed\"}", 1.0), ("sweep_overdue_seconds", 0.0)];
    let after = until(cluster, "the sweep failed", |scrape| scrape.tells(&over)).await;
    cluster.vault().resume();
    let fires = vec!["VaultTokenOperatorVaultUnavailable", "VaultTokenSweepFailing"];
    Case { name: "a sweep that cannot ask", before, after, fires }
}

async fn no_leader(cluster: &Cluster, before: Scrape) -> Case {
    cluster.system.kill_operator();
    let lease = ["lease", "vault-token-operator-leader", "-n", "vault-token-operator"];
    let held = json!({ "spec": { "holderIdentity": "somebody", "leaseDurationSeconds": 3600 } }).to_string();
    cluster.kubectl(&[["patch"].as_slice(), &lease, &["--type=merge", "-p", &held]].concat()).await;
    cluster.system.start_operator(&[]).await.expect("the operator starts");
    let standing_by = [("leader", 0.0), ("admission_in_force", 1.0), ("vault_available", 1.0)];
    let after = until(cluster, "it stands by", |scrape| scrape.tells(&standing_by)).await;
    Case { name: "nobody leads", before, after, fires: vec!["VaultTokenOperatorNoLeader"] }
}
