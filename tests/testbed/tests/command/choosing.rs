//! Which components are taken, and the one clear line where there is none.

use crate::world::World;

/// The variables that name components, for those of which a test is not.
const NAMED: [&str; 5] =
    ["TESTBED_ETCD", "TESTBED_KUBE_APISERVER", "TESTBED_KUBECTL", "TESTBED_BAO", "TESTBED_PROMTOOL"];

#[test]
fn a_variable_that_names_nothing_is_refused() {
    let said = World::new().components(&[("TESTBED_ETCD", "/nowhere")]).refused();
    assert_eq!(said, "testbed: TESTBED_ETCD=/nowhere: No such file or directory (os error 2)\n");
}

#[test]
fn a_version_and_a_kind_that_there_is_not_are_refused() {
    let said = World::new().components(&[("TESTBED_KUBERNETES", "1.12")]).refused();
    assert_eq!(said, "testbed: TESTBED_KUBERNETES=1.12: there is only 1.33 and 1.37\n");
    let said = World::new().components(&[("TESTBED_VAULT", "consul")]).refused();
    assert_eq!(said, "testbed: TESTBED_VAULT=consul: there is only openbao and vault\n");
}

#[test]
fn a_demo_without_a_real_node_says_why() {
    let said = World::new().demo().refused();
    let (line, rest) = said.split_once('\n').unwrap();
    let why = line.strip_prefix("without a real node, with processes for containers: ").unwrap();
    assert!(why == "it takes root; run it by sudo, or in a virtual machine" || why.contains("install it"), "{said}");
    assert!(rest.contains("\ntestbed: etcd 3.6.12 is not here"), "it goes on without: {said}");
}

#[test]
fn without_go_it_says_what_to_install_or_set() {
    let said = World::new().components(&[]).refused();
    is_one_line(&said, "testbed: etcd 3.6.12 is not here: it is built with Go 1.");
    let rest = " or newer, and there is no `go` on PATH; install Go, or set TESTBED_ETCD to a binary of it\n";
    assert!(said.ends_with(rest), "{said}");
}

#[test]
fn with_a_go_that_is_too_old_it_says_so() {
    let world = World::with_tools();
    world.write("bin/go.version", "go1.9.7\n");
    let said = world.components(&[]).refused();
    is_one_line(&said, "testbed: etcd 3.6.12 is not here: it is built with Go 1.");
    assert!(said.contains("the `go` on PATH is go1.9.7; install Go, or set TESTBED_ETCD"), "{said}");
}

#[test]
fn without_python_or_pip_it_says_what_to_install_or_set() {
    let world = World::new();
    let etcd = world.put_component("elsewhere", "etcd", "etcd Version: 3.6.1");
    let mut settings: Vec<_> = NAMED[..3].iter().map(|variable| (*variable, etcd.to_str().unwrap())).collect();
    settings.push(("TESTBED_KUBERNETES", "1.37"));
    for (missing, reason) in [
        ("python3", "there is no `python3` on PATH; install Python 3 with pip, or set TESTBED_BAO"),
        ("pip", "`python3 -m pip` does not work; install pip, or set TESTBED_BAO"),
    ] {
        if missing == "pip" {
            world.put("python3");
            world.write("bin/pip.missing", "");
        }
        let mut run = world.components(&settings);
        assert_eq!(run.ended().code(), Some(1));
        is_one_line(&run.stderr(), "testbed: bao 2.7.2 is not here: it is fetched with Python's pip, and ");
        assert!(run.stderr().contains(reason), "{}", run.stderr());
    }
}

#[test]
fn what_the_machine_has_is_taken_in_a_fitting_version_only() {
    let world = World::with_tools();
    world.let_builds_finish();
    let kubectl = world.put_component("bin", "kubectl", r#"{"clientVersion": {"gitVersion": "v1.32.4-dispatcher"}}"#);
    world.put_component("bin", "etcd", "etcd Version: 3.6.1");
    let bao = world.put_component("bin", "bao", "OpenBao v2.7.0 (0123456789ab)");
    let newer = world.put_component("assets", "etcd", "etcd Version: 3.6.12");
    let unfit = world.put_component("assets", "kube-apiserver", "Kubernetes v1.36.0");
    let assets = world.path("assets");
    let components = |kubernetes| {
        let settings = [("TESTBED_KUBERNETES", kubernetes), ("KUBEBUILDER_ASSETS", assets.to_str().unwrap())];
        world.components(&settings).succeeded()
    };

    let taken = components("1.33");
    assert!(taken.contains(&format!("etcd 3.6 {}\n", newer.display())), "{taken}");
    assert!(taken.contains(&format!("kubectl 1.32 {}\n", kubectl.display())), "{taken}");
    assert!(taken.contains(&format!("bao 2.7 {}\n", bao.display())), "{taken}");
    let promtool = "github.com/prometheus/prometheus/cmd/promtool";
    assert_eq!(world.built(), [promtool, "k8s.io/kubernetes/cmd/kube-apiserver"]);

    let taken = components("1.37");
    for unfit in [unfit, kubectl] {
        assert!(!taken.contains(unfit.to_str().unwrap()), "{taken}");
    }
    assert_eq!(world.built().len(), 4);
}

#[test]
fn a_variable_names_a_component_whatever_its_version() {
    let world = World::new();
    let old = world.put_component("elsewhere", "etcd", "etcd Version: 2.0.1");
    let silent = world.put_component("elsewhere", "silent", "no version");
    let [old, silent] = [&old, &silent].map(|path| path.to_str().unwrap());
    let settings = [(NAMED[0], old), (NAMED[1], silent), (NAMED[2], silent), (NAMED[3], silent), (NAMED[4], silent)];
    let taken = world.components(&settings).succeeded();
    let rest =
        ["kube-apiserver", "kubectl", "bao", "promtool"].map(|name| format!("{name} (unknown version) {silent}\n"));
    assert_eq!(taken, format!("etcd 2.0 {old}\n{}", rest.concat()));
}

fn is_one_line(text: &str, start: &str) {
    assert!(text.starts_with(start) && text.lines().count() == 1, "{text}");
}
