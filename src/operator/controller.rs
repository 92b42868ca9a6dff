//! The loop: watches, the queue, and how long a request waits for its next turn.

use super::agenda::{Agenda, Around, Key};
use super::execute::{Executor, Look, Next, Seen};
use super::health::Health;
use super::lease::Leadership;
use super::patience::Patience;
use super::pods::{LivePods, triggers};
use super::rulebook::Rulebook;
use super::turnstile::Turnstile;
use super::world::World;
use crate::api::{Phase, REQUESTS_PER_POD, VaultTokenRequest, request_name};
use crate::cluster;
use crate::domain::backoff::Backoff;
use crate::domain::plan::{Siblings, supersedes};
use crate::text::one_line;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{self, Action, Config, Controller};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Waits between looks at a request that cannot go on.
pub const RETRY: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(15) };

/// How long a stopping operator waits for the looks under way. Shorter than the grace period in config/.
const DRAIN: Duration = Duration::from_secs(40);

/// No look waits longer: the queue's timer cannot tell years.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// How many looks can have begun; most of them wait at the turnstile then.
const CONCURRENCY: u16 = 2048;

/// Wait of a request whose namespace has too many others in line.
const CROWDED: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(1) };

/// What the watches show.
pub struct Cache {
    /// The requests, to be read.
    pub requests: Store<VaultTokenRequest>,
    /// The same, to be written.
    pub writer: Writer<VaultTokenRequest>,
    /// The pods that live.
    pub pods: LivePods,
    /// How often both are listed anew.
    pub relist: Duration,
}

struct Context<W> {
    executor: Executor<W>,
    requests: Store<VaultTokenRequest>,
    live: LivePods,
    turnstile: Arc<Turnstile>,
    leadership: Leadership,
    rulebook: Rulebook,
    agenda: Agenda,
    health: Health,
    stopping: AtomicBool,
}

impl<W: World> Context<W> {
    /// The request is gone.
    fn forget(&self, key: &Key) {
        if let Some((uid, mut hand)) = self.agenda.forget(key) {
            self.executor.drop_hand(&uid, &mut hand);
        }
    }
}

/// Serves requests until `stop` resolves and the looks under way have ended, or some time has passed since.
pub async fn run<W: World + 'static>(
    client: Client,
    executor: Executor<W>,
    store: Cache,
    rulebook: Rulebook,
    leadership: Leadership,
    health: Health,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let stop = stop.shared();
    tokio::select! {
        () = serve(client, executor, store, rulebook, leadership, health.clone(), stop.clone()) => {}
        () = async {
            stop.await;
            // A controller that has nothing listed yet does not end by itself, and has nothing in work.
            if health.has_requests() {
                tokio::time::sleep(DRAIN).await;
                tracing::warn!("some requests are still in work; they are taken up again at the next start");
            }
        } => {}
    }
}

async fn serve<W: World + 'static>(
    client: Client,
    executor: Executor<W>,
    store: Cache,
    rulebook: Rulebook,
    leadership: Leadership,
    health: Health,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let Cache { requests, writer, pods: live, relist } = store;
    let (sender, older) = futures::channel::mpsc::unbounded();
    let (whole, lists) = futures::channel::mpsc::unbounded();
    let known = requests.clone();
    let (listed, vitals) = (health.clone(), health.vitals());
    let all = Api::<DeserializeGuard<VaultTokenRequest>>::all(client.clone());
    let watch = cluster::watch_anew(all, cluster::watch(), relist)
        .try_filter_map(|event| std::future::ready(Ok(readable(event))))
        .inspect_ok(move |event| match event {
            watcher::Event::InitDone => {
                listed.requests_synced();
                vitals.listed("vaulttokenrequests");
                tracing::info!("the requests are listed and watched");
            }
            watcher::Event::Apply(request) | watcher::Event::Delete(request) => {
                vitals.brought("vaulttokenrequests", request.metadata.uid.as_deref().unwrap_or_default());
            }
            watcher::Event::Init | watcher::Event::InitApply(_) => {}
        })
        .modify(trim)
        .reflect(writer)
        // What a list brings is queued one by one, and is not there to be looked at before the list is whole: a request that is in
        // none but this list would be taken for one that is gone.
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                // It is received for as long as the controller runs.
                let _ = whole.unbounded_send(());
            }
        })
        .applied_objects()
        // After it is in the store: the older requests are looked at with it there.
        .inspect_ok(move |request| {
            for older in superseded(request, &known) {
                // It is received for as long as the controller runs.
                let _ = sender.unbounded_send(older);
            }
        });
    let context = Arc::new(Context {
        executor,
        requests: requests.clone(),
        live: live.clone(),
        turnstile: health.turnstile(),
        leadership: leadership.clone(),
        rulebook: rulebook.clone(),
        agenda: Agenda::default(),
        health: health.clone(),
        stopping: AtomicBool::new(false),
    });
    let (hurried, stopped) = (context.clone(), context.clone());
    let pods = triggers(client, requests.clone(), live, health, relist);
    let news = futures::stream::select(pods, older)
        .inspect(move |request| hurried.agenda.hurry(&(request.namespace.clone(), request.name.clone())));
    Controller::for_stream(watch, requests)
        .trigger_backoff(Patience::default())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(news)
        .reconcile_all_on(futures::stream::select(
            futures::stream::select(elections(leadership), editions(rulebook)),
            lists,
        ))
        .graceful_shutdown_on(stop.map(move |()| stopped.stopping.store(true, Ordering::Relaxed)))
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

/// One item each time that this replica comes to lead.
fn elections(leadership: Leadership) -> impl Stream<Item = ()> {
    futures::stream::unfold((leadership, 0), |(mut leadership, last)| async move {
        let term = leadership.elected(last).await;
        Some(((), (leadership, term)))
    })
}

/// One item each time that something else is granted.
fn editions(rulebook: Rulebook) -> impl Stream<Item = ()> {
    futures::stream::unfold((rulebook, 0), |(mut rulebook, last)| async move {
        let edition = rulebook.changed(last).await;
        Some(((), (rulebook, edition.number)))
    })
}

/// Keeps of a request what is needed. Whoever may create requests decides how long their labels and annotations are.
fn trim(request: &mut VaultTokenRequest) {
    let metadata = &mut request.metadata;
    metadata.managed_fields = None;
    metadata.annotations = None;
    metadata.labels = None;
    metadata.owner_references = None;
}

/// One request that cannot be read must not keep all others waiting.
fn readable(event: watcher::Event<DeserializeGuard<VaultTokenRequest>>) -> Option<watcher::Event<VaultTokenRequest>> {
    let read = |DeserializeGuard(request): DeserializeGuard<VaultTokenRequest>| {
        request
            .inspect_err(|error| {
                let name = error.metadata.name.as_deref().unwrap_or_default();
                let namespace = error.metadata.namespace.as_deref().unwrap_or_default();
                tracing::error!(request = name, namespace, error = one_line(&error.error), "a request cannot be read");
            })
            .ok()
    };
    Some(match event {
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
        watcher::Event::InitApply(request) => watcher::Event::InitApply(read(request)?),
        watcher::Event::Apply(request) => watcher::Event::Apply(read(request)?),
        watcher::Event::Delete(request) => watcher::Event::Delete(read(request)?),
    })
}

async fn reconcile<W: World>(
    request: Arc<VaultTokenRequest>,
    context: Arc<Context<W>>,
) -> Result<Action, cluster::Error> {
    if !context.leadership.leads() {
        // Every request is looked at when this replica comes to lead. What it had in hand as a leader is another's to clear away:
        // an attempt without a record ends with the next one, and the sweep finds its token.
        context.agenda.rest(&request);
        return Ok(Action::await_change());
    }
    if context.rulebook.edition().number == 0 {
        // Every request is looked at once it is known what is granted.
        return Ok(Action::await_change());
    }
    let Some(_pass) = context.turnstile.enter(&request.namespace().unwrap_or_default()).await else {
        return Ok(Action::requeue(CROWDED.after(1, rand::random())));
    };
    // What is true after the wait, not before it.
    if !context.leadership.leads() {
        context.agenda.rest(&request);
        return Ok(Action::await_change());
    }
    let key = ObjectRef::from_obj(&*request);
    let Some(request) = context.requests.get(&key) else {
        context.forget(&(key.namespace, key.name));
        return Ok(Action::await_change());
    };
    // Whoever leads next begins it.
    if context.stopping.load(Ordering::Relaxed) && request.phase() == Phase::Pending {
        return Ok(Action::await_change());
    }
    // On the heap: what waits at the turnstile is to be small.
    Box::pin(look(request, &context)).await
}

async fn look<W: World>(request: Arc<VaultTokenRequest>, context: &Context<W>) -> Result<Action, cluster::Error> {
    let _looking = context.health.look();
    let mut work = context.agenda.take(&request);
    let others: Vec<_> = siblings(&request, &context.requests).collect();
    let siblings = Siblings::of(&request, others.iter().map(Arc::as_ref));
    let around = Around {
        pod_lives: context.live.contains(&request.spec.pod_uid),
        superseded: siblings.superseded_by.is_some(),
        edition: context.rulebook.edition().number,
    };
    if let Some(rest) = work.rest(request.resource_version().as_deref(), around) {
        context.agenda.keep(&request, work);
        return Ok(Action::requeue(rest));
    }
    let seen = Seen { request: &request, pod_lives: around.pod_lives, siblings };
    let look = context.executor.advance(&seen, &mut work.hand).await;
    let (wait, failures) = match &look {
        Ok(Look { next: Next::Rest, .. }) => {
            context.agenda.rest(&request);
            return Ok(Action::await_change());
        }
        Ok(Look { next: Next::At(time), .. }) => {
            let wait: Duration = time.duration_since(Timestamp::now()).try_into().unwrap_or_default();
            (wait.min(LONGEST_WAIT), 0)
        }
        Ok(Look { next: Next::Retry { moved: true }, .. }) => again(1),
        Ok(Look { next: Next::Retry { moved: false }, .. }) | Err(_) => again(work.failures + 1),
    };
    work.failures = failures;
    work.looked(look.as_ref().ok().and_then(|look| look.version.clone()), around, wait);
    context.agenda.keep(&request, work);
    look.map(|_| Action::requeue(wait))
}

/// The wait that goes with so many failures in a row, and their number.
fn again(failures: u32) -> (Duration, u32) {
    (RETRY.after(failures, rand::random()), failures)
}

/// The other requests of the same pod, as far as the watch shows them.
fn siblings(
    request: &VaultTokenRequest,
    requests: &Store<VaultTokenRequest>,
) -> impl Iterator<Item = Arc<VaultTokenRequest>> {
    let own = request.name_any();
    let names = (0..REQUESTS_PER_POD).map(|digit| request_name(&request.spec.pod_name, &request.spec.pod_uid, digit));
    let namespace = request.namespace().unwrap_or_default();
    names
        .filter(move |name| *name != own)
        .filter_map(move |name| requests.get(&ObjectRef::new(&name).within(&namespace)))
}

/// The older requests of the pod of a request that is Delivered: they end now (rule 7).
fn superseded(request: &VaultTokenRequest, requests: &Store<VaultTokenRequest>) -> Vec<ObjectRef<VaultTokenRequest>> {
    let older = siblings(request, requests).filter(|other| !other.is_over() && supersedes(request, other));
    older.map(|other| ObjectRef::from_obj(&*other)).collect()
}

fn retry<W: World>(request: Arc<VaultTokenRequest>, _: &cluster::Error, context: Arc<Context<W>>) -> Action {
    let failures = context.agenda.failures(&request).unwrap_or(1);
    Action::requeue(RETRY.after(failures, rand::random()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn waits_grow_with_failures_and_no_two_are_the_same() {
        let waits = |failures| (0..100).map(|_| again(failures).0).collect::<HashSet<_>>();
        assert!(waits(1).len() > 50 && waits(9).len() > 50, "many at once are spread");
        assert!(waits(9).iter().min() > waits(1).iter().max());
        assert!(waits(99).iter().all(|wait| *wait <= RETRY.longest));
    }
}
