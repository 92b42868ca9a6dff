//! Tokens that are signed here, in the place of the controller manager.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::error::Error;

/// A JSON web token with these claims, signed with the key in a PEM file.
pub(super) fn signed(key: &Path, claims: &Value) -> Result<String, Error> {
    let unusable = |why: String| Error::path("could not sign with", key)(std::io::Error::other(why));
    let der = PrivatePkcs8KeyDer::from_pem_file(key).map_err(|error| unusable(error.to_string()))?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der());
    let pair = pair.map_err(|error| unusable(error.to_string()))?;
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({ "alg": "ES256", "typ": "JWT" })), part(claims));
    let signature = pair.sign(&SystemRandom::new(), text.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
