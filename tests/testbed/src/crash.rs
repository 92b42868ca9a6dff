//! `cargo testbed crash`: the operator is killed at named points, again and again, while pods come and go. Whatever it was in the
//! midst of, no token may be lost, no pod may wait for ever, and no running pod may lose its token.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::load::{Load, Outcome, Plan};
use crate::project::Binaries;
use crate::report;
use crate::system::System;

/// The calls that change the world; each has a point before its answer and one after it.
const CALLS: [&str; 14] = [
    "attempt",
    "mint",
    "record",
    "push",
    "offer",
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
/// Those that come up seldom: the operator dies at the first.
const SELDOM: [&str; 5] = ["offer", "renew", "renewal", "abandonment", "clearing"];
/// How often the operator is killed at each point: in CI, and in earnest.
const SHORT: usize = 4;
const LONG: usize = 40;
/// How long the operator may take to come to its point; then it is killed wherever it is.
const REACH_LIMIT: Duration = Duration::from_secs(20);
/// How long everything may take to come to rest after the last kill; a sweep looks twice, a minute apart.
const REST_LIMIT: Duration = Duration::from_secs(180);
/// Pods that make every point come up often.
const PLAN: Plan = Plan {
    namespace: "crash",
    workers: 8,
    pods: usize::MAX,
    ttl: "15s",
    longest: Duration::from_secs(25),
    clumsy: 2,
    status: 3,
    stormy: false,
};
/// Settings that do.
const SETTINGS: [(&str, &str); 6] = [
    ("VTO_LOG", "info"),
    ("VTO_WRAPPING_TTL", "2s"),
    ("VTO_SWEEP_INTERVAL", "10s"),
    ("VTO_RETENTION", "5s"),
    ("VTO_POD_MINTS_PER_MINUTE", "1000"),
    ("VTO_SWEEP_LIMIT", "1000"),
];

/// How the operator fared at one point.
#[derive(Debug, Default)]
struct Row {
    point: String,
    kills: Vec<Instant>,
    elsewhere: usize,
}

/// Runs it; an error says what did not hold.
pub async fn run(short: bool) -> Result<(), Error> {
    let (system, kubelet) = System::fresh(Binaries::build_with_crash_points).await?;
    let load = Load::new(system, kubelet, PLAN).await?;
    let mut workers = load.start();

    let started = Instant::now();
    let rows = kill(&load, if short { SHORT } else { LONG }).await?;
    load.system.start_operator(&SETTINGS).await?;
    load.stop();
    let mut last = Vec::new();
    while let Some(worker) = workers.join_next().await {
        last.extend(worker.map_err(|error| Error::io("a worker failed")(std::io::Error::other(error)))??);
    }
    let outcome = Outcome::wait_for(&load, &last, REST_LIMIT).await?;
    table(&rows, started.elapsed(), &load);
    let kills: usize = rows.iter().map(|row| row.kills.len()).sum();
    let (orphans, stuck, lost, dead) = (outcome.orphans, outcome.stuck, load.lost(), load.dead() + outcome.dead);
    report::output(&format!("tokens of running pods that died {dead}"));
    report::output(&format!("kills {kills}, orphans {orphans}, lost {lost}, stuck {stuck}"));
    load.end().await?;
    match orphans + lost + stuck + dead {
        0 => Ok(()),
        faults => Err(Error::io("an invariant does not hold")(std::io::Error::other(format!("{faults} faults")))),
    }
}

/// Kills the operator at every point, this often each.
async fn kill(load: &Load, times: usize) -> Result<Vec<Row>, Error> {
    let points = CALLS.iter().flat_map(|call| [format!("{call} sent"), format!("{call} done")]);
    let mut rows: Vec<Row> = points.map(|point| Row { point, ..Row::default() }).collect();
    let total = times * rows.len();
    for number in 0..total {
        let count = rows.len();
        let Row { point, kills, elsewhere } = &mut rows[number % count];
        let seldom = SELDOM.iter().any(|call| point.split(' ').next() == Some(call));
        let after = if seldom { 1 } else { fastrand::u32(1..=3) }.to_string();
        let mut settings = SETTINGS.to_vec();
        settings.extend([("VTO_CRASH_POINT", point.as_str()), ("VTO_CRASH_AFTER", after.as_str())]);
        let (process, _) = load.system.spawn_operator(&settings)?;
        if process.wait(REACH_LIMIT).await.is_err() {
            *elsewhere += 1;
        }
        process.kill();
        kills.push(Instant::now());
        if (number + 1) % 20 == 0 {
            let (served, lost) = (load.served(), load.lost());
            report::line(&format!("{} of {total} kills, {served} pods served, {lost} lost", number + 1));
        }
    }
    Ok(rows)
}

fn table(rows: &[Row], took: Duration, load: &Load) {
    report::output(
        "| crash point | kills | not reached in 20 s, killed elsewhere | until all that waited had their token: median, longest, s |",
    );
    report::output("|---|---|---|---|");
    for Row { point, kills, elsewhere } in rows {
        let mut recoveries: Vec<_> = kills.iter().map(|kill| load.recovery(*kill).as_secs_f64()).collect();
        recoveries.sort_by(f64::total_cmp);
        let median = recoveries.get(recoveries.len() / 2).copied().unwrap_or_default();
        let longest = recoveries.last().copied().unwrap_or_default();
        report::output(&format!("| {point} | {} | {elsewhere} | {median:.1}, {longest:.1} |", kills.len()));
    }
    report::output(&format!(
        "{} pods served in {:.0} s; the longest wait of a pod for its token, through all kills: {:.1} s",
        load.served(),
        took.as_secs_f64(),
        load.waited().as_secs_f64()
    ));
}
