//! What became of requests.

use super::registered;
use crate::api::Reason;
use crate::domain::tally::Count;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// From what is usual to what is an outage, in seconds.
const SECONDS: [f64; 14] = [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// Their metrics.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    issued: Counter,
    delivered: Counter,
    revoked: Family<Why, Counter>,
    denied: Family<Why, Counter>,
    failed: Family<Why, Counter>,
    compromised: Counter,
    delivery: Histogram,
    revocation: Histogram,
}

/// Out of the one list of reasons, so that there are never more.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

impl Requests {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let mut seconds = |name, help| {
            let histogram = Histogram::new(SECONDS);
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let delivery = seconds(
            "delivery",
            "Time from a request to the delivery of its token; up to a second too long, since the API server tells whole seconds",
        );
        let revocation = seconds(
            "revocation",
            "Time from when this replica first saw that a pod had ended, or first could not revoke its token, to the token's death",
        );
        let metrics = Self {
            issued: registered(registry, "tokens_issued", "Tokens that were made and recorded"),
            delivered: registered(registry, "tokens_delivered", "Tokens that reached their pods"),
            revoked: registered(registry, "tokens_revoked", "Recorded tokens that are dead, by why"),
            denied: registered(registry, "requests_denied", "Requests of pods that may not have what they ask for"),
            failed: registered(registry, "requests_failed", "Requests that ended without a token"),
            compromised: registered(
                registry,
                "tokens_compromised",
                "Tokens whose wrapping tokens somebody else used; they were revoked",
            ),
            delivery,
            revocation,
        };
        // A counter that is not there before its first event hides that from everybody who looks for an increase.
        for reason in Reason::ALL {
            for family in [&metrics.revoked, &metrics.denied, &metrics.failed] {
                family.get_or_create(&why(Some(*reason))).inc_by(0);
            }
        }
        metrics
    }

    pub(super) fn count(&self, count: Count) {
        match count {
            Count::Issued => {
                self.issued.inc();
            }
            Count::Delivered(after) => {
                self.delivered.inc();
                if let Some(after) = after {
                    self.delivery.observe(after.as_secs_f64());
                }
            }
            Count::Revoked { cause, after } => {
                self.revoked.get_or_create(&why(cause)).inc();
                if let Some(after) = after {
                    self.revocation.observe(after.as_secs_f64());
                }
            }
            Count::Denied(reason) => {
                self.denied.get_or_create(&why(reason)).inc();
            }
            Count::Failed(reason) => {
                self.failed.get_or_create(&why(reason)).inc();
            }
            Count::Compromised => {
                self.compromised.inc();
            }
        }
    }
}

fn why(reason: Option<Reason>) -> Why {
    Why { reason: reason.map_or("Unknown", Reason::as_str) }
}
