//! Says in the log why an upstream fails, also where requests are not logged; at most once in ten seconds for each upstream.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines about one upstream.
const EVERY: Duration = Duration::from_secs(10);

/// What the log has said of one upstream.
#[derive(Debug, Default)]
pub(super) struct FailureLog(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    /// Failures since the last line, without one of their own.
    unsaid: u64,
}

impl FailureLog {
    /// A request failed for this cause.
    pub(super) fn failed(&self, upstream: &str, cause: &str) {
        if let Some(unsaid) = self.due(Instant::now()) {
            tracing::warn!(
                keyward.upstream = upstream,
                keyward.failures = unsaid,
                "the upstream {upstream:?} fails: {cause}"
            );
        }
    }

    /// How many failures a line now stands for, if one is due.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.unsaid += 1;
        if said.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_within_interval_are_counted_in_next_line() {
        let (log, start) = (FailureLog::default(), Instant::now());
        assert_eq!(log.due(start), Some(1));
        for seconds in 1..10 {
            assert_eq!(log.due(start + Duration::from_secs(seconds)), None);
        }
        assert_eq!(log.due(start + EVERY), Some(10));
    }
}
