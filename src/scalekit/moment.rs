//! Moments as Scalekit writes them. The end of protobuf's time, 9999-12-31T23:59:59Z, is a usual way to say "never", and lies a
//! day behind the end of jiff's.

use jiff::Timestamp;

/// The last second of the year 9999, in seconds since 1970.
const LAST_SECOND: i64 = 253_402_300_799;

/// protobuf's `Timestamp`.
pub(super) fn of_parts(seconds: i64, nanos: i32) -> Option<Timestamp> {
    if !(0..1_000_000_000).contains(&nanos) {
        return None;
    }
    let last_day = || (Timestamp::MAX.as_second()..=LAST_SECOND).contains(&seconds).then_some(Timestamp::MAX);
    Timestamp::new(seconds, nanos).ok().or_else(last_day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_day_of_the_year_9999_is_the_end_of_time() {
        assert_eq!(of_parts(LAST_SECOND, 999_999_999), Some(Timestamp::MAX));
        assert_eq!(of_parts(LAST_SECOND + 1, 0), None);
        assert_eq!(of_parts(0, 5), Timestamp::new(0, 5).ok());
    }
}
