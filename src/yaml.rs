//! YAML, as people write manifests.

use serde::Serialize;
use serde::de::Deserialize;
use serde_json::Value;

/// The documents of a file, the empty ones left out.
///
/// # Errors
/// What the parser says.
pub fn documents(text: &str) -> Result<Vec<Value>, String> {
    let documents = serde_yaml::Deserializer::from_str(text).map(|document| {
        Value::deserialize(document).map_err(|error| format!("it is no YAML of a Kubernetes object: {error}"))
    });
    documents.filter(|document| document.as_ref() != Ok(&Value::Null)).collect()
}

/// One document.
///
/// # Errors
/// When the value has no form in YAML.
pub fn document(value: &impl Serialize) -> Result<String, String> {
    let text = serde_yaml::to_string(value).map_err(|error| format!("cannot write YAML: {error}"))?;
    Ok(format!("---\n{text}"))
}
