//! The operator: one way through the code for every request.
//!
//! observe -> [`decide`](crate::domain::plan::decide) -> execute -> [`Draft`](crate::domain::status::Draft) -> ledger

mod admission;
mod agenda;
mod bindings;
mod budget;
mod census;
mod controller;
#[cfg(feature = "crash-points")]
mod crash;
mod endings;
mod execute;
pub mod explain;
mod handover;
mod health;
mod herald;
mod lease;
mod ledger;
mod metrics;
mod observe;
mod patience;
mod pods;
mod push;
mod reaper;
mod rights;
mod rulebook;
mod settings;
mod slots;
mod sweep;
mod sweeps;
mod turnstile;
mod vitals;
mod world;

pub use execute::{Executor, Look, Next, Seen};
pub use settings::{Arguments, Settings};
pub use sweep::{Report, Sweeper};
pub use world::{Alarm, Grants, World};

use crate::cluster;
use crate::domain::rights::Duties;
use crate::vault::{Session, TokenLister, TokenStore};
use admission::Inspector;
use bindings::Statuses;
use budget::Budget;
use census::Census;
use controller::Cache;
use governor::{Quota, RateLimiter};
use health::{Health, Sources};
use herald::Herald;
use kube::runtime::reflector;
use lease::Candidate;
use ledger::Ledger;
use metrics::Metrics;
use observe::Pods;
use pods::LivePods;
use push::Pusher;
use reaper::Reaper;
use rights::Assessor;
use rulebook::Rulebook;
use std::future::Future;
use std::sync::Arc;
use sweep::LOOK_UPS_PER_SECOND;
use sweeps::Sweeps;
use tokio::sync::Notify;
use vitals::Vitals;
use world::Live;

/// How many sweeps there are to one list of all that is watched, which takes a large cluster seconds.
const SWEEPS_PER_LIST: u32 = 6;

/// Runs the operator until `stop` resolves; what is in work then is brought to an end first.
///
/// # Errors
/// A sentence that says what is missing to run at all.
pub async fn run(settings: Settings, stop: impl Future<Output = ()> + Send + Sync + 'static) -> Result<(), String> {
    let listener = health::listen(settings.health_address).await?;
    let (metrics, vitals) = (Metrics::new(), Vitals::new());
    let (counting, seen) = (metrics.clone(), vitals.clone());
    let hear = move |call| {
        seen.called(call);
        counting.api_call(call);
    };
    let client = cluster::connect_counted(Arc::new(hear)).await?;
    let vault = settings.vault.counted(Arc::new(metrics.clone()));
    let session = Session::start(vault.clone(), settings.login.clone());
    let one_login = settings.login == settings.sweep_login;
    let duties = Duties::everyday(&settings.token_role, settings.login.role_path(), one_login);
    let sweep_duties = Duties::listing(&settings.token_role, settings.sweep_login.role_path());
    let lister = TokenLister::new(vault.clone(), settings.sweep_login, sweep_duties.paths());
    let listing = (!one_login).then(|| (sweep_duties, lister.capabilities()));
    let tokens = TokenStore::new(vault.clone(), session.clone(), settings.wrapping_ttl);
    let herald = Herald::start(client.clone());
    let assessor = Assessor::new(tokens.clone(), session.clone(), duties, listing, metrics.clone());
    let sweeps = Arc::new(Notify::new());
    let (requests, writer) = reflector::store();
    let pods = LivePods::default();
    let candidate = Candidate::new(client.clone(), settings.identity);
    let leadership = candidate.leadership();
    let relist = settings.sweep_interval * SWEEPS_PER_LIST;
    let (rulebook, keeper) =
        Rulebook::new(settings.token_role.clone(), settings.limits.clone(), vitals.clone(), relist);
    let statuses = Statuses {
        client: client.clone(),
        tokens: tokens.clone(),
        rulebook: rulebook.clone(),
        leadership: leadership.clone(),
        token_role: settings.token_role.clone(),
        limits: settings.limits.clone(),
        vitals: vitals.clone(),
    };
    let census = Arc::new(Census::new(requests.clone(), pods.clone(), settings.ungranted_limit));
    let inspector = Inspector::new(client.clone(), settings.trust_unverified_requests);
    let world = Live {
        ledger: Ledger::new(client.clone(), herald.clone(), metrics.clone(), pods.clone(), vitals.clone()),
        pods: Pods::new(client.clone()),
        reaper: Reaper::new(tokens.clone()),
        tokens: tokens.clone(),
        pusher: Pusher::new()?,
        budget: Budget::new(settings.rates),
        admission: inspector.admission(),
        rulebook: rulebook.clone(),
        census: census.clone(),
        lister,
        vitals: vitals.clone(),
        pace: RateLimiter::direct(Quota::per_second(LOOK_UPS_PER_SECOND)),
        sweeps: sweeps.clone(),
        herald: herald.clone(),
        metrics: metrics.clone(),
    };
    #[cfg(feature = "crash-points")]
    let world = crash::CrashPoints::new(world);
    let world = Arc::new(world);
    let sweeper = Sweeper::new(settings.cluster.clone(), settings.token_role.clone(), settings.sweep_limit);
    let executor = Executor::new(settings.cluster, settings.limits, world.clone());
    let health = Health::new(Sources {
        vault: tokens,
        leadership: leadership.clone(),
        metrics: metrics.clone(),
        census,
        rulebook: rulebook.clone(),
        admission: inspector.admission(),
        rights: assessor.rights(),
        vitals,
    });
    let sweeping = sweeps::run(Sweeps {
        world,
        sweeper,
        requests: requests.clone(),
        herald,
        health: health.clone(),
        metrics,
        leadership: leadership.clone(),
        wanted: sweeps,
        interval: settings.sweep_interval,
    });
    let granting = keeper.run(client.clone());
    let cache = Cache { requests, writer, pods, relist };
    let controlling = controller::run(client, executor, cache, rulebook, leadership, health.clone(), stop);
    let outcome = tokio::select! {
        () = inspector.run() => Err("the look at the admission policies ended".to_owned()),
        () = assessor.run() => Err("the look at the operator's rights in Vault ended".to_owned()),
        () = granting => Err("the watch of bindings ended".to_owned()),
        () = bindings::run(statuses) => Err("the writing of bindings' statuses ended".to_owned()),
        () = controlling => Ok(()),
        () = sweeping => Err("the sweep ended".to_owned()),
        why = candidate.run() => Err(why),
        () = health::serve(listener, health) => Err("the health endpoint ended".to_owned()),
    };
    // Whatever was in work is done: another replica may go on.
    candidate.release().await;
    if let Ok(token) = session.token()
        && let Err(error) = settings.login.give_back(&vault, &token).await
    {
        tracing::warn!(%error, "the login to Vault was not given back; it lives until its ttl ends");
    }
    outcome
}
