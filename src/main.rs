//! Arguments -> checked settings -> run.
#![forbid(unsafe_code)]

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use vault_token_operator::{api, init, operator, yaml};

/// Gives every Kubernetes pod its own Vault token, and takes it back when the pod goes.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    /// Form of the log lines
    #[arg(long, env = "VTO_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,

    /// What is logged: error, warn, info, debug, trace, or targets with levels as in info,kube=debug
    #[arg(long, env = "VTO_LOG", value_name = "FILTER", default_value = "info", global = true)]
    log: String,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator: serve the VaultTokenRequests of the cluster
    Run(Box<operator::Arguments>),
    /// Run as an init container: get the pod's token, write it to a file, and end
    Init(Box<init::Arguments>),
    /// Say what a pod is granted, by which VaultPolicyBinding, and for how long, or why not; also before it is there
    Explain(operator::explain::Arguments),
    /// Print the custom resource definitions, as in crds/
    Crds,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            tracing::error!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<(), String> {
    match cli.command {
        Command::Run(arguments) => {
            begin(cli.log_format, &cli.log).unwrap_or_else(|message| usage("run", message));
            let settings = arguments.check().unwrap_or_else(|message| usage("run", message));
            runtime(tokio::runtime::Builder::new_multi_thread())?.block_on(async {
                let stop = stop_signal()?;
                operator::run(settings, stop).await
            })
        }
        Command::Init(arguments) => {
            begin(cli.log_format, &cli.log).unwrap_or_else(|message| usage("init", message));
            let settings = arguments.check().unwrap_or_else(|message| usage("init", message));
            runtime(tokio::runtime::Builder::new_current_thread())?.block_on(async {
                let stop = stop_signal()?;
                tokio::select! {
                    outcome = init::run(settings) => outcome,
                    () = stop => Err("ended by a signal before the token was there".to_owned()),
                }
            })
        }
        Command::Explain(arguments) => {
            begin(cli.log_format, &cli.log).unwrap_or_else(|message| usage("explain", message));
            let explained =
                runtime(tokio::runtime::Builder::new_current_thread())?.block_on(operator::explain::run(arguments))?;
            print(&explained.0)?;
            if explained.1 { Ok(()) } else { Err("not everything is granted".to_owned()) }
        }
        Command::Crds => print_crds(),
    }
}

/// What comes first: log lines, and the way that TLS is done.
fn begin(format: LogFormat, filter: &str) -> Result<(), String> {
    log(format, filter)?;
    keep_memory_to_oneself()?;
    // Whoever else has installed one has installed the same: there is no other in this program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Ok(())
}

/// No core dump of this process is ever written, and no other process of its user can look into it: it holds tokens (I9).
fn keep_memory_to_oneself() -> Result<(), String> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .map_err(|error| format!("cannot turn core dumps off: {error}"))
}

/// Ends with a message about a wrong argument of a subcommand, in the form and with the exit status that clap has for it.
fn usage<T>(subcommand: &str, message: String) -> T {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand_mut(subcommand).map(std::mem::take);
    command.unwrap_or(cli).error(ErrorKind::ValueValidation, message).exit()
}

fn runtime(mut builder: tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, String> {
    builder.enable_all().build().map_err(|error| format!("cannot start the runtime: {error}"))
}

/// Resolves at SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + Sync, String> {
    let listen = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: what is in work is brought to an end");
    })
}

/// Libraries whose log lines can hold secrets: they stay silent whatever the filter says (I9).
const SILENT: [&str; 2] = ["vaultrs", "rustify"];

/// Logs to standard error.
fn log(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter =
        EnvFilter::builder().parse(filter).map_err(|error| format!("--log {filter:?} is no filter: {error}"))?;
    // Apart from the filter, in which a more exact directive beats any other.
    let audible = filter_fn(|metadata| !SILENT.contains(&metadata.target().split("::").next().unwrap_or_default()));
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter).with(audible);
    match format {
        LogFormat::Text => registry.with(lines).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
    Ok(())
}

fn print_crds() -> Result<(), String> {
    let mut text = String::new();
    for definition in api::custom_resource_definitions() {
        text.push_str(&yaml::document(&definition)?);
    }
    print(&text)
}

fn print(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot print: {error}"))
}
