//! Patterns of policy names: a pattern, and after a line end the text.

use crate::text;
use vault_token_operator::domain::glob::matches;

pub fn hold(input: &[u8]) {
    let input = text(input);
    let Some((pattern, text)) = input.split_once('\n') else { return };
    let matched = matches(pattern, text);
    // The definition takes time that grows with every star; the function must not, whatever it is given.
    if pattern.matches('*').count() <= 4 && pattern.len() <= 32 && text.len() <= 32 {
        assert_eq!(matched, defined(pattern.as_bytes(), text.as_bytes()), "{pattern:?} {text:?}");
    }
    if !pattern.contains('*') {
        assert_eq!(matched, pattern == text, "{pattern:?} {text:?}");
    }
    if matched {
        assert!(matches(&format!("{pattern}*"), &format!("{text}+")), "{pattern:?} {text:?}");
        assert!(matches(&format!("*{pattern}"), &format!("+{text}")), "{pattern:?} {text:?}");
        assert!(matches(&pattern.replace('*', "**"), text), "{pattern:?} {text:?}");
    }
}

/// The definition, word for word.
fn defined(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|taken| defined(rest, &text[taken..])),
        ([a, pattern @ ..], [b, text @ ..]) => a == b && defined(pattern, text),
        _ => false,
    }
}
