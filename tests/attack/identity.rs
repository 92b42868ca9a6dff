//! Somebody asks in another's name, or changes what others have asked for.

use crate::arena::{ADMISSION, Arena, Asked, is_refused, note};
use crate::support::{LIMIT, by_status, reason};
use crate::who::{Who, powerful};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::time::Instant;
use testbed::kubelet::PodHandle;
use vault_token_operator::api::{Phase, VaultTokenRequest, request_name};
use vault_token_operator::seal::OneTimeKey;

/// The admission policy about requests, and its binding.
const POLICY: &str = "vault-token-requests";

pub async fn a_request_in_another_pods_name(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    let thief = arena.pod(&namespace, "thief", "").await;
    arena.steals(&arena.who(&namespace, Some(&thief)).await, &victim).await
}

pub async fn a_request_with_ones_own_uid_and_anothers_name(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    arena.initializing(&namespace, "web", "shop-read").await;
    let thief = arena.initializing(&namespace, "thief", "").await;
    let who = arena.who(&namespace, Some(&thief)).await;
    let change = |request: &mut Value| {
        request["spec"]["podName"] = json!("web");
        request["metadata"]["name"] = json!(request_name("web", &thief.uid, 0));
    };
    let Some(asked) = arena.ask(&who, &thief, change).await else { return false };
    arena.take(&asked).await.is_some()
}

pub async fn a_token_of_the_service_account_that_is_bound_to_no_pod(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    arena.steals(&arena.who(&namespace, None).await, &victim).await
}

/// The same by a token that never ends, as the Secrets of service accounts had before Kubernetes 1.24, and may have still.
pub async fn a_token_of_the_service_account_out_of_a_secret(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    let token = arena.cluster.plane().legacy_token(&namespace, "default").await.expect("a token");
    let who = Who::with(&arena.cluster, &namespace, "secret", &token);
    let said = who.says(&["auth", "whoami"]).await;
    assert!(said.contains(&format!("system:serviceaccount:{namespace}:default")), "{said}");
    arena.steals(&who, &victim).await
}

pub async fn a_pod_of_another_namespace_that_may_ask_here(arena: &Arena) -> bool {
    let (namespace, elsewhere) = (arena.namespace(&["shop-read"]).await, arena.namespace(&[]).await);
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    let stranger = arena.pod(&elsewhere, "web", "").await;
    let account = format!("--serviceaccount={elsewhere}:default");
    let role = "--clusterrole=vault-token-requester";
    arena.cluster.kubectl(&["create", "rolebinding", "stranger", "-n", &namespace, role, &account]).await;
    arena.steals(&arena.who(&elsewhere, Some(&stranger)).await, &victim).await
}

pub async fn a_request_without_a_finalizer(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let bare = |request: &mut Value| request["metadata"]["finalizers"] = json!([]);
    let Some(asked) = arena.ask(&who, &pod, bare).await else { return false };
    arena.take(&asked).await.is_some()
}

pub async fn a_request_that_goes_with_somebody_elses_pod(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    let other = arena.pod(&namespace, "other", "").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "other", "uid": other.uid }]);
    let owned = |request: &mut Value| request["metadata"]["ownerReferences"] = owner.clone();
    arena.ask(&who, &pod, owned).await.is_some()
}

/// Somebody who would have another's token revoked, in the place of his own.
struct Forger<'a> {
    arena: &'a Arena,
    pod: PodHandle,
    who: Who<'a>,
    forged: Value,
    victims: SecretString,
}

impl<'a> Forger<'a> {
    async fn new(arena: &'a Arena) -> Self {
        let namespace = arena.namespace(&["shop-read"]).await;
        powerful(&arena.cluster, &namespace).await;
        arena.arm().await;
        let (victim, victims) = arena.delivered(&namespace, "victim", "shop-read").await;
        let (pod, _) = arena.delivered(&namespace, "attacker", "shop-read").await;
        arena.disarm().await;
        let who = arena.who(&namespace, Some(&pod)).await;
        let status = arena.request(&victim).await.and_then(|request| request.status).expect("a status");
        let forged = json!({ "status": { "tokenAccessor": status.token_accessor } });
        Self { arena, pod, who, forged, victims }
    }

    async fn forges(&self) -> String {
        let name = request_name("attacker", &self.pod.uid, 0);
        self.who.patches(&name, Some("status"), &self.forged).await
    }

    /// Lets his pod go; gives whether the victim's token is dead then.
    async fn goes(self) -> bool {
        let Self { arena, pod, victims, .. } = self;
        arena.remove(&pod).await;
        let request = arena.until(&pod, "end of the attacker's request", VaultTokenRequest::is_over).await;
        note(&format!("{} {}", request.phase(), reason(&request)));
        !arena.cluster.accepts(&victims).await
    }
}

pub async fn a_forged_status_that_names_anothers_token(arena: &Arena) -> bool {
    let forger = Forger::new(arena).await;
    arena.let_in("patched", async || forger.forges().await).await;
    forger.goes().await
}

/// While the policy is away the status is forged; once it is back, the attacker's pod goes.
pub async fn a_status_forged_in_a_gap_of_the_admission_policy(arena: &Arena) -> bool {
    let forger = Forger::new(arena).await;
    bound(arena, false).await;
    assert!(arena.comes(async || forger.forges().await.contains("patched")).await, "the policy is still in force");
    bound(arena, true).await;
    arena.settled().await;
    arena.cluster.until_healthy("admission: in force").await;
    forger.goes().await
}

pub async fn a_key_put_into_anothers_request(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    powerful(&arena.cluster, &namespace).await;
    let victim = arena.pod(&namespace, "web", "shop-read").await;
    let waits = |request: &VaultTokenRequest| is_refused(request) || reason(request) == "InitContainerNotRunning";
    arena.cluster.ask(&victim, by_status).await;
    arena.until(&victim, "wait", waits).await;
    let thief = arena.pod(&namespace, "thief", "").await;
    let who = arena.who(&namespace, Some(&thief)).await;
    let key = OneTimeKey::generate().expect("a key");
    let name = request_name("web", &victim.uid, 0);
    let patch = json!({ "spec": { "publicKey": key.public() } });
    if !arena.let_in("patched", async || who.patches(&name, None, &patch).await).await {
        return false;
    }
    arena.report(&victim).await;
    let asked = Asked { namespace, name, key };
    arena.takes(&asked).await
}

pub async fn a_finalizer_taken_off(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    powerful(&arena.cluster, &namespace).await;
    arena.arm().await;
    let (pod, _) = arena.delivered(&namespace, "web", "shop-read").await;
    arena.disarm().await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let name = request_name("web", &pod.uid, 0);
    let patch = json!({ "metadata": { "finalizers": null } });
    arena.let_in("patched", async || who.patches(&name, None, &patch).await).await
}

pub async fn anothers_request_deleted(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    powerful(&arena.cluster, &namespace).await;
    arena.arm().await;
    let (victim, token) = arena.delivered(&namespace, "web", "shop-read").await;
    arena.disarm().await;
    let attacker = arena.pod(&namespace, "attacker", "").await;
    let who = arena.who(&namespace, Some(&attacker)).await;
    let name = request_name("web", &victim.uid, 0);
    arena.let_in("deleted", async || who.says(&["delete", "vtr", &name, "--timeout=20s"]).await).await;
    !arena.cluster.accepts(&token).await
}

/// What a pod's init container had as its identity, used from elsewhere once its app runs.
pub async fn an_identity_stolen_from_an_app(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let (victim, _) = arena.delivered(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&victim)).await;
    let second = |request: &mut Value| {
        request["metadata"]["name"] = json!(request_name("web", &victim.uid, 1));
        // Later than any clock.
        request["spec"]["sequence"] = json!(8_000_000_000_000_000_000_i64);
    };
    let Some(asked) = arena.ask(&who, &victim, second).await else { return false };
    arena.takes(&asked).await
}

/// The same while the init container runs, where tokens are pushed to pods.
pub async fn an_identity_used_outside_its_pod(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let subject = json!({ "namespaces": [namespace], "serviceAccounts": ["*"] });
    arena.bind(&namespace, &json!({ "subjects": [subject], "policies": ["shop-read"], "deliveries": ["Push"] })).await;
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    arena.steals(&arena.who(&namespace, Some(&victim)).await, &victim).await
}

/// A request of a pod that is gone, and another pod of its name, which may have more.
pub async fn a_pod_of_the_same_name_made_anew(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let first = arena.pod(&namespace, "web", "").await;
    let who = arena.who(&namespace, Some(&first)).await;
    arena.cluster.system.pause_operator();
    let asked = arena.ask(&who, &first, |_| ()).await;
    arena.remove(&first).await;
    arena.initializing(&namespace, "web", "shop-read").await;
    arena.cluster.system.resume_operator();
    arena.takes(&asked.expect("its own request")).await
}

pub async fn names_of_another_pods_requests(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let victim = arena.pod(&namespace, "web", "shop-read").await;
    let squatter = arena.pod(&namespace, "squatter", "").await;
    let who = arena.who(&namespace, Some(&squatter)).await;
    let named = |request: &mut Value| request["metadata"]["name"] = json!(request_name("web", &victim.uid, 0));
    arena.ask(&who, &squatter, named).await.is_some()
}

pub async fn more_requests_than_a_pod_has_names_for(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let pod = arena.pod(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let eleventh = |request: &mut Value| request["metadata"]["name"] = json!(format!("web-{}-10", &pod.uid[..8]));
    arena.ask(&who, &pod, eleventh).await.is_some()
}

/// Takes the policy's binding away, or puts it back as it was.
async fn bound(arena: &Arena, bound: bool) {
    match bound {
        true => arena.apply_weakened(ADMISSION).await,
        false => {
            let gone = ["delete", "validatingadmissionpolicybinding", POLICY];
            let said = arena.cluster.kubectl(&gone).await;
            assert!(said.contains("deleted"), "{said}");
        }
    }
}

/// Asks in a pod's name until the API server goes by the policy no more.
async fn asks_in_the_end(arena: &Arena, victim: &PodHandle) -> Asked {
    let who = arena.who(&victim.namespace, None).await;
    let deadline = Instant::now() + LIMIT;
    loop {
        match arena.ask(&who, victim, |_| ()).await {
            Some(asked) => return asked,
            None => assert!(Instant::now() < deadline, "the policy is still in force"),
        }
    }
}

/// Whether somebody gets a pod's token who weakens the admission policy while the operator runs.
async fn weakened(arena: &Arena, weaken: impl AsyncFnOnce()) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    weaken().await;
    let compared = !arena.is_off(&crate::stops::ADMISSION_COMPARED);
    if compared || !arena.is_off(&crate::stops::ADMISSION_TRIED) {
        arena.cluster.until_healthy("no tokens are made").await;
    }
    let asked = asks_in_the_end(arena, &victim).await;
    let stolen = arena.take(&asked).await;
    // Applying alone would only add to the actions of a binding.
    arena.cluster.kubectl(&["delete", "validatingadmissionpolicybinding", POLICY, "--ignore-not-found"]).await;
    bound(arena, true).await;
    arena.settled().await;
    stolen.is_some()
}

/// With the role that workloads are given, and no other: the names of the others' requests, and what is in them.
pub async fn requests_of_others_listed(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let (victim, _) = arena.delivered(&namespace, "victim", "shop-read").await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    let who = arena.who(&namespace, Some(&pod)).await;
    let name = request_name("victim", &victim.uid, 0);
    arena.let_in(&name, async || who.says(&["get", "vtr", "-n", &namespace]).await).await
}

pub async fn the_admission_policy_removed_while_the_operator_runs(arena: &Arena) -> bool {
    weakened(arena, async || bound(arena, false).await).await
}

pub async fn the_admission_policy_merely_audited_while_the_operator_runs(arena: &Arena) -> bool {
    weakened(arena, async || patched(arena, "binding", &json!({ "validationActions": ["Audit", "Warn"] })).await).await
}

pub async fn a_rule_taken_out_of_the_admission_policy_while_the_operator_runs(arena: &Arena) -> bool {
    let mut rules = installed_rules(arena).await;
    rules.retain(|rule| !is_about_creation(rule));
    weakened(arena, async || patched(arena, "", &json!({ "validations": rules })).await).await
}

/// A rule that comes to no answer lets everything pass where failures are ignored.
pub async fn the_admission_policy_broken_and_its_failures_ignored(arena: &Arena) -> bool {
    let mut rules = installed_rules(arena).await;
    let broken = rules.iter_mut().find(|rule| is_about_creation(rule)).expect("a rule");
    broken["expression"] = json!("request.userInfo.extra['nothing'][0] == ''");
    let spec = json!({ "failurePolicy": "Ignore", "validations": rules });
    weakened(arena, async || patched(arena, "", &spec).await).await
}

fn is_about_creation(rule: &Value) -> bool {
    rule["messageExpression"].as_str().is_some_and(|words| words.contains("a request is created by the pod"))
}

/// The rules of the admission policy as it is installed.
async fn installed_rules(arena: &Arena) -> Vec<Value> {
    let said = arena.cluster.kubectl(&["get", "validatingadmissionpolicy", POLICY, "-o", "json"]).await;
    let mut policy: Value = serde_json::from_str(&said).expect("JSON");
    let rules: Vec<Value> = serde_json::from_value(policy["spec"]["validations"].take()).expect("rules");
    assert!(rules.iter().any(is_about_creation), "{said}");
    rules
}

/// Changes the specification of the admission policy, or of its binding.
async fn patched(arena: &Arena, of: &str, spec: &Value) {
    let patch = format!("--patch={}", json!({ "spec": spec }));
    let kind = format!("validatingadmissionpolicy{of}");
    let said = arena.cluster.kubectl(&["patch", &kind, POLICY, "--type=merge", &patch]).await;
    assert!(said.ends_with(" patched\n"), "{said}");
}

pub async fn a_request_from_before_the_admission_policy(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read"]).await;
    let victim = arena.initializing(&namespace, "web", "shop-read").await;
    arena.cluster.system.kill_operator();
    bound(arena, false).await;
    let asked = asks_in_the_end(arena, &victim).await;
    bound(arena, true).await;
    arena.settled().await;
    arena.take(&asked).await.is_some()
}

/// Whoever sees one's own request before anything was made for it, and edits the pod's annotations then.
pub async fn annotations_edited_between_the_attempt_and_the_token(arena: &Arena) -> bool {
    let namespace = arena.namespace(&["shop-read", "shop-db"]).await;
    let pod = arena.initializing(&namespace, "web", "shop-read").await;
    arena.cluster.vault().seal().await.expect("sealed");
    arena.cluster.ask(&pod, |_| ()).await;
    let minting = |request: &VaultTokenRequest| request.phase() == Phase::Minting;
    arena.until(&pod, "attempt", minting).await;
    let annotation = "vaultproject.io/policies=shop-db";
    arena.cluster.kubectl(&["annotate", "pod", "web", "-n", &namespace, annotation, "--overwrite"]).await;
    arena.cluster.vault().unseal().await.expect("unsealed");
    let issued = |request: &VaultTokenRequest| request.phase() == Phase::Issued;
    let request = arena.until(&pod, "token", issued).await;
    let status = request.status.expect("a status");
    let token = arena.cluster.look_up(status.token_accessor.as_deref().unwrap_or_default()).await.expect("a token");
    let has = |policy: &str| token["policies"].as_array().is_some_and(|all| all.contains(&json!(policy)));
    note(&format!("the status says {:?}, Vault says {}", status.policies, token["policies"]));
    !status.policies.iter().all(|policy| has(policy))
}
