//! Text from elsewhere, made fit to be shown: in a log line, on a terminal, in a condition.

/// Longest piece of foreign text that a message quotes, in characters.
const MAX_QUOTED: usize = 64;

/// Longest text that is kept of an answer from elsewhere, in characters.
const MAX_FOREIGN: usize = 256;

/// `value` in double quotes, with control characters, quotes and everything that could steer a terminal or
/// forge a log line escaped, cut after 64 characters.
pub fn quote(value: &str) -> String {
    format!("\"{}\"", cut(value, MAX_QUOTED, |c| c.escape_debug().collect()))
}

/// Foreign text for the inside of a message: one line, without control characters, cut after 256 characters.
pub fn one_line(value: &str) -> String {
    cut(value.trim(), MAX_FOREIGN, |c| if c.is_control() { " ".to_owned() } else { c.to_string() })
}

fn cut(value: &str, limit: usize, shown: impl Fn(char) -> String) -> String {
    let mut text: String = value.chars().take(limit).map(shown).collect();
    if value.chars().nth(limit).is_some() {
        text.push_str(&format!("… ({} characters)", value.chars().count()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_neutralises_control_characters_and_bidirectional_overrides() {
        assert_eq!(quote("a\nb\u{1b}[31m\"\u{202e}"), "\"a\\nb\\u{1b}[31m\\\"\\u{202e}\"");
    }

    #[test]
    fn long_text_is_cut_and_says_how_long_it_was() {
        let quoted = quote(&"x".repeat(10_000));
        assert!(quoted.chars().count() < 100, "{quoted}");
        assert!(quoted.contains("(10000 characters)"), "{quoted}");
    }

    #[test]
    fn one_line_is_one_line() {
        assert_eq!(one_line(" a\r\nb\u{7}c\n"), "a  b c");
    }
}
