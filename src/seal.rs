//! What operator and init container say so that nobody between them can read, use or make up any of it: a seal that only the
//! request's one-time key opens (HPKE, RFC 9180), and a receipt by which only who opened it can answer (HMAC, RFC 2104).

use crate::wire::{Answer, Parcel};
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use secrecy::{ExposeSecret, SecretSlice};
use serde_json::json;
use zeroize::Zeroizing;

/// Sets these seals apart from whatever else uses the same algorithms (RFC 9180, "info").
const INFO: &[u8] = b"vault-token-operator wrapping token v1";

/// Length of an X25519 public key, and of what a seal begins with, in bytes.
const KEY: usize = 32;

/// Length of a receipt, in bytes: as long as the output of its hash function.
const RECEIPT: usize = 32;

/// What a seal and a receipt are about. They are good for nothing else: not for another request, attempt or pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// UID of the request.
    pub request_uid: &'a str,
    /// UID of its pod.
    pub pod_uid: &'a str,
    /// Number of the attempt.
    pub attempt: u32,
}

impl Subject<'_> {
    /// The same bytes for the same subject, and others for any other.
    fn bytes(&self) -> Vec<u8> {
        let Self { request_uid, pod_uid, attempt } = self;
        // A string of JSON cannot run into the next one.
        json!([request_uid, pod_uid, attempt]).to_string().into_bytes()
    }
}

/// The key of one request. Its private half never leaves this process, cannot be printed, and is zeroed when dropped.
pub struct OneTimeKey {
    public: String,
    private: HpkePrivateKey,
}

impl OneTimeKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// When the operating system has no random numbers.
    pub fn generate() -> Result<Self, String> {
        let pair = SUITE.generate_key_pair().map_err(|_| "cannot make a key pair")?;
        let (HpkePublicKey(public), private) = pair;
        Ok(Self { public: STANDARD.encode(public), private })
    }

    /// The public half, as it stands in `spec.publicKey`: 32 bytes in base64 (RFC 4648, section 4).
    pub fn public(&self) -> &str {
        &self.public
    }

    /// Opens a seal; `None` if it was not made for this key and this subject, or was changed on its way.
    pub fn open(&self, sealed: &str, subject: Subject<'_>) -> Option<Parcel> {
        let bytes = STANDARD.decode(sealed).ok()?;
        let (key, content) = bytes.split_at_checked(KEY)?;
        let key = EncapsulatedSecret(key.to_vec());
        let content = SUITE.open(&key, INFO, &subject.bytes(), content, &self.private).ok().map(Zeroizing::new)?;
        serde_json::from_slice(&content).ok()
    }
}

/// Whether this can be the public half of a key. Some values of this length give no secret, and nothing can be sealed to them; whoever
/// makes a request with one has his attempts end like those of a pod that does not listen.
pub fn is_public_key(text: &str) -> bool {
    STANDARD.decode(text).is_ok_and(|key| key.len() == KEY)
}

/// Seals a parcel to a request's public key.
///
/// # Errors
/// When nothing can be sealed to that key.
pub fn seal(public: &str, subject: Subject<'_>, parcel: &Parcel) -> Result<String, String> {
    let unusable = |_| "nothing can be sealed to the request's publicKey".to_owned();
    let key = HpkePublicKey(STANDARD.decode(public).map_err(|error| unusable(error.to_string()))?);
    let content = serde_json::to_vec(parcel).map(Zeroizing::new).map_err(|error| unusable(error.to_string()))?;
    let sealed = SUITE.seal(INFO, &subject.bytes(), &content, &key).map_err(|error| unusable(error.to_string()));
    let (EncapsulatedSecret(mut bytes), content) = sealed?;
    bytes.extend(content);
    Ok(STANDARD.encode(bytes))
}

/// A secret that is in a seal beside the wrapping token. Only who opened the seal can answer under it.
#[derive(Clone, Debug)]
pub struct Receipt(SecretSlice<u8>);

impl Receipt {
    /// A new one.
    ///
    /// # Errors
    /// When the operating system has no random numbers.
    pub fn generate() -> Result<Self, String> {
        let mut bytes = Zeroizing::new([0; RECEIPT]);
        rand::fill(&mut *bytes).map_err(|_| "the operating system has no random numbers")?;
        Ok(Self(bytes.to_vec().into()))
    }

    /// The receipt as it stands in a parcel.
    pub fn encoded(&self) -> String {
        STANDARD.encode(self.0.expose_secret())
    }

    /// Reads what [`Receipt::encoded`] wrote; `None` if it is no receipt.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() == RECEIPT)?;
        Some(Self(bytes.into()))
    }

    /// Puts the receipt's mark on an answer.
    pub fn sign(&self, subject: Subject<'_>, answer: Answer) -> Answer {
        let mac = STANDARD.encode(hmac::sign(&self.key(), &said(subject, &answer)));
        Answer { mac, ..answer }
    }

    /// Whether an answer about this subject comes from who opened the seal, and says what that one said.
    pub fn confirms(&self, subject: Subject<'_>, answer: &Answer) -> bool {
        let Ok(mac) = STANDARD.decode(&answer.mac) else { return false };
        hmac::verify(&self.key(), &said(subject, answer), &mac).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.expose_secret())
    }
}

/// All that an answer says, but for its mark.
fn said(subject: Subject<'_>, answer: &Answer) -> Vec<u8> {
    let Answer { attempt, outcome, message, refused, mac: _ } = answer;
    let mut bytes = subject.bytes();
    bytes.extend(json!([attempt, outcome, message, refused]).to_string().into_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Outcome;
    use std::os::unix::fs::FileExt;

    const SUBJECT: Subject<'_> = Subject { request_uid: "r", pod_uid: "p", attempt: 1 };

    fn parcel(receipt: &Receipt) -> Parcel {
        Parcel {
            wrapping_token: "hvs.secret".into(),
            creation_path: "auth/token/create/x".to_owned(),
            receipt: receipt.encoded().into(),
        }
    }

    #[test]
    fn i5_only_the_requests_own_key_opens_a_seal_and_only_for_its_subject() {
        let (key, another) = (OneTimeKey::generate().expect("a key"), OneTimeKey::generate().expect("a key"));
        let receipt = Receipt::generate().expect("a receipt");
        assert!(is_public_key(key.public()) && !is_public_key("AAAA"));
        let sealed = seal(key.public(), SUBJECT, &parcel(&receipt)).expect("sealed");
        assert!(!sealed.contains("hvs"));
        let opened = key.open(&sealed, SUBJECT).expect("opened");
        assert_eq!(opened.wrapping_token.expose_secret(), "hvs.secret");
        assert!(another.open(&sealed, SUBJECT).is_none(), "another key");
        for other in [
            Subject { request_uid: "s", ..SUBJECT },
            Subject { pod_uid: "q", ..SUBJECT },
            Subject { attempt: 2, ..SUBJECT },
        ] {
            assert!(key.open(&sealed, other).is_none(), "{other:?}");
        }
        let mut changed = STANDARD.decode(&sealed).expect("base64");
        for place in [0, KEY - 1, KEY, changed.len() - 1] {
            changed[place] ^= 1;
            assert!(key.open(&STANDARD.encode(&changed), SUBJECT).is_none(), "changed at {place}");
            changed[place] ^= 1;
        }
        for nonsense in ["", "!", "AAAA", &sealed[..40]] {
            assert!(key.open(nonsense, SUBJECT).is_none(), "{nonsense}");
        }
    }

    /// Whether the bytes that give these when each is inverted are anywhere in what this process can write to. They are not held as they
    /// are: what looks for them would find itself.
    fn is_in_memory(inverted: &[u8]) -> bool {
        const CHUNK: usize = 1 << 20;
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the process' memory");
        let memory = std::fs::File::open("/proc/self/mem").expect("the process' memory");
        let mut chunk = Zeroizing::new(vec![0; CHUNK + inverted.len()]);
        maps.lines().filter(|line| line.contains(" rw")).any(|line| {
            let (from, to) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
            let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).expect("an address"));
            (from..to).step_by(CHUNK).any(|at| {
                let wanted = chunk.len().min(usize::try_from(to - at).expect("a size"));
                // What another thread gives back meanwhile is not there any more.
                let read = memory.read_at(&mut chunk[..wanted], at).unwrap_or(0);
                let mut places = chunk[..read].windows(inverted.len());
                places.any(|place| place.iter().zip(inverted).all(|(byte, inverted)| *byte == !*inverted))
            })
        })
    }

    #[test]
    fn i5_a_private_key_is_nowhere_in_memory_once_it_is_dropped() {
        let key = OneTimeKey::generate().expect("a key");
        let receipt = Receipt::generate().expect("a receipt");
        let sealed = seal(key.public(), SUBJECT, &parcel(&receipt)).expect("sealed");
        assert!(key.open(&sealed, SUBJECT).is_some());
        let inverted: Vec<u8> = key.private.secret_bytes().iter().map(|byte| !byte).collect();
        assert!(is_in_memory(&inverted), "it is there as long as it is needed");
        drop(key);
        assert!(!is_in_memory(&inverted));
    }

    #[test]
    fn keys_that_are_none_are_refused_in_words() {
        let receipt = Receipt::generate().expect("a receipt");
        for key in ["", "AAAA", "not base64", &STANDARD.encode([0; KEY])] {
            let error = seal(key, SUBJECT, &parcel(&receipt)).expect_err(key);
            assert!(error.contains("publicKey"), "{error}");
        }
    }

    #[test]
    fn an_answer_is_confirmed_word_for_word() {
        let (receipt, another) = (Receipt::generate().expect("a receipt"), Receipt::generate().expect("a receipt"));
        let receipt = Receipt::decode(&receipt.encoded()).expect("the same");
        let plain =
            Answer { attempt: 1, outcome: Outcome::Stored, message: "m".to_owned(), refused: 0, mac: String::new() };
        assert!(!receipt.confirms(SUBJECT, &plain), "without a mark");
        let signed = receipt.sign(SUBJECT, plain);
        assert!(receipt.confirms(SUBJECT, &signed));
        assert!(!another.confirms(SUBJECT, &signed), "another receipt");
        assert!(!receipt.confirms(Subject { attempt: 2, ..SUBJECT }, &signed), "another attempt");
        let changes: [fn(&mut Answer); 4] = [
            |answer| answer.outcome = Outcome::Intercepted,
            |answer| answer.message.push('!'),
            |answer| answer.refused = 1,
            |answer| answer.mac = "AAAA".to_owned(),
        ];
        for change in changes {
            let mut changed = signed.clone();
            change(&mut changed);
            assert!(!receipt.confirms(SUBJECT, &changed), "{changed:?}");
        }
    }

    #[test]
    fn i9_neither_keys_nor_receipts_can_be_printed() {
        let receipt = Receipt::generate().expect("a receipt");
        let printed = format!("{receipt:?} {:?}", parcel(&receipt));
        assert!(!printed.contains(&receipt.encoded()) && !printed.contains("hvs.secret"), "{printed}");
    }
}
