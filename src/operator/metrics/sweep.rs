//! The sweep.

use super::registered;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

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
    const ALL: [Self; 4] = [Self::Complete, Self::Stopped, Self::Forbidden, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Stopped => "stopped",
            Self::Forbidden => "forbidden",
            Self::Failed => "failed",
        }
    }
}

/// Its metrics.
#[derive(Clone, Debug)]
pub(super) struct Sweeps {
    ended: Family<Ended, Counter>,
    permitted: Gauge,
    orphans_revoked: Counter,
    orphans_kept: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    result: &'static str,
}

impl Sweeps {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            ended: registered(registry, "sweeps", "Searches of Vault for tokens without a request"),
            permitted: registered(
                registry,
                "sweep_permitted",
                "1 if Vault let the operator list its tokens in the last search, 0 if not, or if there was none yet",
            ),
            orphans_revoked: registered(
                registry,
                "sweep_orphans_revoked",
                "Tokens that no request recorded, and that were revoked",
            ),
            orphans_kept: registered(
                registry,
                "sweep_orphans_kept",
                "Tokens that no request records and that the last search left alone, since a person has to look at them",
            ),
        };
        for result in SweepResult::ALL {
            metrics.ended.get_or_create(&Ended { result: result.as_str() }).inc_by(0);
        }
        metrics
    }

    pub(super) fn swept(&self, result: SweepResult, revoked: usize, kept: usize) {
        self.ended.get_or_create(&Ended { result: result.as_str() }).inc();
        self.orphans_revoked.inc_by(revoked.try_into().unwrap_or(u64::MAX));
        match result {
            SweepResult::Failed => {}
            SweepResult::Forbidden => {
                self.permitted.set(0);
            }
            SweepResult::Complete | SweepResult::Stopped => {
                self.permitted.set(1);
                self.orphans_kept.set(kept.try_into().unwrap_or(i64::MAX));
            }
        }
    }
}
