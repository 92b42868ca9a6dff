//! What is granted to whom, kept up to date by watching bindings and the labels of namespaces.

use super::patience::Patience;
use super::vitals::Vitals;
use crate::api::VaultPolicyBinding;
use crate::cluster;
use crate::domain::grant::Limits;
use crate::domain::rules::{Labels, Rule, Rules, is_safe};
use crate::text::one_line;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What bindings are to the API server, and to RBAC.
pub const BINDINGS: &str = "vaultpolicybindings";

/// The rules as they are, for whoever asks.
#[derive(Clone)]
pub struct Rulebook(watch::Receiver<Edition>);

/// One state of the rules.
#[derive(Clone, Default)]
pub struct Edition {
    /// Counts up with each change; 0 while not everything is listed.
    pub number: u64,
    /// What is granted to whom.
    pub rules: Arc<Rules>,
    /// The bindings themselves, those included that cannot be used.
    pub bindings: Arc<HashMap<String, VaultPolicyBinding>>,
}

impl Edition {
    /// Whether the watch is yet to bring what was written to the binding with this UID, if it was that one and not another of its name.
    pub fn awaits(&self, written: &VaultPolicyBinding, uid: &str) -> bool {
        let shown = |known: &VaultPolicyBinding| known.uid() == written.uid() && known.status == written.status;
        written.uid().as_deref() == Some(uid) && !self.bindings.get(&written.name_any()).is_some_and(shown)
    }
}

/// What keeps the book.
pub struct Keeper {
    sender: watch::Sender<Edition>,
    token_role: String,
    limits: Limits,
    vitals: Vitals,
    relist: Duration,
}

/// What was seen.
struct Known<T> {
    objects: HashMap<String, T>,
    listing: HashMap<String, T>,
    listed: bool,
}

/// How much an event changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// Nothing, or nothing yet.
    Nothing,
    /// Only what a binding says of itself.
    Words,
    /// What is granted.
    Grants,
}

/// What is kept of an object.
trait Kept: PartialEq {
    /// Whether it grants the same.
    fn grants_as(&self, other: &Self) -> bool;
}

impl Kept for VaultPolicyBinding {
    fn grants_as(&self, other: &Self) -> bool {
        self.spec == other.spec && self.metadata.generation == other.metadata.generation
    }
}

impl Kept for Labels {
    fn grants_as(&self, other: &Self) -> bool {
        self == other
    }
}

impl<T: Kept> Known<T> {
    fn new() -> Self {
        Self { objects: HashMap::new(), listing: HashMap::new(), listed: false }
    }

    /// Takes an event in. Objects that `read` makes nothing of are as good as gone.
    fn take<K: ResourceExt>(&mut self, event: Event<K>, read: impl Fn(K) -> Option<T>) -> Weight {
        let name = |object: &K| object.meta().name.clone().unwrap_or_default();
        match event {
            Event::Init => {
                self.listing.clear();
                Weight::Nothing
            }
            Event::InitApply(object) => {
                let name = name(&object);
                self.listing.extend(read(object).map(|read| (name, read)));
                Weight::Nothing
            }
            Event::InitDone => {
                let listing = std::mem::take(&mut self.listing);
                let same = std::mem::replace(&mut self.listed, true) && self.objects == listing;
                self.objects = listing;
                if same { Weight::Nothing } else { Weight::Grants }
            }
            Event::Apply(object) => {
                let name = name(&object);
                let Some(read) = read(object) else { return self.drop(&name) };
                let weight = match self.objects.get(&name) {
                    Some(known) if *known == read => Weight::Nothing,
                    Some(known) if known.grants_as(&read) => Weight::Words,
                    _ => Weight::Grants,
                };
                self.objects.insert(name, read);
                weight
            }
            Event::Delete(object) => self.drop(&name(&object)),
        }
    }

    fn drop(&mut self, name: &str) -> Weight {
        if self.objects.remove(name).is_some() { Weight::Grants } else { Weight::Nothing }
    }
}

impl Rulebook {
    /// An empty book, and who is to keep it. `token_role` is the operator's own; `vitals` is told what the watch brings; everything is
    /// listed anew every `relist`.
    pub fn new(token_role: String, limits: Limits, vitals: Vitals, relist: Duration) -> (Self, Keeper) {
        let (sender, receiver) = watch::channel(Edition::default());
        (Self(receiver), Keeper { sender, token_role, limits, vitals, relist })
    }

    /// The present edition.
    pub fn edition(&self) -> Edition {
        self.0.borrow().clone()
    }

    /// Waits for an edition other than that of this number.
    pub async fn changed(&mut self, from: u64) -> Edition {
        match self.0.wait_for(|edition| edition.number != from).await.map(|edition| edition.clone()) {
            Ok(edition) => edition,
            // The keeper is gone, and so is the operator.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Keeper {
    /// Keeps the book for as long as it is polled.
    pub async fn run(self, client: Client) {
        let bindings = Api::<DeserializeGuard<VaultPolicyBinding>>::all(client.clone());
        let bindings = cluster::watch_anew(bindings, cluster::watch(), self.relist);
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client);
        let namespaces = cluster::watch_anew(namespaces, cluster::watch(), self.relist);
        let changes = futures::stream::select(
            patient("bindings", bindings).map(Change::Binding),
            patient("namespaces", namespaces).map(Change::Namespace),
        );
        let (mut bindings, mut namespaces) = (Known::new(), Known::new());
        let mut changes = std::pin::pin!(changes);
        while let Some(change) = changes.next().await {
            let all = matches!(change, Change::Binding(Event::InitDone));
            let one = match &change {
                Change::Binding(Event::Apply(binding) | Event::Delete(binding)) => binding.uid(),
                _ => None,
            };
            let weight = match change {
                Change::Binding(event) => bindings.take(event, binding),
                Change::Namespace(event) => namespaces.take(event, labels),
            };
            match weight {
                _ if !bindings.listed || !namespaces.listed => {}
                Weight::Nothing => {}
                Weight::Words => {
                    self.sender.send_modify(|edition| edition.bindings = Arc::new(bindings.objects.clone()));
                }
                Weight::Grants => self.publish(&bindings.objects, &namespaces.objects),
            }
            // After it is in the book: who owes it something looks at that.
            if all {
                self.vitals.listed(BINDINGS);
            } else if let Some(uid) = one {
                self.vitals.brought(BINDINGS, &uid);
            }
        }
    }

    fn publish(&self, bindings: &HashMap<String, VaultPolicyBinding>, namespaces: &HashMap<String, Labels>) {
        let rules = bindings.values().filter_map(|binding| {
            Rule::read(binding, &self.token_role, &self.limits)
                .inspect_err(|why| {
                    tracing::warn!(binding = binding.name_any(), why = one_line(why), "a binding grants nothing");
                })
                .ok()
        });
        let rules = Arc::new(Rules::new(rules.collect(), namespaces.clone()));
        self.sender.send_modify(|edition| {
            *edition = Edition { number: edition.number + 1, rules, bindings: Arc::new(bindings.clone()) };
        });
        let (bindings, namespaces) = (bindings.len(), namespaces.len());
        tracing::info!(bindings, namespaces, "what is granted has changed");
    }
}

enum Change {
    Binding(Event<DeserializeGuard<VaultPolicyBinding>>),
    Namespace(Event<PartialObjectMeta<Namespace>>),
}

/// The events of a watch that is taken up again whenever it breaks.
fn patient<K: Send + 'static>(
    what: &'static str,
    watch: impl Stream<Item = Result<Event<K>, kube::runtime::watcher::Error>>,
) -> impl Stream<Item = Event<K>> {
    watch.backoff(Patience::default()).filter_map(move |event| {
        if let Err(error) = &event {
            let error = cluster::watch_words(error);
            tracing::warn!(error, "the watch of {what} broke; it is taken up again");
        }
        std::future::ready(event.ok())
    })
}

/// A binding that cannot be read grants nothing, and keeps nobody from reading the others. Its status is no news.
pub fn binding(DeserializeGuard(binding): DeserializeGuard<VaultPolicyBinding>) -> Option<VaultPolicyBinding> {
    let mut binding = binding
        .inspect_err(|error| {
            let name = error.metadata.name.as_deref().unwrap_or_default();
            tracing::error!(binding = name, error = one_line(&error.error), "a binding cannot be read");
        })
        .ok()?;
    binding.metadata.managed_fields = None;
    binding.metadata.resource_version = None;
    // Of the status only the operator's own words are wanted, to see whether they are still true.
    Some(binding)
}

/// Of a namespace's labels those that bindings can select by.
pub fn labels(namespace: PartialObjectMeta<Namespace>) -> Option<Labels> {
    let labels = namespace.metadata.labels.unwrap_or_default();
    Some(labels.into_iter().filter(|(label, _)| is_safe(label)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn binding(uid: &str, namespaces: u32) -> VaultPolicyBinding {
        let binding = json!({
            "apiVersion": "vaultproject.io/v1alpha1", "kind": "VaultPolicyBinding",
            "metadata": { "name": "shop", "uid": uid }, "spec": { "subjects": [], "policies": [] },
            "status": { "namespaces": namespaces },
        });
        serde_json::from_value(binding).expect("a binding")
    }

    #[test]
    fn what_was_written_is_awaited_unless_the_watch_has_shown_it_or_it_was_written_to_another_binding() {
        let edition = |binding: VaultPolicyBinding| Edition {
            bindings: Arc::new([("shop".to_owned(), binding)].into()),
            ..Edition::default()
        };
        let written = binding("1", 3);
        assert!(edition(binding("1", 2)).awaits(&written, "1"));
        assert!(Edition::default().awaits(&written, "1"), "it may have been deleted since, which comes, too");
        assert!(!edition(binding("1", 3)).awaits(&written, "1"), "it was shown meanwhile");
        let another = binding("2", 3);
        assert!(!edition(binding("2", 2)).awaits(&another, "1"), "it is of no news about the one that is owed");
    }
}
