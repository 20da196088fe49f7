//! Logs that a server fails, and when it answers again, however many requests meet either.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::line_limit::LineLimit;

/// Between two lines about one kind of failure.
const INTERVAL: Duration = Duration::from_secs(10);
/// A server answers again when a request succeeds that began so long after the last failure: where only some fail, the line
/// would follow each of them.
const QUIET: Duration = Duration::from_millis(500);

/// What the log says of one server.
#[derive(Debug)]
pub struct OutageTracker {
    lines: LineLimit,
    failing: Mutex<Option<Failing>>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    quiet_at: Instant,
}

impl Default for OutageTracker {
    fn default() -> Self {
        Self { lines: LineLimit::new(INTERVAL), failing: Mutex::default() }
    }
}

impl OutageTracker {
    /// A request has failed. Gives the number of failures without a line, if a line is due. `outage` is how long the server
    /// fails at least, from zero; `None` where the failure says nothing about other requests.
    pub fn record_failure(&self, kind: &'static str, outage: Option<Duration>, now: Instant) -> Option<u64> {
        let suppressed = self.lines.admit_kind(kind, now);
        let Some(outage) = outage else { return suppressed };
        let quiet_at = now + outage.max(QUIET);
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *failing {
            Some(failing) => failing.quiet_at = failing.quiet_at.max(quiet_at),
            // Without a line of its own, a failure needs none about its end.
            None => *failing = suppressed.map(|_| Failing { since: now, quiet_at }),
        }
        suppressed
    }

    /// A request that began at `began` has succeeded. Gives how long the server failed, and the number of failures without a
    /// line, if it answers again.
    pub fn record_success(&self, began: Instant) -> Option<(Duration, u64)> {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = failing.take_if(|failing| began >= failing.quiet_at)?;
        Some((began.saturating_duration_since(ended.since), self.lines.take_suppressed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTAGE: Option<Duration> = Some(Duration::ZERO);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn end_of_failure_is_logged_once() {
        let (log, start) = (OutageTracker::default(), Instant::now());
        assert_eq!(log.record_success(start), None);
        assert_eq!(log.record_failure("a", OUTAGE, start), Some(0));
        assert_eq!(log.record_failure("a", OUTAGE, start + seconds(5)), None);
        assert_eq!(log.record_success(start + seconds(5)), None, "too soon after a failure");
        assert_eq!(log.record_success(start + seconds(7)), Some((seconds(7), 1)));
        assert_eq!(log.record_success(start + seconds(8)), None);
        assert_eq!(log.record_failure("a", OUTAGE, start + seconds(8)), None);
        assert_eq!(log.record_success(start + seconds(9)), None, "this failure had no line");
        assert_eq!(log.record_failure("a", OUTAGE, start + seconds(10)), Some(1));
    }

    #[test]
    fn single_failed_request_is_no_outage() {
        let (log, start) = (OutageTracker::default(), Instant::now());
        assert_eq!(log.record_failure("a", None, start), Some(0));
        assert_eq!(log.record_success(start + seconds(1)), None);
    }

    #[test]
    fn throttling_lasts_at_least_as_long_as_announced() {
        let (log, start) = (OutageTracker::default(), Instant::now());
        assert_eq!(log.record_failure("a", Some(seconds(30)), start), Some(0));
        assert_eq!(log.record_failure("b", OUTAGE, start + seconds(1)), Some(0));
        assert_eq!(log.record_success(start + seconds(29)), None);
        assert_eq!(log.record_success(start + seconds(30)), Some((seconds(30), 0)));
    }
}
