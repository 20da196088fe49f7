//! Durations as written on the command line and in queries.

use std::time::Duration;

/// Reads a duration such as `2s`, `250ms` or `1m 30s`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    // humantime 2.4 panics where the sum of the seconds overflows, which takes more digits than these.
    let is_short = text.bytes().filter(u8::is_ascii_digit).count() <= 15;
    is_short.then(|| humantime::parse_duration(text).ok()).flatten()
}
