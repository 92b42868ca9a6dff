//! What Vault answers, or whoever answers in its place: success told from failure, and nothing printed that could be a token.

use super::error::{Error, WORDLESS};
use crate::text::one_line;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::Deserialize;

/// Characters without a meaning that a token has at least behind its prefix.
const MIN_RANDOM: usize = 24;

/// What stands in the place of a secret.
const HIDDEN: &str = "(hidden)";

/// The body of an answer. It may hold tokens, so it cannot be printed and is zeroed when dropped.
///
/// What is read of an answer stands with the call that it answers: pure functions, which can be tried with any bytes.
#[derive(Debug)]
pub struct Answer(SecretSlice<u8>);

/// What a call shows to prove who makes it. No word of its answer is to show it again.
#[derive(Debug, Default, Deserialize)]
pub struct Proof {
    #[serde(skip)]
    header: Option<SecretString>,
    jwt: Option<SecretString>,
    secret_id: Option<SecretString>,
    token: Option<SecretString>,
}

impl Proof {
    /// That of a call with this token in its header and this body.
    pub fn of(header: Option<&SecretString>, body: &[u8]) -> Self {
        Self { header: header.cloned(), ..serde_json::from_slice(body).unwrap_or_default() }
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        let parts = [&self.header, &self.jwt, &self.secret_id, &self.token].into_iter().flatten();
        parts.map(|part| part.expose_secret()).filter(|part| !part.is_empty())
    }
}

impl Answer {
    /// Takes the status and the whole body of what was answered to a call of this path.
    ///
    /// # Errors
    /// Whatever is no answer of success.
    pub fn read(status: u16, path: &str, proof: &Proof, body: Vec<u8>) -> Result<Self, Error> {
        match status {
            200..300 => Ok(Self(body.into())),
            401 | 403 => {
                let path = path.trim_start_matches('/').to_owned();
                Err(Error::Forbidden { path, messages: messages(&body, proof) })
            }
            status => Err(Error::Answered { status, messages: messages(&body, proof) }),
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
fn messages(body: &[u8], proof: &Proof) -> String {
    #[derive(Deserialize)]
    struct Failure {
        #[serde(default)]
        errors: Vec<String>,
    }
    match serde_json::from_slice::<Failure>(body) {
        Ok(failure) if failure.errors.iter().any(|error| !error.trim().is_empty()) => {
            one_line(&hidden(&failure.errors.join("; "), proof))
        }
        _ => WORDLESS.to_owned(),
    }
}

/// I9: the text without what was sent, and without the words that could hold another token. Neither Vault nor a proxy should repeat
/// any; nobody knows that none does.
fn hidden(text: &str, proof: &Proof) -> String {
    without_tokens(&proof.parts().fold(text.to_owned(), |text, part| text.replace(part, HIDDEN)))
}

fn without_tokens(text: &str) -> String {
    let of_a_word = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(|c| !of_a_word(c)).unwrap_or(rest.len()));
        let (between, next) = after.split_at(after.find(of_a_word).unwrap_or(after.len()));
        shown.push_str(if holds_a_token(word) { HIDDEN } else { word });
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
        Answer::read(400, "/sys/wrapping/unwrap", &Proof::default(), body).expect_err("a failure").to_string()
    }

    #[test]
    fn i8_a_list_is_no_answer_of_vaults() {
        let read =
            |body: &str| Answer::read(200, "/auth/token/revoke-accessor", &Proof::default(), body.as_bytes().to_vec());
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
    fn i9_what_was_sent_is_hidden_whatever_it_looks_like() {
        let header = "my own token".into();
        for (header, sent) in [
            (None, r#"{"role_id": "r", "secret_id": "84896a0c-1347-aa90"}"#),
            (None, r#"{"role": "r", "jwt": "84896a0c-1347-aa90"}"#),
            (None, r#"{"token": "84896a0c-1347-aa90"}"#),
            (Some(&header), r#"{"token": "84896a0c-1347-aa90", "policies": ["shop-read"]}"#),
            (Some(&header), "no JSON"),
        ] {
            let said = "r shop-read: 84896a0c-1347-aa90 of \"my own token\"";
            let body = serde_json::json!({ "errors": [said] }).to_string().into_bytes();
            let error =
                Answer::read(400, "", &Proof::of(header, sent.as_bytes()), body).expect_err("a failure").to_string();
            assert_eq!(error.contains("84896a0c"), sent == "no JSON", "{error}");
            assert_eq!(error.contains("my own token"), header.is_none(), "{error}");
            assert!(error.contains("r shop-read: "), "{error}");
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
