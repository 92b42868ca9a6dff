//! When Vault, the init container or the API server is away: nothing is lost, and everybody is told.

use crate::fault::Proxied;
use crate::support::{CALL_DEADLINE, Cluster, LIMIT, alone, condition, name, reason, token_of};
use futures::stream::{self, StreamExt};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testbed::kubelet::{INIT_PORT, PodSpec};
use testbed::pki::Pki;
use testbed::proxy::{Break, Call, Fault};
use tokio::net::TcpListener;
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};
use vault_token_operator::domain::renewal::{renew_at, spread};

#[tokio::test]
async fn a_sealed_vault_makes_pods_wait_and_tokens_die_late_but_surely() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("sealed").await;
    let before = cluster.deliver(&PodSpec::new(&namespace, "before", "shop-read", "1h")).await;
    cluster.vault().seal().await.expect("sealed");

    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    let unavailable = |request: &VaultTokenRequest| reason(request) == "VaultUnavailable";
    let waiting = cluster.until(&pod, "wait for Vault", unavailable).await;
    let (_, _, message) = condition(&waiting, "Issued");
    assert!(message.to_lowercase().contains("sealed"), "{message}");
    cluster.until_described("pod", "web", &namespace, "VaultUnavailable").await;

    // A revocation that Vault cannot confirm is not given up, and the finalizer stays (I8).
    cluster.kubelet.remove(cluster.plane(), &before.pod).await.expect("removed");
    let held_up = cluster.until(&before.pod, "revocation held up", unavailable).await;
    assert!(!held_up.metadata.finalizers.unwrap_or_default().is_empty());
    assert_eq!(condition(&cluster.request(&before.pod, 0).await.expect("a request"), "Revoked").0, "False");

    cluster.vault().unseal().await.expect("unsealed");
    cluster.ended_well(&pod, &init).await;
    assert!(cluster.accepts(&token_of(&pod)).await);
    cluster.until_phase(&before.pod, Phase::Revoked).await;
    assert!(!cluster.accepts(&before.token).await);
    let request = cluster.request(&pod, 0).await.expect("a request");
    assert_eq!(cluster.live_tokens(&pod).await, 1, "attempts: {}", request.status.expect("a status").attempts);
}

#[tokio::test]
async fn init_containers_that_cannot_be_reached_or_cannot_reach_vault_use_up_their_attempts_and_leave_no_token() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    // Long enough for a push in each attempt, on a busy machine, too.
    cluster.system.start_operator(&[("VTO_WRAPPING_TTL", "3s")]).await.expect("the operator starts");
    let namespace = cluster.namespace("unreachable").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    // Two whose init containers get their pushes, and cannot take them to Vault.
    let folder = cluster.system.testbed().run().folder("another-ca").expect("a folder");
    let another = Pki::new(&folder).expect("another CA").ca().path.to_string_lossy().into_owned();
    let mistrusting = cluster.pod(&PodSpec::new(&namespace, "mistrusting", "shop-read", "1h")).await;
    // Whatever its system trusts.
    let trusted = cluster.vault().ca_path().to_string_lossy().into_owned();
    let settings = [("VAULT_CACERT", another.as_str()), ("SSL_CERT_FILE", &trusted)];
    let mistrusting_init = cluster.init_with(&mistrusting, &settings).await;
    let lost = cluster.pod(&PodSpec::new(&namespace, "lost", "shop-read", "1h")).await;
    let lost_init = cluster.init_with(&lost, &[("VAULT_ADDR", "https://127.0.0.1:1")]).await;

    // And one whose port takes the last push, and answers nothing: that is waited for, longer than all other attempts take.
    let silent = cluster.pod(&PodSpec::new(&namespace, "silent", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &silent).await.expect("a status");
    cluster.ask(&silent, |_| ()).await;
    let one_is_left = |request: &VaultTokenRequest| {
        let history = request.status.as_ref().map(|status| &status.history[..]);
        matches!(history, Some([.., last]) if last.number == 4)
    };
    cluster.until(&silent, "end of the fourth attempt", one_is_left).await;
    let _listener = TcpListener::bind((silent.address, INIT_PORT)).await.expect("an address");
    let began = Instant::now();
    while cluster.request(&silent, 0).await.expect("a request").phase() != Phase::Failed {
        assert!(began.elapsed() < 2 * LIMIT, "{:#?}", cluster.request(&silent, 0).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    for (pod, words) in [
        (&pod, "Connection refused"),
        (&mistrusting, "invalid peer certificate"),
        (&lost, "Connection refused"),
        (&silent, "no answer in time"),
    ] {
        let failed = cluster.until_phase(pod, Phase::Failed).await;
        let (_, reason, message) = condition(&failed, "Issued");
        assert_eq!(reason, "AttemptsExhausted");
        assert!(message.contains("all 5 attempts failed") && message.contains(words), "{message}");
        assert!(!message.contains("follows"), "no attempt follows the last one: {message}");
        assert_eq!(cluster.live_tokens(pod).await, 0, "every attempt's token was revoked");
    }
    for (init, pod, words) in
        [(mistrusting_init, mistrusting, "invalid peer certificate"), (lost_init, lost, "Connection refused")]
    {
        assert!(!crate::support::ended(&init).await.success());
        let message = init.termination_message();
        assert!(
            message.contains("and says: cannot reach Vault")
                && message.contains("VAULT_CACERT")
                && message.contains(words),
            "{}: {message}",
            pod.name
        );
    }
}

#[tokio::test]
async fn an_operator_that_dies_between_record_and_delivery_starts_over() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("abandoned").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
    cluster.ask(&pod, |_| ()).await;
    let issued = cluster.until_phase(&pod, Phase::Issued).await;
    let first = issued.status.expect("a status").token_accessor.expect("an accessor");
    cluster.restart(&[]).await;
    cluster.until_dead(&first).await;
    let again = |request: &vault_token_operator::api::VaultTokenRequest| {
        request.status.as_ref().is_some_and(|status| status.attempts == 2 && status.phase == Some(Phase::Issued))
    };
    cluster.until(&pod, "second attempt", again).await;
    assert_eq!(cluster.live_tokens(&pod).await, 1);
}

#[tokio::test]
async fn an_api_server_that_restarts_is_found_again() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("api-restart").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.plane().stop_apiserver().await;
    cluster.plane().start_apiserver().await.expect("started");
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    cluster.until_phase(&delivered.pod, Phase::Revoked).await;
    assert!(!cluster.accepts(&delivered.token).await);
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    cluster.ended_well(&pod, &init).await;
}

#[tokio::test]
async fn what_ends_while_its_attempt_waits_for_vault_ends_at_once() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("ends-while-minting").await;
    let policy = "sys/policies/acl/vault-token-operator";
    let whole = cluster.vault().must(Method::GET, policy, None).await.expect("a policy")["data"]["policy"].clone();
    let lacking = whole.as_str().expect("a policy").replace("auth/token/create/", "auth/token/create-not/");
    let set = async |text: &Value| {
        let text = json!({ "policy": text });
        cluster.vault().must(Method::PUT, policy, Some(&text)).await.expect("written");
    };
    set(&json!(lacking)).await;
    let waiting = async |name: &str| {
        let pod = cluster.pod(&PodSpec::new(&namespace, name, "shop-read", "1h")).await;
        cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
        cluster.ask(&pod, |_| ()).await;
        let waits = cluster.until(&pod, "wait for Vault", |request| reason(request) == "VaultForbids").await;
        assert_eq!(waits.phase(), Phase::Minting);
        pod
    };
    let (unwanted, gone) = (waiting("unwanted").await, waiting("gone").await);

    let name = request_name(&unwanted.name, &unwanted.uid, 0);
    cluster.kubectl(&["delete", "vtr", &name, "-n", &namespace, "--timeout=30s"]).await;
    assert!(cluster.request(&unwanted, 0).await.is_none(), "the request is stuck");
    cluster.kubelet.remove(cluster.plane(), &gone).await.expect("removed");
    let failed = cluster.until_phase(&gone, Phase::Failed).await;
    assert_eq!(condition(&failed, "Issued").1, "PodNotFound");

    set(&whole).await;
    let after = cluster.deliver(&PodSpec::new(&namespace, "after", "shop-read", "1h")).await;
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, 1);
    assert!(cluster.accepts(&after.token).await);
}

#[tokio::test]
async fn an_operator_that_finds_no_api_server_ends_when_asked_to() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    cluster.plane().stop_apiserver().await;
    let (process, _) = cluster.system.spawn_operator(&[]).expect("it starts");
    let said = async |words: &str| {
        let deadline = Instant::now() + LIMIT;
        while !std::fs::read_to_string(process.log()).expect("a log").contains(words) {
            assert!(Instant::now() < deadline, "it does not say {words:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    said("the watch of requests broke").await;
    let asked = Instant::now();
    process.stop(Duration::from_secs(10)).await;
    assert!(process.exit_status().is_some_and(|status| status.success()), "{:?}", process.exit_status());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    cluster.plane().start_apiserver().await.expect("started");
}

/// What is asked of Vault, by the last part of its path, but a token role's name.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<HashMap<String, usize>>>);

impl Asked {
    fn script(&self) -> impl FnMut(&Call) -> Fault + Send + 'static + use<> {
        let asked = self.clone();
        move |call| {
            let path = call.path.trim_start_matches("/v1/").replace("auth/token/create/", "mint/");
            let what = if path.starts_with("mint/") { "mint" } else { path.rsplit('/').next().unwrap_or_default() };
            *asked.0.lock().expect("counts").entry(what.to_owned()).or_default() += 1;
            Fault::None
        }
    }

    fn of(&self, what: &str) -> usize {
        self.0.lock().expect("counts").get(what).copied().unwrap_or_default()
    }

    /// All that was asked so far; the count begins anew.
    fn take(&self) -> HashMap<String, usize> {
        std::mem::take(&mut self.0.lock().expect("counts"))
    }

    /// Waits until this was asked so often.
    async fn until(&self, what: &str, count: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.of(what) < count {
            assert!(Instant::now() < deadline, "{what} was asked {} times, not {count}", self.of(what));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// How the circuit breaker asks whether Vault is back.
const PROBE: &str = "lookup-self";

#[tokio::test]
async fn an_outage_costs_vault_one_call_at_a_time_however_many_wait_and_ends_in_no_flood() {
    const ENDING: usize = 12;
    const WAITING: usize = 24;
    // Of its own: tokens that other tests left would be renewed, and counted, too.
    let cluster = &Cluster::start().await;
    let proxied = Proxied::new(cluster).await;
    let asked = Asked::default();
    proxied.vault.follow(asked.script());
    proxied.start(cluster).await;
    // The sweep at the start is over: it logs in by itself.
    cluster.until_healthy("without a request revoked").await;
    let namespace = cluster.namespace("no-flood").await;
    let spec = |name: String| PodSpec::new(&namespace, &name, "shop-read", "1h");
    let deliver = async |number| cluster.deliver(&spec(format!("ending-{number}"))).await;
    let ending: Vec<_> = stream::iter(0..ENDING).map(deliver).buffer_unordered(6).collect().await;

    cluster.vault().seal().await.expect("sealed");
    let unavailable = |request: &VaultTokenRequest| reason(request) == "VaultUnavailable";
    for delivered in &ending {
        cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    }
    let wait = async |number| {
        let pod = cluster.pod(&spec(format!("waiting-{number}"))).await;
        let init = cluster.init(&pod).await;
        (pod, init)
    };
    let waiting: Vec<_> = stream::iter(0..WAITING).map(wait).buffer_unordered(6).collect().await;
    for pod in waiting.iter().map(|(pod, _)| pod).chain(ending.iter().map(|delivered| &delivered.pod)) {
        cluster.until(pod, "wait for Vault", unavailable).await;
    }
    // By then its waits have grown to their longest, 5 s, of which the jitter leaves half at least.
    asked.until(PROBE, 6).await;
    asked.until(PROBE, asked.of(PROBE) + 1).await;
    asked.take();
    let since = Instant::now();
    asked.until(PROBE, 4).await;
    let (took, calls) = (since.elapsed(), asked.take());
    assert_eq!(calls, HashMap::from([(PROBE.to_owned(), 4)]), "nothing but the breaker's probes");
    assert!(took > Duration::from_secs(9), "four probes in {took:?}");

    // It is of no use to start the operator anew, nor to keep others from it: it says what is wrong.
    let (ready, text) = cluster.system.probe_operator("readyz").await.expect("an answer").expect("an operator");
    assert_eq!(ready, StatusCode::OK, "{text}");
    let vault = text.lines().find(|line| line.starts_with("vault:")).expect("a line about Vault").to_lowercase();
    assert!(vault.contains("sealed"), "{text}");
    let (healthy, text) = cluster.system.probe_operator("healthz").await.expect("an answer").expect("an operator");
    assert_eq!(healthy, StatusCode::OK, "{text}");

    asked.take();
    cluster.vault().unseal().await.expect("unsealed");
    for (pod, init) in &waiting {
        cluster.ended_well(pod, init).await;
        assert!(cluster.accepts(&token_of(pod)).await, "{}", pod.name);
        assert_eq!(cluster.request(pod, 0).await.expect("a request").status.expect("a status").attempts, 1);
    }
    for delivered in &ending {
        cluster.until_phase(&delivered.pod, Phase::Revoked).await;
        assert!(!cluster.accepts(&delivered.token).await);
    }
    let calls = asked.take();
    let of = |what: &str| calls.get(what).copied().unwrap_or_default();
    // Each token is made and looked at once, each that ends revoked once.
    assert_eq!((of("mint"), of("lookup-accessor"), of("revoke-accessor")), (WAITING, WAITING, ENDING), "{calls:?}");
    // Beside these there is the probe that found Vault back, and now and then a look at the login's rights.
    assert!(calls.values().sum::<usize>() <= 2 * WAITING + ENDING + 5, "{calls:?}");
    cluster.until_healthy("vault: logged in").await;
}

#[tokio::test]
async fn rule_8_a_revocation_is_tried_until_the_tokens_last_possible_expiry_is_over() {
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    proxied.start(cluster).await;
    let namespace = cluster.namespace("outlived").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "10s")).await;
    let longer = cluster.deliver(&PodSpec::new(&namespace, "longer", "shop-read", "1h")).await;
    proxied.vault.follow(|_| Fault::Before(Break::Reset));
    for delivered in [&delivered, &longer] {
        cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    }
    let unavailable = |request: &VaultTokenRequest| reason(request) == "VaultUnavailable";
    let tried = cluster.until(&delivered.pod, "first try", unavailable).await;
    let status = tried.status.as_ref().expect("a status");
    let first =
        status.conditions.iter().find(|condition| condition.type_ == "Revoked").expect("a mark of the first try");
    assert_eq!(first.status, "False");
    // A renewal that was sent just before could have made it live for a period from then.
    let period = SignedDuration::from_secs(10);
    let last =
        (first.last_transition_time.0 + period).max(status.expires_at.as_ref().expect("an expiry").0) + CALL_DEADLINE;
    // Vault has long ended it, and cannot say so: the finalizer stays until nothing needs to be said.
    let deadline = Instant::now() + 4 * LIMIT;
    let released = loop {
        let request = cluster.request(&delivered.pod, 0).await.expect("a request");
        if request.metadata.finalizers.is_none() {
            break request;
        }
        assert!(Instant::now() < deadline, "the finalizer stays: {request:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(Timestamp::now() >= last, "I8: the finalizer went before {last}");
    assert_eq!(released.phase(), Phase::Revoked);
    let (value, why, message) = condition(&released, "Revoked");
    assert_eq!((value.as_str(), why.as_str()), ("True", "PodDeleted"));
    let words = "Vault could not be asked, and its token's last possible expiry is over";
    assert!(message.contains(words), "{message}");
    cluster.until_described("vtr", &name(&released), &namespace, words).await;
    // One whose expiry is not over waits on.
    let waits = cluster.request(&longer.pod, 0).await.expect("a request");
    assert!(unavailable(&waits) && waits.metadata.finalizers.is_some(), "{waits:#?}");
    assert!(cluster.lives(longer.accessor()).await, "nobody could revoke it");

    proxied.vault.follow(|_| Fault::None);
    cluster.until_phase(&longer.pod, Phase::Revoked).await;
    assert!(!cluster.accepts(&longer.token).await && !cluster.accepts(&delivered.token).await);
    assert!(!cluster.lives(delivered.accessor()).await, "I8: it lives");
}

#[tokio::test]
async fn rule_8_a_token_survives_an_outage_of_a_third_of_its_period_that_begins_right_before_its_renewal() {
    // Such that looks that came every ten seconds would come just before Vault is found back, and once more when it is too late.
    const PERIOD: Duration = Duration::from_secs(58);
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    proxied.start(cluster).await;
    let namespace = cluster.namespace("short-outage").await;
    let deliver =
        async |number| cluster.deliver(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "58s")).await;
    let pods: Vec<_> = stream::iter(0..8).map(deliver).buffered(4).collect().await;
    // The one whose renewal comes as late in its life as any.
    let share = |request: &VaultTokenRequest| spread(request.metadata.uid.as_deref().expect("a UID"));
    let latest = pods.iter().max_by(|a, b| share(&a.request).total_cmp(&share(&b.request))).expect("some");
    let due = renew_at(latest.status(), share(&latest.request)).expect("a time");
    let wait = due.duration_since(Timestamp::now()) - SignedDuration::from_millis(300);
    tokio::time::sleep(wait.try_into().expect("it is not due yet")).await;
    proxied.vault.follow(|_| Fault::Before(Break::Reset));
    assert!(cluster.request(&latest.pod, 0).await.expect("a request").status.expect("a status").renewed_at.is_none());
    tokio::time::sleep(PERIOD / 3).await;
    proxied.vault.follow(|_| Fault::None);

    let renewed =
        |request: &VaultTokenRequest| request.status.as_ref().is_some_and(|status| status.renewed_at.is_some());
    for delivered in &pods {
        let request = cluster.until(&delivered.pod, "renewal", |request| renewed(request) || request.is_over()).await;
        assert_eq!(request.phase(), Phase::Delivered, "{:?}", request.status);
        assert!(cluster.accepts(&delivered.token).await, "I7: the token of {} is dead", delivered.pod.name);
    }
}
