//! What is so at present: looked at when somebody asks.

use super::{Kind, registered};
use crate::domain::rights::Rights;
use crate::operator::census::Living;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// What is so at present.
#[derive(Clone, Copy, Debug, Default)]
pub struct Present {
    /// This replica leads.
    pub leads: bool,
    /// The admission policies are in force.
    pub admission: bool,
    /// The operator was told to do without them.
    pub waived: bool,
    /// There is a login to Vault, and Vault answers.
    pub vault: bool,
    /// What the watch shows of tokens.
    pub living: Living,
    /// Live tokens whose policies no binding grants.
    pub ungranted: usize,
    /// Those of these that are kept until a person has looked at it.
    pub held: usize,
    /// Requests that wait for their turn.
    pub queue: usize,
    /// The longest time for which a watch was not taken up.
    pub silence: Duration,
    /// How long the longest look under way has taken.
    pub look: Duration,
    /// For how long the sweep has not gone on that was to.
    pub sweep: Duration,
}

/// Its metrics.
#[derive(Clone, Debug)]
pub(super) struct Gauges {
    leader: Gauge,
    admission: Gauge,
    waived: Gauge,
    vault: Gauge,
    live: Gauge,
    outliving: Gauge,
    longest_outliving: Gauge,
    ending: Gauge,
    compromised: Gauge,
    ungranted: Gauge,
    held: Gauge,
    queue: Gauge,
    silence: Gauge,
    look: Gauge,
    sweep: Gauge,
    rights: Family<Kind, Gauge>,
}

impl Gauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            leader: registered(registry, "leader", "1 while this replica leads"),
            admission: registered(
                registry,
                "admission_in_force",
                "1 while the admission policies are as in config/ and refuse what they must; without them no tokens are made",
            ),
            waived: registered(
                registry,
                "admission_waived",
                "1 where this replica makes tokens without them, by --trust-unverified-requests",
            ),
            vault: registered(
                registry,
                "vault_available",
                "1 while this replica is logged in to Vault and Vault answers",
            ),
            live: registered(registry, "tokens_live", "Tokens that live, by what requests record"),
            outliving: registered(
                registry,
                "tokens_outliving_pods",
                "Live tokens whose pods have ended, by what the watch shows",
            ),
            longest_outliving: registered(
                registry,
                "longest_outliving_seconds",
                "For how long the longest of them has outlived its pod, since this replica first saw that it had ended",
            ),
            ending: registered(
                registry,
                "tokens_ending",
                "Live tokens that Vault does not let live for much longer, however often they are renewed",
            ),
            compromised: registered(
                registry,
                "requests_compromised",
                "Requests whose wrapping tokens somebody else used, and that nobody has deleted yet",
            ),
            ungranted: registered(
                registry,
                "tokens_ungranted",
                "Live tokens whose policies no binding grants any more",
            ),
            held: registered(
                registry,
                "tokens_ungranted_held",
                "Those of them that are kept until a person has looked at it, since they are more than --ungranted-limit",
            ),
            queue: registered(
                registry,
                "queue_depth",
                "Requests that wait for their turn; more than 256 of one namespace come again a second later and are not in it",
            ),
            silence: registered(
                registry,
                "watch_silence_seconds",
                "The longest time for which a watch was not taken up; each ends after half a minute and is taken up again",
            ),
            look: registered(
                registry,
                "longest_look_seconds",
                "How long the longest look at a request that is under way has taken",
            ),
            sweep: registered(
                registry,
                "sweep_overdue_seconds",
                "For how long the sweep has not gone on that was to begin or to come to the next token",
            ),
            rights: registered(
                registry,
                "vault_rights",
                "What the operator cannot do in Vault and should, and what it can do and should not; none while Vault does not tell",
            ),
        }
    }

    pub(super) fn set(&self, present: &Present) {
        let &Present { leads, admission, waived, vault, living, ungranted, held, queue, silence, look, sweep } =
            present;
        for (gauge, is_so) in
            [(&self.leader, leads), (&self.admission, admission), (&self.waived, waived), (&self.vault, vault)]
        {
            gauge.set(is_so.into());
        }
        for (gauge, number) in [
            (&self.live, living.tokens),
            (&self.outliving, living.outliving),
            (&self.ending, living.ending),
            (&self.compromised, living.compromised),
            (&self.ungranted, ungranted),
            (&self.held, held),
            (&self.queue, queue),
        ] {
            gauge.set(whole(number));
        }
        for (gauge, time) in [
            (&self.silence, silence),
            (&self.look, look),
            (&self.sweep, sweep),
            (&self.longest_outliving, living.longest),
        ] {
            gauge.set(time.as_secs().try_into().unwrap_or(i64::MAX));
        }
    }

    pub(super) fn rights(&self, rights: &Rights) {
        self.rights.clear();
        if let Rights::Told { missing, excess } = rights {
            for (kind, found) in [("missing", missing), ("excess", excess)] {
                self.rights.get_or_create(&Kind { kind }).set(whole(found.len()));
            }
        }
    }
}

fn whole(number: usize) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
