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

/// How many pods: for CI, in earnest, and at the most.
const SHORT: usize = 200;
const LONG: usize = 1000;
const MOST: usize = 10_000;
/// The longest that a pod lives with its token. Where there are more pods than [`LONG`], what is wanted is what many of them leave
/// behind, and so they live shorter.
const LONGEST: Duration = Duration::from_secs(40);
const LONGEST_OF_MANY: Duration = Duration::from_secs(5);
/// How often the operator's memory is looked at; Vault is killed after some looks, and etcd and the API server after some more.
const LOOKS: usize = 20;
const VAULT_AWAY: usize = 8;
const PLANE_AWAY: usize = 12;
/// No look may find the operator with more memory, in MiB.
const MOST_MEMORY: u64 = 64;
/// So many pods show whether it stays flat.
const MANY: usize = 4 * LONG;
/// How long a killed server is away.
const AWAY: Duration = Duration::from_secs(3);
/// How long everything may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(240);

/// Reads how many pods there are to be.
///
/// # Errors
/// What to say instead.
pub fn pods(text: &str) -> Result<usize, String> {
    let wanted = text.parse().ok().filter(|pods| (1..=MOST).contains(pods));
    wanted.ok_or_else(|| format!("give a number from 1 to {MOST}"))
}

/// Runs it, with so many pods if that is said; an error says what did not hold.
pub async fn run(short: bool, wanted: Option<usize>) -> Result<(), Error> {
    let pods = wanted.unwrap_or(if short { SHORT } else { LONG });
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
        longest: if pods > LONG { LONGEST_OF_MANY } else { LONGEST },
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
    let mut memory = disturbance.await.map_err(failed)??;
    memory.push(resident(&load)?);
    let took = begun.elapsed();

    // After the faults have stopped, everything comes to rest.
    vault.follow(|_| Fault::None);
    api.follow(|_| Fault::None);
    let outcome = Outcome::wait_for(&load, &last, REST_LIMIT).await?;
    let left = Left::wait_for(&load, REST_LIMIT).await?;
    memory.push(resident(&load)?);
    let (served, lost, died) = (load.served(), load.lost().len(), load.dead());
    report::output(&format!(
        "{served} pods served in {:.0} s; the longest wait of a pod for its token, through all faults: {:.1} s",
        took.as_secs_f64(),
        load.waited().as_secs_f64()
    ));
    report::output(&format!(
        "the operator's memory after each twentieth of the pods, and at rest, in MiB: {}",
        memory.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
    ));
    report::output(&format!(
        "lost {lost}, tokens of running pods that died {}, orphans {}, stuck {}, records without a live token {}, \
         pods with more than one live token {}",
        died + outcome.dead,
        outcome.orphans.len(),
        outcome.stuck,
        outcome.hollow,
        outcome.doubled
    ));
    let Left { tokens, finalizers, requests } = left;
    report::output(&format!(
        "pods {pods}, tokens left {tokens}, finalizers left {finalizers}, requests left {requests}"
    ));
    load.end().await?;
    let wrong = |what: String| Err(Error::io("an invariant does not hold")(std::io::Error::other(what)));
    match lost + died + outcome.faults() + tokens + finalizers + requests {
        0 => grown(&memory, pods).map_or(Ok(()), wrong),
        faults => wrong(format!("{faults} faults")),
    }
}

/// What is wrong with the operator's memory, if anything is.
fn grown(memory: &[u64], pods: usize) -> Option<String> {
    let most = memory.iter().max().copied().unwrap_or_default();
    if most > MOST_MEMORY {
        return Some(format!("the operator had {most} MiB of memory, more than {MOST_MEMORY}"));
    }
    // The bursts after both outages make it grow, and what they took is kept. Of many pods they are a small part: what grew as they
    // come would be two thirds more by the end than after three fifths of them.
    let (since, percent) = match pods {
        MANY.. => (LOOKS / 5 * 3, 125),
        LONG.. => (LOOKS / 5 * 4, 150),
        _ => return None,
    };
    let (before, end) = (memory.get(since - 1)?, memory.last()?);
    (*end > before * percent / 100 + 4).then(|| {
        format!(
            "the operator's memory grew from {before} MiB, after {since} of {LOOKS} parts of the pods, to {end} MiB"
        )
    })
}

/// Takes servers away in the midst of it. Gives the operator's memory at each look but the last, in MiB.
async fn disturb(load: Arc<Load>, pods: usize) -> Result<Vec<u64>, Error> {
    let mut memory = Vec::new();
    for look in 1..LOOKS {
        load.until_served(look * pods / LOOKS).await;
        memory.push(resident(&load)?);
        match look {
            VAULT_AWAY => {
                report::line("Vault is killed, and started again");
                let _still = load.without_servers().await;
                let vault = load.system.testbed().vault();
                vault.kill();
                tokio::time::sleep(AWAY).await;
                vault.start_again().await?;
            }
            PLANE_AWAY => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_stays_after_the_bursts_is_flat_and_memory_that_goes_on_growing_is_not() {
        // A run of 4,000 pods.
        let seen = [7, 10, 11, 9, 11, 14, 19, 19, 19, 24, 24, 24, 25, 25, 25, 25, 25, 25, 25, 27];
        assert_eq!(grown(&seen, 4000), None);
        let growing: Vec<u64> = (1..=20).map(|look| 5 + 2 * look).collect();
        assert!(
            grown(&growing, 4000).unwrap().contains("grew from 29 MiB, after 12 of 20 parts of the pods, to 45 MiB")
        );
        assert_eq!(grown(&growing, 1000), None, "in a shorter run that may be the bursts");
        let late: Vec<u64> = (1..=20).map(|look| if look > 16 { 20 } else { 10 }).collect();
        assert!(grown(&late, 1000).unwrap().contains("grew from 10 MiB, after 16 of 20 parts"));
        assert_eq!(grown(&late, 200), None);
        assert!(grown(&[7, 65, 9], 200).unwrap().contains("had 65 MiB"));
    }

    #[test]
    fn a_number_of_pods_that_is_out_of_bounds_is_answered_with_the_bounds() {
        assert_eq!((pods("1"), pods("4000"), pods("10000")), (Ok(1), Ok(4000), Ok(10_000)));
        for wrong in ["0", "10001", "-1", "many", ""] {
            assert_eq!(pods(wrong), Err("give a number from 1 to 10000".to_owned()), "{wrong}");
        }
    }
}
