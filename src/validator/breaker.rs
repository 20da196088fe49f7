//! While Scalekit is plainly down, requests are answered at once instead of waiting out the time limit, and one
//! validation a second finds out whether it is back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Validations in a row that failed with an outage before it opens.
const FAILURES: u32 = 5;
/// Between two validations that are let through while it is open.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Counts outages, and remembers when to try again.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Set while open.
    next_probe: Option<Instant>,
}

impl Breaker {
    /// Whether a validation may begin now; if not, in how long.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.next_probe {
            Some(next) if now < *next => Err(*next - now),
            Some(next) => {
                *next = now + PROBE_EVERY;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A validation ended. Gives whether the breaker is now open.
    pub(super) fn record(&self, outage: bool, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !outage {
            *state = State::default();
        } else {
            state.failures = state.failures.saturating_add(1);
            if state.failures >= FAILURES && state.next_probe.is_none() {
                state.next_probe = Some(now + PROBE_EVERY);
            }
        }
        state.next_probe.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_five_outages_in_a_row_and_closes_with_one_answer() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            assert!(!breaker.record(true, now));
        }
        assert!(!breaker.record(false, now));
        for _ in 0..4 {
            assert!(!breaker.record(true, now));
        }
        assert!(breaker.admit(now).is_ok());
        assert!(breaker.record(true, now));
        assert_eq!(breaker.admit(now), Err(PROBE_EVERY));
        assert!(!breaker.record(false, now));
        assert!(breaker.admit(now).is_ok());
    }

    #[test]
    fn while_open_one_a_second_is_let_through() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..9 {
            breaker.record(true, now);
        }
        let admitted = (0..5000).filter(|&ms| breaker.admit(now + Duration::from_millis(ms)).is_ok()).count();
        assert_eq!(admitted, 4);
    }
}
