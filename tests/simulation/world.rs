//! The operator's world in the simulation: every call waits until the schedule lets it go on, and goes as the schedule says.

use crate::model::{DEADLINE, Late, Model, NAMESPACE, TOKEN_ROLE};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;
use vault_token_operator::api::{Reason, VaultTokenRequest, VaultTokenRequestStatus};
use vault_token_operator::cluster;
use vault_token_operator::domain::address::PodNetworks;
use vault_token_operator::domain::admission::Admission;
use vault_token_operator::domain::grant::{Limits, Why};
use vault_token_operator::domain::pod::Observation;
use vault_token_operator::domain::rules::{Rule, Rules};
use vault_token_operator::domain::token::Minted;
use vault_token_operator::operator::{Alarm, Grants, World};
use vault_token_operator::seal::Subject;
use vault_token_operator::vault::{Error, TokenInfo, TokenOrder};
use vault_token_operator::wire::{Answer, Parcel, Push};

/// An accessor that a token has left behind: Vault lists it and forbids to look it up (seen on the real one).
const LEFT_BEHIND: &str = "left-behind";

/// What is granted, as long as anything is.
static GRANTED: LazyLock<Arc<Rules>> = LazyLock::new(|| {
    let binding = serde_json::json!({
        "apiVersion": "vaultproject.io/v1alpha1", "kind": "VaultPolicyBinding", "metadata": { "name": "shop" },
        "spec": { "subjects": [{ "namespaces": [NAMESPACE], "serviceAccounts": ["*"] }], "policies": ["shop-*"],
            "deliveries": ["Push", "Status"] },
    });
    let binding = serde_json::from_value(binding).expect("a binding");
    let rule = Rule::read(&binding, TOKEN_ROLE, &limits()).expect("a rule");
    Arc::new(Rules::new(vec![rule], HashMap::new()))
});

/// The operators' settings.
pub fn limits() -> Limits {
    let hour = Duration::from_secs(3600);
    let networks = PodNetworks::new(Vec::new());
    Limits { default_ttl: hour, max_ttl: hour, networks, retention: 24 * hour, grace: Duration::from_secs(120) }
}

/// How a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It takes effect, and the answer comes.
    Fine,
    /// It does not arrive.
    Refused,
    /// It takes effect, and the answer is lost.
    Lost,
    /// The answer does not come, and it may take effect later.
    Late,
}

pub struct SimWorld {
    pub model: Arc<Mutex<Model>>,
    /// How the next call goes that is let on.
    pub fate: Mutex<Fate>,
    /// Tokens to be revoked beside everything else.
    pub reaper: Mutex<Vec<String>>,
    /// What the sweep has looked at that the next call is of, if it is of a sweep.
    pub sweep: Mutex<Option<Looked>>,
}

/// What a sweep has looked at so far.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    listed: bool,
    /// Whether it has waited for its turn to look at one more token.
    paced: bool,
    /// The names of requests.
    read: HashSet<String>,
}

impl SimWorld {
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().expect("no panic")
    }

    async fn gate(&self) -> Fate {
        let mut waits = true;
        poll_fn(|_| if std::mem::take(&mut waits) { Poll::Pending } else { Poll::Ready(()) }).await;
        *self.fate.lock().expect("no panic")
    }

    /// Rule 9: a sweep lists Vault first.
    fn sweep_reads(&self, name: &str) {
        if let Some(looked) = &mut *self.sweep.lock().expect("no panic") {
            if !looked.listed {
                self.model().violate(format!("rule 9: the sweep read {name} before it had listed Vault"));
            }
            looked.read.insert(name.to_owned());
        }
    }

    /// Rule 9: a sweep looks at tokens no faster than it may.
    fn sweep_looks_up(&self, accessor: &str) {
        if let Some(looked) = &mut *self.sweep.lock().expect("no panic")
            && !std::mem::take(&mut looked.paced)
        {
            self.model().violate(format!("rule 9: the sweep looked at {accessor} before its turn"));
        }
    }

    /// Rule 9: a sweep revokes by a fresh read of the token's request.
    fn sweep_revokes(&self, accessor: &str) {
        if let Some(looked) = &*self.sweep.lock().expect("no panic") {
            let mut model = self.model();
            let request = model.tokens.iter().find(|token| token.accessor == accessor);
            let request = request.and_then(|token| token.meta.get("request_name"));
            if !request.is_some_and(|name| looked.read.contains(name)) {
                model.violate(format!("rule 9: the sweep revoked {accessor} without reading its request"));
            }
        }
    }

    /// A call to Vault: what it does when it arrives, and what is left of it otherwise.
    async fn vault<T>(
        &self,
        act: impl FnOnce(&mut Model) -> T,
        late: impl FnOnce(Timestamp) -> Option<Late>,
    ) -> Result<T, Error> {
        let sent = self.now();
        let fate = self.gate().await;
        let mut model = self.model();
        if model.away {
            return Err(Error::Away("sealed".to_owned()));
        }
        // However long the schedule has kept it here, its caller has not waited for longer than that.
        let overdue = model.now.duration_since(sent) > DEADLINE;
        match if overdue && fate != Fate::Refused { Fate::Late } else { fate } {
            Fate::Fine => Ok(act(&mut model)),
            Fate::Refused => Err(Error::Unreachable { address: String::new(), cause: String::new() }),
            Fate::Lost => {
                act(&mut model);
                Err(Error::Unanswered(String::new()))
            }
            Fate::Late => {
                model.late.extend(late(sent));
                Err(Error::Unanswered(String::new()))
            }
        }
    }

    /// A call to the API server.
    async fn cluster<T>(
        &self,
        act: impl FnOnce(&mut Model) -> Result<T, cluster::Error>,
        late: impl FnOnce() -> Option<Late>,
    ) -> Result<T, cluster::Error> {
        let fate = self.gate().await;
        let mut model = self.model();
        match fate {
            Fate::Fine => act(&mut model),
            Fate::Refused => Err(cluster::Error::Timeout),
            Fate::Lost => {
                let _ = act(&mut model);
                Err(cluster::Error::Timeout)
            }
            Fate::Late => {
                model.late.extend(late());
                Err(cluster::Error::Timeout)
            }
        }
    }
}

impl World for SimWorld {
    fn now(&self) -> Timestamp {
        self.model().now
    }

    fn vault_away(&self) -> Option<Why> {
        self.model().away.then(|| Why::new(Reason::VaultUnavailable, "sealed"))
    }

    fn admission(&self) -> Admission {
        Admission::InForce { since: Timestamp::MIN }
    }

    fn grants(&self, _: &VaultTokenRequest) -> Grants {
        let rules = if self.model().granted { GRANTED.clone() } else { Arc::default() };
        Grants { rules, held: None }
    }

    fn admit(&self, _: &str, _: &str) -> Result<(), Timestamp> {
        Ok(())
    }

    async fn read(&self, _: &str, name: &str) -> Result<Option<VaultTokenRequest>, cluster::Error> {
        self.sweep_reads(name);
        self.cluster(|model| Ok(model.requests.get(name).cloned()), || None).await
    }

    async fn write(
        &self,
        request: &VaultTokenRequest,
        status: VaultTokenRequestStatus,
    ) -> Result<VaultTokenRequest, cluster::Error> {
        let late = || Some(Late::Write(Box::new(request.clone()), Box::new(status.clone())));
        self.cluster(|model| model.write(request, status.clone()), late).await
    }

    async fn release(&self, request: &VaultTokenRequest) -> Result<(), cluster::Error> {
        self.cluster(|model| model.release(request), || Some(Late::Release(Box::new(request.clone())))).await
    }

    async fn delete(&self, request: &VaultTokenRequest) -> Result<(), cluster::Error> {
        self.cluster(|model| model.delete_guarded(request), || None).await
    }

    async fn pod(&self, _: &str, name: &str, _: &str) -> Result<Observation, cluster::Error> {
        self.cluster(|model| Ok(model.observe(name)), || None).await
    }

    async fn mint(&self, order: &TokenOrder) -> Result<Minted, Error> {
        self.vault(|model| model.mint(order), |_| Some(Late::Mint(order.clone()))).await
    }

    async fn look_up(&self, accessor: &str) -> Result<Option<TokenInfo>, Error> {
        self.sweep_looks_up(accessor);
        let found = self.vault(|model| model.look_up(accessor), |_| None).await;
        match accessor {
            LEFT_BEHIND => Err(Error::Forbidden { path: String::new(), messages: "permission denied".to_owned() }),
            _ => found,
        }
    }

    async fn pace(&self) {
        if let Some(looked) = &mut *self.sweep.lock().expect("no panic") {
            looked.paced = true;
        }
    }

    async fn list(&self) -> Result<Vec<String>, Error> {
        let live = |model: &mut Model| {
            let live = model.tokens.iter().filter(|token| model.alive(&token.accessor));
            let left_behind = std::iter::once(LEFT_BEHIND.to_owned());
            // The operator's own login is always there.
            let own = std::iter::once("own".to_owned());
            live.map(|token| token.accessor.clone()).chain(left_behind).chain(own).collect()
        };
        let listed = self.vault(live, |_| None).await;
        if let Some(looked) = &mut *self.sweep.lock().expect("no panic") {
            looked.listed = true;
        }
        listed
    }

    async fn renew(&self, accessor: &str) -> Result<Option<Timestamp>, Error> {
        let late = |sent| Some(Late::Renew(accessor.to_owned(), sent));
        // Whatever is said of a token that lives, it is not to cost it its life.
        self.vault(|model| model.renew(accessor), late).await.map_err(|error| match error {
            Error::Unreachable { .. } => Error::Answered { status: 400, messages: "token not found".to_owned() },
            error => error,
        })
    }

    async fn revoke(&self, accessor: &str) -> Result<(), Error> {
        self.sweep_revokes(accessor);
        self.vault(|model| model.revoke(accessor), |_| Some(Late::Revoke(accessor.to_owned()))).await
    }

    fn take_back(&self, _: &str, accessor: String, _: Duration) {
        self.reaper.lock().expect("no panic").push(accessor);
    }

    fn sweep_soon(&self) {}

    fn seal(&self, _: &str, _: Subject<'_>, parcel: &Parcel) -> Result<String, String> {
        Ok(serde_json::to_string(parcel).expect("JSON"))
    }

    fn alarm(&self, _: &VaultTokenRequest, _: Alarm) {}

    async fn push(&self, addresses: &[IpAddr], _: u16, push: &Push) -> Result<Answer, String> {
        self.model().aimed(addresses, push);
        let fate = self.gate().await;
        let mut model = self.model();
        match fate {
            Fate::Fine => model.push(addresses, push),
            Fate::Refused => Err("connection refused".to_owned()),
            Fate::Lost => {
                let _ = model.push(addresses, push);
                Err("no answer in time".to_owned())
            }
            Fate::Late => {
                model.late.push(Late::Push(addresses.to_vec(), push.clone()));
                Err("no answer in time".to_owned())
            }
        }
    }
}
