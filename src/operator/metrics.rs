//! What can be counted, for Prometheus. Names are stable and carry their units; nothing is counted per pod.

use super::world::Alarm;
use crate::domain::rights::Rights;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The type of what is served, as Prometheus asks for it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The operator's metrics; a clone counts for the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    leader: Gauge,
    sweeps: Family<Ended, Counter>,
    sweep_permitted: Gauge,
    orphans_revoked: Counter,
    orphans_kept: Gauge,
    alarms: Family<Kind, Counter>,
    ungranted: Gauge,
    admission: Gauge,
    rights: Family<Kind, Gauge>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    result: &'static str,
}

/// How a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepResult {
    /// All was looked at.
    Complete,
    /// There were more orphans than can be left by accident.
    Stopped,
    /// Vault does not let the operator list its tokens.
    Forbidden,
    /// Vault or the API server could not be asked.
    Failed,
}

impl SweepResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Stopped => "stopped",
            Self::Forbidden => "forbidden",
            Self::Failed => "failed",
        }
    }
}

impl Metrics {
    /// Nothing has been counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("vault_token_operator");
        let metrics = Self {
            registry: Arc::default(),
            leader: Gauge::default(),
            sweeps: Family::default(),
            sweep_permitted: Gauge::default(),
            orphans_revoked: Counter::default(),
            orphans_kept: Gauge::default(),
            alarms: Family::default(),
            ungranted: Gauge::default(),
            admission: Gauge::default(),
            rights: Family::default(),
        };
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        registry.register("sweeps", "Searches of Vault for tokens without a request", metrics.sweeps.clone());
        registry.register(
            "sweep_permitted",
            "1 if Vault let the operator list its tokens in the last search, 0 if not, or if there was none yet",
            metrics.sweep_permitted.clone(),
        );
        registry.register(
            "sweep_orphans_revoked",
            "Tokens that no request recorded, and that were revoked",
            metrics.orphans_revoked.clone(),
        );
        registry.register(
            "sweep_orphans_kept",
            "Tokens that no request records and that the last search left alone, since a person has to look at them",
            metrics.orphans_kept.clone(),
        );
        registry.register("alarms", "What looked like an attack", metrics.alarms.clone());
        registry.register(
            "tokens_ungranted",
            "Live tokens whose policies no binding grants any more",
            metrics.ungranted.clone(),
        );
        registry.register(
            "admission_in_force",
            "1 while the admission policies are as in config/ and refuse what they must; without them no tokens are made",
            metrics.admission.clone(),
        );
        registry.register(
            "vault_rights",
            "What the operator cannot do in Vault and should, and what it can do and should not; none while Vault does not tell",
            metrics.rights.clone(),
        );
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// Something looks like an attack.
    pub fn alarm(&self, alarm: Alarm) {
        let (kind, count) = match alarm {
            Alarm::Compromised => ("compromised", 1),
            // The number is the pod's own word; a hostile one is not to drown all others.
            Alarm::ForeignPushes(count) => ("foreign_push", count.min(100).into()),
            Alarm::AnswerUnconfirmed => ("answer_unconfirmed", 1),
            Alarm::TokenGone => ("token_gone", 1),
        };
        self.alarms.get_or_create(&Kind { kind }).inc_by(count);
    }

    /// A sweep has ended.
    pub fn swept(&self, result: SweepResult, revoked: usize, kept: usize) {
        self.sweeps.get_or_create(&Ended { result: result.as_str() }).inc();
        self.orphans_revoked.inc_by(revoked.try_into().unwrap_or(u64::MAX));
        match result {
            SweepResult::Failed => {}
            SweepResult::Forbidden => {
                self.sweep_permitted.set(0);
            }
            SweepResult::Complete | SweepResult::Stopped => {
                self.sweep_permitted.set(1);
                self.orphans_kept.set(kept.try_into().unwrap_or(i64::MAX));
            }
        }
    }

    /// What is known of the operator's rights in Vault.
    pub fn rights(&self, rights: &Rights) {
        self.rights.clear();
        if let Rights::Told { missing, excess } = rights {
            for (kind, found) in [("missing", missing), ("excess", excess)] {
                self.rights.get_or_create(&Kind { kind }).set(found.len().try_into().unwrap_or(i64::MAX));
            }
        }
    }

    /// All of it in the text format of OpenMetrics.
    pub fn text(&self, leads: bool, ungranted: usize, admission: bool) -> String {
        self.leader.set(leads.into());
        self.admission.set(admission.into());
        self.ungranted.set(ungranted.try_into().unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_are_counted_by_how_they_ended() {
        let metrics = Metrics::new();
        metrics.swept(SweepResult::Complete, 2, 1);
        metrics.swept(SweepResult::Failed, 0, 0);
        metrics.swept(SweepResult::Stopped, 0, 200);
        let text = metrics.text(true, 0, true);
        for line in [
            "vault_token_operator_leader 1",
            "vault_token_operator_sweeps_total{result=\"complete\"} 1",
            "vault_token_operator_sweeps_total{result=\"failed\"} 1",
            "vault_token_operator_sweep_permitted 1",
            "vault_token_operator_sweep_orphans_revoked_total 2",
            "vault_token_operator_sweep_orphans_kept 200",
        ] {
            assert!(text.lines().any(|said| said == line), "{line:?} is not in\n{text}");
        }
    }
}
