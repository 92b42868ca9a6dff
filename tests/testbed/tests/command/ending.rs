//! However a run ends, nothing of it is left: no process, no file.

use std::sync::OnceLock;

use rustix::process::Signal;
use testbed::components::{Component, obtain};
use testbed::settings::Settings;

use crate::world::{Run, World};

#[test]
fn ctrl_c_ends_everything_in_order() {
    ended_in_order_by(Signal::INT);
}

#[test]
fn sigterm_ends_everything_in_order() {
    ended_in_order_by(Signal::TERM);
}

#[test]
fn sigkill_leaves_nothing() {
    let world = World::new();
    let mut up = running(&world);
    up.signal(Signal::KILL);
    assert!(!up.ended().success());
    world.until_nothing_is_left();
}

#[test]
fn ctrl_c_while_it_starts_leaves_nothing() {
    let world = World::new();
    let up = starting(&world);
    up.signal(Signal::INT);
    let said = up.refused();
    assert!(said.contains("testbed: stopped before it was done"), "{said}");
    assert!(world.temporary_files().is_empty(), "{:?}", world.temporary_files());
    world.until_nothing_is_left();
}

#[test]
fn sigkill_while_it_starts_leaves_nothing() {
    let world = World::new();
    let mut up = starting(&world);
    up.signal(Signal::KILL);
    assert!(!up.ended().success());
    world.until_nothing_is_left();
}

fn ended_in_order_by(signal: Signal) {
    let world = World::new();
    let mut up = running(&world);
    up.signal(signal);
    let status = up.ended();
    assert!(status.success() && up.stderr().ends_with("stopping ...\n"), "{status}: {}", up.stderr());
    // At once: that was its own work, not that of its watchdog.
    assert!(world.temporary_files().is_empty(), "{:?}", world.temporary_files());
    world.until_nothing_is_left();
}

/// A testbed that is up.
fn running(world: &World) -> Run {
    get_components();
    let mut up = world.up();
    up.until("all that clients need", |up| {
        up.stdout().contains("export VAULT_TOKEN=") && up.stderr().contains("Ctrl-C")
    });
    // Otherwise it would prove nothing that none is left.
    let processes = world.processes();
    let programs: Vec<_> = processes.iter().filter_map(|process| process.split(' ').next()).collect();
    let settings = Settings::from_env().unwrap();
    for component in Component::needed(&settings).iter().filter(|component| **component != Component::Kubectl) {
        assert!(programs.iter().any(|program| is(program, *component)), "{component:?}: {processes:#?}");
    }
    up
}

/// Whether this path is that of a binary of the component; one that a variable names may have its version beside it.
fn is(program: &str, component: Component) -> bool {
    program.rsplit('/').next().is_some_and(|file| file.starts_with(component.name()))
}

/// A testbed of which the API server is there, but hardly ready.
fn starting(world: &World) -> Run {
    get_components();
    let mut up = world.up();
    up.until("an API server", |_| world.processes().iter().any(|process| process.contains("--secure-port")));
    up
}

/// Gets them with no time limit, where they are not there yet, and once.
fn get_components() {
    static THERE: OnceLock<()> = OnceLock::new();
    THERE.get_or_init(|| {
        let settings = Settings::from_env().unwrap();
        for component in Component::needed(&settings) {
            obtain(*component, &settings).unwrap();
        }
    });
}
