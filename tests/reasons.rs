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
        assert!(who.iter().any(|who| todo.starts_with(who)), "{name}: {todo}");
    }
}
