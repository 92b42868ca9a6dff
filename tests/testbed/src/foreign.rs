//! `cargo testbed foreign`: what the sweep costs in a Vault that holds many tokens of others, which it must leave alone.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::error::Error;
use crate::kubelet::{Kubelet, PodSpec};
use crate::project::Binaries;
use crate::report;
use crate::system::System;
use crate::vault::Method;

/// How many tokens of others: for a quick look, and in earnest.
const SHORT: usize = 2_000;
const LONG: usize = 100_000;
/// How many are made at a time.
const AT_ONCE: usize = 32;
/// How many pods are timed, beside the first sweep and after it.
const PODS: usize = 20;
/// How long a sweep may take, and a pod may wait.
const LIMIT: Duration = Duration::from_secs(900);
/// The operator looks at no more tokens in a second.
const LOOK_UPS_PER_SECOND: u64 = 500;
/// Less memory than this, in MiB, however many tokens there are.
const MEMORY: u64 = 64;
/// Where pods are.
const NAMESPACE: &str = "foreign";

/// One sweep, as the operator's log tells it.
#[derive(Debug)]
struct Sweep {
    examined: u64,
    milliseconds: u64,
}

/// Runs it; an error says what did not hold.
pub async fn run(short: bool) -> Result<(), Error> {
    let count = if short { SHORT } else { LONG };
    let (system, kubelet) = System::fresh(Binaries::build).await?;
    system.create_workload_namespace(NAMESPACE).await?;
    report::line(&format!("making {count} tokens of others"));
    let order = json!({ "policies": ["default"], "ttl": "24h", "no_parent": true, "meta": { "cluster": "another" } });
    let vault = system.testbed().vault();
    let make = |_| vault.must(Method::POST, "auth/token/create", Some(&order));
    stream::iter(0..count).map(make).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;

    system.start_operator(&[("VTO_LOG", "info"), ("VTO_SWEEP_INTERVAL", "10s")]).await?;
    let memory_before = memory(&system)?;
    let beside = wait_for_tokens(&system, &kubelet, "beside").await?;
    let sweeps_then = sweeps(&system)?.len();
    let first = until_swept(&system, 1).await?;
    let next = until_swept(&system, 2).await?;
    let after = wait_for_tokens(&system, &kubelet, "after").await?;
    let memory_after = memory(&system)?;
    report::output(&format!(
        "the first sweep looked at {} of {count} tokens in {:.1} s",
        first.examined,
        seconds(&first)
    ));
    report::output(&format!("the next one looked at {} in {:.1} s", next.examined, seconds(&next)));
    report::output(&format!(
        "a pod waited for its token {:.0} ms beside the first sweep ({}), {:.0} ms after it: ratio {:.2} (medians of {PODS})",
        beside.as_secs_f64() * 1000.0,
        if sweeps_then == 0 { "which went on all the time" } else { "which was over by then" },
        after.as_secs_f64() * 1000.0,
        beside.as_secs_f64() / after.as_secs_f64()
    ));
    report::output(&format!("the operator's memory: {memory_before} MiB at its start, {memory_after} MiB in the end"));
    let live = vault.live_tokens_where("cluster", "another").await?.len();
    report::output(&format!("tokens of others {count}, of them touched {}", count - live));
    system.stop().await?;
    let bounded = first.milliseconds >= least_milliseconds(first.examined) && memory_after < MEMORY;
    if live == count && next.examined < first.examined.min(100) && bounded {
        return Ok(());
    }
    Err(Error::io("the sweep does what it should not")(std::io::Error::other(format!("{first:?} {next:?} {live}"))))
}

/// How long a sweep takes at least that looks at so many tokens: as many as in a second may come at once, the others at their rate.
fn least_milliseconds(examined: u64) -> u64 {
    examined.saturating_sub(LOOK_UPS_PER_SECOND) * 1000 / LOOK_UPS_PER_SECOND
}

fn seconds(sweep: &Sweep) -> f64 {
    Duration::from_millis(sweep.milliseconds).as_secs_f64()
}

fn memory(system: &System) -> Result<u64, Error> {
    let memory = system.operator_memory()?;
    memory.map(|bytes| bytes >> 20).ok_or(Error::Incomplete { what: "the operator".into(), field: "memory" })
}

/// The median time that a pod's init container takes from its start to its end.
async fn wait_for_tokens(system: &System, kubelet: &Kubelet, name: &str) -> Result<Duration, Error> {
    let (plane, vault) = (system.testbed().control_plane(), system.testbed().vault());
    let mut times = Vec::new();
    for number in 0..PODS {
        let spec = PodSpec::new(NAMESPACE, &format!("{name}-{number}"), "shop-read", "1h");
        let pod = kubelet.create(plane, &spec).await?;
        kubelet.report_initializing(plane, &pod).await?;
        let begun = Instant::now();
        let init = kubelet.start_init(plane, vault, &pod, &[("VTO_LOG", "info")]).await?;
        let status = init.wait(LIMIT).await?;
        if !status.success() {
            return Err(Error::Ended { name: "init".into(), status, tail: init.termination_message() });
        }
        times.push(begun.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

/// Waits until so many sweeps are over; gives the last of them.
async fn until_swept(system: &System, count: usize) -> Result<Sweep, Error> {
    let begun = Instant::now();
    loop {
        if let Some(sweep) = sweeps(system)?.into_iter().nth(count - 1) {
            return Ok(sweep);
        }
        if begun.elapsed() > LIMIT {
            return Err(Error::Timeout { what: "the sweep goes on".into(), seconds: LIMIT.as_secs() });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn sweeps(system: &System) -> Result<Vec<Sweep>, Error> {
    let mut found = Vec::new();
    for log in system.operator_logs() {
        let text = std::fs::read_to_string(&log).map_err(Error::path("could not read", &log))?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        found.extend(lines.filter_map(|line| {
            Some(Sweep { examined: line["examined"].as_u64()?, milliseconds: line["milliseconds"].as_u64()? })
        }));
    }
    Ok(found)
}
