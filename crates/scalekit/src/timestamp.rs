//! The API's timestamps. The last timestamp of protobuf, 9999-12-31T23:59:59Z, often means "never", but is a day after the last one
//! that jiff can represent.

use jiff::Timestamp;
use jiff::civil::DateTime;

/// The last second of the year 9999, in seconds since 1970.
const LAST_SECOND: i64 = 253_402_300_799;

/// Parses RFC 3339. A timestamp in the year 9999 that is too late for jiff becomes the last one of jiff.
pub(crate) fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let last_day = || {
        let moment: DateTime = text.strip_suffix(['Z', 'z'])?.parse().ok()?;
        (moment.year() == 9999).then_some(Timestamp::MAX)
    };
    text.parse().ok().or_else(last_day)
}

/// Converts protobuf's `Timestamp`; `None` if a field is out of range.
pub(crate) fn from_parts(seconds: i64, nanos: i32) -> Option<Timestamp> {
    if !(0..1_000_000_000).contains(&nanos) {
        return None;
    }
    let last_day = || (Timestamp::MAX.as_second()..=LAST_SECOND).contains(&seconds).then_some(Timestamp::MAX);
    Timestamp::new(seconds, nanos).ok().or_else(last_day)
}

/// Formats RFC 3339 with as few of 0, 3, 6 or 9 fractional digits as the value needs.
pub(crate) fn format_rfc3339(timestamp: Timestamp) -> String {
    match timestamp.subsec_nanosecond() {
        0 => format!("{timestamp:.0}"),
        nanos if nanos % 1_000_000 == 0 => format!("{timestamp:.3}"),
        nanos if nanos % 1_000 == 0 => format!("{timestamp:.6}"),
        _ => format!("{timestamp:.9}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_end_with_year_9999() {
        for text in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999999Z", "9999-12-30T22:00:01Z"] {
            assert_eq!(parse_rfc3339(text), Some(Timestamp::MAX), "{text}");
        }
        assert_eq!(parse_rfc3339("2026-12-01T00:00:00Z"), "2026-12-01T00:00:00Z".parse().ok());
        for text in ["", "tomorrow", "9999-12-31", "9999-12-32T00:00:00Z", "10000-01-01T00:00:00Z"] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
        assert_eq!(from_parts(LAST_SECOND, 999_999_999), Some(Timestamp::MAX));
        assert_eq!(from_parts(LAST_SECOND + 1, 0), None);
        assert_eq!(from_parts(0, 5), Timestamp::new(0, 5).ok());
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0)] {
            assert_eq!(from_parts(seconds, nanos), None);
        }
    }

    #[test]
    fn formatted_timestamp_has_0_3_6_or_9_digits() {
        for text in [
            "2026-12-01T00:00:00Z",
            "2026-12-01T00:00:00.120Z",
            "2026-12-01T00:00:00.000001Z",
            "1969-12-31T23:59:59.000000001Z",
        ] {
            assert_eq!(parse_rfc3339(text).map(format_rfc3339).as_deref(), Some(text));
        }
    }
}
