//! Prometheus' own tool, which checks and tests rules.

use super::samples::{Case, Scrape};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use testbed::components::{self, Component};
use testbed::process;
use testbed::settings::Settings;
use vault_token_operator::yaml;

const LIMIT: Duration = Duration::from_secs(120);

/// The rules of `config/monitoring/`.
pub struct Rules(Value);

impl Rules {
    pub fn read() -> Self {
        let path = testbed::project::root().join("config/monitoring/rules.yaml");
        let documents = yaml::documents(&std::fs::read_to_string(path).expect("a file")).expect("YAML");
        Self(documents[0]["spec"].clone())
    }

    fn rules(&self) -> impl Iterator<Item = &Value> {
        let groups = self.0["groups"].as_array().expect("groups");
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules"))
    }

    /// The names of the alerts, each of which says what to do, and is in `docs/alerts.md`.
    pub fn alerts(&self) -> BTreeSet<&str> {
        let docs = testbed::project::root().join("docs/alerts.md");
        let docs = std::fs::read_to_string(docs).expect("a file");
        for rule in self.rules() {
            let name = rule["alert"].as_str().expect("a name");
            let annotation = |name: &str| rule["annotations"][name].as_str().unwrap_or_default();
            assert!(!annotation("summary").is_empty() && annotation("description").contains('`'), "{name}");
            assert_eq!(annotation("runbook"), format!("docs/alerts.md#{}", name.to_lowercase()));
            assert!(docs.contains(&format!("\n### {name}\n")), "docs/alerts.md says nothing of {name}");
        }
        self.rules().filter_map(|rule| rule["alert"].as_str()).collect()
    }

    /// What the alerts look at.
    pub fn expressions(&self) -> String {
        self.rules().filter_map(|rule| rule["expr"].as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// Checks the rules and the expressions of the dashboard's panels, and that of each case just those alerts fire that should.
pub async fn check(folder: &Path, rules: &Rules, panels: &[String], cases: &[Case], standby: &Scrape) {
    let settings = Settings::from_env().expect("settings");
    let obtained = tokio::task::spawn_blocking(move || components::obtain(Component::Promtool, &settings)).await;
    let promtool = obtained.expect("no panic").expect("promtool").path;
    let tests: Vec<_> = cases.iter().map(|case| case.test(standby)).collect();
    let tests = json!({ "rule_files": ["rules.json"], "evaluation_interval": "30s", "tests": tests });
    // Grafana puts a duration there. As rules, each under a name, they can be checked as rules are.
    let panels = panels.iter().map(|expression| expression.replace("$__rate_interval", "5m")).enumerate();
    let panels: Vec<_> = panels.map(|(n, expr)| json!({ "record": format!("panel:{n}"), "expr": expr })).collect();
    let panels = json!({ "groups": [{ "name": "dashboard", "rules": panels }] });
    for (name, content) in [("rules.json", &rules.0), ("tests.json", &tests), ("panels.json", &panels)] {
        std::fs::write(folder.join(name), content.to_string()).expect("written");
    }
    for arguments in [
        ["check", "rules", "--lint-fatal", "rules.json"].as_slice(),
        &["check", "rules", "panels.json"],
        &["test", "rules", "tests.json"],
    ] {
        let mut command = process::clean_command(&promtool, folder).expect("a command");
        command.args(arguments).current_dir(folder);
        let output = process::capture("promtool", command, folder, LIMIT).await.expect("promtool runs");
        assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    }
}
