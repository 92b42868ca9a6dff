//! The loop: watches, the queue, and how long a request waits for its next turn.

use super::execute::{Executor, Next};
use super::health::Health;
use super::patience::Patience;
use super::pods::{LivePods, triggers};
use crate::api::VaultTokenRequest;
use crate::cluster;
use crate::domain::backoff::Backoff;
use crate::domain::token::Hand;
use futures::{StreamExt, TryStreamExt};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Waits between looks at a request that cannot go on.
pub const RETRY: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(15) };

/// How many requests are in work at a time.
const CONCURRENCY: u16 = 64;

/// What is remembered of a request from one look to the next.
#[derive(Default)]
struct Work {
    hand: Hand,
    failures: u32,
}

struct Context {
    executor: Executor,
    live: LivePods,
    /// By the request's UID; only what waits for another look has an entry.
    work: Mutex<HashMap<String, Work>>,
}

impl Context {
    fn take(&self, uid: &str) -> Work {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).remove(uid).unwrap_or_default()
    }

    fn keep(&self, uid: String, work: Work) {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, work);
    }
}

/// Serves requests until `stop` resolves and the looks under way have ended.
pub async fn run(
    client: Client,
    executor: Executor,
    health: Health,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let (requests, writer) = reflector::store();
    let watch = watcher(Api::<VaultTokenRequest>::all(client.clone()), watcher::Config::default())
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                health.synced();
                tracing::info!("the requests are listed and watched");
            }
        })
        .modify(|request| request.managed_fields_mut().clear())
        .reflect(writer)
        .applied_objects();
    let live = LivePods::default();
    let context = Arc::new(Context { executor, live: live.clone(), work: Mutex::default() });
    Controller::for_stream(watch, requests.clone())
        .trigger_backoff(Patience::default())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(triggers(client, requests, live))
        .graceful_shutdown_on(stop)
        .run(reconcile, retry, context)
        .for_each(|result| async move {
            match result {
                Ok(_) | Err(kube::runtime::controller::Error::ObjectNotFound(_)) => {}
                Err(kube::runtime::controller::Error::ReconcilerFailed(error, request)) => {
                    tracing::warn!(%error, %request, "a look at a request failed; it is repeated");
                }
                Err(error) => tracing::warn!(%error, "the watch of requests broke; it is taken up again"),
            }
        })
        .await;
}

async fn reconcile(request: Arc<VaultTokenRequest>, context: Arc<Context>) -> Result<Action, cluster::Error> {
    let uid = request.uid().unwrap_or_default();
    let mut work = context.take(&uid);
    let lives = context.live.contains(&request.spec.pod_uid);
    match context.executor.advance(&request, &mut work.hand, lives).await {
        Ok(Next::Rest) => Ok(Action::await_change()),
        Ok(Next::Retry { moved }) => {
            work.failures = if moved { 1 } else { work.failures + 1 };
            let wait = RETRY.after(work.failures, rand::random());
            context.keep(uid, work);
            Ok(Action::requeue(wait))
        }
        Err(error) => {
            work.failures += 1;
            context.keep(uid, work);
            Err(error)
        }
    }
}

fn retry(request: Arc<VaultTokenRequest>, error: &cluster::Error, context: Arc<Context>) -> Action {
    // Somebody was faster: what they wrote comes by the watch, and this look was of something older.
    let failures = if error.status() == Some(409) {
        1
    } else {
        let work = context.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.get(&request.uid().unwrap_or_default()).map_or(1, |work| work.failures)
    };
    Action::requeue(RETRY.after(failures, rand::random()))
}
