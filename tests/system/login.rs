//! The operator's own login to Vault: each way works, and is mended when it is lost.

use crate::support::{Cluster, LIMIT, alone, token_of};
use crate::sweep::{ROLE_PATH, meta, token};
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use testbed::kubelet::PodSpec;
use testbed::pki::{KeyPairFiles, Pki, Usage};
use testbed::proxy::{Break, Call, Fault, Proxy};
use testbed::settings::VaultKind;
use testbed::system::vault_setup;
use testbed::vault::VaultServer;
use vault_token_operator::api::{Phase, VaultTokenRequest};

/// How long a login lives without being renewed, and in all: as in `config/vault/`, and so short that it ends during a test.
pub const USUAL: [&str; 2] = ["1h", "24h"];
const SHORT: [&str; 2] = ["2s", "5s"];

/// Starts the operator anew with these settings and lets it do its whole job once.
async fn serves(cluster: &Cluster, namespace: &str, settings: &[(&str, &str)]) {
    cluster.restart(settings).await;
    let namespace = cluster.namespace(namespace).await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &delivered.pod).await.expect("removed");
    cluster.until_dead(delivered.accessor()).await;
}

/// Puts a secret into a file of the run, in place of what was in it.
fn secret_file(cluster: &Cluster, name: &str, secret: &Value) -> PathBuf {
    let path = cluster.system.testbed().run().path().join(name);
    let new = path.with_extension("new");
    // A line end, as an editor leaves it.
    std::fs::write(&new, format!("{}\n", secret.as_str().expect("a secret"))).expect("written");
    std::fs::rename(new, &path).expect("renamed");
    path
}

/// A new secret ID of this role of AppRole's.
async fn secret_id(cluster: &Cluster, role: &str) -> Value {
    let made = cluster.vault().must(Method::POST, &format!("{role}/secret-id"), None).await.expect("a secret ID");
    made["data"]["secret_id"].clone()
}

/// Enables AppRole at this path, as config/vault/README.md says, but for the life of the operator's login; gives the settings. The
/// secret ID is in the file that is called like the path.
pub async fn approle_at<'a>(cluster: &Cluster, mount: &'a str, [ttl, longest]: [&str; 2]) -> Vec<(&'a str, String)> {
    let vault = cluster.vault();
    vault.must(Method::POST, &format!("sys/auth/{mount}"), Some(&json!({ "type": "approle" }))).await.expect("enabled");
    let tune = json!({ "user_lockout_config": { "lockout_disable": true } });
    vault.must(Method::POST, &format!("sys/auth/{mount}/tune"), Some(&tune)).await.expect("tuned");
    let role = json!({
        "token_policies": ["vault-token-operator", "vault-token-operator-sweep"], "token_no_default_policy": true,
        "token_ttl": ttl, "token_max_ttl": longest,
    });
    let path = format!("auth/{mount}/role/vault-token-operator");
    vault.must(Method::POST, &path, Some(&role)).await.expect("a role");
    let id = vault.must(Method::GET, &format!("{path}/role-id"), None).await.expect("an ID");
    let file = secret_file(cluster, &format!("{mount}.secret-id"), &secret_id(cluster, &path).await);
    vec![
        ("VTO_VAULT_AUTH", "approle".to_owned()),
        ("VTO_VAULT_AUTH_MOUNT", mount.to_owned()),
        ("VTO_VAULT_ROLE_ID", id["data"]["role_id"].as_str().expect("an ID").to_owned()),
        ("VTO_VAULT_SECRET_ID_FILE", text(&file)),
    ]
}

#[tokio::test]
async fn approle() {
    let (cluster, _guard) = alone().await;
    let settings = approle_at(cluster, "approle", USUAL).await;
    // Without the mount: it is the default.
    let (method, ids) = (&settings[..1], &settings[2..]);
    serves(cluster, "approle", &borrowed(&[method, ids].concat())).await;
    // By the same role.
    cluster.until_healthy("without a request revoked").await;
    recovers(cluster, "approle-revoked", "approle").await;
}

#[tokio::test]
async fn an_approle_login_is_redone_before_it_ends_and_its_secret_id_is_read_anew() {
    let (cluster, _guard) = alone().await;
    let settings = approle_at(cluster, "approle-short", SHORT).await;
    outlives(cluster, "approle-short", "approle-short", &borrowed(&settings)).await;

    let role = "auth/approle-short/role/vault-token-operator";
    let file = |secret: &Value| secret_file(cluster, "approle-short.secret-id", secret);
    let first = std::fs::read_to_string(&settings[3].1).expect("a secret ID");
    file(&secret_id(cluster, role).await);
    let first = json!({ "secret_id": first.trim() });
    cluster.vault().must(Method::POST, &format!("{role}/secret-id/destroy"), Some(&first)).await.expect("destroyed");
    goes_on(cluster, "approle-rotated", "approle-short", 2).await;

    file(&json!("no secret ID"));
    let refused = |text: &str| text.contains("AppRole auth at \"approle-short\" failed: Vault answered 400");
    cluster.until_health("that the secret ID is wrong", refused).await;
    file(&secret_id(cluster, role).await);
    cluster.until_healthy("vault: logged in").await;
}

/// Puts a token into this file that was made for the operator, as config/vault/README.md says, but for its life; gives its accessor.
pub async fn put_token(cluster: &Cluster, file: &str, life: Value) -> String {
    let policies = ["vault-token-operator", "vault-token-operator-sweep"];
    let mut token = json!({ "policies": policies, "no_default_policy": true, "no_parent": true });
    json_patch::merge(&mut token, &life);
    let made = cluster.vault().must(Method::POST, "auth/token/create", Some(&token)).await.expect("a token");
    secret_file(cluster, file, &made["auth"]["client_token"]);
    made["auth"]["accessor"].as_str().expect("an accessor").to_owned()
}

/// The settings of a login by the token in this file.
pub fn by_token_file(cluster: &Cluster, file: &str) -> [(&'static str, String); 2] {
    let path = cluster.system.testbed().run().path().join(file);
    [("VTO_VAULT_AUTH", "token-file".to_owned()), ("VTO_VAULT_TOKEN_FILE", text(&path))]
}

/// Waits until health says that the token in this file is of no use, and what to do.
async fn until_told_of(cluster: &Cluster, file: &str) {
    let told = |text: &str| {
        text.contains(&format!("{file} failed: Vault does not know it"))
            && text.contains("write another one into the file")
    };
    cluster.until_health("that the token in the file is of no use", told).await;
}

#[tokio::test]
async fn token_file() {
    let (cluster, _guard) = alone().await;
    let file = "usual-vault-token";
    let first = put_token(cluster, file, json!({ "period": "1h" })).await;
    serves(cluster, "token-file", &borrowed(&by_token_file(cluster, file))).await;
    cluster.until_healthy("without a request revoked").await;
    assert!(cluster.lives(&first).await, "the sweep has no login of its own to give back");

    let revoke = async |accessor: &str| {
        let body = json!({ "accessor": accessor });
        cluster.vault().must(Method::POST, "auth/token/revoke-accessor", Some(&body)).await.expect("revoked");
    };
    let second = put_token(cluster, file, json!({ "period": "1h" })).await;
    recovers_from(cluster, "token-file-revoked", async || revoke(&first).await).await;

    // And with no other one in the file.
    revoke(&second).await;
    let pod = cluster.pod(&PodSpec::new("token-file-revoked", "waits", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    until_told_of(cluster, file).await;
    let last = put_token(cluster, file, json!({ "period": "1h" })).await;
    cluster.ended_well(&pod, &init).await;
    let status = cluster.system.stop_operator().await.expect("it ran");
    assert!(status.success() && cluster.lives(&last).await, "it is whoever's that has put it there: {status}");
}

#[tokio::test]
async fn an_operator_that_ends_gives_its_login_back() {
    // Of its own: those of other tests would be counted, too.
    let cluster = &Cluster::start().await;
    cluster.system.start_operator(&[]).await.expect("the operator starts");
    let namespace = cluster.namespace("ends").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    // Past the first sweep, which has a login of its own.
    cluster.until_healthy("without a request revoked").await;
    let logins = async || {
        let roles = ["vault-token-operator", "vault-token-operator-sweep"];
        join_all(roles.map(|role| cluster.live_tokens_where("role", role))).await
    };
    assert_eq!(logins().await, [1, 0]);
    let status = cluster.system.stop_operator().await.expect("it ran");
    assert!(status.success(), "{status}");
    assert_eq!(logins().await, [0, 0]);
    assert!(cluster.accepts(&delivered.token).await, "I7: what was made by it has no part in its end");
}

#[tokio::test]
async fn a_token_file_is_read_anew_before_its_token_ends() {
    let (cluster, _guard) = alone().await;
    let file = "short-vault-token";
    // It can be renewed, and not for long.
    let mut present = put_token(cluster, file, json!({ "ttl": "6s", "explicit_max_ttl": "15s" })).await;
    serves(cluster, "token-file-short", &borrowed(&by_token_file(cluster, file))).await;
    let namespace = cluster.namespace("token-file-rotated").await;
    let mut number = 0;
    let mut delivers = async || {
        number += 1;
        let delivered = cluster.deliver(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h")).await;
        let status = delivered.status();
        assert_eq!(status.attempts, 1, "an attempt failed for want of a login: {:?}", status.history);
    };
    for life in [json!({ "ttl": "20s", "renewable": false }), json!({ "ttl": "15s", "renewable": false })] {
        let next = put_token(cluster, file, life).await;
        while cluster.lives(&present).await {
            delivers().await;
        }
        delivers().await;
        present = next;
    }
    assert!(!said(cluster, "logging in to Vault again"), "the login was lost: {}", cluster.operator_said());

    // Nobody writes another one.
    until_told_of(cluster, file).await;
    put_token(cluster, file, json!({ "period": "1h" })).await;
    cluster.until_healthy("vault: logged in").await;
    delivers().await;
}

/// Enables the JWT auth method at this path of a Vault for the ServiceAccount of this cluster's operator, as config/vault/README.md
/// says, but for the life of the operator's login and the name of its policy; gives the settings.
pub async fn jwt_at<'a>(
    vault: &VaultServer,
    cluster: &Cluster,
    mount: &'a str,
    life: [&str; 2],
    policy: &str,
) -> Vec<(&'a str, String)> {
    jwt_within(vault, "", cluster, mount, life, policy).await
}

/// The same in the Vault namespace whose paths begin so.
async fn jwt_within<'a>(
    vault: &VaultServer,
    prefix: &str,
    cluster: &Cluster,
    mount: &'a str,
    life: [&str; 2],
    policy: &str,
) -> Vec<(&'a str, String)> {
    let put = async |path: String, body: Value| {
        vault.must(Method::POST, &format!("{prefix}{path}"), Some(&body)).await.expect("told");
    };
    put(format!("sys/auth/{mount}"), json!({ "type": "jwt" })).await;
    let key = std::fs::read_to_string(cluster.plane().token_key_path()).expect("a key");
    put(format!("auth/{mount}/config"), json!({ "jwt_validation_pubkeys": [key] })).await;
    let sweep = "vault-token-operator-sweep";
    for (name, policy, [ttl, longest]) in [("vault-token-operator", policy, life), (sweep, sweep, ["5m", "5m"])] {
        let role = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
            "bound_subject": "system:serviceaccount:vault-token-operator:vault-token-operator",
            "token_policies": [policy], "token_no_default_policy": true,
            "token_ttl": ttl, "token_max_ttl": longest,
        });
        put(format!("auth/{mount}/role/{name}"), role).await;
    }
    vec![("VTO_VAULT_AUTH", "jwt".to_owned()), ("VTO_VAULT_AUTH_MOUNT", mount.to_owned())]
}

/// Enables the TLS certificate auth method at this path for certificates of the run's authority for `operator`, as
/// config/vault/README.md says, but for the life of the operator's login; gives the settings.
pub async fn cert_at<'a>(cluster: &Cluster, mount: &'a str, life: [&str; 2]) -> Vec<(&'a str, String)> {
    let (vault, run) = (cluster.vault(), cluster.system.testbed().run());
    vault.must(Method::POST, &format!("sys/auth/{mount}"), Some(&json!({ "type": "cert" }))).await.expect("enabled");
    for (name, [ttl, longest]) in [("vault-token-operator", life), ("vault-token-operator-sweep", ["5m", "5m"])] {
        let role = json!({
            "certificate": run.pki().ca().pem, "allowed_common_names": ["operator"],
            "token_policies": [name], "token_no_default_policy": true,
            "token_ttl": ttl, "token_max_ttl": longest,
        });
        vault.must(Method::POST, &format!("auth/{mount}/certs/{name}"), Some(&role)).await.expect("a role");
    }
    let mut settings = vec![("VTO_VAULT_AUTH", "cert".to_owned()), ("VTO_VAULT_AUTH_MOUNT", mount.to_owned())];
    settings.extend(presenting(run.pki(), "operator"));
    settings
}

/// The settings of a client certificate of this authority and name.
fn presenting(pki: &Pki, name: &str) -> [(&'static str, String); 2] {
    let KeyPairFiles { certificate, key } = pki.issue(name, Usage::Client(None)).expect("a certificate");
    [("VAULT_CLIENT_CERT", text(&certificate)), ("VAULT_CLIENT_KEY", text(&key))]
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path").to_owned()
}

pub fn borrowed<'a>(settings: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// An authority that nobody trusts.
fn another_pki(cluster: &Cluster) -> Pki {
    Pki::new(&cluster.system.testbed().run().folder("another-ca-of-logins").expect("a folder")).expect("another CA")
}

/// How often Vault let somebody log in at this path, by its audit log.
fn logins(cluster: &Cluster, mount: &str) -> usize {
    let log = std::fs::read_to_string(cluster.vault().audit_log()).expect("an audit log");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let path = format!("auth/{mount}/login");
    let in_and = |line: &Value| line["type"] == "response" && line["request"]["path"] == path.as_str();
    lines.filter(|line| in_and(line) && line["auth"]["accessor"].is_string()).count()
}

/// Serves with a login that cannot live for long; none of the pods is the worse for its ends.
async fn outlives(cluster: &Cluster, namespace: &str, mount: &str, settings: &[(&str, &str)]) {
    let before = logins(cluster, mount);
    serves(cluster, namespace, settings).await;
    // The first one, the sweep's, and two in place of others.
    let more = (before + 4).saturating_sub(logins(cluster, mount));
    goes_on(cluster, &format!("{namespace}-later"), mount, more).await;
}

/// Serves until the operator has logged in at this path so many times more; none of the pods is the worse for it.
async fn goes_on(cluster: &Cluster, namespace: &str, mount: &str, more: usize) {
    let wanted = logins(cluster, mount) + more;
    let namespace = cluster.namespace(namespace).await;
    let start = Instant::now();
    for number in 0.. {
        let delivered = cluster.deliver(&PodSpec::new(&namespace, &format!("web-{number}"), "shop-read", "1h")).await;
        let status = delivered.status();
        assert_eq!(status.attempts, 1, "an attempt failed for want of a login: {:?}", status.history);
        if logins(cluster, mount) >= wanted {
            break;
        }
        assert!(start.elapsed() < LIMIT, "the login is not made anew");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// Revokes all logins of the running operator that were made at this path; it makes another, and goes on.
async fn recovers(cluster: &Cluster, namespace: &str, mount: &str) {
    let prefix = format!("sys/leases/revoke-prefix/auth/{mount}/login");
    let revoke = async || drop(cluster.vault().must(Method::PUT, &prefix, None).await.expect("revoked"));
    recovers_from(cluster, namespace, revoke).await;
}

/// Takes the running operator's login in the midst of its work; it finds another, and goes on.
async fn recovers_from(cluster: &Cluster, namespace: &str, take: impl AsyncFnOnce()) {
    let namespace = cluster.namespace(namespace).await;
    cluster.deliver(&PodSpec::new(&namespace, "before", "shop-read", "1h")).await;
    take().await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "after", "shop-read", "1h")).await;
    assert_eq!(delivered.request.phase(), Phase::Delivered);
    assert!(said(cluster, "Vault does not know the token any more"), "the login outlived its revocation");
}

/// Whether the present operator has written these words to its log.
fn said(cluster: &Cluster, words: &str) -> bool {
    let log = cluster.system.operator_logs().pop().expect("a log");
    std::fs::read_to_string(log).expect("a log").contains(words)
}

/// Starts the operator anew with these settings, with which it cannot log in; its health says all of these words.
async fn is_told(cluster: &Cluster, settings: &[(&str, &str)], words: &[&str]) {
    cluster.restart(settings).await;
    cluster.until_health(&words.join(", "), |text| words.iter().all(|word| text.contains(word))).await;
}

#[tokio::test]
async fn a_login_is_renewed_and_redone_before_it_ends() {
    let (cluster, _guard) = alone().await;
    let role = "auth/kubernetes/role/short";
    let short = json!({
        "bound_service_account_names": ["vault-token-operator"],
        "bound_service_account_namespaces": ["vault-token-operator"],
        "token_policies": ["vault-token-operator"], "token_no_default_policy": true,
        "token_ttl": SHORT[0], "token_max_ttl": SHORT[1],
    });
    cluster.vault().must(Method::POST, role, Some(&short)).await.expect("a role");
    outlives(cluster, "short-login", "kubernetes", &[("VTO_VAULT_AUTH_ROLE", "short")]).await;
}

#[tokio::test]
async fn a_login_that_was_revoked_is_made_anew() {
    let (cluster, _guard) = alone().await;
    recovers(cluster, "login-revoked", "kubernetes").await;
}

#[tokio::test]
async fn jwt() {
    let (cluster, _guard) = alone().await;
    let settings = jwt_at(cluster.vault(), cluster, "jwt", USUAL, "vault-token-operator").await;
    // Without the mount: it is the default.
    serves(cluster, "jwt", &borrowed(&settings[..1])).await;
    // By a login of its own.
    cluster.until_healthy("without a request revoked").await;
    recovers(cluster, "jwt-revoked", "jwt").await;
}

#[tokio::test]
async fn a_jwt_login_is_redone_before_it_ends_and_its_token_is_read_anew() {
    let (cluster, _guard) = alone().await;
    let mut settings = jwt_at(cluster.vault(), cluster, "jwt-short", SHORT, "vault-token-operator").await;
    let [_, login_file] = cluster.system.operator_token_files();
    let file = cluster.system.testbed().run().path().join("rotated-jwt");
    std::fs::copy(login_file, &file).expect("copied");
    settings.push(("VTO_SERVICE_ACCOUNT_TOKEN_FILE", text(&file)));
    outlives(cluster, "jwt-short", "jwt-short", &borrowed(&settings)).await;

    std::fs::write(&file, "no JWT").expect("written");
    let forbidden = |text: &str| text.contains("JWT auth at \"jwt-short\"") && text.contains("failed");
    cluster.until_health("that the JWT is wrong", forbidden).await;
    std::fs::copy(login_file, &file).expect("copied");
    cluster.until_healthy("vault: logged in").await;
}

#[tokio::test]
async fn cert() {
    let (cluster, _guard) = alone().await;
    let settings = cert_at(cluster, "cert", USUAL).await;
    let (method, certificate) = (&settings[..1], &settings[2..]);
    // Without the mount: it is the default.
    serves(cluster, "cert", &borrowed(&[method, certificate].concat())).await;
    // By a login of its own.
    cluster.until_healthy("without a request revoked").await;
    recovers(cluster, "cert-revoked", "cert").await;
}

#[tokio::test]
async fn a_cert_login_is_redone_before_it_ends() {
    let (cluster, _guard) = alone().await;
    let settings = cert_at(cluster, "cert-short", SHORT).await;
    outlives(cluster, "cert-short", "cert-short", &borrowed(&settings)).await;
}

#[tokio::test]
async fn a_client_certificate_that_vault_does_not_accept_is_told() {
    let (cluster, _guard) = alone().await;
    let settings = cert_at(cluster, "cert-refused", USUAL).await;
    let method = &settings[..2];
    let another = another_pki(cluster);
    let own = cluster.system.testbed().run().pki();
    for (pki, name) in [(&another, "operator"), (own, "somebody")] {
        let settings = [method, &presenting(pki, name)].concat();
        let words =
            ["TLS certificate auth at \"cert-refused\"", "\"vault-token-operator\" failed: Vault", "certificate"];
        is_told(cluster, &borrowed(&settings), &words).await;
    }
    // Vault's listener itself lets none of that authority in.
    let settings =
        [&[("VAULT_ADDR", cluster.vault().strict_address().to_owned())], &presenting(&another, "operator")[..]];
    is_told(cluster, &borrowed(&settings.concat()), &["received fatal alert", "VAULT_CLIENT_CERT"]).await;
}

#[tokio::test]
async fn a_vault_that_wants_client_certificates_lets_operator_and_init_in_with_one() {
    let (cluster, _guard) = alone().await;
    let strict = ("VAULT_ADDR", cluster.vault().strict_address().to_owned());
    is_told(cluster, &borrowed(std::slice::from_ref(&strict)), &["received fatal alert", "VAULT_CLIENT_CERT"]).await;
    let certificate = presenting(cluster.system.testbed().run().pki(), "anybody");
    let settings = [&[strict][..], &certificate].concat();
    cluster.restart(&borrowed(&settings)).await;
    let namespace = cluster.namespace("strict").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init_with(&pod, &borrowed(&settings)).await;
    cluster.ended_well(&pod, &init).await;
    assert!(cluster.accepts(&token_of(&pod)).await);
}

#[tokio::test]
async fn vaults_certificate_is_verified_under_the_name_that_was_given() {
    let (cluster, _guard) = alone().await;
    // No resolver knows this name.
    serves(cluster, "server-name", &[("VAULT_TLS_SERVER_NAME", "vault.vault.svc")]).await;
    let port = cluster.vault().address().rsplit(':').next().expect("a port");
    let address = format!("https://localhost:{port}");
    serves(cluster, "server-name-of-a-name", &[("VAULT_ADDR", &address), ("VAULT_TLS_SERVER_NAME", "vault")]).await;

    let told = ["cannot reach Vault", "not valid for name", "VAULT_TLS_SERVER_NAME"];
    is_told(cluster, &[("VAULT_TLS_SERVER_NAME", "another.vault.svc")], &told).await;
    let another = text(&another_pki(cluster).ca().path);
    let told = ["cannot reach Vault", "invalid peer certificate", "VAULT_CACERT"];
    for name in ["", "vault.vault.svc"] {
        is_told(cluster, &[("VAULT_CACERT", &another), ("VAULT_TLS_SERVER_NAME", name)], &told).await;
    }
    // Whatever the system trusts.
    let trusted = text(cluster.vault().ca_path());
    is_told(cluster, &[("SSL_CERT_FILE", &trusted), ("VAULT_CACERT", &another)], &told).await;
}

/// It could be anybody's place, and the token would go along.
#[tokio::test]
async fn nobody_follows_a_vault_that_leads_elsewhere() {
    let (cluster, _guard) = alone().await;
    let run = cluster.system.testbed().run();
    let proxy = async || Proxy::before_server(run, cluster.vault().address()).await.expect("a proxy");
    let (vault, elsewhere) = (proxy().await, proxy().await);
    let place = elsewhere.address();
    vault.follow(move |_| Fault::Before(Break::Redirect(place)));
    let followed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&followed);
    elsewhere.follow(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Fault::None
    });
    is_told(cluster, &[("VAULT_ADDR", &vault.url())], &["307"]).await;
    vault.follow(|_| Fault::None);
    cluster.until_healthy("vault: logged in\n").await;
    let mint = |call: &Call| call.path.contains("auth/token/create");
    vault.follow(move |call| if mint(call) { Fault::Before(Break::Redirect(place)) } else { Fault::None });
    let namespace = cluster.namespace("leads-elsewhere").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init(&pod).await;
    let told = |request: &VaultTokenRequest| format!("{:?}", request.status).contains("Vault answered 307");
    cluster.until(&pod, "word of it", told).await;
    vault.follow(|_| Fault::None);
    cluster.ended_well(&pod, &init).await;
    assert_eq!(followed.load(Ordering::Relaxed), 0, "it was followed");
    // And so it would have been seen.
    cluster.restart(&[("VAULT_ADDR", &elsewhere.url())]).await;
    cluster.until_healthy("vault: logged in\n").await;
    assert_ne!(followed.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_token_role_that_makes_tokens_of_another_type_is_named() {
    let (cluster, _guard) = alone().await;
    let role = "auth/token/roles/vault-token-operator-main";
    let kept = cluster.vault().must(Method::GET, role, None).await.expect("a role")["data"].clone();
    let mut batch = kept.clone();
    batch["token_type"] = json!("batch");
    // Vault takes the type only so.
    batch["renewable"] = json!(false);
    cluster.vault().must(Method::POST, role, Some(&batch)).await.expect("changed");
    let namespace = cluster.namespace("batch").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let _init = cluster.init(&pod).await;
    let denied = cluster.until_phase(&pod, Phase::Denied).await;
    let (_, reason, message) = crate::support::condition(&denied, "Issued");
    cluster.vault().must(Method::POST, role, Some(&kept)).await.expect("changed back");
    assert_eq!(reason, "VaultRefused");
    assert!(message.contains("batch"), "{message}");
}

#[tokio::test]
async fn rights_that_are_missing_in_vault_are_named() {
    let (cluster, _guard) = alone().await;
    cluster.system.kill_operator();
    let settings = [("VTO_TOKEN_ROLE", "no-such-role")];
    cluster.system.start_operator(&settings).await.expect("the operator starts");
    let namespace = cluster.namespace("no-rights").await;
    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let _init = cluster.init(&pod).await;
    let forbidden = |request: &vault_token_operator::api::VaultTokenRequest| {
        request.status.as_ref().is_some_and(|status| status.reason.as_deref() == Some("VaultForbids"))
    };
    let waiting = cluster.until(&pod, "complaint", forbidden).await;
    let (_, _, message) = crate::support::condition(&waiting, "Issued");
    assert!(message.contains("no-such-role") && message.contains("config/vault"), "{message}");
}

#[tokio::test]
async fn a_vault_namespace_has_all_that_the_operator_needs() {
    let (cluster, _guard) = alone().await;
    let vault = cluster.vault();
    let tenant = |path: &str| format!("tenant/{path}");
    let put = async |path: &str, body: Value| {
        vault.must(Method::POST, &tenant(path), Some(&body)).await.expect("set up");
    };
    if vault.kind() == VaultKind::Vault {
        // Only its enterprise edition has namespaces; this one does not look at the header.
        serves(cluster, "vault-namespace", &[("VAULT_NAMESPACE", "tenant")]).await;
        return;
    }
    vault.must(Method::POST, "sys/namespaces/tenant", None).await.expect("a namespace");
    // All that config/vault/README.md says, but for the login.
    for (path, body) in vault_setup().expect("what to do").into_iter().filter(|(path, _)| !path.contains("kubernetes"))
    {
        put(&path, body).await;
    }
    let mut settings = jwt_within(vault, "tenant/", cluster, "jwt", USUAL, "vault-token-operator").await;
    settings.push(("VAULT_NAMESPACE", "tenant".to_owned()));
    let policy = json!({ "policy": "path \"secret/data/shop/read\" { capabilities = [\"read\"] }" });
    put("sys/policies/acl/shop-read", policy).await;
    put("sys/mounts/secret", json!({ "type": "kv" })).await;
    put("secret/data/shop/read", json!({ "greeting": "hello" })).await;
    let namespace = cluster.namespace("vault-namespace").await;
    let gone = cluster.pod(&PodSpec::new(&namespace, "gone", "shop-read", "1h")).await;
    cluster.kubelet.remove(cluster.plane(), &gone).await.expect("removed");
    let orphan = token(cluster, &tenant(ROLE_PATH), &meta(&gone, "no-such-request", "2026-01-01T00:00:01Z")).await;
    let orphan_lives = async || {
        let (body, path) = (json!({ "accessor": orphan }), tenant("auth/token/lookup-accessor"));
        vault.request(Method::POST, &path, Some(&body)).await.expect("an answer").0.is_success()
    };
    assert!(orphan_lives().await);
    cluster.restart(&borrowed(&settings)).await;
    cluster.until_healthy("vault rights: as needed").await;
    cluster.until_healthy(" 1 without a request revoked").await;
    assert!(!orphan_lives().await);

    let pod = cluster.pod(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    let init = cluster.init_with(&pod, &[("VAULT_NAMESPACE", "tenant")]).await;
    cluster.ended_well(&pod, &init).await;
    let token = token_of(&pod);
    let reads = async || {
        let answer = vault.request_as(Some(&token), Method::GET, &tenant("secret/data/shop/read"), None).await;
        answer.expect("an answer").0
    };
    assert_eq!(reads().await, StatusCode::OK);
    assert!(!cluster.accepts(&token).await, "it is of no use outside of its namespace");
    cluster.kubelet.remove(cluster.plane(), &pod).await.expect("removed");
    cluster.until_phase(&pod, Phase::Revoked).await;
    assert_eq!(reads().await, StatusCode::FORBIDDEN);
}
