//! Scenarios on a real node: pods that a real kubelet starts, the product in its images, installed from the manifests that users apply.
//!
//! `cargo testbed node [NAME]` runs it, which takes root.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod cluster;
mod scenarios;
mod workload;

use cluster::Cluster;
use futures::FutureExt;
use scenarios::ALL;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;
use testbed::{node, report, world};

#[tokio::main]
async fn main() -> ExitCode {
    let name = std::env::args().nth(1);
    if world::cgroup().is_none() {
        return outside(name).await;
    }
    // All others stand on the first.
    let (first, others) = ALL.split_first().expect("a scenario");
    let others = others.iter().filter(|scenario| name.as_ref().is_none_or(|name| scenario.name.contains(name)));
    let begun = Instant::now();
    let cluster = Cluster::start().await.expect("the cluster starts");
    report::line(&format!("the node is ready ({:.1} s)", begun.elapsed().as_secs_f64()));
    let (mut count, mut failed) = (0, 0);
    for scenario in std::iter::once(first).chain(others) {
        let begun = Instant::now();
        // One that fails hides none of the others.
        let passed = AssertUnwindSafe((scenario.run)(&cluster)).catch_unwind().await.is_ok();
        let how = if passed { "ok" } else { "FAILED" };
        report::output(&format!("{}: {how} ({:.1} s)", scenario.name, begun.elapsed().as_secs_f64()));
        count += 1;
        failed += usize::from(!passed);
        if failed == count {
            break;
        }
    }
    if failed > 0 {
        cluster.tell().await;
    }
    report::output(&format!("scenarios {count}, failed {failed}"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Gets what is not there yet while there is a way out, and goes on in a world of its own.
async fn outside(name: Option<String>) -> ExitCode {
    let there = tokio::task::spawn_blocking(|| node::obtain().and_then(|_| cluster::Images::make()).map(drop)).await;
    let run = async {
        there.map_err(|error| testbed::Error::io("could not prepare")(std::io::Error::other(error)))??;
        let program = std::env::current_exe().map_err(testbed::Error::io("could not find this program"))?;
        world::run(&program, name.into_iter()).await
    };
    match run.await {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            report::line(&format!("{error:?}"));
            ExitCode::FAILURE
        }
    }
}
