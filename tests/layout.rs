//! The layers of ARCHITECTURE.md, held against the source.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;

/// Lines of the Rust files below `folder` that are no comments, with where they stand.
fn lines(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
    let mut found = Vec::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&entry).expect("a file");
                let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
                found.extend(code.map(|(at, line)| (format!("{}:{}", entry.display(), at + 1), line.to_owned())));
            }
        }
    }
    assert!(!found.is_empty(), "there is nothing in {folder}");
    found
}

fn must_not_have(folder: &str, forbidden: &[&str]) {
    for (place, line) in lines(folder) {
        for word in forbidden {
            assert!(!line.contains(word), "{place}: {word} has no place in {folder}: {line}");
        }
    }
}

#[test]
fn the_domain_does_no_io_and_has_neither_clock_nor_chance() {
    must_not_have(
        "domain",
        &[
            "tokio",
            "reqwest",
            "hyper",
            "vaultrs",
            "kube::",
            "std::fs",
            "std::io",
            "std::net::Tcp",
            "std::process",
            "std::env",
            "::now()",
            "SystemTime",
            "Instant",
            "rand::",
            "tracing",
            "crate::vault",
            "crate::operator",
            "crate::init",
            "crate::cluster",
        ],
    );
}

#[test]
fn dependencies_go_one_way() {
    must_not_have("api", &["crate::domain", "crate::vault", "crate::operator", "crate::init", "crate::cluster"]);
    must_not_have("vault", &["crate::operator", "crate::init", "crate::cluster", "kube::"]);
    must_not_have("init", &["crate::operator"]);
    must_not_have("operator", &["crate::init"]);
}

#[test]
fn i9_no_error_or_secret_is_logged_by_its_debug_form() {
    for folder in ["operator", "init", "vault"] {
        must_not_have(folder, &["?error", "{error:?}", "expose_secret(), \""]);
    }
}
