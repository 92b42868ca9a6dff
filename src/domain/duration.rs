//! Durations as Go writes them: `24h`, `1h30m`, `90s`, `1.5h` (Go's `time.ParseDuration`).

use crate::text::quote;
use std::time::Duration;

/// Units of Go's notation, in nanoseconds, the two-letter ones first so that `ms` is not read as `m`.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The longest duration that Go can hold: 2^63 - 1 nanoseconds, about 292 years.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Digits after the decimal point that make a difference in the largest unit; more are refused.
const MAX_FRACTION_DIGITS: usize = 13;

/// Reads a duration in Go's notation.
///
/// # Errors
/// A sentence that quotes the value and says what is wrong with it.
pub fn parse(text: &str) -> Result<Duration, String> {
    let bad = |why: &str| Err(format!("{} is not a duration: {why}", quote(text)));
    let unsigned = match text.strip_prefix('-') {
        Some(_) => return bad("it is negative"),
        None => text.strip_prefix('+').unwrap_or(text),
    };
    if unsigned.is_empty() {
        return bad("it is empty");
    }
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        if number.is_empty() {
            return bad("a number is missing before the unit");
        }
        if unit.is_empty() {
            return bad("a unit is missing after the number; write h, m or s, as in 24h or 1h30m");
        }
        let Some(&(_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return bad(&format!("there is no unit {}; write h, m or s, as in 24h or 1h30m", quote(unit)));
        };
        match scaled(number, scale).and_then(|part| nanos.checked_add(part)) {
            Some(sum) if sum <= MAX_NANOS => nanos = sum,
            Some(_) => return bad("it is longer than 292 years"),
            None => return bad("its number cannot be read"),
        }
        rest = next;
    }
    let (seconds, subsecond) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    Ok(Duration::new(seconds as u64, subsecond as u32))
}

/// `number` (digits with at most one point) times `scale`; `None` if it is no such number.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > MAX_FRACTION_DIGITS {
        return None;
    }
    // Beyond MAX_NANOS in every unit, yet small enough that the multiplications below cannot overflow.
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(u128::MAX).min(MAX_NANOS + 1) };
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    Some(whole * scale + part * scale / 10u128.pow(fraction.len() as u32))
}

/// Writes a duration of whole seconds in Go's notation, without the units that are zero: `24h`, `1h30m`, `90s`
/// becomes `1m30s`.
pub fn format(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / 3600, "h"), (seconds % 3600 / 60, "m"), (seconds % 60, "s")];
    let text: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        for (text, seconds) in [
            ("24h", 86_400.0),
            ("1h30m", 5_400.0),
            ("90s", 90.0),
            ("1.5h", 5_400.0),
            (".5m", 30.0),
            ("1.m", 60.0),
            ("+72h", 259_200.0),
            ("0", 0.0),
            ("0s", 0.0),
            ("1500ms", 1.5),
            ("2us", 0.000_002),
            ("2µs", 0.000_002),
            ("3ns", 0.000_000_003),
            ("1h1h", 7_200.0),
        ] {
            assert_eq!(parse(text).map(|d| d.as_secs_f64()), Ok(seconds), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses_and_says_why() {
        for (text, why) in [
            ("", "it is empty"),
            ("1y", "no unit \"y\""),
            ("1d", "no unit \"d\""),
            ("24", "a unit is missing"),
            ("-1h", "it is negative"),
            ("h", "a number is missing"),
            (".h", "cannot be read"),
            ("1.2.3h", "cannot be read"),
            ("1 h", "no unit"),
            (" 1h", "a number is missing"),
            ("1H", "no unit \"H\""),
            ("2562048h", "longer than 292 years"),
            ("99999999999999999999999999999999999999999999h", "longer than 292 years"),
            ("9223372036854775808ns", "longer than 292 years"),
            ("99999999999999999999999999999999999999999999ns", "longer than 292 years"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.starts_with(&quote(text)), "{text}: {error}");
        }
    }

    #[test]
    fn writes_what_it_can_read_again() {
        for (seconds, text) in [(86_400, "24h"), (5_400, "1h30m"), (90, "1m30s"), (0, "0s"), (3_601, "1h1s")] {
            assert_eq!(format(Duration::from_secs(seconds)), text);
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
    }
}
