//! What is said under the seal: interceptions, answers of strangers, and delivery by way of the status.

use crate::fault::{Proxied, Traps};
use crate::stranger::Rogue;
use crate::support::{Cluster, alone, by_status, condition, ended, name, reason, request_for, shared, token_of};
use crate::who::{Who, powerful};
use kube::api::PostParams;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::time::Duration;
use testbed::control_plane::BearerToken;
use testbed::kubelet::{INIT_PORT, PodHandle, PodSpec};
use testbed::proxy::{Break, Fault, Proxy};
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};
use vault_token_operator::seal::{OneTimeKey, Receipt, Subject};
use vault_token_operator::wire::{Answer, Outcome, PUSH_PATH, Parcel};

/// No request can be newer than one with this.
const LAST_SEQUENCE: i64 = 8_999_999_999_999_999_999;

/// An init container that the test plays itself.
pub struct Played {
    pub pod: PodHandle,
    key: OneTimeKey,
    request: VaultTokenRequest,
    listener: Rogue,
}

impl Played {
    pub async fn new(cluster: &Cluster, namespace: &str) -> Self {
        Self::asking(cluster, namespace, |_| ()).await
    }

    async fn asking(cluster: &Cluster, namespace: &str, change: impl FnOnce(&mut Value)) -> Self {
        let pod = cluster.pod(&PodSpec::new(namespace, "web", "shop-read", "1h")).await;
        let listener = Rogue::at(&pod).await;
        let key = OneTimeKey::generate().expect("a key");
        let mut request = request_for(&pod, 0);
        request["spec"]["publicKey"] = json!(key.public());
        change(&mut request);
        let request = serde_json::from_value(request).expect("a request");
        let request = cluster.requests(namespace).create(&PostParams::default(), &request).await.expect("created");
        cluster.kubelet.report_initializing(cluster.plane(), &pod).await.expect("a status");
        Self { pod, key, request, listener }
    }

    /// Takes one push, opens it, and answers what `reply` makes of it.
    pub async fn answer<F: Future<Output = Answer>>(&self, reply: impl Fn(Parcel, Receipt, u32) -> F) {
        let taken = self.listener.takes().await.expect("a push");
        let push = taken.push.clone();
        let parcel = self.key.open(&push.sealed, self.subject(push.attempt)).expect("it opens");
        for secret in [&parcel.wrapping_token, &parcel.receipt] {
            assert!(!taken.raw.contains(secret.expose_secret()), "the push is sealed");
        }
        let receipt = Receipt::decode(parcel.receipt.expose_secret()).expect("a receipt");
        let answer = serde_json::to_string(&reply(parcel, receipt, push.attempt).await).expect("JSON");
        taken.answer("200 OK", &answer).await;
    }

    fn subject(&self, attempt: u32) -> Subject<'_> {
        let request_uid = self.request.metadata.uid.as_deref().expect("a UID");
        Subject { request_uid, pod_uid: &self.pod.uid, attempt }
    }

    pub fn signed(&self, receipt: &Receipt, attempt: u32, outcome: Outcome) -> Answer {
        let plain = Answer { attempt, outcome, message: "as said".to_owned(), refused: 0, mac: String::new() };
        receipt.sign(self.subject(attempt), plain)
    }
}

pub async fn unwrap(cluster: &Cluster, parcel: &Parcel) -> Value {
    let body = json!({ "token": parcel.wrapping_token.expose_secret() });
    cluster.vault().must(Method::POST, "sys/wrapping/unwrap", Some(&body)).await.expect("unwrapped")
}

#[tokio::test]
async fn a_wrapping_token_that_somebody_else_used_is_revoked_and_its_pod_waits_for_a_person() {
    let cluster = shared().await;
    let namespace = cluster.namespace("intercepted").await;
    let played = Played::new(cluster, &namespace).await;
    let stolen = tokio::sync::Mutex::new(None);
    played
        .answer(async |parcel, receipt, attempt| {
            *stolen.lock().await = Some(unwrap(cluster, &parcel).await);
            played.signed(&receipt, attempt, Outcome::Intercepted)
        })
        .await;
    let failed = cluster.until_phase(&played.pod, Phase::Failed).await;
    let (value, why, message) = condition(&failed, "Compromised");
    assert_eq!((value.as_str(), why.as_str()), ("True", "WrappingTokenUsed"));
    assert!(message.contains("somebody else used the wrapping token") && message.contains("delete this request"));
    assert_eq!(failed.status.as_ref().expect("a status").attempts, 1, "no further attempt");
    let stolen = stolen.lock().await.clone().expect("a token");
    let token = stolen["auth"]["client_token"].as_str().expect("a token").into();
    assert!(!cluster.accepts(&token).await, "it is revoked at once");
    cluster.until_described("pod", "web", &namespace, "WrappingTokenUsed").await;

    // The kubelet starts the init container again, and its request waits until a person has seen to it.
    drop(played.listener);
    let init = cluster.init(&played.pod).await;
    let requests = cluster.requests(&namespace);
    let second = request_name(&played.pod.name, &played.pod.uid, 1);
    cluster.until_described("vtr", &second, &namespace, "PodCompromised").await;
    assert_eq!(init.exit_status(), None, "it waits");
    assert_eq!(reason(&requests.get(&second).await.expect("a request")), "PodCompromised");
    cluster.kubectl(&["delete", "vtr", failed.metadata.name.as_deref().expect("a name"), "-n", &namespace]).await;
    assert!(ended(&init).await.success(), "{}", init.termination_message());
    assert!(cluster.accepts(&token_of(&played.pod)).await);
}

/// Nobody plays a part: who ends TLS for Vault reads what it answers to the operator, and is faster than the init container.
#[tokio::test]
async fn an_init_container_whose_wrapping_token_somebody_else_used_says_so_and_the_operator_raises_the_alarm() {
    let (cluster, _guard) = alone().await;
    let proxied = Proxied::new(cluster).await;
    proxied.vault.follow(|call| match call.path.contains("auth/token/create/") {
        true => Fault::Overheard,
        false => Fault::None,
    });
    proxied.start(cluster).await;
    let namespace = cluster.namespace("overheard").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let (push, listen) = Proxy::before_init(pod.address).await.expect("a proxy");
    push.follow(|_| Fault::Before(Break::Silence));
    let init = cluster.init_with(&pod, &[("VTO_LISTEN", &listen)]).await;
    let issued = cluster.until_phase(&pod, Phase::Issued).await;
    let heard: Value = serde_json::from_slice(&proxied.vault.overheard().expect("an answer")).expect("JSON");
    let (wrapping, accessor) = (&heard["wrap_info"]["token"], &heard["wrap_info"]["wrapped_accessor"]);
    assert_eq!(issued.status.as_ref().and_then(|status| status.token_accessor.as_deref()), accessor.as_str());
    let wrapping = wrapping.as_str().expect("a token").into();
    let path = "sys/wrapping/unwrap";
    let opened = cluster.vault().request_as(Some(&wrapping), Method::POST, path, None).await.expect("an answer").1;
    let stolen = opened["auth"]["client_token"].as_str().expect("a token").into();
    assert!(cluster.accepts(&stolen).await, "somebody else has it");
    push.follow(|_| Fault::None);

    let failed = cluster.until_phase(&pod, Phase::Failed).await;
    let (value, why, _) = condition(&failed, "Compromised");
    assert_eq!((value.as_str(), why.as_str()), ("True", "WrappingTokenUsed"));
    assert_eq!(failed.status.as_ref().expect("a status").attempts, 1, "no further attempt");
    assert!(!cluster.accepts(&stolen).await, "it is revoked at once");
    cluster.assert_counted(&["alarms_total{kind=\"compromised\"} 1"]).await;
    cluster.until_described("pod", "web", &namespace, "WrappingTokenUsed").await;
    assert!(!ended(&init).await.success());
    let log = cluster.init_log(&pod);
    assert!(log.contains("the wrapping token was used before it came here"), "{log}");
    assert!(!pod.volume.join("token").exists());
    assert_eq!(cluster.live_tokens(&pod).await, 0);
}

#[tokio::test]
async fn an_init_container_that_is_killed_once_it_has_used_its_wrapping_token_is_no_alarm() {
    let (cluster, _guard) = alone().await;
    // One that has counted nothing yet.
    cluster.restart(&[]).await;
    let namespace = cluster.namespace("killed-midway").await;
    // Vault has opened it and its answer is on its way; or the token is in the files, and the answer to the operator is.
    for (name, stored) in [("opened", false), ("stored", true)] {
        let pod = cluster.pod(&PodSpec::new(&namespace, name, "shop-read", "1h")).await;
        let run = cluster.system.testbed().run();
        let vault = Proxy::before_server(run, cluster.vault().address()).await.expect("a proxy");
        let (push, listen) = Proxy::before_init(pod.address).await.expect("a proxy");
        let (before, path) = if stored { (&push, PUSH_PATH) } else { (&vault, "sys/wrapping/unwrap") };
        before.follow(move |call| match call.path.contains(path) {
            true => Fault::After(Break::Silence),
            false => Fault::None,
        });
        let settings = [("VAULT_ADDR", vault.url()), ("VTO_LISTEN", listen)];
        let settings = crate::login::borrowed(&settings);
        let init = cluster.init_with(&pod, &settings).await;
        let first = cluster.until_phase(&pod, Phase::Issued).await;
        let recorded = |accessor: Option<&String>| accessor.cloned().expect("an accessor");
        let status = first.status.as_ref().expect("a status");
        let accessors = [&status.wrapping_accessor, &status.token_accessor].map(|accessor| recorded(accessor.as_ref()));
        cluster.until_dead(&accessors[0]).await;
        if stored {
            cluster.until_stored(&pod).await;
        }
        init.kill();
        assert_eq!(pod.volume.join("token").exists(), stored);
        assert!(cluster.lives(&accessors[1]).await, "{name}: its token lives, and nobody has it");
        cluster.kubelet.report_init_failed(cluster.plane(), &pod, "killed").await.expect("a status");
        before.follow(|_| Fault::None);

        // The kubelet starts it again.
        let again = cluster.init_with(&pod, &settings).await;
        cluster.ended_well(&pod, &again).await;
        let older = cluster.until(&pod, "end", VaultTokenRequest::is_over).await;
        assert_eq!((reason(&older), older.is_compromised()), ("Superseded", false), "{name}: {older:#?}");
        let newer = cluster.request(&pod, 1).await.expect("a request");
        assert_eq!((newer.phase(), newer.is_compromised()), (Phase::Delivered, false), "{name}: {newer:#?}");
        assert!(!cluster.lives(&accessors[1]).await, "{name}: the first one");
        assert!(cluster.accepts(&token_of(&pod)).await, "{name}");
        assert_eq!(cluster.live_tokens(&pod).await, 1, "{name}");
    }
    let metrics = cluster.system.operator_metrics().await.expect("an answer").expect("an operator");
    let alarms: Vec<_> = metrics.lines().filter(|line| line.contains("operator_alarms_total{")).collect();
    assert!(!alarms.is_empty() && alarms.iter().all(|line| line.ends_with(" 0")), "{alarms:#?}");
}

#[tokio::test]
async fn an_interception_that_is_none_raises_no_alarm() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("cried-wolf").await;
    let played = Played::new(cluster, &namespace).await;
    // Its Vault is another one, which does not know the wrapping token.
    played.answer(async |_, receipt, attempt| played.signed(&receipt, attempt, Outcome::Intercepted)).await;
    let told = |request: &VaultTokenRequest| reason(request) == "PushFailed";
    let waiting = cluster.until(&played.pod, "word of the wrong Vault", told).await;
    assert_eq!(waiting.phase(), Phase::Issued);
    assert!(condition(&waiting, "Delivered").2.contains("VAULT_ADDR and VAULT_NAMESPACE"), "{waiting:#?}");
    // The same wrapping token comes again, and can be used now.
    played
        .answer(async |parcel, receipt, attempt| {
            unwrap(cluster, &parcel).await;
            played.signed(&receipt, attempt, Outcome::Stored)
        })
        .await;
    cluster.until_phase(&played.pod, Phase::Delivered).await;
}

#[tokio::test]
async fn whoever_answers_without_the_receipt_confirms_and_reports_nothing() {
    let (cluster, _guard) = alone().await;
    cluster.restart(&[]).await;
    let namespace = cluster.namespace("no-receipt").await;
    let played = Played::new(cluster, &namespace).await;
    for outcome in [Outcome::Stored, Outcome::Intercepted] {
        let stranger = Receipt::generate().expect("a receipt");
        played.answer(async |_, _, attempt| played.signed(&stranger, attempt, outcome)).await;
        let told = |request: &VaultTokenRequest| reason(request) == "PushFailed";
        let waiting = cluster.until(&played.pod, "word of a stranger", told).await;
        assert_eq!((waiting.phase(), waiting.is_compromised()), (Phase::Issued, false));
        assert!(condition(&waiting, "Delivered").2.contains("it is not the init container"), "{waiting:#?}");
    }
    cluster.assert_counted(&["alarms_total{kind=\"answer_unconfirmed\"} 2"]).await;
    let pod = played.pod.clone();
    // Whoever listens and says nothing holds up a push that has begun by then.
    drop(played);
    cluster.kubelet.remove(cluster.plane(), &pod).await.expect("removed");
    cluster.until_phase(&pod, Phase::Revoked).await;
}

/// `edit` lets people make tokens that are bound to a pod, and so speak for it while its init container runs.
#[tokio::test]
async fn i5_whoever_speaks_for_a_pod_has_its_token_pushed_to_that_pod_and_gets_nothing_of_it() {
    let cluster = shared().await;
    let namespace = cluster.namespace("spoken-for").await;
    cluster.kubectl(&["create", "serviceaccount", "editor", "-n", &namespace]).await;
    // What `edit` consists of; a controller puts it together that this control plane has not.
    let (role, account) = ("--clusterrole=system:aggregate-to-edit", format!("--serviceaccount={namespace}:editor"));
    cluster.kubectl(&["create", "rolebinding", "editor", "-n", &namespace, role, &account]).await;
    let token = cluster.plane().service_account_token(&namespace, "editor", &[], None, 600).await.expect("a token");
    let editor = Who::with(cluster, &namespace, "editor", &token);
    let speaks_for = async |pod: &PodHandle, digit: u8, sequence: i64| {
        let uid = format!("--bound-object-uid={}", pod.uid);
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", &pod.name, &uid];
        let token = editor.says(&[&["create", "token", "default", "-n", &namespace], &bound[..]].concat()).await;
        let key = OneTimeKey::generate().expect("a key");
        let mut request = request_for(pod, digit);
        (request["spec"]["publicKey"], request["spec"]["sequence"]) = (json!(key.public()), json!(sequence));
        let said = Who::with(cluster, &namespace, &pod.name, token.trim()).creates(&request).await;
        assert!(said.ends_with(" created\n"), "{said}");
        key
    };
    let own = cluster.pod(&PodSpec::new(&namespace, "editors", "shop-read", "1h")).await;
    let nothing = Rogue::at(&own).await;

    // Before the pod has asked for itself; what listens in the pod has another key.
    let first = cluster.pod(&PodSpec::new(&namespace, "first", "shop-read", "1h")).await;
    let key = speaks_for(&first, 0, 1).await;
    let listener = Rogue::at(&first).await;
    cluster.kubelet.report_initializing(cluster.plane(), &first).await.expect("a status");
    let taken = listener.takes().await.expect("a push");
    let request_uid = &taken.push.request_uid;
    let subject = Subject { request_uid, pod_uid: &first.uid, attempt: taken.push.attempt };
    assert!(OneTimeKey::generate().expect("a key").open(&taken.push.sealed, subject).is_none());
    assert!(key.open(&taken.push.sealed, subject).is_some(), "it is for him, and does not come to him");
    taken.answer("409 Conflict", "").await;
    drop(listener);
    let init = cluster.init(&first).await;
    cluster.ended_well(&first, &init).await;
    let older = cluster.until(&first, "end", VaultTokenRequest::is_over).await;
    assert_eq!(reason(&older), "Superseded", "{older:#?}");
    assert_eq!(cluster.request(&first, 1).await.expect("a request").phase(), Phase::Delivered);
    assert!(cluster.accepts(&token_of(&first)).await);
    assert_eq!(cluster.live_tokens(&first).await, 1);

    // After it.
    let second = cluster.pod(&PodSpec::new(&namespace, "second", "shop-read", "1h")).await;
    let init = cluster.kubelet.start_init(cluster.plane(), cluster.vault(), &second, &[]).await.expect("init starts");
    cluster.until(&second, "request", |request| request.status.is_some()).await;
    speaks_for(&second, 1, LAST_SEQUENCE).await;
    cluster.kubelet.report_initializing(cluster.plane(), &second).await.expect("a status");
    cluster.ended_well(&second, &init).await;
    assert_eq!(cluster.request(&second, 0).await.expect("a request").phase(), Phase::Delivered);
    assert_ne!(cluster.request(&second, 1).await.expect("a request").phase(), Phase::Delivered);
    assert!(cluster.accepts(&token_of(&second)).await);

    // What he can do is keep it from its token, as by deleting it.
    let third = cluster.pod(&PodSpec::new(&namespace, "third", "shop-read", "1h")).await;
    speaks_for(&third, 0, LAST_SEQUENCE).await;
    let init = cluster.init(&third).await;
    assert!(!ended(&init).await.success());
    assert!(init.termination_message().contains("sequence must be"), "{}", init.termination_message());

    let came = tokio::time::timeout(Duration::ZERO, nothing.take()).await;
    assert!(came.is_err(), "something came to him");
    for pod in [&first, &second, &third] {
        cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
    }
    cluster.until_live(&namespace, 0).await;
}

#[tokio::test]
async fn a_pod_that_cannot_be_reached_takes_its_token_from_the_status() {
    let cluster = shared().await;
    let namespace = cluster.namespace("by-status").await;
    cluster.system.allow_status_delivery(&namespace).await.expect("a role");
    let mut spec = PodSpec::new(&namespace, "web", "shop-read", "1h");
    // What a push is never sent to.
    spec.patch = json!({ "spec": { "hostNetwork": true } });
    let pod = cluster.pod(&spec).await;
    let init = cluster.init_with(&pod, &[("VTO_DELIVERY", "status")]).await;
    cluster.ended_well(&pod, &init).await;
    assert!(cluster.accepts(&token_of(&pod)).await);
    let delivered = cluster.until_phase(&pod, Phase::Delivered).await;
    let status = delivered.status.expect("a status");
    assert_eq!((status.sealed_token, status.answer), (None, None), "the blob is gone");
    assert_eq!(cluster.live_tokens(&pod).await, 1);
    let url = format!("http://{}:{INIT_PORT}", pod.address);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    assert!(client.get(url).send().await.is_err_and(|error| error.is_connect()), "nobody listens");
}

/// Its init container has taken the token and says so; when that comes, another request has the name of its own.
#[tokio::test]
async fn an_answer_is_not_written_to_another_request_of_its_name() {
    let (cluster, _guard) = alone().await;
    // One that has counted nothing yet.
    cluster.restart(&[]).await;
    let namespace = cluster.namespace("answers-late").await;
    cluster.system.allow_status_delivery(&namespace).await.expect("a role");
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let name = request_name(&pod.name, &pod.uid, 0);
    let (run, plane) = (cluster.system.testbed().run(), cluster.plane());
    let api = Proxy::before_server(run, plane.server_url()).await.expect("a proxy");
    let traps = Traps::default();
    traps.set(Method::PATCH, &format!("{name}/status"), 0, Fault::Delay(Duration::from_secs(6)));
    api.follow(traps.script());
    let bound = Some((pod.name.as_str(), pod.uid.as_str()));
    let token = plane.service_account_token(&namespace, &pod.service_account, &[], bound, 3600).await.expect("a token");
    let file = run.folder("answers-late").expect("a folder").join("token");
    std::fs::write(&file, token).expect("written");
    let kubeconfig = plane.kubeconfig_for_token("answers-late", &namespace, BearerToken::File(&file)).expect("written");
    let text = std::fs::read_to_string(&kubeconfig).expect("a file").replace(plane.server_url(), &api.url());
    std::fs::write(&kubeconfig, text).expect("written");
    let settings = [("VTO_DELIVERY", "status"), ("KUBECONFIG", &*kubeconfig.to_string_lossy())];
    let init = cluster.init_with(&pod, &settings).await;
    traps.until_sprung().await;
    let said = cluster.kubectl(&["delete", "vtr", &name, "-n", &namespace, "--timeout=5s"]).await;
    assert!(said.contains("deleted"), "{said}");
    cluster.ask(&pod, by_status).await;

    assert!(!ended(&init).await.success());
    let answers = cluster.api_server_heard(|line| {
        line["verb"] == "patch" && line["objectRef"]["name"] == *name && line["objectRef"]["subresource"] == "status"
    });
    let codes: Vec<_> = answers.iter().map(|line| &line["responseStatus"]["code"]).collect();
    assert_eq!(codes, [409]);
    cluster.assert_counted(&["alarms_total{kind=\"answer_unconfirmed\"} 0"]).await;
    cluster.kubelet.remove(plane, &pod).await.expect("removed");
    cluster.until_live(&namespace, 0).await;
}

#[tokio::test]
async fn a_wrapping_token_out_of_the_status_that_somebody_else_used_is_revoked_just_so() {
    let cluster = shared().await;
    let namespace = cluster.namespace("intercepted-status").await;
    cluster.system.allow_status_delivery(&namespace).await.expect("a role");
    // kubectl reads what it patches.
    powerful(cluster, &namespace).await;
    let played = Played::asking(cluster, &namespace, by_status).await;
    let offer = |request: &VaultTokenRequest| request.status.as_ref().and_then(|status| status.sealed_token.clone());
    let offered = cluster.until(&played.pod, "offer", |request| offer(request).is_some()).await;
    let attempt = offered.status.as_ref().expect("a status").attempts;
    let parcel = played.key.open(&offer(&offered).expect("an offer"), played.subject(attempt)).expect("it opens");
    let stolen = unwrap(cluster, &parcel).await["auth"]["client_token"].as_str().expect("a token").into();
    assert!(cluster.accepts(&stolen).await, "somebody else has it");

    let receipt = Receipt::decode(parcel.receipt.expose_secret()).expect("a receipt");
    let answer = json!({ "status": { "answer": played.signed(&receipt, attempt, Outcome::Intercepted) } });
    let who = Who::new(cluster, &namespace, Some(&played.pod)).await;
    let said = who.patches(&name(&offered), Some("status"), &answer).await;
    assert!(said.contains("patched"), "{said}");
    let failed = cluster.until_phase(&played.pod, Phase::Failed).await;
    let (value, why, _) = condition(&failed, "Compromised");
    assert_eq!((value.as_str(), why.as_str()), ("True", "WrappingTokenUsed"));
    let status = failed.status.expect("a status");
    assert_eq!(
        (status.attempts, status.sealed_token, status.answer),
        (1, None, None),
        "no further attempt, and no blob"
    );
    assert!(!cluster.accepts(&stolen).await, "it is revoked at once");
    assert_eq!(cluster.live_tokens(&played.pod).await, 0);
}

#[tokio::test]
async fn init_says_which_role_it_lacks_when_it_may_not_answer_in_the_status() {
    let cluster = shared().await;
    let namespace = cluster.namespace("no-status-role").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init_with(&pod, &[("VTO_DELIVERY", "status")]).await;
    assert!(!ended(&init).await.success());
    let said = init.termination_message();
    assert!(said.contains("--clusterrole=vault-token-requester-status"), "{said}");
    assert!(!pod.volume.join("token").exists(), "a token that is confirmed to nobody is left");
    cluster.kubelet.remove(cluster.plane(), &pod).await.expect("removed");
    cluster.until_phase(&pod, Phase::Revoked).await;
    assert_eq!(cluster.live_tokens(&pod).await, 0);
}
