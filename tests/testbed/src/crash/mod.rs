//! `cargo testbed crash`: the operator is killed at named points, again and again, while pods come and go. Whatever it was in the
//! midst of, no token may be lost, no pod may wait for ever, and no running pod may lose its token.

mod load;
mod outcome;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::bed::Testbed;
use crate::error::Error;
use crate::kubelet::Kubelet;
use crate::project::Binaries;
use crate::report;
use crate::system::System;
use load::{Load, NAMESPACE};
use outcome::Outcome;

/// The calls that change the world; each has a point before its answer and one after it.
const CALLS: [&str; 13] = [
    "attempt",
    "mint",
    "record",
    "push",
    "delivery",
    "renew",
    "renewal",
    "revoke",
    "end",
    "release",
    "abandonment",
    "clearing",
    "deletion",
];
/// How often the operator is killed at each point: in CI, and in earnest.
const SHORT: usize = 4;
const LONG: usize = 40;
/// How long the operator may take to come to its point; then it is killed wherever it is.
const REACH_LIMIT: Duration = Duration::from_secs(10);
/// How long everything may take to come to rest after the last kill; a sweep looks twice, a minute apart.
const REST_LIMIT: Duration = Duration::from_secs(180);
/// What makes every point come up often.
const SETTINGS: [(&str, &str); 6] = [
    ("VTO_LOG", "info"),
    ("VTO_WRAPPING_TTL", "3s"),
    ("VTO_SWEEP_INTERVAL", "10s"),
    ("VTO_RETENTION", "5s"),
    ("VTO_POD_MINTS_PER_MINUTE", "1000"),
    ("VTO_SWEEP_LIMIT", "1000"),
];

/// How the operator fared at one point.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    kills: usize,
    elsewhere: usize,
    slowest: Duration,
}

/// Runs it; an error says what did not hold.
pub async fn run(short: bool) -> Result<(), Error> {
    report::line("starting etcd, a Kubernetes API server and a Vault server on loopback ...");
    let testbed = Testbed::start().await?;
    let folder = testbed.run().folder("crash")?;
    let built = tokio::task::spawn_blocking(move || Binaries::build_with_crash_points(&folder)).await;
    let binaries = built.map_err(|error| Error::io("could not build")(std::io::Error::other(error)))??;
    let kubelet = Kubelet::new(testbed.run(), &binaries.operator)?;
    let system = System::install(testbed, &binaries.operator).await?;
    system.create_workload_namespace(NAMESPACE).await?;
    let load = Arc::new(Load::new(system, kubelet));
    let workers = load.start();

    let started = Instant::now();
    let rows = kill(&load, if short { SHORT } else { LONG }).await?;
    load.system.start_operator(&SETTINGS).await?;
    load.stop.store(true, Ordering::Release);
    let mut pods = Vec::new();
    for worker in workers {
        pods.extend(worker.await.map_err(|error| Error::io("a worker failed")(std::io::Error::other(error)))??);
    }
    let outcome = Outcome::wait_for(&load, &pods, REST_LIMIT).await?;
    table(&rows, started.elapsed(), &load);
    let kills: usize = rows.iter().map(|(_, row)| row.kills).sum();
    let lost = load.lost.load(Ordering::Acquire);
    let (orphans, stuck, dead) = (outcome.orphans, outcome.stuck, load.dead.load(Ordering::Acquire) + outcome.dead);
    report::output(&format!("tokens of running pods that died {dead}"));
    report::output(&format!("kills {kills}, orphans {orphans}, lost {lost}, stuck {stuck}"));
    let load = Arc::into_inner(load).ok_or(Error::Incomplete { what: "the load goes on".into(), field: "load" })?;
    load.system.stop().await?;
    match orphans + lost + stuck + dead {
        0 => Ok(()),
        faults => Err(Error::io("an invariant does not hold")(std::io::Error::other(format!("{faults} faults")))),
    }
}

/// Kills the operator at every point, this often each.
async fn kill(load: &Load, times: usize) -> Result<Vec<(String, Row)>, Error> {
    let points = CALLS.iter().flat_map(|call| [format!("{call} sent"), format!("{call} done")]);
    let mut rows: Vec<(String, Row)> = points.map(|point| (point, Row::default())).collect();
    let total = times * rows.len();
    for number in 0..total {
        let count = rows.len();
        let (point, row) = &mut rows[number % count];
        let after = fastrand::u32(1..=3).to_string();
        let mut settings = SETTINGS.to_vec();
        settings.extend([("VTO_CRASH_POINT", point.as_str()), ("VTO_CRASH_AFTER", after.as_str())]);
        let begun = Instant::now();
        let (process, _) = load.system.spawn_operator(&settings)?;
        if process.wait(REACH_LIMIT).await.is_err() {
            row.elsewhere += 1;
        }
        process.kill();
        row.kills += 1;
        row.slowest = row.slowest.max(begun.elapsed());
        if (number + 1) % 20 == 0 {
            let (served, lost) = (load.served.load(Ordering::Acquire), load.lost.load(Ordering::Acquire));
            report::line(&format!("{} of {total} kills, {served} pods served, {lost} lost", number + 1));
        }
    }
    Ok(rows)
}

fn table(rows: &[(String, Row)], took: Duration, load: &Load) {
    let served = load.served.load(Ordering::Acquire);
    report::output("| crash point | kills | not reached in 10 s, killed elsewhere | longest run, s |");
    report::output("|---|---|---|---|");
    for (point, row) in rows {
        let Row { kills, elsewhere, slowest } = row;
        report::output(&format!("| {point} | {kills} | {elsewhere} | {:.1} |", slowest.as_secs_f64()));
    }
    let waited = load.waited();
    report::output(&format!(
        "{served} pods served in {:.0} s; the longest wait of a pod for its token, through all kills: {:.1} s",
        took.as_secs_f64(),
        waited.as_secs_f64()
    ));
}
