//! What comes from outside, thrown at the code that meets it first. Each target says more than that nothing panics: what must
//! hold of whatever is read, and of the words for what is not.
//!
//! `cargo test` tries what `__fuzz__/` keeps of each target, and a thousand random inputs; `just fuzz` searches, guided by coverage,
//! and leaves what it finds there.

#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod annotations;
mod answers;
mod connection;
mod durations;
mod globs;
mod push;
mod replies;
mod seals;

use std::borrow::Cow;

#[test]
fn annotations() {
    bolero::check!().for_each(annotations::hold);
}

#[test]
fn answers() {
    bolero::check!().for_each(answers::hold);
}

#[test]
fn connection() {
    bolero::check!().for_each(connection::hold);
}

#[test]
fn durations() {
    bolero::check!().for_each(durations::hold);
}

#[test]
fn globs() {
    bolero::check!().for_each(globs::hold);
}

#[test]
fn push() {
    bolero::check!().for_each(push::hold);
}

#[test]
fn replies() {
    bolero::check!().for_each(replies::hold);
}

#[test]
fn seals() {
    bolero::check!().for_each(seals::hold);
}

/// The input as text, whatever it is.
fn text(input: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(input)
}

/// A message can be shown anywhere: it is one line, steers no terminal, and has so many characters at most.
fn presentable(message: &str, longest: usize) {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!message.contains(steers), "{message:?}");
    let length = message.chars().count();
    assert!(length <= longest, "{length} characters: {message:?}");
}
