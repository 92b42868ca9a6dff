//! The kill switch of docs/threat-model.md, command by command.

use crate::support::{Cluster, LIMIT, alone, token_of};
use std::time::Instant;
use testbed::kubelet::PodSpec;
use testbed::process::Output;
use vault_token_operator::api::Phase;

/// The commands that the document gives, without `vault`.
fn commands() -> Vec<String> {
    let document = include_str!("../../docs/threat-model.md");
    let (_, section) = document.split_once("\n## The kill switch\n").expect("the section");
    let lines = section.lines().filter_map(|line| line.strip_prefix("    vault "));
    let commands: Vec<_> = lines.map(str::to_owned).collect();
    assert_eq!(commands.len(), 6, "{commands:?}");
    commands
}

async fn run(cluster: &Cluster, command: &str) -> Output {
    let arguments: Vec<&str> = command.split_whitespace().collect();
    cluster.vault().command(&arguments).await.expect("it runs")
}

#[tokio::test]
async fn the_kill_switch_takes_every_token_and_makes_no_more() {
    let (cluster, _guard) = alone().await;
    let namespace = cluster.namespace("killed").await;
    let delivered = cluster.deliver(&PodSpec::new(&namespace, "web", "shop-read", "1h")).await;
    // One that nobody has unwrapped.
    let wrapped = cluster.pod(&PodSpec::new(&namespace, "wrapped", "shop-read", "1h")).await;
    cluster.kubelet.report_initializing(cluster.plane(), &wrapped).await.expect("a status");
    cluster.ask(&wrapped, |_| ()).await;
    cluster.until_phase(&wrapped, Phase::Issued).await;
    let mut commands = commands();
    let emptiness = commands.pop().expect("the last one looks whether all is gone");
    for command in commands {
        let output = run(cluster, &command).await;
        assert!(output.status.success(), "{command}: {}{}", output.stdout, output.stderr);
    }
    // What is to be revoked is only queued when the commands have ended.
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = run(cluster, &emptiness).await;
        if output.stderr.contains("No value found") {
            break;
        }
        assert!(Instant::now() < deadline, "{emptiness}: {}{}", output.stdout, output.stderr);
    }
    assert!(!cluster.accepts(&delivered.token).await);
    assert_eq!(cluster.live_tokens_where("namespace", &namespace).await, 0);
    let late = cluster.pod(&PodSpec::new(&namespace, "late", "shop-read", "1h")).await;
    let init = cluster.init(&late).await;
    cluster.until_described("pod", "late", &namespace, "VaultForbids").await;
    cluster.until_healthy("not logged in to Vault").await;
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
