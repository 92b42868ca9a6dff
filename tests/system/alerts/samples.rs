//! What was scraped, and how promtool gets it.

use crate::support::Cluster;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use testbed::system::System;

/// Minutes that the first scrape of a case is held, and the second one. No alert looks back for longer than the first, but at what happened
/// between the two; none waits for as long as the second.
const HELD: [usize; 2] = [30, 25];

/// Promtool's step: two a minute.
const STEPS: usize = 2;

/// What the operator told at one time: series, and their values.
#[derive(Clone, Default)]
pub struct Scrape(BTreeMap<String, String>);

/// A change of state, and the alerts that it makes fire.
pub struct Case {
    pub name: &'static str,
    pub before: Scrape,
    pub after: Scrape,
    pub fires: Vec<&'static str>,
}

impl Scrape {
    /// What the running operator tells; nothing, if none runs.
    pub async fn of(cluster: &Cluster) -> Self {
        Self::read(&cluster.system.operator_metrics().await.expect("an answer").unwrap_or_default())
    }

    /// What a replica tells that has its endpoint at this address.
    pub async fn at(address: &str) -> Self {
        Self::read(&System::metrics_of(address).await.expect("an answer"))
    }

    /// The same with one series of another replica.
    pub fn with(&self, other: &Self, series: &str) -> Self {
        assert!(
            other.0.contains_key(&format!("vault_token_operator_{series}")),
            "the other one does not tell {series}"
        );
        self.told(series, other.value(series))
    }

    /// The same with another value of one series.
    pub fn told(&self, series: &str, value: f64) -> Self {
        let series = (format!("vault_token_operator_{series}"), value.to_string());
        Self(self.0.clone().into_iter().chain([series]).collect())
    }

    fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let split = |line: &str| line.rsplit_once(' ').map(|(series, value)| (series.to_owned(), value.to_owned()));
        Self(samples.filter_map(split).collect())
    }

    /// The value of a series, without the prefix of its name; zero where it is not there.
    pub fn value(&self, series: &str) -> f64 {
        let value = self.0.get(&format!("vault_token_operator_{series}"));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Whether each of these series has this value.
    pub fn tells(&self, values: &[(&str, f64)]) -> bool {
        values.iter().all(|(series, value)| self.value(series) == *value)
    }
}

/// The series of one replica, with the label by which Prometheus tells it apart.
fn held(instance: &str, before: &Scrape, after: &Scrape) -> Vec<Value> {
    let hold = |scrape: &Scrape, name: &String, minutes| match scrape.0.get(name) {
        Some(value) => format!("{value}x{}", minutes * STEPS - 1),
        None => format!("_x{}", minutes * STEPS),
    };
    let labelled = |series: &String| {
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        format!("{name}{{instance=\"{instance}\",{labels}")
    };
    let series: BTreeSet<_> = before.0.keys().chain(after.0.keys()).collect();
    let values = |name| format!("{} {}", hold(before, name, HELD[0]), hold(after, name, HELD[1]));
    series.into_iter().map(|name| json!({ "series": labelled(name), "values": values(name) })).collect()
}

impl Case {
    /// The names of all metrics in it.
    pub fn names(&self) -> BTreeSet<String> {
        let series = self.before.0.keys().chain(self.after.0.keys());
        series.map(|series| series.split('{').next().unwrap_or_default().to_owned()).collect()
    }

    /// The case as a test of promtool's, with a replica that stands by beside the one that the case is about, for as long as that is there.
    pub fn test(&self, standby: &Scrape) -> Value {
        let nothing = Scrape::default();
        let beside = |scrape: &Scrape| if scrape.0.is_empty() { nothing.clone() } else { standby.clone() };
        let input =
            [held("leader", &self.before, &self.after), held("standby", &beside(&self.before), &beside(&self.after))]
                .concat();
        let fires: Vec<_> = self
            .fires
            .iter()
            .map(|name| json!({ "labels": format!("{{alertname=\"{name}\"}}"), "value": 1 }))
            .collect();
        let [before, after] = HELD;
        // Whatever fired at any time of the second state, from its first minutes on.
        let fired = format!("group by (alertname) (max_over_time(ALERTS{{alertstate=\"firing\"}}[{}m]))", after - 1);
        json!({ "name": self.name, "interval": "30s", "input_series": input, "promql_expr_test": [
            { "expr": fired, "eval_time": format!("{}m", before + after - 1), "exp_samples": fires },
        ] })
    }
}
