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
use kube::runtime::controller::{self, Action, Config, Controller};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Waits between looks at a request that cannot go on.
pub const RETRY: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(15) };

/// How many requests are in work at a time.
const CONCURRENCY: u16 = 64;

/// What is remembered of a request from one look to the next.
#[derive(Default)]
struct Work {
    /// The request's UID: what is remembered of one is nothing to another of the same name.
    uid: Option<String>,
    hand: Hand,
    failures: u32,
}

/// A request's namespace and name.
type Key = (Option<String>, String);

struct Context {
    executor: Executor,
    live: LivePods,
    /// Only what waits for another look has an entry.
    work: Mutex<HashMap<Key, Work>>,
}

impl Context {
    fn take(&self, request: &VaultTokenRequest) -> Work {
        let found = self.work().remove(&key(request)).filter(|work| work.uid == request.uid());
        found.unwrap_or_else(|| Work { uid: request.uid(), ..Work::default() })
    }

    fn keep(&self, request: &VaultTokenRequest, work: Work) {
        self.work().insert(key(request), work);
    }

    fn forget(&self, key: &Key) {
        self.work().remove(key);
    }

    fn work(&self) -> MutexGuard<'_, HashMap<Key, Work>> {
        // The map stays whole whatever a panicking holder of the lock was about.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(request: &VaultTokenRequest) -> Key {
    (request.namespace(), request.name_any())
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
        .run(reconcile, retry, context.clone())
        .for_each(|result| {
            match result {
                Ok(_) => {}
                Err(controller::Error::ObjectNotFound(gone)) => context.forget(&(gone.namespace, gone.name)),
                Err(controller::Error::ReconcilerFailed(error, request)) => {
                    tracing::warn!(%error, %request, "a look at a request failed; it is repeated");
                }
                Err(controller::Error::QueueError(error)) => {
                    let error = cluster::watch_words(&error);
                    tracing::warn!(error, "the watch of requests broke; it is taken up again");
                }
                Err(error) => tracing::error!(%error, "the queue of requests failed"),
            }
            std::future::ready(())
        })
        .await;
}

async fn reconcile(request: Arc<VaultTokenRequest>, context: Arc<Context>) -> Result<Action, cluster::Error> {
    let mut work = context.take(&request);
    let lives = context.live.contains(&request.spec.pod_uid);
    match context.executor.advance(&request, &mut work.hand, lives).await {
        Ok(Next::Rest) => Ok(Action::await_change()),
        Ok(Next::Retry { moved }) => {
            work.failures = if moved { 1 } else { work.failures + 1 };
            let wait = RETRY.after(work.failures, rand::random());
            context.keep(&request, work);
            Ok(Action::requeue(wait))
        }
        Err(error) => {
            // Somebody was faster: what they wrote comes by the watch, and this look was of something older.
            work.failures = if error.status() == Some(409) { 1 } else { work.failures + 1 };
            context.keep(&request, work);
            Err(error)
        }
    }
}

fn retry(request: Arc<VaultTokenRequest>, _: &cluster::Error, context: Arc<Context>) -> Action {
    let failures = context.work().get(&key(&request)).map_or(1, |work| work.failures);
    Action::requeue(RETRY.after(failures, rand::random()))
}
