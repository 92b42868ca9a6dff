//! Patterns of policy names: `*` stands for any characters, also for none and for `/`; everything else stands for itself.

/// Whether the pattern matches the whole of `text`. Takes time in proportion to the product of their lengths at most.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on if it does not work out: behind the last star, with one more byte for it.
    let mut retry = None;
    while t < text.len() {
        match (pattern.get(p), retry) {
            (Some(b'*'), _) => {
                retry = Some((p + 1, t));
                p += 1;
            }
            (Some(byte), _) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            (_, Some((behind, taken))) => {
                (p, t) = (behind, taken + 1);
                retry = Some((behind, taken + 1));
            }
            _ => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;
    use proptest::prelude::*;

    #[test]
    fn a_star_stands_for_anything_and_all_else_for_itself() {
        for (pattern, text, expected) in [
            ("shop-read", "shop-read", true),
            ("shop-read", "shop-read2", false),
            ("shop-read", "shop-rea", false),
            ("shop-*", "shop-", true),
            ("shop-*", "shop-a/b", true),
            ("shop-*", "shop", false),
            ("shop-*", "other-shop-a", false),
            ("*", "", true),
            ("*", "anything/at.all", true),
            ("*-read", "shop-read", true),
            ("*-read", "shop-reader", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "abbbc", true),
            ("a*b*c", "acb", false),
            ("**", "x", true),
            ("a.c", "abc", false),
            ("[a-z]", "b", false),
            ("a?", "ab", false),
            ("Shop", "shop", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    /// The definition, word for word.
    fn slowly(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|taken| slowly(rest, &text[taken..])),
            ([a, pattern @ ..], [b, text @ ..]) => a == b && slowly(pattern, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_is_what_it_says(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &text), slowly(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
