//! A whole testbed: a control plane and a Vault that trusts its ServiceAccounts.

use std::net::Ipv4Addr;

use tokio::sync::OnceCell;

use crate::components::{self, Component};
use crate::control_plane::{self, ControlPlane};
use crate::error::Error;
use crate::run::Run;
use crate::settings::{Settings, VaultKind};
use crate::vault::{self, VaultServer};

/// A running control plane and a running Vault; dropping it kills them and removes their files. Nothing in it belongs
/// to the async runtime that started it, so tests with a runtime each can share one.
#[derive(Debug)]
pub struct Testbed {
    // In this order: what is used ends after what uses it, and the files go last.
    vault: VaultServer,
    control_plane: ControlPlane,
    run: Run,
}

impl Testbed {
    /// Gets the components that the environment chooses, which takes minutes when they are not there yet, and starts
    /// them on loopback, which takes seconds.
    pub async fn start() -> Result<Self, Error> {
        Self::start_on(Ipv4Addr::LOCALHOST).await
    }

    /// As [`Testbed::start`], on another address of this machine.
    pub async fn start_on(address: Ipv4Addr) -> Result<Self, Error> {
        let settings = Settings::from_env()?;
        let obtained = tokio::task::spawn_blocking(move || obtain(&settings)).await;
        let (control_plane, vault) =
            obtained.map_err(|error| Error::io("could not get the components")(std::io::Error::other(error)))??;
        let run = Run::new(address)?;
        let (control_plane, vault) =
            tokio::try_join!(ControlPlane::start(&run, &control_plane), VaultServer::start(&run, &vault))?;
        vault.enable_kubernetes_auth(&control_plane).await?;
        Ok(Self { vault, control_plane, run })
    }

    /// The one testbed that all tests of a process share; the first caller starts it. It ends with the process, by the
    /// guard.
    pub async fn shared() -> Result<&'static Self, Error> {
        static SHARED: OnceCell<Testbed> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// The control plane.
    pub const fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The Vault.
    pub const fn vault(&self) -> &VaultServer {
        &self.vault
    }

    /// The folder and the authority that they share.
    pub const fn run(&self) -> &Run {
        &self.run
    }

    /// Ends everything in order, and removes the files.
    pub async fn stop(self) -> Result<(), Error> {
        self.vault.stop().await;
        self.control_plane.stop().await;
        self.run.remove()
    }
}

fn obtain(settings: &Settings) -> Result<(control_plane::Binaries, vault::Binaries), Error> {
    let obtain = |component| components::obtain(component, settings).map(|obtained| obtained.path);
    let control_plane = control_plane::Binaries {
        etcd: obtain(Component::Etcd)?,
        kube_apiserver: obtain(Component::KubeApiserver)?,
        kubectl: obtain(Component::Kubectl)?,
    };
    let vault = match settings.vault {
        VaultKind::OpenBao => vault::Binaries::OpenBao(obtain(Component::Bao)?),
        VaultKind::Vault => vault::Binaries::Vault {
            server: obtain(Component::Vault)?,
            kubernetes_auth: obtain(Component::VaultKubernetesAuth)?,
        },
    };
    Ok((control_plane, vault))
}
