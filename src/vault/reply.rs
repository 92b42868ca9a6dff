//! What Vault answers, or whoever answers in its place: success told from failure, and nothing printed that could be a token.

use super::error::{Error, WORDLESS};
use crate::text::one_line;
use secrecy::{ExposeSecret, SecretSlice};
use serde::Deserialize;

/// Characters without a meaning that a token has at least behind its prefix.
const MIN_RANDOM: usize = 24;

/// The body of an answer. It may hold tokens, so it cannot be printed and is zeroed when dropped.
///
/// What is read of an answer stands with the call that it answers: pure functions, which can be tried with any bytes.
#[derive(Debug)]
pub struct Answer(SecretSlice<u8>);

impl Answer {
    /// Takes the status and the whole body of what was answered to a call of this path.
    ///
    /// # Errors
    /// Whatever is no answer of success.
    pub fn read(status: u16, path: &str, body: Vec<u8>) -> Result<Self, Error> {
        match status {
            200..300 => Ok(Self(body.into())),
            401 | 403 => {
                Err(Error::Forbidden { path: path.trim_start_matches('/').to_owned(), messages: messages(&body) })
            }
            status => Err(Error::Answered { status, messages: messages(&body) }),
        }
    }

    /// Reads the answer as JSON.
    ///
    /// # Errors
    /// [`Error::Malformed`], without a word of the body: a parser's message quotes what it could not read.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Error> {
        let unusable = Error::Malformed("it is not the JSON it should be");
        // A list would be read, too, as the fields in their order; Vault never answers with one.
        if !self.bytes().trim_ascii_start().starts_with(b"{") {
            return Err(unusable);
        }
        serde_json::from_slice(self.bytes()).map_err(|_| unusable)
    }

    /// The bytes as Vault sent them.
    pub fn bytes(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

/// Vault's own words out of an answer of failure (`{"errors": [...]}`).
fn messages(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Failure {
        #[serde(default)]
        errors: Vec<String>,
    }
    match serde_json::from_slice::<Failure>(body) {
        Ok(failure) if failure.errors.iter().any(|error| !error.trim().is_empty()) => {
            one_line(&without_tokens(&failure.errors.join("; ")))
        }
        _ => WORDLESS.to_owned(),
    }
}

/// I9: the text without the words that could hold a token. Neither Vault nor a proxy should repeat what was sent to it; nobody
/// knows that none does.
fn without_tokens(text: &str) -> String {
    let of_a_word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(|c| !of_a_word(c)).unwrap_or(rest.len()));
        let (between, next) = after.split_at(after.find(of_a_word).unwrap_or(after.len()));
        shown.push_str(if holds_a_token(word) { "(hidden)" } else { word });
        shown.push_str(between);
        rest = next;
    }
    shown
}

/// Whether there is something in the word that looks like a token of Vault's, of an older one's, of OpenBao's, or like a JWT.
fn holds_a_token(word: &str) -> bool {
    let found = |prefix: &str, more: &str, boundary: bool| {
        word.match_indices(prefix).any(|(at, _)| {
            let random = |byte: &u8| byte.is_ascii_alphanumeric() || more.as_bytes().contains(byte);
            let begins = !boundary || !word[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
            begins && word[at + prefix.len()..].bytes().take_while(random).count() >= MIN_RANDOM
        })
    };
    ["hvs.", "hvb.", "hvr.", "eyJ"].into_iter().any(|prefix| found(prefix, "_-", false))
        // Names of hosts and packages have such parts, too, but with words before them.
        || ["s.", "b.", "r."].into_iter().any(|prefix| found(prefix, "", true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(said: &str) -> String {
        let body = serde_json::json!({ "errors": [said] }).to_string().into_bytes();
        Answer::read(400, "/sys/wrapping/unwrap", body).expect_err("a failure").to_string()
    }

    #[test]
    fn i8_a_list_is_no_answer_of_vaults() {
        let read = |body: &str| Answer::read(200, "/auth/token/revoke-accessor", body.as_bytes().to_vec());
        let acknowledged = |body: &str| read(body).and_then(|answer| answer.acknowledged());
        assert!(acknowledged(" {\"request_id\": \"x\"}").is_ok());
        for other in ["[\"x\"]", " [\"x\"]", "\"x\"", "{}", "<html>"] {
            assert!(acknowledged(other).is_err(), "{other}");
        }
    }

    #[test]
    fn i9_a_token_that_an_error_repeats_is_hidden() {
        for token in [
            "hvs.CAESIEXAMPLEexampleEXAMPLE-_example",
            "hvb.AAAAAQEXAMPLEexampleEXAMPLE",
            "hvr.EXAMPLEexampleEXAMPLEexample",
            "s.EXAMPLEexampleEXAMPLEexam",
            "s.EXAMPLEexampleEXAMPLEexam.a1B2c",
            "eyJhbGciOiJSUzI1NiIsImtpZCI6IkVYQU1QTEUifQ.eyJpc3MiOiJFWEFNUExFIn0.RVhBTVBMRQ",
        ] {
            for said in [token.to_owned(), format!("token={token}: no"), format!("a \"x_{token}\"\n")] {
                let message = failure(&said);
                assert!(!message.contains("EXAMPLE") && !message.contains("eyJ"), "{message}");
                assert!(message.contains("(hidden)"), "{message}");
            }
        }
    }

    #[test]
    fn vaults_own_words_stay_as_they_are() {
        for said in [
            "1 error occurred:  * invalid accessor",
            "token not found",
            "dial tcp: lookup vaults.kubernetesserviceaccounttokens.example.com: no such host",
            "service account name not authorized; permission denied on hvs.",
        ] {
            assert_eq!(failure(said), format!("Vault answered 400: {said}"));
        }
    }
}
