//! docs/reasons.md, held against the one list of reasons.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use vault_token_operator::api::{BindingReason, Reason};

#[test]
fn each_reason_says_what_it_means_and_who_must_do_what() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reasons.md");
    let text = std::fs::read_to_string(path).expect("the page");
    let sections: Vec<(&str, &str)> = text
        .split("\n### ")
        .skip(1)
        .map(|section| section.split_once('\n').expect("a section"))
        .map(|(name, rest)| (name, rest.split("\n## ").next().expect("a part").trim()))
        .collect();
    let requests = Reason::ALL.iter().map(|reason| reason.as_str());
    let known: BTreeSet<&str> = requests.chain(BindingReason::ALL.iter().map(|reason| reason.as_str())).collect();
    let described: BTreeSet<&str> = sections.iter().map(|(name, _)| *name).collect();
    assert_eq!(described, known);
    assert_eq!(sections.len(), known.len(), "each has one section");
    for (name, section) in sections {
        let (meaning, todo) = section.split_once("\n\n").expect("what it means, and what to do");
        assert!(meaning.len() > 10, "{name}: {meaning}");
        let who = ["**Nobody**", "**Owner**", "**Administrator**", "**Vault's administrator**"];
        let does = who.iter().find_map(|who| todo.strip_prefix(who));
        let nobody = todo.starts_with(who[0]);
        assert!(does.is_some_and(|does| nobody || does.trim().len() > 15), "{name}: {todo}");
    }
}

/// Elsewhere they are named by hand.
#[test]
fn whoever_names_a_reason_names_one_that_there_is() {
    let read = |file: &str| {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("a file")
    };
    let mut named = Vec::new();
    for file in ["config/monitoring/rules.yaml", "config/monitoring/dashboard.json", "docs/alerts.md"] {
        let text = read(file).replace("\\\"", "\"");
        for begins in ["reason=\"", "reason=~\"", "reason!=\"", "reason!~\""] {
            let selectors = text.split(begins).skip(1).filter_map(|rest| rest.split('"').next());
            named.extend(selectors.flat_map(|names| names.split('|')).map(str::to_owned));
        }
        let searched = text.split("grep ").skip(1).filter_map(|rest| rest.split([' ', '`', '\n']).next());
        // Some look for a phase.
        let searched =
            searched.filter(|word| word.starts_with(char::is_uppercase) && !["Failed", "Denied"].contains(word));
        named.extend(searched.map(str::to_owned));
    }
    let readme = read("README.md");
    let (_, table) = readme.split_once("| reason | what to do |\n").expect("a table");
    let rows = table.split("\n\n").next().expect("its rows").lines().skip(1);
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    named.extend(cells.flat_map(|cell| cell.split(", ")).map(|name| name.trim().trim_matches('`').to_owned()));
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        assert!(Reason::parse(&name).is_some(), "{name} is no reason");
    }
}
