//! Lets one line a second through of what callers can cause at will, and counts the others.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(1);

/// Decides which of many like events are logged.
pub struct Sampler(Mutex<Window>);

struct Window {
    /// When the last line was written.
    last: Option<Instant>,
    /// Events since then without a line.
    suppressed: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

impl Sampler {
    /// The first event is logged.
    pub const fn new() -> Self {
        Self(Mutex::new(Window { last: None, suppressed: 0 }))
    }

    /// Whether to log this event: the number of events without a line since the last one, or `None`.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            window.suppressed += 1;
            return None;
        }
        window.last = Some(now);
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampler_admits_one_event_per_second() {
        let (sampler, start) = (Sampler::new(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let admitted: Vec<_> = [0, 1, 999, 1000, 1500, 5000].map(|time| sampler.admit_at(at(time))).into();
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
