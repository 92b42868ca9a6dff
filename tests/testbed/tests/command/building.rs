//! Components that are not there are built once, whatever happens meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::world::World;

/// What a run with OpenBao builds on a machine that has nothing.
const ALL: [&str; 5] = [
    "github.com/prometheus/prometheus/cmd/promtool",
    FIRST,
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kubectl",
    "wheel",
];
/// The one that it builds first.
const FIRST: &str = "go.etcd.io/etcd/server/v3";
/// How long the end of an interrupted build may take on a busy machine; by itself it would not end at all.
const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn two_runs_at_once_build_each_component_once_and_a_third_finds_them() {
    let world = World::with_tools();
    let mut builder = world.components(&[]);
    builder.until("a build", |_| world.built() == [FIRST]);
    let mut waiter = world.components(&[]);
    waiter.until("that it waits", |run| run.stderr() == "waiting for etcd, which another run is getting ...\n");
    only_work_folders_are_in_the_cache_of(&world);

    world.let_builds_finish();
    let first = builder.succeeded();
    assert_eq!(waiter.succeeded(), first);
    assert_eq!(world.built(), ALL);

    let third = world.components(&[("PATH", "/nowhere")]).succeeded();
    assert_eq!(third, first);
    let cached = world.cached();
    assert_eq!((cached.len(), cached.iter().any(|entry| is_work_folder(entry))), (5, false), "{cached:?}");
    for line in third.lines() {
        let binary = line.split(' ').nth(2).unwrap();
        assert_eq!(std::fs::read_to_string(binary).unwrap(), "whole", "{line}");
    }
}

#[test]
fn ctrl_c_ends_a_build_at_once_and_leaves_nothing() {
    let said = interrupted_by(Signal::INT);
    assert!(said.ends_with("testbed: stopped before it was done: operation interrupted\n"), "{said}");
}

#[test]
fn sigkill_ends_a_build_and_leaves_nothing() {
    interrupted_by(Signal::KILL);
}

#[test]
fn a_build_that_fails_says_why_and_leaves_nothing() {
    let world = World::with_tools();
    world.write("bin/go.fails", "");
    let said = world.components(&[]).refused();
    let why = "testbed: go build ended (exit status: 1); its last lines:\nk8s.io/kubernetes: no space left on device\n";
    assert!(said.ends_with(why), "{said}");
    assert_eq!(world.cached(), Vec::<&Path>::new());
    world.until_nothing_is_left();
}

/// What a run says of which a signal ended the first build.
fn interrupted_by(signal: Signal) -> String {
    let world = World::with_tools();
    let mut run = world.components(&[]);
    run.until("a build", |_| {
        world.built() == [FIRST] && world.processes().iter().any(|it| it.starts_with("sleep 600"))
    });
    only_work_folders_are_in_the_cache_of(&world);
    run.signal(signal);
    let signalled = Instant::now();
    assert!(!run.ended().success());
    assert!(signalled.elapsed() < AT_ONCE, "it took {:?}", signalled.elapsed());
    world.until_nothing_is_left();
    assert_eq!(world.cached(), Vec::<&Path>::new());
    let said = run.stderr();

    // Nothing of it is in the way of the next one, either.
    world.let_builds_finish();
    world.components(&[]).succeeded();
    assert_eq!(world.built().len(), ALL.len() + 1);
    said
}

fn only_work_folders_are_in_the_cache_of(world: &World) {
    let cached = world.cached();
    assert!(cached.len() == 1 && cached.iter().all(|entry| is_work_folder(entry)), "{cached:?}");
}

/// Whether this is where a build works, which has no name that a component has.
fn is_work_folder(entry: &Path) -> bool {
    entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"testbed-"))
}
