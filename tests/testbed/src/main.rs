//! The command line of the testbed.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use secrecy::ExposeSecret;
use testbed::components::{self, Component, Origin};
use testbed::demo::{self, Demo, Existing, Images};
use testbed::settings::Settings;
use testbed::{Error, Testbed, node, report, world};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long an interrupted build may keep the process from ending.
const INTERRUPTED_LIMIT: Duration = Duration::from_millis(100);

const ENVIRONMENT: &str = "\
Environment:
  TESTBED_KUBERNETES      the control plane's version: 1.37 (default) or 1.33
  TESTBED_VAULT           the kind of Vault: openbao (default) or vault
  TESTBED_CACHE           where built components are kept [default: in the user's cache folder]
  TESTBED_ETCD, TESTBED_KUBE_APISERVER, TESTBED_KUBECTL, TESTBED_BAO, TESTBED_VAULT_BINARY, TESTBED_VAULT_PLUGIN
                          a binary to use for that component, whatever its version
  KUBEBUILDER_ASSETS      a folder that is searched for components before PATH is";

/// A real control plane and a real Vault on loopback, for the demo and the tests.
///
/// Components are taken from where an environment variable says, else from PATH in a fitting version, else from the
/// cache, else built once, which takes minutes and needs Go and Python.
#[derive(Parser)]
#[command(version, after_help = ENVIRONMENT, after_long_help = ENVIRONMENT)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Attack the product, and a build of it whose stops are turned off one by one; print what stopped which attack.
    Attack {
        /// Only those whose names have this in them
        name: Option<String>,
    },
    /// Kill the operator at named points, again and again, while pods come and go; print what was lost (nothing).
    Crash {
        /// A hundred kills instead of a thousand
        #[arg(long)]
        short: bool,
    },
    /// Let pods come and go while calls break and servers are killed; print what is left in the end (nothing).
    Churn {
        /// 200 pods instead of 1,000
        #[arg(long)]
        short: bool,
        /// So many pods, 10,000 at most; those of more than 1,000 live for five seconds at most, and no longer for forty
        #[arg(long, value_name = "N", conflicts_with = "short", value_parser = testbed::churn::pods)]
        pods: Option<usize>,
    },
    /// Get every component that is needed, and say where it is and what version it has.
    Components,
    /// Show what the sweep costs in a Vault that holds a hundred thousand tokens of others.
    Foreign {
        /// Two thousand
        #[arg(long)]
        short: bool,
    },
    /// Show the whole system at work: a pod gets its token, uses it, and loses it when it is deleted. On a real node where one can
    /// be had, which takes root; otherwise with processes in the place of containers.
    Demo {
        /// Leave everything running afterwards, with processes, and print what clients need, until Ctrl-C
        #[arg(long)]
        keep: bool,
        /// With processes, though a node could be had
        #[arg(long)]
        processes: bool,
        /// In the cluster of this context of your kubeconfig (kind's, for example), in namespaces of its own, all of which is removed
        #[arg(long, value_name = "NAME", conflicts_with_all = ["keep", "processes"])]
        context: Option<String>,
        #[command(flatten)]
        images: ImageNames,
    },
    /// Run the scenarios on a real node, with the product in its images; print a line for each. Takes root.
    Node {
        /// Only those whose names have this in them
        name: Option<String>,
    },
    /// Start a control plane and a Vault, print what clients need, and run until Ctrl-C.
    Up,
}

/// What the pods of a demo in a cluster of yours are of; it must be able to pull them, or have them (`kind load docker-image`).
#[derive(clap::Args)]
struct ImageNames {
    /// The operator's, as README.md, "Install it in a cluster", builds it
    #[arg(long, value_name = "IMAGE", requires = "context", default_value = "vault-token-operator:0.1.0")]
    image: String,
    /// The example app's, as README.md, "Try the example in your cluster", builds it
    #[arg(long, value_name = "IMAGE", requires = "context", default_value = "vault-example:0.1.0")]
    example_image: String,
    /// OpenBao's
    #[arg(long, value_name = "IMAGE", requires = "context", default_value = "openbao/openbao:2.7.2")]
    openbao_image: String,
}

impl From<ImageNames> for Images {
    fn from(ImageNames { image, example_image, openbao_image }: ImageNames) -> Self {
        Self { operator: image, example: example_image, openbao: openbao_image }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::line(&format!("testbed: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Error> {
    let runtime = tokio::runtime::Runtime::new().map_err(Error::io("could not start the async runtime"))?;
    let result = runtime.block_on(async {
        let mut stop = StopSignal::new()?;
        match command {
            Command::Attack { name } => stop.interrupts(testbed::suite::run("attack", name)).await,
            Command::Churn { short, pods } => stop.interrupts(testbed::churn::run(short, pods)).await,
            Command::Components => stop.interrupts(print_components()).await,
            Command::Crash { short } => stop.interrupts(testbed::crash::run(short)).await,
            Command::Foreign { short } => stop.interrupts(testbed::foreign::run(short)).await,
            Command::Node { name } => stop.interrupts(testbed::suite::run("node", name)).await,
            Command::Demo { .. } if world::cgroup().is_some() => demo::tell().await,
            Command::Demo { context: Some(context), images, .. } => {
                in_cluster(&mut stop, &context, images.into()).await
            }
            Command::Demo { keep, processes, .. } => demo(&mut stop, keep, processes).await,
            Command::Up => up(&mut stop).await,
        }
    });
    // A build that was interrupted still waits for its compiler; the guard ends that once this process is gone.
    runtime.shutdown_timeout(INTERRUPTED_LIMIT);
    result
}

async fn print_components() -> Result<(), Error> {
    let settings = Settings::from_env()?;
    let print = move || {
        for &component in Component::needed(&settings).iter().chain(&Component::TESTS) {
            let obtained = components::obtain(component, &settings)?;
            let version = match obtained.origin {
                Origin::Cache(version) => version.to_owned(),
                Origin::Variable | Origin::Machine => components::told_version(component, &obtained.path)
                    .map_or_else(|| "(unknown version)".to_owned(), |version| version.to_string()),
            };
            report::output(&format!("{} {version} {}", component.name(), obtained.path.display()));
        }
        Ok(())
    };
    let printed = tokio::task::spawn_blocking(print).await;
    printed.unwrap_or_else(|error| Err(Error::io("could not get the components")(std::io::Error::other(error))))
}

async fn demo(stop: &mut StopSignal, keep: bool, processes: bool) -> Result<(), Error> {
    if !keep && !processes {
        match node::lacking()? {
            None => {
                report::line("on a real node, with real pods (--processes: without)");
                return stop.interrupts(demo::outside()).await;
            }
            Some(why) => report::line(&format!("without a real node, with processes for containers: {why}")),
        }
    }
    let demo = stop.interrupts(Demo::start()).await?;
    let mut told = stop.interrupts(demo.tell()).await;
    if keep && told.is_ok() {
        told = tokio::select! {
            ended = demo.keep() => ended,
            () = stop.received() => Ok(()),
        };
    }
    demo.stop().await.and(told)
}

async fn in_cluster(stop: &mut StopSignal, context: &str, images: Images) -> Result<(), Error> {
    let cluster = stop.interrupts(Existing::of_context(context, images)).await?;
    let told = stop.interrupts(cluster.tell()).await;
    // Another Ctrl-C, from now on, leaves things behind.
    let removed = StopSignal::new()?.interrupts(cluster.remove()).await;
    if let (Err(error), Err(_)) = (&removed, &told) {
        report::line(&format!("{error:?}"));
    }
    if removed.is_err() {
        report::line(&format!("what is left of the demo is removed by: {}", cluster.by_hand()));
    }
    told.and(removed)
}

async fn up(stop: &mut StopSignal) -> Result<(), Error> {
    let testbed = stop.interrupts(Testbed::start()).await?;
    let (control_plane, vault) = (testbed.control_plane(), testbed.vault());
    for (variable, value) in [
        ("KUBECONFIG", control_plane.admin_kubeconfig().to_string_lossy().as_ref()),
        ("VAULT_ADDR", vault.address()),
        ("VAULT_CACERT", vault.ca_path().to_string_lossy().as_ref()),
        ("VAULT_TOKEN", vault.root_token().expose_secret()),
    ] {
        report::output(&format!("export {variable}={}", report::quoted(value)));
    }
    report::line("running; Ctrl-C stops it and removes everything");
    stop.received().await;
    report::line("stopping ...");
    testbed.stop().await
}

/// Ctrl-C, SIGTERM, and the end of the terminal.
struct StopSignal {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignal {
    fn new() -> Result<Self, Error> {
        let signal = |kind| signal(kind).map_err(Error::io("could not listen to signals"));
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self { interrupt: interrupt?, terminate: terminate?, hangup: hangup? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    /// Does the work, unless a signal comes first; what it had begun is then dropped and so ended.
    async fn interrupts<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            () = self.received() => {
                let source = std::io::Error::from(std::io::ErrorKind::Interrupted);
                Err(Error::Io { what: "stopped before it was done".into(), source })
            }
        }
    }
}
