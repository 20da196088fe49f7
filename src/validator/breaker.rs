//! Circuit breaker: while Scalekit is down, requests are refused at once instead of waiting for the time limit, and one call a
//! second is admitted as a probe.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::scalekit::error::{Class, Error};
use tokio::time::Instant;

use crate::scalekit::Verdict;

/// Consecutive outages before it opens.
const FAILURES: u32 = 5;
/// Between two probes while it is open.
const PROBE_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// When Scalekit last answered.
    answered: Option<Instant>,
    /// Set while it is open.
    next_probe: Option<Instant>,
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    /// With any answer, so that Scalekit is up.
    Answered,
    /// Without an answer, or with one that says that Scalekit is down.
    Outage,
}

impl Ended {
    pub(super) fn from_result(answer: &Result<Verdict, Error>) -> Self {
        match answer {
            Err(error) if error.class() == Class::Outage => Self::Outage,
            Ok(_) | Err(_) => Self::Answered,
        }
    }
}

impl Breaker {
    /// Whether a call could begin now. Takes no probe.
    ///
    /// # Errors
    /// In how long it could.
    pub(super) fn check(&self, now: Instant) -> Result<(), Duration> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.next_probe.filter(|next| now < *next).map_or(Ok(()), |next| Err(next - now))
    }

    /// The same for a call that does begin: while the breaker is open, it is the probe.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        self.check(now)?;
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.next_probe {
            // Another call took this probe since the check.
            Some(next) if now < *next => Err(*next - now),
            Some(next) => {
                *next = now + PROBE_EVERY;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Records how a call ended, and gives whether the breaker is open now.
    pub(super) fn record(&self, ended: Ended, began: Instant, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match ended {
            // The call began before Scalekit last answered: its outage is over.
            Ended::Outage if state.answered.is_some_and(|answered| began < answered) => {}
            Ended::Outage => {
                state.failures = state.failures.saturating_add(1);
                if state.failures >= FAILURES && state.next_probe.is_none() {
                    state.next_probe = Some(now + PROBE_EVERY);
                }
            }
            Ended::Answered => {
                *state = State { failures: 0, answered: Some(now), next_probe: None };
            }
        }
        state.next_probe.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage(breaker: &Breaker, now: Instant) -> bool {
        breaker.record(Ended::Outage, now, now)
    }

    #[test]
    fn breaker_opens_after_five_outages_and_closes_on_answer() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..4 {
            assert!(!outage(&breaker, now));
        }
        assert!(!breaker.record(Ended::Answered, now, now));
        for _ in 0..4 {
            assert!(!outage(&breaker, now));
        }
        assert!(breaker.admit(now).is_ok());
        assert!(outage(&breaker, now));
        assert_eq!(breaker.check(now), Err(PROBE_EVERY));
        assert_eq!(breaker.admit(now), Err(PROBE_EVERY));
        assert!(!breaker.record(Ended::Answered, now, now));
        assert!(breaker.admit(now).is_ok());
    }

    #[test]
    fn open_breaker_admits_one_call_per_second() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..9 {
            outage(&breaker, now);
        }
        let admitted = (0..5000).filter(|&ms| breaker.admit(now + Duration::from_millis(ms)).is_ok()).count();
        assert_eq!(admitted, 4);
        let later = now + Duration::from_secs(9);
        assert!(breaker.check(later).is_ok() && breaker.check(later).is_ok(), "looking takes no turn");
        assert!(breaker.admit(later).is_ok() && breaker.admit(later).is_err());
    }

    #[test]
    fn outage_begun_before_last_answer_is_ignored() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        breaker.record(Ended::Answered, now, later);
        for _ in 0..9 {
            assert!(!breaker.record(Ended::Outage, now, later + Duration::from_secs(1)));
        }
    }
}
