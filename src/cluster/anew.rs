//! A watch that is not believed for ever: one that goes on and brings nothing looks like one of a cluster where nothing happens.

use futures::Stream;
use futures::future::pending;
use futures::stream::{BoxStream, StreamExt, unfold};
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long a watch that broke is left to be taken up again where it was: its server has more to do than to list everything.
const CALM: Duration = Duration::from_secs(60);

/// Watches objects, and lists them anew once a list is as old as `every`, spread by a tenth: what the watch did not bring is in
/// there.
pub fn watch_anew<K>(
    api: Api<K>,
    config: watcher::Config,
    every: Duration,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    anew(move || watcher(api.clone(), config.clone()).boxed(), every)
}

/// The events of what `begin` gives, which is begun anew once a list in it is old.
fn anew<K: Send + 'static>(
    begin: impl Fn() -> BoxStream<'static, watcher::Result<Event<K>>> + Clone + Send + 'static,
    every: Duration,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send {
    let first = (begin(), None);
    unfold(first, move |(mut events, mut due)| {
        let begin = begin.clone();
        async move {
            loop {
                tokio::select! {
                    event = events.next() => {
                        let now = Instant::now();
                        due = match event {
                            // A list that is under way comes to its end, however long it takes.
                            Some(Ok(Event::Init)) => None,
                            Some(Ok(Event::InitDone)) => Some(now + every.mul_f64(0.9 + 0.2 * rand::random::<f64>())),
                            Some(Err(_)) => due.map(|due| due.max(now + CALM)),
                            _ => due,
                        };
                        return event.map(|event| (event, (events, due)));
                    }
                    () = until(due) => (events, due) = (begin(), None),
                }
            }
        }
    })
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const EVERY: Duration = Duration::from_millis(50);

    type Begun = BoxStream<'static, watcher::Result<Event<usize>>>;

    /// Each lists one object, its number, takes this time for that, and brings nothing more.
    fn muted(takes: Duration) -> impl Fn() -> Begun + Clone {
        let begun = Arc::new(AtomicUsize::new(0));
        move || {
            let number = begun.fetch_add(1, Ordering::AcqRel);
            let listed = async move {
                tokio::time::sleep(takes).await;
                Ok(Event::InitDone)
            };
            let list = futures::stream::iter([Ok(Event::Init), Ok(Event::InitApply(number))]);
            list.chain(futures::stream::once(listed)).chain(futures::stream::pending()).boxed()
        }
    }

    #[tokio::test]
    async fn a_watch_that_breaks_is_not_begun_anew_as_long_as_it_may_be_taken_up_where_it_was() {
        let begin = || {
            let broken = futures::stream::once(async {
                tokio::time::sleep(EVERY / 2).await;
                Err(watcher::Error::NoResourceVersion)
            });
            let listed = futures::stream::iter([Ok(Event::<usize>::Init), Ok(Event::InitDone)]);
            listed.chain(broken).chain(futures::stream::pending()).boxed()
        };
        let mut events = Box::pin(anew(begin, EVERY));
        for _ in 0..2 {
            events.next().await.expect("it goes on").expect("no error");
        }
        assert!(events.next().await.expect("it goes on").is_err());
        let next = tokio::time::timeout(10 * EVERY, events.next()).await;
        assert!(next.is_err(), "{next:?}");
    }

    #[tokio::test]
    async fn what_a_muted_watch_does_not_bring_is_listed_in_time_and_no_list_is_cut_short() {
        // The list takes longer than it is good for.
        let takes = 2 * EVERY;
        let started = Instant::now();
        let events = anew(muted(takes), EVERY).filter_map(async |event| match event.expect("no error") {
            Event::Init => None,
            event => Some((event, started.elapsed())),
        });
        let events: Vec<_> = events.take(6).collect().await;
        for (number, pair) in (0_u32..).zip(events.chunks(2)) {
            let [(Event::InitApply(object), _), (Event::InitDone, when)] = pair else { panic!("{pair:?}") };
            assert_eq!(u32::try_from(*object).ok(), Some(number));
            let least = takes * (number + 1) + EVERY.mul_f64(0.9) * number;
            assert!(*when >= least, "the list {number} was there after {when:?}");
        }
    }
}
