//! Limits lines that clients, or an outage, could otherwise write at will.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Limits one line of the log: the first is written at once, then at most one in an interval, with the number of those left
/// out.
#[derive(Debug)]
pub struct LineLimit {
    interval: Duration,
    kinds: Mutex<Vec<Window>>,
}

#[derive(Debug)]
struct Window {
    kind: &'static str,
    last: Instant,
    suppressed: u64,
}

impl LineLimit {
    /// For a line that was never written.
    pub const fn new(interval: Duration) -> Self {
        Self { interval, kinds: Mutex::new(Vec::new()) }
    }

    /// Whether to write the line now; if so, how many were left out since the last one.
    pub fn admit(&self) -> Option<u64> {
        self.admit_kind("", Instant::now())
    }

    /// The same where each kind has an interval of its own. Kinds are from a closed list, as none is forgotten.
    pub fn admit_kind(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(window) = kinds.iter_mut().find(|window| window.kind == kind) else {
            kinds.push(Window { kind, last: now, suppressed: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(window.last) < self.interval {
            window.suppressed += 1;
            return None;
        }
        window.last = now;
        Some(std::mem::take(&mut window.suppressed))
    }

    /// How many lines were left out since the last one of their kind. They count as told.
    pub(super) fn take_suppressed(&self) -> u64 {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter_mut().map(|window| std::mem::take(&mut window.suppressed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_written_once_per_interval_with_suppressed_count() {
        let (limit, start) = (LineLimit::new(Duration::from_secs(1)), Instant::now());
        let admit = |kind, ms| limit.admit_kind(kind, start + Duration::from_millis(ms));
        let admitted: Vec<_> = [0, 1, 999, 1000, 1500, 5000].map(|ms| admit("", ms)).into();
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1)]);
    }

    #[test]
    fn each_kind_of_line_has_its_own_interval() {
        let (limit, start) = (LineLimit::new(Duration::from_secs(1)), Instant::now());
        let admitted = ["a", "b", "a", "b", "a"].map(|kind| limit.admit_kind(kind, start));
        assert_eq!(admitted, [Some(0), Some(0), None, None, None]);
        assert_eq!((limit.take_suppressed(), limit.take_suppressed()), (3, 0));
    }
}
