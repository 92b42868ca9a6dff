//! `cargo testbed churn`: pods come and go while the operator's calls to Vault, to the API server and to init containers break in
//! every way, Vault is killed and started again, and so are etcd and the API server. Then everything is deleted, and nothing may
//! be left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::load::{Left, Load, Outcome, Plan};
use crate::project::Binaries;
use crate::proxy::{Fault, Proxy, storm};
use crate::report;
use crate::system::System;

/// How many pods: for CI, and in earnest.
const SHORT: usize = 200;
const LONG: usize = 1000;
/// How long a killed server is away.
const AWAY: Duration = Duration::from_secs(3);
/// How long everything may take to come to rest; a sweep looks twice, a minute apart.
const REST_LIMIT: Duration = Duration::from_secs(240);

/// Runs it; an error says what did not hold.
pub async fn run(short: bool) -> Result<(), Error> {
    let pods = if short { SHORT } else { LONG };
    let (system, kubelet) = System::fresh(Binaries::build).await?;
    let run = system.testbed().run();
    let vault = Proxy::before_server(run, system.testbed().vault().address()).await?;
    let api = Proxy::before_server(run, system.testbed().control_plane().server_url()).await?;
    let (address, kubeconfig) = (vault.url(), system.operator_kubeconfig_at(&api.url())?);
    let kubeconfig = kubeconfig.to_string_lossy();
    let settings = [
        ("VAULT_ADDR", address.as_str()),
        ("KUBECONFIG", &kubeconfig),
        ("VTO_LOG", "info"),
        ("VTO_WRAPPING_TTL", "10s"),
        ("VTO_SWEEP_INTERVAL", "20s"),
        ("VTO_RETENTION", "10s"),
    ];
    system.start_operator(&settings).await?;
    let plan = Plan {
        namespace: "churn",
        workers: 16,
        pods,
        ttl: "60s",
        longest: Duration::from_secs(40),
        clumsy: 8,
        status: 5,
        stormy: true,
    };
    let load = Load::new(system, kubelet, plan).await?;

    let (begun, seed) = (Instant::now(), fastrand::u64(..));
    report::line(&format!("{pods} pods come and go, and one call in eight is broken (seed {seed})"));
    vault.follow(storm(seed));
    api.follow(storm(seed.wrapping_add(1)));
    let mut workers = load.start();
    let disturbance = tokio::spawn(disturb(Arc::clone(&load), pods));
    let mut last = Vec::new();
    while let Some(worker) = workers.join_next().await {
        last.extend(worker.map_err(failed)??);
    }
    let memory = disturbance.await.map_err(failed)??;
    let took = begun.elapsed();

    // After the faults have stopped, everything comes to rest.
    vault.follow(|_| Fault::None);
    api.follow(|_| Fault::None);
    let outcome = Outcome::wait_for(&load, &last, REST_LIMIT).await?;
    let left = Left::wait_for(&load, REST_LIMIT).await?;
    let (served, lost, dead) = (load.served(), load.lost(), load.dead() + outcome.dead);
    report::output(&format!(
        "{served} pods served in {:.0} s; the longest wait of a pod for its token, through all faults: {:.1} s",
        took.as_secs_f64(),
        load.waited().as_secs_f64()
    ));
    report::output(&format!(
        "the operator's memory after each fifth of the pods, in MiB: {}, {}",
        memory.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        resident(&load)?
    ));
    report::output(&format!("lost {lost}, tokens of running pods that died {dead}, orphans {}", outcome.orphans));
    let Left { tokens, finalizers, requests } = left;
    report::output(&format!(
        "pods {pods}, tokens left {tokens}, finalizers left {finalizers}, requests left {requests}"
    ));
    load.end().await?;
    match lost + dead + outcome.orphans + outcome.stuck + tokens + finalizers + requests {
        0 => Ok(()),
        faults => Err(Error::io("an invariant does not hold")(std::io::Error::other(format!("{faults} faults")))),
    }
}

/// Takes servers away in the midst of it. Gives the operator's memory after each fifth of the pods but the last, in MiB.
async fn disturb(load: Arc<Load>, pods: usize) -> Result<Vec<u64>, Error> {
    let mut memory = Vec::new();
    for fifth in 1..5 {
        load.until_served(fifth * pods / 5).await;
        memory.push(resident(&load)?);
        match fifth {
            2 => {
                report::line("Vault is killed, and started again");
                let _still = load.without_servers().await;
                let vault = load.system.testbed().vault();
                vault.kill();
                tokio::time::sleep(AWAY).await;
                vault.start_again().await?;
            }
            3 => {
                report::line("etcd and the API server are killed, and started again");
                let _still = load.without_servers().await;
                let plane = load.system.testbed().control_plane();
                plane.kill();
                tokio::time::sleep(AWAY).await;
                plane.start_again().await?;
            }
            _ => {}
        }
    }
    Ok(memory)
}

fn resident(load: &Load) -> Result<u64, Error> {
    let memory = load.system.operator_memory()?;
    memory.map(|bytes| bytes >> 20).ok_or(Error::Incomplete { what: "the operator".into(), field: "memory" })
}

fn failed(error: tokio::task::JoinError) -> Error {
    Error::io("a worker failed")(std::io::Error::other(error))
}
