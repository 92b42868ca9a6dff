//! Identity: who may create, change and delete requests, and that nothing is served where nothing checks that.

use crate::rights::said;
use crate::support::{Cluster, LIMIT, alone, by_status, condition, reason, request_for, shared, token_of};
use crate::who::{Who, powerful};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use testbed::kubelet::PodSpec;
use testbed::project;
use vault_token_operator::api::{FINALIZER, Phase, VaultTokenRequest, request_name};

#[tokio::test]
async fn i4_a_request_is_made_by_the_pod_that_it_names_and_by_nobody_else() {
    let cluster = shared().await;
    let namespace = cluster.namespace("own-name").await;
    powerful(cluster, &namespace).await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let other = cluster.pod(&PodSpec::new(&namespace, "other", "shop-read", "1h")).await;
    let (own, others) = (request_for(&pod, 0), request_for(&other, 0));
    let (web, nobody) = (Who::new(cluster, &namespace, Some(&pod)).await, Who::new(cluster, &namespace, None).await);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut request = own.clone();
        change(&mut request);
        request
    };
    let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "other", "uid": other.uid }]);
    for (said, words) in [
        (web.creates(&others).await, "this is the token of the pod web"),
        (nobody.creates(&own).await, "shows a token that is bound to no pod"),
        (web.creates(&with(&|it| it["metadata"]["finalizers"] = json!([]))).await, "with the finalizer"),
        (web.creates(&with(&|it| it["metadata"]["ownerReferences"] = owner.clone())).await, "without owners"),
        (web.creates(&with(&|it| it["metadata"]["labels"] = json!({ "a": "b" }))).await, "without owners"),
        (web.creates(&with(&|it| it["metadata"]["annotations"] = json!({ "a": "b" }))).await, "without owners"),
        (web.creates(&with(&|it| it["metadata"]["finalizers"] = json!([FINALIZER, "a.b/c"]))).await, "and no other"),
        // The pod's own UID and another's name.
        (
            web.creates(&with(&|it| {
                it["spec"]["podName"] = json!("other");
                it["metadata"]["name"] = json!(request_name("other", &pod.uid, 0));
            }))
            .await,
            "this is the token of the pod web",
        ),
    ] {
        assert!(said.contains("vault-token-requests") && said.contains(words), "{said}");
    }
    // A pod of another namespace that may create requests here, too.
    let elsewhere = cluster.namespace("own-name-elsewhere").await;
    let stranger = cluster.pod(&PodSpec::new(&elsewhere, "web", "shop-read", "1h")).await;
    let account = format!("--serviceaccount={elsewhere}:default");
    cluster.kubectl(&["create", "rolebinding", "stranger", "-n", &namespace, "--role=powerful", &account]).await;
    let mut request = request_for(&stranger, 0);
    request["metadata"]["namespace"] = json!(namespace);
    let said = Who::new(cluster, &elsewhere, Some(&stranger)).await.creates(&request).await;
    assert!(said.contains("vault-token-requests"), "{said}");

    // Who may act as its service account, as whoever has the ClusterRole edit may, is not yet its pod.
    let file = cluster.system.testbed().run().path().join("impersonated.json");
    std::fs::write(&file, own.to_string()).expect("written");
    let acting = format!("--as=system:serviceaccount:{namespace}:default");
    let said = cluster.kubectl(&["create", "-f", &file.to_string_lossy(), &acting]).await;
    assert!(said.contains("vault-token-requests") && said.contains("bound to no pod"), "{said}");

    let said = web.creates(&own).await;
    assert!(said.contains("created"), "{said}");
}

#[tokio::test]
async fn what_breaks_the_glass_is_marked_in_the_api_servers_audit_log() {
    let cluster = shared().await;
    let namespace = cluster.namespace("break-glass").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let name = request_name("web", &delivered.pod.uid, 0);
    let marks = || -> Vec<String> {
        let lines = cluster.api_server_heard(|line| line["objectRef"]["namespace"] == namespace.as_str());
        let mark =
            |line: &Value| line["annotations"]["vault-token-break-glass/break-glass"].as_str().map(str::to_owned);
        lines.iter().filter_map(mark).collect()
    };
    assert_eq!(marks(), Vec::<String>::new(), "what the pod and the operator do");
    let remark = json!({ "metadata": { "annotations": { "example.com/looked-at": "yes" } } }).to_string();
    for arguments in [
        vec!["patch", "vtr", &name, "--type=merge", "-p", &remark],
        vec!["patch", "vtr", &name, "--subresource=status", "--type=merge", "-p", r#"{"status":{"ttl":"2h"}}"#],
        vec!["delete", "vtr", &name, "--timeout=30s"],
    ] {
        let said = cluster.kubectl(&[&["-n", &namespace], &arguments[..]].concat()).await;
        assert!(said.contains("patched") || said.contains("deleted"), "{said}");
    }
    // What takes a pod's policies, and what takes all tokens of a namespace.
    cluster.ask(&delivered.pod, |_| ()).await;
    let all = ["-n", namespace.as_str(), "delete", "vtr", "--all", "--timeout=30s"];
    let said = cluster.kubectl(&all).await;
    assert!(said.contains("deleted"), "{said}");
    let mark = |operation: &str| format!("kubernetes-admin {operation} {namespace}/{name}");
    assert_eq!(marks(), ["UPDATE", "UPDATE", "DELETE", "CREATE", "DELETE"].map(mark));
}

#[tokio::test]
async fn i4_nobody_but_the_operator_changes_a_request_its_status_or_its_finalizer() {
    let cluster = shared().await;
    let namespace = cluster.namespace("forged-status").await;
    powerful(cluster, &namespace).await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let name = request_name("web", &delivered.pod.uid, 0);
    let web = Who::new(cluster, &namespace, Some(&delivered.pod)).await;
    let alone = "changed by the operator alone";
    for (said, words) in [
        (web.patches(&name, Some("status"), &json!({ "status": { "phase": "Revoked" } })).await, alone),
        (web.patches(&name, Some("status"), &json!({ "status": { "tokenAccessor": "another" } })).await, alone),
        // Its own pod, but not a request that is answered there.
        (web.patches(&name, Some("status"), &json!({ "status": { "answer": answer() } })).await, alone),
        (web.patches(&name, None, &json!({ "metadata": { "finalizers": null } })).await, alone),
        (web.patches(&name, None, &json!({ "metadata": { "annotations": { "a": "b" } } })).await, alone),
        (web.patches(&name, None, &json!({ "spec": { "port": 1 } })).await, "spec is immutable"),
        (web.says(&["delete", "vtr", &name]).await, "takes the verb revoke"),
        (web.says(&["delete", "vtr", "--all"]).await, "takes the verb revoke"),
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert!(cluster.accepts(&delivered.token).await);
    // Who has the verb may.
    let verb = ["--verb=revoke", "--resource=vaulttokenrequests.vaultproject.io"];
    cluster.kubectl(&["create", "role", "revokes", "-n", &namespace, verb[0], verb[1]]).await;
    let account = format!("--serviceaccount={namespace}:default");
    cluster.kubectl(&["create", "rolebinding", "revokes", "-n", &namespace, "--role=revokes", &account]).await;
    // Of a collection, too.
    let second = cluster.deliver(&PodSpec::new(&namespace, "second", "shop-read", "1h")).await;
    let deadline = Instant::now() + LIMIT;
    while !web.says(&["delete", "vtr", &name, "--timeout=20s"]).await.contains("deleted") {
        assert!(Instant::now() < deadline, "it may not be deleted");
    }
    assert!(!cluster.accepts(&delivered.token).await);
    let said = web
        .says(&[
            "delete",
            "--raw",
            &format!("/apis/vaultproject.io/v1alpha1/namespaces/{namespace}/vaulttokenrequests"),
        ])
        .await;
    assert!(!said.contains("rror"), "{said}");
    cluster.until_dead(second.accessor()).await;
}

fn answer() -> Value {
    json!({ "attempt": 1, "outcome": "Stored", "message": "", "refused": 0, "mac": "AAAA" })
}

#[tokio::test]
async fn a_pod_answers_in_its_own_status_and_writes_nothing_else_there() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("answers").await;
    cluster.system.allow_status_delivery(&namespace).await.expect("a role");
    powerful(cluster, &namespace).await;
    let (pod, other) = (
        cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await,
        cluster.pod(&PodSpec::new(&namespace, "other", "shop-read", "1h")).await,
    );
    for pod in [&pod, &other] {
        cluster.kubelet.report_initializing(cluster.plane(), pod).await.expect("a status");
        cluster.ask(pod, by_status).await;
        // What is refused below is so for what it is, and not for want of an offer.
        cluster.until(pod, "offer", |request| sealed(request).is_some()).await;
    }
    let web = Who::new(cluster, &namespace, Some(&pod)).await;
    let (own, others) = (request_name("web", &pod.uid, 0), request_name("other", &other.uid, 0));
    let alone = "changed by the operator alone";
    for (name, status) in [
        (&own, json!({ "phase": "Delivered" })),
        (&own, json!({ "answer": answer(), "tokenAccessor": "another" })),
        (&own, json!({ "answer": answer(), "sealedToken": null })),
        (&own, json!({ "answer": answer(), "deliveredAt": "2026-01-01T00:00:00Z" })),
        (&others, json!({ "answer": answer() })),
    ] {
        let said = web.patches(name, Some("status"), &json!({ "status": status })).await;
        assert!(said.contains(alone), "{status}: {said}");
    }
    // Where nothing is offered, there is nothing to answer.
    let early = cluster.pod(&PodSpec::new(&namespace, "early", "shop-read", "1h")).await;
    cluster.ask(&early, by_status).await;
    let waits = cluster.until(&early, "status", |request| request.status.is_some()).await;
    assert_eq!((waits.phase(), sealed(&waits)), (Phase::Pending, None));
    let its_own = Who::new(cluster, &namespace, Some(&early)).await;
    let name = request_name("early", &early.uid, 0);
    let said = its_own.patches(&name, Some("status"), &json!({ "status": { "answer": answer() } })).await;
    assert!(said.contains(alone), "{said}");
    // This it may write; without the receipt it confirms nothing, and the offer is made anew.
    let mut huge = answer();
    huge["refused"] = json!(4_294_967_296_u64);
    let said = web.patches(&own, Some("status"), &json!({ "status": { "answer": huge } })).await;
    assert!(said.contains("should be less than or equal to 4294967295"), "{said}");
    let offered = cluster.until(&pod, "offer", |request| sealed(request).is_some()).await;
    // Once, as long as the operator has not heard it.
    cluster.system.pause_operator();
    let said = web.patches(&own, Some("status"), &json!({ "status": { "answer": answer() } })).await;
    assert!(said.contains("patched"), "{said}");
    let said = web.patches(&own, Some("status"), &json!({ "status": { "answer": { "attempt": 2 } } })).await;
    assert!(said.contains(alone), "{said}");
    cluster.system.resume_operator();
    let again = |request: &VaultTokenRequest| sealed(request).is_some() && sealed(request) != sealed(&offered);
    let request = cluster.until(&pod, "another offer", again).await;
    assert_eq!(request.phase(), Phase::Issued);
    for pod in [&pod, &other] {
        cluster.kubelet.remove(cluster.plane(), pod).await.expect("removed");
        let ended = cluster.until_phase(pod, Phase::Revoked).await;
        assert_eq!(sealed(&ended), None, "the blob goes with its token");
    }
}

fn sealed(request: &VaultTokenRequest) -> Option<&str> {
    request.status.as_ref()?.sealed_token.as_deref()
}

#[tokio::test]
async fn a_deletion_that_the_garbage_collector_has_a_part_in_comes_to_its_end() {
    let cluster = shared().await;
    let namespace = cluster.namespace("collected").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let name = request_name("web", &delivered.pod.uid, 0);
    cluster.kubectl(&["delete", "vtr", &name, "-n", &namespace, "--cascade=foreground", "--wait=false"]).await;
    cluster.until_dead(delivered.accessor()).await;
    // The operator has taken its finalizer off; the collector's is left.
    let foreground = |request: &VaultTokenRequest| {
        request.metadata.finalizers.as_deref() == Some(&["foregroundDeletion".to_owned()])
    };
    cluster.until(&delivered.pod, "end of the operator's part", foreground).await;
    let collector = "--as=system:serviceaccount:kube-system:generic-garbage-collector";
    let patch = ["--type=merge", "--patch={\"metadata\":{\"finalizers\":null}}", collector];
    let said = cluster.kubectl(&[&["patch", "vtr", &name, "-n", &namespace], &patch[..]].concat()).await;
    assert!(said.contains("patched"), "{said}");
    assert!(cluster.request(&delivered.pod, 0).await.is_none());
    // It may do that, and no more.
    let second = cluster.deliver(&PodSpec::new(&namespace, "second", "shop-read", "1h")).await;
    let name = request_name("second", &second.pod.uid, 0);
    let said = cluster.kubectl(&[&["patch", "vtr", &name, "-n", &namespace], &patch[..]].concat()).await;
    assert!(said.contains("changed by the operator alone"), "{said}");
}

#[tokio::test]
async fn a_status_that_somebody_forged_while_nothing_kept_him_off_costs_nobody_else_a_token() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("forged-accessor").await;
    powerful(cluster, &namespace).await;
    let victim = cluster.deliver(&PodSpec::new(&namespace, "victim", "shop-read", "1h")).await;
    let attacker = cluster.deliver(&PodSpec::new(&namespace, "attacker", "shop-read", "1h")).await;
    let name = request_name("attacker", &attacker.pod.uid, 0);
    let who = Who::new(cluster, &namespace, Some(&attacker.pod)).await;
    cluster.kubectl(&["delete", "validatingadmissionpolicybinding", "vault-token-requests"]).await;
    cluster.until_healthy("vault-token-requests is not there").await;
    let forged = json!({ "status": { "tokenAccessor": victim.accessor() } });
    let deadline = Instant::now() + LIMIT;
    // The API server goes by the policy for a moment more.
    while !who.patches(&name, Some("status"), &forged).await.contains("patched") {
        assert!(Instant::now() < deadline, "it may not be forged");
    }
    cluster.kubelet.remove(cluster.plane(), &attacker.pod).await.expect("removed");
    let failed = cluster.until_phase(&attacker.pod, Phase::Failed).await;
    assert_eq!(reason(&failed), "StatusForged");
    assert!(cluster.accepts(&victim.token).await, "I7");
    mend(cluster).await;
    // The attacker's own token is recorded nowhere now: the sweep sees to it.
    cluster.restart(&[]).await;
    cluster.until_dead(attacker.accessor()).await;
    cluster.until_healthy("admission: in force").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
}

#[tokio::test]
async fn labels_that_bindings_select_by_take_the_verb_grant() {
    let cluster = shared().await;
    let namespace = cluster.namespace("labels").await;
    let verbs = ["--verb=create,get,update,patch", "--resource=namespaces"];
    cluster.kubectl(&["create", "clusterrole", "labels", verbs[0], verbs[1]]).await;
    let account = format!("--serviceaccount={namespace}:default");
    cluster.kubectl(&["create", "clusterrolebinding", "labels", "--clusterrole=labels", &account]).await;
    let who = Who::new(cluster, &namespace, None).await;
    let label = async |arguments: &[&str]| who.says(&[&["label", "namespace", &namespace], arguments].concat()).await;
    assert!(label(&["team=a"]).await.contains("labeled"));
    let denied = "takes the verb grant on vaultpolicybindings";
    let said = label(&["vaultproject.io/team=a"]).await;
    assert!(said.contains(denied), "{said}");
    // Nor by the back door: whoever has everything in the namespace has this.
    let within = ["--verb=*", "--resource=namespaces,namespaces/status,namespaces/finalize"];
    cluster.kubectl(&["create", "role", "within", "-n", &namespace, within[0], within[1]]).await;
    cluster.kubectl(&["create", "rolebinding", "within", "-n", &namespace, "--role=within", &account]).await;
    let patch = "--patch={\"metadata\":{\"labels\":{\"vaultproject.io/team\":\"a\"}}}";
    let arguments = ["patch", "namespace", &namespace, "--type=merge", patch, "--subresource=status"];
    let deadline = Instant::now() + LIMIT;
    loop {
        let said = who.says(&arguments).await;
        if said.contains(denied) {
            break;
        }
        assert!(Instant::now() < deadline && said.contains("cannot"), "{said}");
    }
    let found = cluster.kubectl(&["get", "namespace", &namespace, "-o", "json"]).await;
    let mut labelled: Value = serde_json::from_str(&found).expect("JSON");
    labelled["metadata"]["labels"]["vaultproject.io/team"] = json!("a");
    let file = cluster.system.testbed().run().path().join("labelled.json");
    std::fs::write(&file, labelled.to_string()).expect("written");
    let path = format!("/api/v1/namespaces/{namespace}/finalize");
    let said = who.says(&["replace", "--raw", &path, "-f", &file.to_string_lossy()]).await;
    assert!(said.contains(denied), "{said}");
    let object = json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "labels-2", "labels": { "vaultproject.io/team": "a" } } });
    let said = who.creates(&object).await;
    assert!(said.contains(denied), "{said}");
    // Nor taken off, once somebody else has set one.
    cluster.kubectl(&["label", "namespace", &namespace, "vaultproject.io/team=b"]).await;
    for change in ["vaultproject.io/team-", "vaultproject.io/team=a"] {
        let said = label(&[change, "--overwrite"]).await;
        assert!(said.contains(denied), "{said}");
    }
    assert!(label(&["other=b"]).await.contains("labeled"));
    let verb = ["--verb=grant", "--resource=vaultpolicybindings.vaultproject.io"];
    cluster.kubectl(&["create", "clusterrole", "grants", verb[0], verb[1]]).await;
    cluster.kubectl(&["create", "clusterrolebinding", "grants", "--clusterrole=grants", &account]).await;
    let deadline = Instant::now() + LIMIT;
    while !label(&["vaultproject.io/team=a", "--overwrite"]).await.contains("labeled") {
        assert!(Instant::now() < deadline, "it may not be set");
    }
}

/// Installs the admission policies as they should be.
async fn mend(cluster: &Cluster) {
    let manifest = project::root().join("config/admission.yaml");
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", &manifest.to_string_lossy()];
    let said = cluster.kubectl(&apply).await;
    assert!(said.contains("serverside-applied") && !said.contains("rror"), "{said}");
}

#[tokio::test]
async fn i4_nothing_is_made_while_the_admission_policy_is_missing_weakened_or_not_in_force() {
    let (cluster, _guard) = alone().await;
    cluster.until_healthy("admission: in force").await;
    let (in_force, waived) = ("the admission policy is in force", "nothing checks who creates requests");
    assert!(!said(cluster, "INFO", in_force).is_empty(), "{}", cluster.operator_said());
    assert_eq!(said(cluster, "WARN", waived), Vec::<String>::new());
    let namespace = cluster.namespace("no-admission").await;
    let (policy, binding) = ("validatingadmissionpolicy", "validatingadmissionpolicybinding");
    let patch = |kind, name, patch| vec!["patch", kind, name, "--type=merge", patch];
    let (requests, labels, glass) = ("vault-token-requests", "vault-namespace-labels", "vault-token-break-glass");
    // Whether nothing checks requests meanwhile.
    let weaken = [
        ("is not there", vec!["delete", binding, requests], None, true),
        ("is not there", vec!["delete", policy, requests], None, true),
        ("is not there", vec!["delete", policy, glass], None, false),
        (
            "is not as in the config/",
            patch(binding, requests, "-p={\"spec\":{\"validationActions\":[\"Audit\"]}}"),
            Some(patch(binding, requests, "-p={\"spec\":{\"validationActions\":[\"Deny\"]}}")),
            true,
        ),
        (
            "is not as in the config/",
            patch(policy, labels, "-p={\"spec\":{\"failurePolicy\":\"Ignore\"}}"),
            Some(patch(policy, labels, "-p={\"spec\":{\"failurePolicy\":\"Fail\"}}")),
            false,
        ),
    ];
    for (number, (words, arguments, back, unchecked)) in weaken.into_iter().enumerate() {
        cluster.kubectl(&arguments).await;
        cluster.until_healthy(words).await;
        cluster.assert_counted(&["admission_in_force 0"]).await;
        let pod = cluster.pod(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h")).await;
        let init = cluster.init(&pod).await;
        let waits = cluster.until(&pod, "wait", |request| reason(request) == "AdmissionLacking").await;
        assert!(
            condition(&waits, "Authorized")
                .2
                .contains("kubectl apply --server-side --force-conflicts -f config/admission.yaml"),
            "{waits:#?}"
        );
        match back {
            Some(arguments) => drop(cluster.kubectl(&arguments).await),
            None => mend(cluster).await,
        }
        cluster.until_healthy("admission: in force").await;
        if unchecked {
            // Nothing checked who made it.
            let denied = cluster.until_phase(&pod, Phase::Denied).await;
            assert_eq!(reason(&denied), "RequestUnverified");
            assert!(!crate::support::ended(&init).await.success());
            tokio::time::sleep(Duration::from_secs(4)).await;
            let again = cluster.init(&pod).await;
            assert!(crate::support::ended(&again).await.success(), "{}", again.termination_message());
        } else {
            cluster.ended_well(&pod, &init).await;
        }
        assert!(cluster.accepts(&token_of(&pod)).await);
    }

    // In so many words it can be done without.
    cluster.kubectl(&["delete", "validatingadmissionpolicybinding", "vault-token-requests"]).await;
    cluster.restart(&[("VTO_TRUST_UNVERIFIED_REQUESTS", "true")]).await;
    cluster.until_healthy("nothing checks who creates requests (--trust-unverified-requests)").await;
    assert_eq!(said(cluster, "INFO", in_force), Vec::<String>::new());
    assert_eq!(said(cluster, "WARN", waived).len(), 1);
    cluster.deliver(&PodSpec::new(&namespace, "trusted", "shop-read", "1h")).await;
    mend(cluster).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
}

#[tokio::test]
async fn i4_a_request_from_a_gap_in_the_admission_policy_is_not_served_though_nothing_tells_of_the_gap() {
    let (cluster, _guard) = alone().await;
    cluster.until_healthy("admission: in force").await;
    let namespace = cluster.namespace("short-gap").await;
    powerful(cluster, &namespace).await;
    let victim = cluster.pod(&PodSpec::new(&namespace, "victim", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &victim).await.expect("a status");
    let attacker = cluster.pod(&PodSpec::new(&namespace, "attacker", "shop-read", "1h")).await;
    let who = Who::new(cluster, &namespace, Some(&attacker)).await;
    let forged = request_for(&victim, 0);
    let binding = ["patch", "validatingadmissionpolicybinding", "vault-token-requests"];
    let open = ["--type=merge", "-p={\"spec\":{\"validationActions\":[\"Audit\"]}}"];
    cluster.kubectl(&[&binding[..], &open].concat()).await;
    let deadline = Instant::now() + LIMIT;
    while !who.creates(&forged).await.ends_with(" created\n") {
        assert!(Instant::now() < deadline, "it may not be forged");
    }
    // Closed again, with all word of a change taken out of the object.
    let close = "-p=[{\"op\":\"replace\",\"path\":\"/spec/validationActions\",\"value\":[\"Deny\"]},\
        {\"op\":\"replace\",\"path\":\"/metadata/managedFields\",\"value\":[{}]}]";
    let said = cluster.kubectl(&[&binding[..], &["--type=json", close, "-o=json"]].concat()).await;
    let closed: Value = serde_json::from_str(&said).expect("the object");
    assert_eq!(closed["metadata"]["managedFields"], Value::Null, "{said}");
    let denied = cluster.until_phase(&victim, Phase::Denied).await;
    assert_eq!(reason(&denied), "RequestUnverified");
    assert_eq!(denied.status.as_ref().map(|status| status.attempts), Some(0), "no token was made for it");
    cluster.until_healthy("admission: in force").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
}

#[tokio::test]
async fn what_is_installed_is_what_the_operator_was_built_with() {
    let cluster = shared().await;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/admission.yaml");
    let text = std::fs::read_to_string(manifest).expect("a file");
    for expected in vault_token_operator::yaml::documents(&text).expect("documents") {
        let text = |pointer: &str| expected.pointer(pointer).and_then(Value::as_str).expect("a text").to_owned();
        let found = cluster.kubectl(&["get", &text("/kind"), &text("/metadata/name"), "-o", "json"]).await;
        let found: Value = serde_json::from_str(&found).expect("JSON");
        assert_eq!(found["spec"], expected["spec"], "every default is written down in config/admission.yaml");
    }
}
