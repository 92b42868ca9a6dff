//! What can be counted, for Prometheus. Names are stable and carry their units; nothing is counted per pod.

mod calls;
mod gauges;
mod requests;
mod sweep;

pub use gauges::Present;
pub use sweep::SweepResult;

use super::world::Alarm;
use crate::cluster::Call;
use crate::domain::rights::Rights;
use crate::domain::tally::Count;
use crate::traffic::Outcome;
use crate::vault::{Operation, Recorder};
use calls::Calls;
use gauges::Gauges;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Metric, Registry};
use requests::Requests;
use std::sync::Arc;
use std::time::Duration;
use sweep::Sweeps;

/// The type of what is served, as Prometheus asks for it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The operator's metrics; a clone counts for the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Requests,
    calls: Calls,
    sweeps: Sweeps,
    gauges: Gauges,
    alarms: Family<Kind, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl Metrics {
    /// Nothing has been counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("vault_token_operator");
        let (requests, calls) = (Requests::register(&mut registry), Calls::register(&mut registry));
        let (sweeps, gauges) = (Sweeps::register(&mut registry), Gauges::register(&mut registry));
        let alarms: Family<Kind, Counter> = registered(&mut registry, "alarms", "What looked like an attack");
        // A counter that is not there before its first event hides that from everybody who looks for an increase.
        for kind in ["compromised", "foreign_push", "answer_unconfirmed", "token_gone"] {
            alarms.get_or_create(&Kind { kind }).inc_by(0);
        }
        Self { registry: Arc::new(registry), requests, calls, sweeps, gauges, alarms }
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

    /// Something happened to a request.
    pub fn count(&self, count: Count) {
        self.requests.count(count);
    }

    /// A call to the API server has ended.
    pub fn api_call(&self, call: Call) {
        self.calls.api(call);
    }

    /// A sweep has ended.
    pub fn swept(&self, result: SweepResult, revoked: usize, kept: usize) {
        self.sweeps.swept(result, revoked, kept);
    }

    /// What is known of the operator's rights in Vault.
    pub fn rights(&self, rights: &Rights) {
        self.gauges.rights(rights);
    }

    /// All of it in the text format of OpenMetrics, with what is so at present.
    pub fn text(&self, present: &Present) -> String {
        self.gauges.set(present);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

/// A metric that has counted nothing yet.
fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Recorder for Metrics {
    fn record(&self, operation: Operation, outcome: Outcome, took: Duration) {
        self.calls.vault(operation, outcome, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;
    use std::collections::BTreeMap;

    fn assert_has(text: &str, lines: &[&str]) {
        for line in lines {
            let line = format!("vault_token_operator_{line}");
            assert!(text.lines().any(|said| said == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn sweeps_are_counted_by_how_they_ended() {
        let metrics = Metrics::new();
        metrics.swept(SweepResult::Complete, 2, 1);
        metrics.swept(SweepResult::Failed, 0, 0);
        metrics.swept(SweepResult::Stopped, 0, 200);
        let text = metrics.text(&Present { leads: true, ..Present::default() });
        let sweeps = ["sweeps_total{result=\"complete\"} 1", "sweeps_total{result=\"failed\"} 1", "sweep_permitted 1"];
        assert_has(&text, &sweeps);
        assert_has(&text, &["leader 1", "sweep_orphans_revoked_total 2", "sweep_orphans_kept 200"]);
    }

    #[test]
    fn what_happens_to_requests_is_counted_by_its_reason() {
        let metrics = Metrics::new();
        metrics.count(Count::Delivered(Some(Duration::from_secs(7))));
        metrics.count(Count::Revoked { cause: Some(Reason::PodDeleted), after: Some(Duration::from_millis(300)) });
        metrics.count(Count::Denied(None));
        let text = metrics.text(&Present::default());
        assert_has(&text, &["tokens_issued_total 0", "tokens_delivered_total 1", "delivery_seconds_sum 7.0"]);
        assert_has(&text, &["delivery_seconds_bucket{le=\"5.0\"} 0", "delivery_seconds_bucket{le=\"10.0\"} 1"]);
        assert_has(&text, &["tokens_revoked_total{reason=\"PodDeleted\"} 1", "revocation_seconds_count 1"]);
        assert_has(&text, &["requests_denied_total{reason=\"Unknown\"} 1"]);
    }

    /// The type and labels of every metric by its name, with at least one of each there.
    fn exposed() -> BTreeMap<String, (String, Vec<String>)> {
        let metrics = Metrics::new();
        metrics.count(Count::Denied(None));
        metrics.count(Count::Failed(None));
        metrics.count(Count::Revoked { cause: None, after: None });
        metrics.rights(&Rights::Told { missing: vec![], excess: vec![] });
        metrics.record(Operation::Mint, Outcome::Ok, Duration::ZERO);
        metrics.api_call(Call { verb: "get", resource: "pods", outcome: Outcome::Ok });
        let text = metrics.text(&Present::default());
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let described = |line: &str| {
            let (name, kind) = line.split_once(' ').expect("a type");
            let samples = match kind {
                "counter" => format!("{name}_total"),
                "histogram" => format!("{name}_bucket"),
                _ => name.to_owned(),
            };
            let sample = text.lines().find_map(|line| line.strip_prefix(&samples)).expect("a sample");
            let labels = sample.strip_prefix('{').and_then(|labels| labels.split_once('}')).unwrap_or_default().0;
            let labels = labels.split(',').filter_map(|label| label.split_once('=')).map(|(label, _)| label.to_owned());
            let name = if kind == "counter" { samples } else { name.to_owned() };
            (name, (kind.to_owned(), labels.filter(|label| label != "le").collect()))
        };
        types.map(described).collect()
    }

    #[test]
    fn the_readme_names_every_metric_with_its_type_and_labels() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).expect("a file");
        let rows = readme.lines().filter(|line| line.starts_with("| `vault_token_operator_"));
        let row = |line: &str| {
            let cells: Vec<_> = line.split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect();
            let labels = cells[3].split(", ").filter(|label| !label.is_empty()).map(str::to_owned);
            (cells[1].clone(), (cells[2].clone(), labels.collect()))
        };
        assert_eq!(rows.map(row).collect::<BTreeMap<_, _>>(), exposed());
    }
}
