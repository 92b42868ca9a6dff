//! Durations as Go writes them.

use crate::{presentable, text};
use std::time::Duration;
use vault_token_operator::domain::duration::{format, parse};

/// Longest message: the text and a unit of it, quoted.
const LONGEST: usize = 320;

pub fn hold(input: &[u8]) {
    let text = text(input);
    match parse(&text) {
        Ok(duration) => {
            assert_eq!(Some(duration.as_nanos()), nanoseconds(&text));
            let whole = Duration::from_secs(duration.as_secs());
            assert_eq!(parse(&format(duration)), Ok(whole));
        }
        Err(message) => {
            presentable(&message, LONGEST);
            // Of what Go takes, only what no period can be is refused: more digits after the point than make a difference.
            let fine = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 13);
            assert!(fine || nanoseconds(&text).is_none(), "Go takes it: {message}");
        }
    }
}

/// Go's definition, word for word: "a possibly signed sequence of decimal numbers, each with optional fraction and a unit suffix".
/// `None` for what is none, does not fit into Go's 64 bits, or is negative.
fn nanoseconds(text: &str) -> Option<u128> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut sum: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let units = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000_u128),
        ];
        let length = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(length);
        let (_, scale) = units.into_iter().find(|(name, _)| *name == unit)?;
        // The leading zeroes of a number do not count.
        let number = |digits: &str| match digits.trim_start_matches('0') {
            "" => Some(0),
            digits => digits.parse::<u128>().ok(),
        };
        let whole = number(whole)?.checked_mul(scale)?;
        let fraction = &fraction[..fraction.len().min(20)];
        let part = number(fraction)? * scale / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        sum = sum.checked_add(whole)?.checked_add(part)?;
        if sum > i64::MAX as u128 {
            return None;
        }
        rest = after;
    }
    Some(sum)
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}
