//! Calls to Vault and to the API server.

use super::registered;
use crate::cluster::Call;
use crate::traffic::Outcome;
use crate::vault::Operation;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// Up to the longest time that a call may take, in seconds.
const SECONDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// Their metrics.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    vault: Family<Ended, Counter>,
    vault_time: Family<Asked, Histogram, fn() -> Histogram>,
    api: Family<ApiEnded, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    operation: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Asked {
    operation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ApiEnded {
    operation: &'static str,
    resource: &'static str,
    result: &'static str,
}

impl Calls {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let vault_time = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let took = "Time that calls to Vault took";
        registry.register_with_unit("vault_request", took, Unit::Seconds, vault_time.clone());
        Self {
            vault: registered(registry, "vault_requests", "Calls to Vault, by how they ended"),
            vault_time,
            api: registered(
                registry,
                "api_requests",
                "Calls to the Kubernetes API server, by how they ended; of lists and watches, how they began",
            ),
        }
    }

    pub(super) fn vault(&self, operation: Operation, outcome: Outcome, took: Duration) {
        let operation = operation.as_str();
        self.vault.get_or_create(&Ended { operation, result: outcome.as_str() }).inc();
        self.vault_time.get_or_create(&Asked { operation }).observe(took.as_secs_f64());
    }

    pub(super) fn api(&self, Call { verb, resource, outcome }: Call) {
        self.api.get_or_create(&ApiEnded { operation: verb, resource, result: outcome.as_str() }).inc();
    }
}
