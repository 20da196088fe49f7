//! While Scalekit is plainly down, requests are answered at once instead of waiting out the time limit, and one
//! validation a second finds out whether it is back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ::scalekit::error::{Class, Error};
use tokio::time::Instant;

use crate::scalekit::Verdict;

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
    /// When Scalekit last answered.
    answered: Option<Instant>,
    /// Set while open.
    next_probe: Option<Instant>,
}

/// What a validation came to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    /// An answer, whatever it says.
    Answered,
    /// No answer, or that Scalekit cannot give one.
    Outage,
}

impl Ended {
    pub(super) fn of(answer: &Result<Verdict, Error>) -> Self {
        match answer {
            Err(error) if error.class() == Class::Outage => Self::Outage,
            Ok(_) | Err(_) => Self::Answered,
        }
    }
}

impl Breaker {
    /// Whether a validation could begin now; if not, in how long.
    pub(super) fn check(&self, now: Instant) -> Result<(), Duration> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.next_probe.filter(|next| now < *next).map_or(Ok(()), |next| Err(next - now))
    }

    /// The same for one that does begin: while open, the next one is a second away.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        self.check(now)?;
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.next_probe {
            // Another one was quicker.
            Some(next) if now < *next => Err(*next - now),
            Some(next) => {
                *next = now + PROBE_EVERY;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A validation ended. Gives whether the breaker is now open.
    pub(super) fn record(&self, ended: Ended, began: Instant, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match ended {
            // Scalekit answered since: this one is of an outage that is over.
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
    fn it_opens_after_five_outages_in_a_row_and_closes_with_one_answer() {
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
    fn while_open_one_a_second_is_let_through() {
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
    fn what_began_before_the_last_answer_says_nothing_of_now() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        breaker.record(Ended::Answered, now, later);
        for _ in 0..9 {
            assert!(!breaker.record(Ended::Outage, now, later + Duration::from_secs(1)));
        }
    }
}
