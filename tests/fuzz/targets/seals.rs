//! Seals and receipts, a line each: a public key, a seal, a receipt, the mark of an answer, its message. The words `PUBLIC`, `SEALED`,
//! `RECEIPT` and `MARK` stand for what was really made, so that seeds can hold what differs in every run.

use crate::{presentable, text};
use secrecy::ExposeSecret;
use std::sync::LazyLock;
use vault_token_operator::seal::{OneTimeKey, Receipt, Subject, is_public_key, seal};
use vault_token_operator::wire::{Answer, Outcome, Parcel};

const SUBJECT: Subject<'_> = Subject { request_uid: "request", pod_uid: "pod", attempt: 1 };
const WRAPPING_TOKEN: &str = "hvs.EXAMPLE";

static KEY: LazyLock<OneTimeKey> = LazyLock::new(|| OneTimeKey::generate().expect("a key"));
static RECEIPT: LazyLock<Receipt> = LazyLock::new(|| Receipt::generate().expect("a receipt"));
static SEALED: LazyLock<String> = LazyLock::new(|| seal(KEY.public(), SUBJECT, &parcel()).expect("sealed"));

fn parcel() -> Parcel {
    Parcel {
        wrapping_token: WRAPPING_TOKEN.into(),
        creation_path: "auth/token/create/role".to_owned(),
        receipt: RECEIPT.encoded().into(),
    }
}

fn stored(message: &str, mac: String) -> Answer {
    Answer { attempt: 1, outcome: Outcome::Stored, message: message.to_owned(), refused: 0, mac }
}

pub fn hold(input: &[u8]) {
    let text = text(input);
    let mut lines = text.splitn(5, '\n').chain(std::iter::repeat(""));
    let mut line = |word: &str, real: &str| lines.next().unwrap_or_default().replace(word, real);
    sealed_to(&line("PUBLIC", KEY.public()));
    opened(&line("SEALED", &SEALED));
    decoded(&line("RECEIPT", &RECEIPT.encoded()));
    let mark = RECEIPT.sign(SUBJECT, stored("", String::new())).mac;
    let (mac, message) = (line("MARK", &mark), line("", ""));
    confirmed(mac, &message);
}

/// What is sealed to a key is opened by it, for the same subject only; what is no key is refused in words.
fn sealed_to(public: &str) {
    match seal(public, SUBJECT, &parcel()) {
        Ok(sealed) => {
            assert!(is_public_key(public), "{public}");
            let opened = KEY.open(&sealed, SUBJECT).is_some();
            assert_eq!(opened, public == KEY.public(), "{public}");
            assert!(KEY.open(&sealed, Subject { attempt: 2, ..SUBJECT }).is_none());
        }
        Err(message) => presentable(&message, 100),
    }
}

/// Nothing is opened but what was sealed.
fn opened(sealed: &str) {
    let parcel = KEY.open(sealed, SUBJECT);
    assert_eq!(parcel.is_some(), sealed == *SEALED, "{sealed}");
    assert!(parcel.is_none_or(|parcel| parcel.wrapping_token.expose_secret() == WRAPPING_TOKEN));
}

/// A receipt is read as what was written, and confirms what it marked.
fn decoded(text: &str) {
    if let Some(receipt) = Receipt::decode(text) {
        assert_eq!(receipt.encoded(), text);
        let answer = receipt.sign(SUBJECT, stored("", String::new()));
        assert!(receipt.confirms(SUBJECT, &answer));
        assert_eq!(RECEIPT.confirms(SUBJECT, &answer), text == RECEIPT.encoded());
    }
}

/// No mark is good for any answer but the one that it was made for.
fn confirmed(mac: String, message: &str) {
    let signed = RECEIPT.sign(SUBJECT, stored(message, String::new()));
    assert!(RECEIPT.confirms(SUBJECT, &signed));
    let genuine = signed.mac == mac;
    assert_eq!(RECEIPT.confirms(SUBJECT, &stored(message, mac)), genuine, "{message:?}");
}
