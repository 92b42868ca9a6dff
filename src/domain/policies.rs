//! The annotation `vaultproject.io/policies`: a list of Vault policy names.

use crate::text::quote;

/// How many policies one token may have.
pub const MAX_POLICIES: usize = 32;

/// Longest policy name, in characters.
pub const MAX_POLICY_NAME: usize = 128;

/// How many faults of one annotation a message lists.
const MAX_FAULTS: usize = 4;

/// Reads the annotation: names separated by commas, with spaces around them allowed and nothing else forgiven.
///
/// Names that Vault would turn into others (it lower-cases them) are refused rather than corrected, so that what
/// the status records is what the token has.
///
/// # Errors
/// A sentence that quotes the value and says what is allowed.
pub fn parse(annotation: &str) -> Result<Vec<String>, String> {
    if annotation.trim_matches(' ').is_empty() {
        return Err("names no policy; name at least one, as in \"shop-read,shop-db\"".to_owned());
    }
    let count = annotation.split(',').count();
    if count > MAX_POLICIES {
        return Err(format!("names {count} policies; at most {MAX_POLICIES} are allowed"));
    }
    let names: Vec<&str> = annotation.split(',').map(|name| name.trim_matches(' ')).collect();
    let mut faults: Vec<String> = names.iter().filter_map(|name| check(name).err()).collect();
    let twice = names.iter().enumerate().filter(|(place, name)| names[..*place].contains(*name));
    faults.extend(twice.map(|(_, name)| format!("it names the policy {} twice", quote(name))));
    faults.dedup();
    if faults.is_empty() {
        return Ok(names.into_iter().map(str::to_owned).collect());
    }
    let more = faults.len().saturating_sub(MAX_FAULTS);
    faults.truncate(MAX_FAULTS);
    if more > 0 {
        faults.push(format!("and {more} more faults"));
    }
    Err(format!("is {}: {}", quote(annotation), faults.join("; ")))
}

/// What the names of the operator's own policies begin with, as in `config/vault/`. Whoever had one could make tokens.
const OPERATORS_OWN: &str = "vault-token-operator";

/// Whether a pattern of policy names can match any that a pod asks for.
///
/// # Errors
/// A sentence that quotes it and says what is wrong.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    // A star stands for characters that are allowed.
    match pattern.replace('*', "").as_str() {
        "" if pattern.is_empty() => check(pattern),
        "" => Ok(()),
        rest => characters(rest),
    }
}

/// Whether `name` may be the name of a policy that a pod asks for.
///
/// # Errors
/// A sentence that quotes it and says what is wrong.
pub fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("there is an empty name between its commas".to_owned());
    }
    if name.chars().count() > MAX_POLICY_NAME {
        return Err(format!("the policy name {} is longer than {MAX_POLICY_NAME} characters", quote(name)));
    }
    if name == "root" {
        return Err("the policy \"root\" is never given to a pod".to_owned());
    }
    // Vault would leave it out, and the status would name a policy that the token does not have.
    if name == "default" {
        return Err(
            "the policy \"default\" is never given to a pod; name what it is to do in a policy of its own".to_owned()
        );
    }
    if name.starts_with(OPERATORS_OWN) {
        return Err(format!("the policy {} is the operator's own, and never given to a pod", quote(name)));
    }
    characters(name)?;
    if name.contains("..") {
        return Err(format!("the policy name {} has \"..\" in it, which is not allowed", quote(name)));
    }
    Ok(())
}

fn characters(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_./:@".contains(c);
    if name.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(format!("the policy name {} has upper-case letters; Vault's names are lower case", quote(name)));
    }
    if let Some(c) = name.chars().find(|c| !allowed(*c)) {
        let c = quote(&c.to_string());
        return Err(format!(
            "the policy name {} has the character {c}; lower-case letters, digits and - _ . / : @ are allowed",
            quote(name)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_around_names_do_no_harm() {
        assert_eq!(parse(" shop-read , shop-db"), Ok(vec!["shop-read".to_owned(), "shop-db".to_owned()]));
        assert_eq!(parse("shop"), Ok(vec!["shop".to_owned()]));
    }

    #[test]
    fn everything_else_is_refused_with_what_is_wrong() {
        let many = vec!["p"; 10_000].join(",");
        let long = "a".repeat(129);
        for (annotation, why) in [
            ("", "names no policy"),
            ("   ", "names no policy"),
            ("a,,b", "empty name between its commas"),
            ("a,", "empty name between its commas"),
            ("root", "the policy \"root\" is never given"),
            ("a, root", "the policy \"root\" is never given"),
            ("Root", "upper-case"),
            ("vault-token-operator", "the operator's own"),
            ("Shop-Read", "\"Shop-Read\" has upper-case letters"),
            ("a,b,a", "names the policy \"a\" twice"),
            ("../sys", "\"..\" in it"),
            ("a\nb", "the character \"\\n\""),
            ("a b", "the character \" \""),
            ("a\tb", "the character \"\\t\""),
            ("\u{1b}[31m", "the character \"\\u{1b}\""),
            ("Ⅷ", "the character \"Ⅷ\""),
            ("*", "the character \"*\""),
            (&many, "names 10000 policies; at most 32"),
            (&long, "longer than 128 characters"),
        ] {
            let error = parse(annotation).expect_err(annotation);
            assert!(error.contains(why), "{annotation:?}: {error}");
            assert!(error.chars().count() < 400, "{annotation:?}: {error}");
            assert!(!error.chars().any(char::is_control), "{annotation:?}: {error}");
        }
    }
}
