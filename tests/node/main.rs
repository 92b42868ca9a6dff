//! Scenarios on a real node: pods that a real kubelet starts, the product in its images, installed from the manifests that users apply.
//!
//! `cargo testbed node [NAME]` runs it, which takes root.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod cluster;
mod host;
mod readme;
mod scenarios;
mod workload;

use cluster::Cluster;
use futures::FutureExt;
use scenarios::{ALONE, BESIDE, FIRST, LAST, OTHERS, Scenario};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testbed::components::{self, Component};
use testbed::settings::Settings;
use testbed::{node, report, world};

#[tokio::main]
async fn main() -> ExitCode {
    let name = std::env::args().nth(1);
    if world::cgroup().is_none() {
        return outside(name).await;
    }
    let begun = Instant::now();
    let cluster = Cluster::start().await.expect("the cluster starts");
    let took = begun.elapsed();
    report::line(&format!("the node is ready ({:.1} s)", took.as_secs_f64()));
    assert!(took < Duration::from_secs(20), "whoever waits for a node waits too long");
    let wanted = |scenario: &&Scenario| name.as_ref().is_none_or(|name| scenario.name.contains(name));
    let mut passed = run(&cluster, FIRST.iter()).await;
    if passed == [true] {
        passed.extend(run(&cluster, ALONE.iter().filter(wanted)).await);
        let (beside, others) =
            tokio::join!(run(&cluster, BESIDE.iter().filter(wanted)), run(&cluster, OTHERS.iter().filter(wanted)));
        passed.extend([beside, others].concat());
        passed.extend(run(&cluster, LAST.iter().filter(wanted)).await);
    }
    let failed = passed.iter().filter(|passed| !**passed).count();
    if failed > 0 {
        cluster.tell().await;
    }
    report::output(&format!("scenarios {}, failed {failed}", passed.len()));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs some, one after the other; gives of each whether it passed.
async fn run<'a>(cluster: &Cluster, scenarios: impl Iterator<Item = &'a Scenario>) -> Vec<bool> {
    let mut passed = Vec::new();
    for scenario in scenarios {
        let begun = Instant::now();
        // One that fails hides none of the others.
        let ok = AssertUnwindSafe((scenario.run)(cluster)).catch_unwind().await.is_ok();
        let how = if ok { "ok" } else { "FAILED" };
        report::output(&format!("{}: {how} ({:.1} s)", scenario.name, begun.elapsed().as_secs_f64()));
        passed.push(ok);
    }
    passed
}

/// Gets what is not there yet while there is a way out, and goes on in a world of its own.
async fn outside(name: Option<String>) -> ExitCode {
    let helm = || components::obtain(Component::Helm, &Settings::from_env()?);
    tokio::task::spawn_blocking(helm).await.expect("no panic").expect("helm");
    let before = Arc::new(host::state());
    let mut left = Vec::new();
    // The whole suite shows, too, that a run that is killed leaves as little as one that comes to its end.
    if name.is_none() {
        let begun = Instant::now();
        let known = Arc::clone(&before);
        left = tokio::task::spawn_blocking(move || host::kill_one(&known)).await.expect("no panic");
        let how = if left.is_empty() { "ok" } else { "FAILED" };
        let seconds = begun.elapsed().as_secs_f64();
        report::output(&format!("a_run_that_is_killed_leaves_nothing: {how} ({seconds:.1} s)"));
    }
    let passed = match node::in_world(name.into_iter()).await {
        Ok(status) => status.success(),
        Err(error) => {
            report::line(&format!("{error:?}"));
            false
        }
    };
    left.extend(host::changes(&before));
    left.iter()
        .for_each(|what| report::line(&format!("left on this machine, or of another testbed beside this one: {what}")));
    if passed && left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
