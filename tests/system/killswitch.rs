//! The kill switch of docs/threat-model.md, command by command.

use crate::binding::{OWN_ROLE, bind_own_role, make_own_role, permit_own_role, ungranted};
use crate::login::{USUAL, approle_at, borrowed, by_token_file, cert_at, jwt_at, put_token};
use crate::support::{Cluster, LIMIT, alone, token_of};
use crate::sweep::ROLE_PATH;
use serde_json::json;
use std::time::Instant;
use testbed::kubelet::{Init, PodHandle, PodSpec};
use testbed::process::Output;
use vault_token_operator::api::Phase;

/// The commands of a piece of the document, without `vault`.
fn commands_in(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("    vault ")).map(str::to_owned).collect()
}

/// The section, and what it says of more than one token role, and of other logins than Kubernetes auth.
fn section() -> [&'static str; 3] {
    let document = include_str!("../../docs/threat-model.md");
    let (_, section) = document.split_once("\n## The kill switch\n").expect("the section");
    let (usual, more) = section.split_once("\nWhere bindings have token roles of their own").expect("token roles");
    let (roles, logins) = more.split_once("\nWhere the operator logs in in another way").expect("the other ways");
    [usual, roles, logins]
}

/// The commands that the document gives.
fn commands() -> Vec<String> {
    let commands = commands_in(section()[0]);
    assert_eq!(commands.len(), 6, "{commands:?}");
    commands
}

/// The same with those for a further token role, each beside what is like it.
fn commands_with(role: &str) -> Vec<String> {
    let of_role = commands_in(section()[1]);
    assert_eq!(of_role.len(), 3, "{of_role:?}");
    let of_role = of_role.iter().map(|command| command.replace("vault-token-operator-main-shop", role));
    let all: Vec<_> = commands().into_iter().chain(of_role).collect();
    let like = |kind: &str| all.iter().filter(|command| command.starts_with(kind)).cloned().collect::<Vec<_>>();
    ["delete ", "lease revoke ", "list "].map(like).concat()
}

/// The commands that the document gives for another login, which stand in the place of those for Kubernetes auth.
fn commands_for(login: &str) -> Vec<String> {
    let (_, way) = section()[2].split_once(&format!("\n**{login}**")).expect("the way");
    let way = way.split("\n**").next().unwrap_or_default();
    let (deletes, revokes): (Vec<_>, Vec<_>) =
        commands_in(way).into_iter().partition(|command| command.starts_with("delete "));
    assert!(revokes.len() == 1 && deletes.len() <= 2, "{login}: {deletes:?} {revokes:?}");
    let (of_the_login, others): (Vec<_>, Vec<_>) =
        commands().into_iter().partition(|command| command.contains("auth/kubernetes/"));
    assert_eq!(of_the_login.len(), 3, "{of_the_login:?}");
    let [token_role, rest @ ..] = &others[..] else { panic!("{others:?}") };
    [deletes, vec![token_role.clone()], revokes, rest.to_vec()].concat()
}

async fn tries(cluster: &Cluster, command: &str) -> Output {
    let arguments: Vec<&str> = command.split_whitespace().collect();
    cluster.vault().command(&arguments).await.expect("it runs")
}

async fn run(cluster: &Cluster, command: &str) -> String {
    let output = tries(cluster, command).await;
    assert!(output.status.success(), "{command}: {}{}", output.stdout, output.stderr);
    output.stdout
}

/// Follows the commands, the last of which look whether all is gone: a token that a pod has and one that nobody has unwrapped are
/// dead then, and a pod that comes late gets none.
async fn kills(cluster: &Cluster, namespace: &str, commands: Vec<String>) -> (PodHandle, Init) {
    let delivered = cluster.deliver(&PodSpec::new(namespace, "web", "shop-read", "1h")).await;
    let wrapped = cluster.pod(&PodSpec::new(namespace, "wrapped", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &wrapped).await.expect("a status");
    cluster.ask(&wrapped, |_| ()).await;
    cluster.until_phase(&wrapped, Phase::Issued).await;
    let (looks, kills): (Vec<_>, Vec<_>) = commands.into_iter().partition(|command| command.starts_with("list "));
    assert!(!looks.is_empty(), "{kills:?}");
    for command in kills {
        run(cluster, &command).await;
    }
    // What is to be revoked is only queued when the commands have ended.
    let deadline = Instant::now() + LIMIT;
    for emptiness in looks {
        loop {
            let output = tries(cluster, &emptiness).await;
            if output.stderr.contains("No value found") {
                break;
            }
            assert!(Instant::now() < deadline, "{emptiness}: {}{}", output.stdout, output.stderr);
        }
    }
    assert!(!cluster.accepts(&delivered.token).await);
    assert_eq!(cluster.live_tokens_where("namespace", namespace).await, 0);
    let late = cluster.pod(&PodSpec::new(namespace, "late", "shop-read", "1h")).await;
    let init = cluster.init(&late).await;
    cluster.until_described("pod", "late", namespace, "VaultForbids").await;
    cluster.until_healthy("not logged in to Vault").await;
    assert_eq!(cluster.live_tokens_where("namespace", namespace).await, 0);
    (late, init)
}

#[tokio::test]
async fn the_kill_switch_takes_every_token_and_makes_no_more() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("killed").await;
    let of_own_role = ungranted(cluster, "killed-own-role").await;
    permit_own_role(cluster).await;
    make_own_role(cluster).await;
    bind_own_role(cluster, "killed-own-role", &of_own_role).await;
    let own = cluster.deliver(&PodSpec::new(&of_own_role, "web", "shop-read", "1h")).await;
    // What revokes the tokens of the operator's own role goes by its whole name.
    let before = cluster.deliver(&PodSpec::new(&namespace, "before", "shop-read", "1h")).await;
    let revoke = commands().into_iter().find(|command| command.ends_with(&format!("-prefix {ROLE_PATH}")));
    run(cluster, &revoke.expect("a command")).await;
    cluster.until_dead(before.accessor()).await;
    assert!(cluster.accepts(&own.token).await);
    for (shows, role) in
        [("auth/token/roles", OWN_ROLE.to_owned()), ("sys/leases/lookup/auth/token/create", format!("{OWN_ROLE}/"))]
    {
        let listed = run(cluster, &format!("list {shows}")).await;
        assert!(listed.lines().any(|line| line == role), "{listed}");
    }
    let (late, init) = kills(cluster, &namespace, commands_with(OWN_ROLE)).await;
    assert!(!cluster.accepts(&own.token).await);
    // Those that come when there is no login are told the like.
    let later = cluster.pod(&PodSpec::new(&namespace, "later", "shop-read", "1h")).await;
    let later_init = cluster.init(&later).await;
    cluster.until_described("pod", "later", &namespace, "VaultForbids").await;
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, 0);
    // And back.
    cluster.system.tell_vault_again().await.expect("told");
    for (pod, init) in [(&late, &init), (&later, &later_init)] {
        cluster.ended_well(pod, init).await;
        assert!(cluster.accepts(&token_of(pod)).await);
    }
}

/// Starts the operator with another login, at a mount of the test's own, and kills it as the document says of that login.
async fn kills_with(cluster: &Cluster, login: &str, named: &str, instead: &str, settings: &[(&str, String)]) {
    cluster.restart(&borrowed(settings)).await;
    let namespace = cluster.namespace(&format!("killed-{}", settings[0].1)).await;
    let commands = commands_for(login);
    assert!(commands.iter().any(|command| command.contains(named)), "{named} is in none of {commands:?}");
    let commands = commands.iter().map(|command| command.replace(named, instead)).collect();
    let (late, init) = kills(cluster, &namespace, commands).await;
    init.kill();
    cluster.kubelet.remove(cluster.plane(), &late).await.expect("removed");
}

#[tokio::test]
async fn the_kill_switch_of_a_login_by_jwt() {
    let (cluster, _guard) = alone().await;
    let settings = jwt_at(cluster.vault(), cluster, "jwt-killed", USUAL, "vault-token-operator").await;
    kills_with(cluster, "By JWT", "auth/jwt/", "auth/jwt-killed/", &settings).await;
}

#[tokio::test]
async fn the_kill_switch_of_a_login_by_certificate() {
    let (cluster, _guard) = alone().await;
    let settings = cert_at(cluster, "cert-killed", USUAL).await;
    kills_with(cluster, "By TLS certificate", "auth/cert/", "auth/cert-killed/", &settings).await;
}

#[tokio::test]
async fn the_kill_switch_of_a_login_by_approle() {
    let (cluster, _guard) = alone().await;
    let settings = approle_at(cluster, "approle-killed", USUAL).await;
    kills_with(cluster, "By AppRole", "auth/approle/", "auth/approle-killed/", &settings).await;
}

#[tokio::test]
async fn the_kill_switch_of_a_login_by_a_token_in_a_file() {
    let (cluster, _guard) = alone().await;
    let file = "killed-vault-token";
    let accessor = put_token(cluster, file, json!({ "period": "1h" })).await;
    let settings = by_token_file(cluster, file);
    kills_with(cluster, "By a token in a file", "<accessor>", &accessor, &settings).await;
}
