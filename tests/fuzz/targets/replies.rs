//! What answers in Vault's place: an HTTP status, a space, and the body.

use crate::{presentable, text};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use std::fmt::Debug;
use std::time::Duration;
use vault_token_operator::domain::token::Qualities;
use vault_token_operator::vault::{Answer, Error, Proof};

/// Longest message about an answer: what Vault said, on one line, and which call it answered.
const LONGEST: usize = 256 + 200;

const PATH: &str = "auth/token/create/role";

/// The token that the call was made with, which does not look like one.
const SENT: &str = "SENT";

pub fn hold(input: &[u8]) {
    let Some(space) = input.iter().position(|byte| *byte == b' ') else { return };
    let Ok(status) = text(&input[..space]).parse::<u16>() else { return };
    let body = &input[space + 1..];
    let proof = Proof::of(Some(&SENT.into()), b"");
    let read = || secretive(Answer::read(status, PATH, &proof, body.to_vec()));
    assert_eq!(read().is_some(), (200..300).contains(&status));
    let Some(answer) = read() else { return };
    assert_eq!(answer.bytes(), body);

    let sent = Timestamp::UNIX_EPOCH;
    if let Some(minted) = secretive(answer.minted(sent)) {
        assert!(!minted.wrapping_token.expose_secret().is_empty() && !minted.wrapping_accessor.is_empty());
        assert!(minted.wrapping_expires_at >= sent);
    }
    if let Some(info) = secretive(answer.token_info())
        && let Some(fault) = info.qualities().fault(&Qualities::ordered(&[], Duration::from_secs(60)))
    {
        presentable(&fault, LONGEST);
    }
    assert!(secretive(answer.renewed(sent)).is_none_or(|ends| ends >= sent));
    // Nothing but an object can be Vault's.
    let acknowledged = secretive(answer.acknowledged()).is_some();
    assert!(!acknowledged || body.is_empty() || body.trim_ascii_start().starts_with(b"{"), "{}", text(body));
    if let Some(lease) = secretive(answer.lease()) {
        assert!(!lease.token.expose_secret().is_empty());
    }
    secretive(answer.lease_of("hvs.EXAMPLE".into()));
    secretive(answer.accessors());
    secretive(answer.wrapping_info());
    if let Some(unwrapped) = secretive(answer.unwrapped()) {
        assert!(!unwrapped.token.expose_secret().is_empty() && !unwrapped.accessor.is_empty());
        assert_eq!(unwrapped.answer.bytes(), body);
    }
}

/// I9: an error can be shown, and has nothing in it that could be a token.
fn secretive<T: Debug>(outcome: Result<T, Error>) -> Option<T> {
    let error = match outcome {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let message = error.to_string();
    presentable(&message, LONGEST);
    for shown in [message, format!("{error:?}")] {
        let words = shown.split(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)));
        assert_eq!(words.into_iter().find(|word| could_be_a_token(word)), None, "{shown}");
        assert!(!shown.contains(SENT), "{shown}");
    }
    None
}

/// Vault's tokens, those of older versions and of OpenBao, and JWTs.
fn could_be_a_token(word: &str) -> bool {
    let goes_on = |prefix: &str, more: &str| {
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || more.as_bytes().contains(byte);
        word.strip_prefix(prefix).is_some_and(|rest| rest.bytes().take_while(fits).count() >= 24)
    };
    ["hvs.", "hvb.", "hvr.", "eyJ"].into_iter().any(|prefix| goes_on(prefix, "_-"))
        || ["s.", "b.", "r."].into_iter().any(|prefix| goes_on(prefix, ""))
}
