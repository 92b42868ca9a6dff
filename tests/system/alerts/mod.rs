//! The alerts of `config/monitoring/`, on what the operator really told: each fires in the state that it is about, and none while all is
//! well. promtool gets the scraped samples, each scrape held for some time.

mod promtool;
mod samples;
mod states;

use crate::support::Cluster;
use promtool::Rules;
use samples::Case;
use serde_json::Value;
use std::collections::BTreeSet;

/// Names of the operator's metrics in some text.
fn named(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("vault_token_operator_").map(|(at, _)| &text[at..]);
    let ends = |name: &str| name.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(name.len());
    starts.map(|name| name[..ends(name)].to_owned()).collect()
}

#[tokio::test]
async fn every_alert_fires_on_what_the_operator_told_when_it_should_and_none_while_all_is_well() {
    let cluster = Cluster::start().await;
    let (cases, standby) = states::all(&cluster).await;
    let rules = Rules::read();
    let tried: BTreeSet<_> = cases.iter().flat_map(|case| case.fires.iter().copied()).collect();
    assert_eq!(rules.alerts(), tried, "each alert has a state in which it fires");
    assert!(cases.iter().any(|case| case.fires.is_empty()), "there is a state in which all is well");

    let told: BTreeSet<_> = cases.iter().flat_map(Case::names).collect();
    let dashboard = testbed::project::root().join("config/monitoring/dashboard.json");
    let dashboard = std::fs::read_to_string(dashboard).expect("a dashboard");
    let panels = expressions(&serde_json::from_str(&dashboard).expect("JSON"));
    for text in [rules.expressions(), dashboard] {
        let unknown: Vec<_> = named(&text).into_iter().filter(|name| !told.contains(name)).collect();
        assert_eq!(unknown, Vec::<String>::new(), "no operator tells these");
    }

    let folder = cluster.system.testbed().run().folder("alerts").expect("a folder");
    promtool::check(&folder, &rules, &panels, &cases, &standby).await;
}

/// All that the panels of a dashboard ask Prometheus.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect()
}
