//! Attacks on a real API server, a real Vault and the product's own processes. Each is tried on the product, which stops it; then on a
//! build of it whose stops can be turned off, with each of its stops alone, and with none: it must succeed then, or they were not
//! what stopped it.
//!
//! `cargo testbed attack [NAME]` runs it; `ATTACK_VERBOSE=1` tells what is seen on the way.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod arena;
mod delivery;
mod grants;
mod identity;
mod list;
mod stops;
#[path = "../system/stranger.rs"]
#[allow(dead_code, reason = "shared with the tests of tests/system")]
mod stranger;
#[path = "../system/support.rs"]
#[allow(dead_code, reason = "shared with the tests of tests/system")]
mod support;
mod vault;
#[path = "../system/who.rs"]
mod who;

use arena::Arena;
use futures::FutureExt;
use list::{ALL, Attack};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use stops::{Off, Stop};
use testbed::project::{Binaries, Change};
use testbed::report;

#[tokio::main]
async fn main() -> ExitCode {
    let chosen = std::env::args().nth(1);
    let attacks: Vec<_> =
        ALL.iter().filter(|attack| chosen.as_ref().is_none_or(|name| attack.name.contains(name))).collect();
    let (mut succeeded, mut idle, mut explained, mut apart) = (Vec::new(), Vec::new(), 0, Vec::new());
    let mut broken = Vec::new();

    // First: where the code of a stop has changed, that is known before a quarter of an hour of attacks.
    let weakened = weakened().await;
    report::line("attacks on the product ...");
    let arena = Arena::new(Path::new(env!("CARGO_BIN_EXE_vault-token-operator"))).await;
    for attack in &attacks {
        match tried(&arena, attack, &[]).await {
            Some(true) => succeeded.push(attack.name),
            Some(false) => {}
            None => {
                broken.push(attack.name);
                continue;
            }
        }
        let (count, differing) = arena.explained().await;
        explained += count;
        apart.extend(differing);
    }
    arena.cluster.system.stop().await.expect("stopped");

    report::line("attacks on a build whose stops can be turned off ...");
    let arena = Arena::new(&weakened).await;
    let mut runs: Vec<_> = attacks.iter().flat_map(|attack| variants(attack)).collect();
    // What the API server enforces takes some seconds to be turned off or on.
    runs.sort_by_key(|(_, off)| {
        names(&off.iter().copied().filter(|stop| stop.is_in_the_api_server()).collect::<Vec<_>>())
    });
    for (attack, off) in runs {
        let left: Vec<_> = attack.stops.iter().copied().filter(|stop| !off.contains(stop)).collect();
        match (tried(&arena, attack, &off).await, left.is_empty()) {
            (Some(true), true) | (Some(false), false) => {}
            (Some(true), false) => idle.push(format!("{}: {} does not stop it alone", attack.name, names(&left))),
            (Some(false), true) => {
                idle.push(format!("{}: it fails just the same without {}", attack.name, names(&off)))
            }
            (None, _) => broken.push(attack.name),
        }
    }
    arena.cluster.system.stop().await.expect("stopped");

    let table = table(&attacks);
    report::output(&table);
    let model = std::fs::read_to_string(testbed::project::root().join("docs/threat-model.md")).expect("a document");
    if chosen.is_none() && !model.contains(&table) {
        broken.push("docs/threat-model.md has another table than this one");
    }
    if chosen.is_none() && explained < attacks.len() {
        broken.push("fewer decisions were compared with explain than there are attacks");
    }
    let marked =
        |mark: &'static str, names: &[&str]| names.iter().map(|name| format!("{mark}: {name}")).collect::<Vec<_>>();
    for line in marked("SUCCEEDED", &succeeded).iter().chain(&marked("BROKEN", &broken)).chain(&idle).chain(&apart) {
        report::output(line);
    }
    let unused: Vec<_> = stops::ALL
        .iter()
        .filter(|stop| chosen.is_none() && !attacks.iter().any(|attack| attack.stops.contains(stop)))
        .collect();
    assert!(unused.is_empty(), "no attack is stopped by {unused:?}");
    report::output(&format!(
        "explain said the same as the operator in {} of {explained} decisions",
        explained - apart.len()
    ));
    report::output(&format!(
        "attacks {}, succeeded {}, stops without effect {}",
        attacks.len(),
        succeeded.len(),
        idle.len()
    ));
    if succeeded.is_empty() && idle.is_empty() && apart.is_empty() && broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The stops to turn off, one set after the other: all but each of them, and all.
fn variants(attack: &'static Attack) -> Vec<(&'static Attack, Vec<&'static Stop>)> {
    let but = |stop: &Stop| attack.stops.iter().copied().filter(|other| *other != stop).collect::<Vec<_>>();
    let several = attack.stops.iter().filter(|_| attack.stops.len() > 1);
    several.map(|stop| but(stop)).chain([attack.stops.to_vec()]).map(|off| (attack, off)).collect()
}

/// Tries an attack with these stops off; gives whether it succeeded, or nothing if it came to no end.
async fn tried(arena: &Arena, attack: &Attack, off: &[&'static Stop]) -> Option<bool> {
    arena.prepare(off, attack.settings).await;
    let begun = Instant::now();
    // One that breaks hides none of the others.
    let mut succeeded = AssertUnwindSafe((attack.run)(arena)).catch_unwind().await.ok();
    let said = arena::said();
    if off.is_empty() && succeeded == Some(false) && !said.contains(attack.words) {
        report::line(&format!("  it is not said that {:?}, but: {said}", attack.words));
        succeeded = None;
    }
    if succeeded.is_none() {
        arena.recover().await;
    }
    let how = match succeeded {
        Some(true) => "succeeds",
        Some(false) => "fails",
        None => "BREAKS",
    };
    let without = if off.is_empty() { String::new() } else { format!(" without {}", names(off)) };
    report::line(&format!("  {}: {how}{without} ({:.1} s)", attack.name, begun.elapsed().as_secs_f64()));
    succeeded
}

/// The names of stops, for people.
fn names(stops: &[&Stop]) -> String {
    stops.iter().map(|stop| stop.name).collect::<Vec<_>>().join(", ")
}

/// Builds the product so that its stops can be turned off.
async fn weakened() -> PathBuf {
    let mut changes = vec![Change {
        file: "src/lib.rs",
        code: "pub mod text;",
        instead: format!("/// Stops.\npub mod stops {{\n{}}}\npub mod text;", include_str!("off.rs")),
    }];
    for stop in stops::ALL {
        let Off::Code(pieces) = stop.off else { continue };
        let off = format!("crate::stops::off(\"{}\")", stop.name);
        changes.extend(pieces.iter().map(|(file, code, instead)| Change {
            file,
            code,
            instead: instead.replace("OFF", &off),
        }));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let built = tokio::task::spawn_blocking(move || Binaries::build_changed(folder.path(), &changes));
    built.await.expect("it ends").expect("it builds").operator
}

/// The table of `docs/threat-model.md`.
fn table(attacks: &[&Attack]) -> String {
    let mut text = "| who | tries | stopped by | attack |\n|---|---|---|---|\n".to_owned();
    for Attack { name, who, tries, stops, .. } in attacks {
        let stops: Vec<_> = stops.iter().map(|stop| stop.what).collect();
        text.push_str(&format!("| {who} | {tries} | {} | `{name}` |\n", stops.join("; ")));
    }
    text
}
