//! `cargo testbed crash`: the operator is killed at named points, again and again, while pods come and go. Whatever it was in the
//! midst of, no token may be lost, no pod may wait for ever, and no running pod may lose its token.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use http::Method;
use jiff::Timestamp;
use rustix::process::Signal;

use crate::error::Error;
use crate::load::{Load, Outcome, Plan};
use crate::project::Binaries;
use crate::proxy::{Break, Call, Fault, Proxy};
use crate::report;
use crate::system::System;

/// The calls that change the world; each has a point before its answer and one after it.
const CALLS: [&str; 16] = [
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
    "word",
    TAKE_BACK,
];
/// The revocation of a token whose record did not come about. For that, writes must fail.
const TAKE_BACK: &str = "take-back";
/// One write of a status in so many fails where that is wanted.
const WRITES_LOST: usize = 3;
/// Those that come up seldom: the operator dies at the first.
const SELDOM: [&str; 6] = ["offer", "renew", "renewal", "abandonment", "clearing", TAKE_BACK];
/// How often the operator is started to be killed at each point, and how often that must come about at least, at each and in all.
#[derive(Clone, Copy, Debug)]
struct Form {
    starts: usize,
    kills: usize,
    all: usize,
}

/// In CI, and in earnest.
const SHORT: Form = Form { starts: 4, kills: 1, all: 100 };
const LONG: Form = Form { starts: 40, kills: 20, all: 1000 };
/// How long the operator may take to come to its point; then it is killed wherever it is, and that does not count.
const REACH_LIMIT: Duration = Duration::from_secs(20);
/// How long everything may take to come to rest after the last kill.
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

/// One kill.
#[derive(Clone, Copy, Debug)]
struct Kill {
    /// The number of the point that it was meant for.
    point: usize,
    /// Whether the operator had come to it.
    reached: bool,
    at: Instant,
    /// The same by the clock that the operator's times are of.
    time: Timestamp,
}

/// Runs it; an error says what did not hold.
pub async fn run(short: bool) -> Result<(), Error> {
    let (system, kubelet) = System::fresh(Binaries::build_with_crash_points).await?;
    let api = Proxy::before_server(system.testbed().run(), system.testbed().control_plane().server_url()).await?;
    api.follow(lose_writes);
    let lossy = system.operator_kubeconfig_at(&api.url())?;
    let load = Load::new(system, kubelet, PLAN).await?;
    let mut workers = load.start();

    let started = Instant::now();
    let form = if short { SHORT } else { LONG };
    let points = points();
    let kills = kill(&load, &points, form.starts, &lossy.to_string_lossy()).await?;
    load.system.start_operator(&SETTINGS).await?;
    load.stop();
    let mut last = Vec::new();
    while let Some(worker) = workers.join_next().await {
        last.extend(worker.map_err(|error| Error::io("a worker failed")(std::io::Error::other(error)))??);
    }
    let outcome = Outcome::wait_for(&load, &last, REST_LIMIT).await?;
    table(&points, &kills, &outcome, &load);
    report::output(&format!(
        "{} pods served in {:.0} s; the longest wait of a pod for its token, through all kills: {:.1} s",
        load.served(),
        started.elapsed().as_secs_f64(),
        load.waited().as_secs_f64()
    ));
    let (lost, died) = (load.lost().len(), load.dead());
    report::output(&format!(
        "tokens of running pods that died {}, records without a live token {}, pods with more than one live token {}",
        died + outcome.dead,
        outcome.hollow,
        outcome.doubled
    ));
    let (reached, orphans, stuck) = (reached(&kills).count(), outcome.orphans.len(), outcome.stuck);
    report::output(&format!("kills {reached}, orphans {orphans}, lost {lost}, stuck {stuck}"));
    load.end().await?;
    let seldom = too_seldom(&points, &kills, form);
    match outcome.faults() + lost + died {
        0 if seldom.is_empty() => Ok(()),
        0 => Err(Error::io("the operator was killed too seldom to show anything")(std::io::Error::other(seldom))),
        faults => Err(Error::io("an invariant does not hold")(std::io::Error::other(format!("{faults} faults")))),
    }
}

/// Before and after the answer of each call.
fn points() -> Vec<String> {
    CALLS.iter().flat_map(|call| [format!("{call} sent"), format!("{call} done")]).collect()
}

/// The kills at the points that they were meant for.
fn reached(kills: &[Kill]) -> impl Iterator<Item = &Kill> {
    kills.iter().filter(|kill| kill.reached)
}

/// Where the operator was not killed as often as this form wants, in words.
fn too_seldom(points: &[String], kills: &[Kill], form: Form) -> String {
    let seldom = points.iter().enumerate().filter_map(|(number, point)| {
        let count = reached(kills).filter(|kill| kill.point == number).count();
        (count < form.kills).then(|| format!("{count} times at {point:?}, not {}", form.kills))
    });
    let all = reached(kills).count();
    let in_all = (all < form.all).then(|| format!("{all} times in all, not {}", form.all));
    seldom.chain(in_all).collect::<Vec<_>>().join("; ")
}

/// Whether it was a kill: an operator that has ended in any other way has a fault, and was in the midst of nothing.
fn is_kill(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}

/// Loses a write of a status now and then, before it takes effect.
fn lose_writes(call: &Call) -> Fault {
    let status =
        call.method == Method::PUT && call.path.contains("/vaulttokenrequests/") && call.path.contains("/status");
    if status && fastrand::usize(..WRITES_LOST) == 0 { Fault::Before(Break::Reset) } else { Fault::None }
}

/// Starts the operator this often for every point, and kills it there. By the kubeconfig `lossy`, writes are lost.
async fn kill(load: &Load, points: &[String], times: usize, lossy: &str) -> Result<Vec<Kill>, Error> {
    let (mut kills, total) = (Vec::new(), times * points.len());
    for number in 0..total {
        let point = &points[number % points.len()];
        let is_of = |call: &&str| point.split(' ').next() == Some(call);
        let after = if SELDOM.iter().any(is_of) { 1 } else { fastrand::u32(1..=3) }.to_string();
        let mut settings = SETTINGS.to_vec();
        settings.extend([("VTO_CRASH_POINT", point.as_str()), ("VTO_CRASH_AFTER", after.as_str())]);
        if is_of(&TAKE_BACK) {
            settings.push(("KUBECONFIG", lossy));
        }
        let reached = run_into(load, &settings).await?;
        kills.push(Kill { point: number % points.len(), reached, at: Instant::now(), time: Timestamp::now() });
        if (number + 1) % 20 == 0 {
            let (served, lost) = (load.served(), load.lost().len());
            report::line(&format!("{} of {total} kills, {served} pods served, {lost} lost", number + 1));
        }
    }
    Ok(kills)
}

/// Runs the operator until it is dead; gives whether it came to its point. An error says that it ended in any other way.
async fn run_into(load: &Load, settings: &[(&str, &str)]) -> Result<bool, Error> {
    let (process, _) = load.system.spawn_operator(settings)?;
    let reached = process.wait(REACH_LIMIT).await.is_ok();
    process.kill();
    match process.exit_status().filter(|status| !is_kill(*status)) {
        None => Ok(reached),
        Some(status) => Err(process.ended(status)),
    }
}

/// The kill that cut an attempt short which began at this time: the first one after it, or the last of all.
fn cut_short(kills: &[Kill], began: Timestamp) -> Option<&Kill> {
    kills.iter().find(|kill| kill.time >= began).or(kills.last())
}

/// The last kill before something was seen.
fn last_before(kills: &[Kill], seen: Instant) -> Option<&Kill> {
    kills.iter().rev().find(|kill| kill.at <= seen).or(kills.first())
}

/// What came of the kills at each point. An orphan is put down to the kill that cut its attempt short, a lost pod to the last one before
/// it was clear that it waits in vain.
fn table(points: &[String], kills: &[Kill], outcome: &Outcome, load: &Load) {
    report::output(
        "| crash point | kills | not reached in 20 s, killed elsewhere | orphans | lost | until all that waited had their token: \
         median, longest, s |",
    );
    report::output("|---|---|---|---|---|---|");
    let began = outcome.orphans.values().map(|began| began.unwrap_or(Timestamp::MAX));
    let orphaned: Vec<_> = began.filter_map(|began| cut_short(kills, began)).collect();
    let lost = load.lost();
    let lost: Vec<_> = lost.iter().filter_map(|seen| last_before(kills, *seen)).collect();
    for (number, point) in points.iter().enumerate() {
        let at_point = |kill: &&Kill| kill.point == number;
        let of_point = |kills: &[&Kill]| kills.iter().copied().filter(at_point).count();
        let elsewhere = kills.iter().filter(at_point).count() - reached(kills).filter(at_point).count();
        let here = reached(kills).filter(at_point);
        let mut recoveries: Vec<_> = here.map(|kill| load.recovery(kill.at).as_secs_f64()).collect();
        recoveries.sort_by(f64::total_cmp);
        let median = recoveries.get(recoveries.len() / 2).copied().unwrap_or_default();
        let longest = recoveries.last().copied().unwrap_or_default();
        report::output(&format!(
            "| {point} | {} | {elsewhere} | {} | {} | {median:.1}, {longest:.1} |",
            recoveries.len(),
            of_point(&orphaned),
            of_point(&lost)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kills at the seconds 10, 20 and 30, each at another point.
    fn kills() -> (Instant, Vec<Kill>) {
        let begun = Instant::now();
        let kill = |point: usize| {
            let seconds = 10 * (point as u64 + 1);
            Kill { point, reached: true, at: begun + Duration::from_secs(seconds), time: second(seconds) }
        };
        (begun, (0..3).map(kill).collect())
    }

    fn second(seconds: u64) -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_orphan_is_put_down_to_the_kill_that_cut_its_attempt_short() {
        let (_, kills) = kills();
        let point = |seconds| cut_short(&kills, second(seconds)).map(|kill| kill.point);
        assert_eq!(
            [point(0), point(10), point(11), point(30), point(31)],
            [Some(0), Some(0), Some(1), Some(2), Some(2)]
        );
        assert!(cut_short(&[], second(0)).is_none());
    }

    #[test]
    fn a_lost_pod_is_put_down_to_the_last_kill_before_it_was_seen() {
        let (begun, kills) = kills();
        let point = |seconds| last_before(&kills, begun + Duration::from_secs(seconds)).map(|kill| kill.point);
        assert_eq!([point(5), point(10), point(29), point(300)], [Some(0), Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn an_operator_that_ended_by_itself_was_not_killed() {
        // As wait(2) tells them: of a signal its number, of an exit its code in the second byte.
        let is_kill = |raw| is_kill(ExitStatus::from_raw(raw));
        let (kill, abort, terminated, clean, failed, panicked) = (9, 6, 15, 0, 1 << 8, 101 << 8);
        assert!(is_kill(kill));
        assert_eq!([abort, terminated, clean, failed, panicked].map(is_kill), [false; 5]);
    }

    #[test]
    fn a_point_that_was_reached_too_seldom_is_named_however_often_it_was_killed_elsewhere() {
        let points = ["mint sent", "mint done", "push sent"].map(str::to_owned);
        let (_, kills) = kills();
        let kill = kills[0];
        let many = |point, reached, count| vec![Kill { point, reached, ..kill }; count];
        let kills = [many(0, true, 20), many(1, true, 19), many(1, false, 21), many(2, false, 40)].concat();
        let form = |kills, all| Form { starts: 0, kills, all };
        let seldom = too_seldom(&points, &kills, form(20, 0));
        assert_eq!(seldom, "19 times at \"mint done\", not 20; 0 times at \"push sent\", not 20");
        assert_eq!(too_seldom(&points, &kills, form(1, 0)), "0 times at \"push sent\", not 1");
        assert_eq!(too_seldom(&points[..1], &kills, form(20, 39)), "");
        assert_eq!(too_seldom(&points[..1], &kills, form(20, 40)), "39 times in all, not 40");
    }
}
