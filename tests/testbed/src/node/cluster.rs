//! A cluster with one real node, and the product installed on it as README.md says.

use std::path::PathBuf;
use std::process::ExitStatus;

use serde_json::json;

use super::{Node, PAUSE_IMAGE, obtain, settings};
use crate::bed::Testbed;
use crate::components::{self, Component};
use crate::control_plane::CONTEXT;
use crate::demo::{Existing, Images};
use crate::error::Error;
use crate::guard;
use crate::image::Image;
use crate::process::Process;
use crate::project::{self, Binaries};
use crate::suite;
use crate::system::{self, OPERATOR};
use crate::vault::VaultServer;
use crate::workdir::Workdir;
use crate::world;

/// The project's images, by the names that its manifests have for them.
const OPERATOR_IMAGE: &str = "vault-token-operator:0.1.0";
const EXAMPLE_IMAGE: &str = "vault-example:0.1.0";
/// The operator's image once more, for upgrades.
pub const NEXT_OPERATOR_IMAGE: &str = "vault-token-operator:0.1.1";
/// OpenBao, for demos.
const OPENBAO_IMAGE: &str = "testbed/openbao:1";
/// An image with a shell and its commands, for apps of tests.
pub const SHELL_IMAGE: &str = "testbed/shell:1";

/// Gets and builds all that a cluster takes, while there is a way out, and runs this program anew in a world of its own, to its end.
pub async fn in_world(arguments: impl Iterator<Item = String>) -> Result<ExitStatus, Error> {
    let prepared = tokio::task::spawn_blocking(|| obtain().and_then(|_| images()).map(drop)).await;
    prepared.map_err(|error| Error::io("could not prepare")(std::io::Error::other(error)))??;
    let program = std::env::current_exe().map_err(Error::io("could not find this program"))?;
    world::run(&program, arguments).await
}

/// What a cluster takes that is not here and cannot be built, in words.
pub fn lacking() -> Result<Option<String>, Error> {
    let settings = match settings() {
        Ok(settings) => settings,
        Err(error) => return Ok(Some(error.to_string())),
    };
    if let Some(why) = world::lacking() {
        return Ok(Some(why));
    }
    let runc = components::find(Component::Runc, &settings)?.is_none();
    let no_runc = runc.then(|| "there is no fitting `runc` on PATH; install it (Debian's package runc)".to_owned());
    Ok(no_runc.or_else(|| shell().err()))
}

/// What images of tests have for a shell, or what is missing.
fn shell() -> Result<PathBuf, String> {
    let missing = "there is no `busybox` on PATH; install it, statically linked (Debian's package busybox-static)";
    components::on_path("busybox").ok_or_else(|| missing.to_owned())
}

/// The images that pods are of.
fn images() -> Result<Vec<Image>, Error> {
    let shell = shell().map_err(|why| Error::io("cannot make the images of tests")(std::io::Error::other(why)))?;
    let folder = Workdir::new()?;
    let binaries = Binaries::build_for_images(folder.path())?;
    let here = |name: &str| match name {
        "vault-token-operator" => Some(binaries.operator.clone()),
        "vault-example" => Some(binaries.example.clone()),
        _ => None,
    };
    let operator = Image::of_dockerfile(OPERATOR_IMAGE, None, here)?;
    let example = Image::of_dockerfile(EXAMPLE_IMAGE, Some("example"), here)?;
    let of_shell = |name: &str, command: &[&str]| Image {
        name: name.to_owned(),
        files: vec![(shell.clone(), "/bin/busybox".to_owned()), (shell.clone(), "/bin/sh".to_owned())],
        entrypoint: command.iter().map(|word| (*word).to_owned()).collect(),
        user: "65534:65534".to_owned(),
    };
    let pause = of_shell(PAUSE_IMAGE, &["/bin/busybox", "sleep", "2147483647"]);
    let next = Image { name: NEXT_OPERATOR_IMAGE.to_owned(), ..operator.clone() };
    Ok(vec![operator, next, example, pause, of_shell(SHELL_IMAGE, &["/bin/sh"])])
}

/// OpenBao as a pod.
pub fn openbao_image() -> Result<Image, Error> {
    let bao = components::obtain(Component::Bao, &settings()?)?.path;
    Ok(Image {
        name: OPENBAO_IMAGE.to_owned(),
        files: vec![(bao, "/bin/bao".to_owned())],
        entrypoint: vec!["/bin/bao".to_owned()],
        user: "65532:65532".to_owned(),
    })
}

/// The cluster and its Vault.
#[derive(Debug)]
pub struct Cluster {
    // What is used ends after what uses it.
    node: Node,
    testbed: Testbed,
    /// Of the operator's image, in bytes.
    image_size: u64,
}

impl Cluster {
    /// Starts it in the world that this process is in, with Vault told what `config/vault/` says.
    pub async fn start() -> Result<Self, Error> {
        let testbed = Testbed::start_on(world::ADDRESS).await?;
        let blocking = tokio::task::spawn_blocking(|| Ok::<_, Error>((obtain()?, images()?)));
        let (binaries, images) =
            blocking.await.map_err(|error| Error::io("could not build")(std::io::Error::other(error)))??;
        let node = Node::start(testbed.run(), testbed.control_plane(), &binaries).await?;
        for image in &images {
            node.import(image).await?;
        }
        system::prepare_vault(&testbed).await?;
        let operator = images.iter().find(|image| image.name == OPERATOR_IMAGE);
        let missing = Error::Incomplete { what: "could not make the images".to_owned(), field: OPERATOR_IMAGE };
        let image_size = operator.ok_or(missing)?.size()?;
        Ok(Self { node, testbed, image_size })
    }

    /// README.md, "Install it in a cluster", steps 3 and 4, and "Injection".
    pub async fn install(&self) -> Result<(), Error> {
        let folder = self.installation()?;
        let address = self.vault().address();
        let ca = self.vault().ca_path();
        let authority = std::fs::read_to_string(ca).map_err(Error::path("could not read", ca))?;
        let given = json!({ "image": OPERATOR_IMAGE, "VAULT_ADDR": address, "ca.crt": authority }).to_string();
        let given = json!([{ "op": "replace", "path": "/spec/variables/0/expression", "value": given }]);
        let mut kustomization = system::kustomization(&folder, address)?;
        kustomization["components"] = json!([project::path_from(&folder, "config/injection")?]);
        kustomization["patches"] = json!([{
            "target": { "kind": "MutatingAdmissionPolicy", "name": "vault-token-injection" },
            "patch": given.to_string(),
        }]);
        let file = folder.join("kustomization.yaml");
        std::fs::write(&file, kustomization.to_string()).map_err(Error::path("could not write", &file))?;
        let crds = project::root().join("crds");
        self.kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()]).await?;
        self.kubectl(&["apply", "--server-side", "-k", &folder.to_string_lossy()]).await?;
        self.give_ca(OPERATOR).await?;
        self.roll_out().await
    }

    /// Where that is, or what a user writes himself.
    pub fn installation(&self) -> Result<PathBuf, Error> {
        self.testbed.run().folder("install")
    }

    /// The ConfigMap with the authority of Vault's certificate.
    pub async fn give_ca(&self, namespace: &str) -> Result<(), Error> {
        system::give_ca(&self.testbed.control_plane().admin_kubectl(), namespace, self.vault().ca_path()).await
    }

    /// The demo in this cluster, as in one that was there before.
    pub async fn demo(&self) -> Result<Existing, Error> {
        let (operator, example, openbao) = (OPERATOR_IMAGE.into(), EXAMPLE_IMAGE.into(), OPENBAO_IMAGE.into());
        let kubectl = self.testbed.control_plane().admin_kubectl();
        Existing::claim(kubectl, Workdir::new()?, Images { operator, example, openbao }).await
    }

    /// As [`Cluster::demo`], by the command of a user who is in no world and has a kubeconfig; it writes to its log.
    pub fn demo_command(&self) -> Result<Process, Error> {
        let mut command = guard::command(suite::program()?)?;
        command
            .args(["demo", "--context", CONTEXT, "--image", OPERATOR_IMAGE, "--example-image", EXAMPLE_IMAGE])
            .args(["--openbao-image", OPENBAO_IMAGE])
            .env("KUBECONFIG", self.testbed.control_plane().admin_kubeconfig())
            .env_remove(world::CGROUP_VARIABLE);
        Process::spawn("cargo demo", command, &self.testbed.run().path().join("demo.log"))
    }

    /// Waits until all of the operator's replicas are as they should be.
    pub async fn roll_out(&self) -> Result<(), Error> {
        system::roll_out(&self.testbed.control_plane().admin_kubectl()).await
    }

    /// `examples/shop.yaml` for this Vault, in this namespace.
    pub fn example(&self, namespace: &str) -> Result<String, Error> {
        project::example(namespace, self.vault().address())
    }

    /// Runs kubectl as an administrator, which has to succeed; gives what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, Error> {
        self.testbed.control_plane().admin_kubectl().must(arguments).await
    }

    /// The size of the operator's image, in bytes.
    pub const fn image_size(&self) -> u64 {
        self.image_size
    }

    /// The node.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// What the node stands on.
    pub const fn testbed(&self) -> &Testbed {
        &self.testbed
    }

    /// The Vault.
    pub const fn vault(&self) -> &VaultServer {
        self.testbed.vault()
    }
}
