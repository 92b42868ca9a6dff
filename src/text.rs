//! Text from elsewhere, made fit to be shown: in a log line, on a terminal, in a condition.

/// Longest piece of foreign text that a message quotes, in characters as they are shown: an escape has up to ten.
const MAX_QUOTED: usize = 64;

/// Longest text that is kept of an answer from elsewhere, in characters as they are shown.
const MAX_FOREIGN: usize = 256;

/// `value` in double quotes, with control characters, quotes and everything that could steer a terminal or
/// forge a log line escaped, cut after 64 characters.
pub fn quote(value: &str) -> String {
    format!("\"{}\"", cut(value, MAX_QUOTED, |c| c.escape_debug().collect()))
}

/// Foreign text for the inside of a message: one line, without control characters, with what else could steer a terminal or begin
/// a line escaped, cut after 256 characters.
pub fn one_line(value: &str) -> String {
    cut(value.trim(), MAX_FOREIGN, |c| match c.escape_debug() {
        _ if c.is_control() => " ".to_owned(),
        // Quotes and backslashes do no harm inside a line; bidirectional overrides and line separators do.
        escape if escape.len() > 2 => escape.collect(),
        _ => c.to_string(),
    })
}

fn cut(value: &str, limit: usize, shown: impl Fn(char) -> String) -> String {
    let (mut text, mut length) = (String::new(), 0);
    for shown in value.chars().map(shown) {
        length += shown.chars().count();
        if length > limit {
            text.push_str(&format!("… ({} characters)", value.chars().count()));
            break;
        }
        text.push_str(&shown);
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
    fn text_that_is_escaped_is_no_longer_for_that() {
        for quoted in [quote(&"\u{e000}".repeat(64)), quote(&"\u{202e}".repeat(10_000))] {
            assert!(quoted.chars().count() < 100, "{quoted}");
            assert!(quoted.starts_with("\"\\u{") && quoted.contains("}… ("), "an escape is cut: {quoted}");
        }
    }

    #[test]
    fn one_line_is_one_line() {
        assert_eq!(one_line(" a\r\nb\u{7}c\n"), "a  b c");
        assert_eq!(one_line("a\u{2028}b \u{202e}c"), "a\\u{2028}b \\u{202e}c");
        assert_eq!(one_line("it's \"né\" \\ 日"), "it's \"né\" \\ 日");
    }
}
