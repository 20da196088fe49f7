//! Backoff after Scalekit answers 429. Unknown keys are refused until the time that it named. Keys that were good lately, and
//! open streams, are still sent, each class with a pause between calls that halves with each verdict and doubles with each
//! further 429: a flood of unknown keys must not lock them out, and they must not overload a Scalekit that throttles.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::shares::Class;

/// How long unknown keys are held at least, and where Scalekit names no time.
const SHORTEST: Duration = Duration::from_secs(1);
/// Between two calls, right after the first 429.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A shorter pause is taken as zero.
const NO_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(super) struct Backoff(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    good: Pace,
    streams: Pace,
}

/// When the next call of a class may begin.
#[derive(Debug, Default)]
struct Pace {
    pause: Duration,
    next: Option<Instant>,
    /// Calls that began before this say nothing about the present pause.
    changed: Option<Instant>,
}

impl Backoff {
    /// Whether a call of this class may begin, now or at its pace.
    ///
    /// # Errors
    /// How long unknown keys are still held.
    pub(super) fn check(&self, class: Class, now: Instant) -> Result<(), Duration> {
        let state = self.lock();
        match state.until {
            Some(until) if now < until && class == Class::Unknown => Err(until - now),
            _ => Ok(()),
        }
    }

    /// Takes the next turn of this class, and gives when it is.
    ///
    /// # Errors
    /// In how long it would be, where that is later than `latest`.
    pub(super) fn reserve(&self, class: Class, now: Instant, latest: Instant) -> Result<Instant, Duration> {
        let mut state = self.lock();
        let Some(until) = state.until.filter(|until| now < *until) else { return Ok(now) };
        let Some(pace) = state.pace_of(class) else { return Err(until - now) };
        let at = pace.next.map_or(now, |next| next.max(now));
        if at > latest {
            return Err(at - now);
        }
        pace.next = Some(at + pace.pause);
        Ok(at)
    }

    /// Scalekit answered 429; `wait` is its `Retry-After`.
    pub(super) fn record_throttled(
        &self,
        class: Class,
        wait: Option<Duration>,
        began: Instant,
        now: Instant,
    ) {
        let mut state = self.lock();
        let was_held = state.until.is_some_and(|until| now < until);
        let until = now + wait.unwrap_or_default().max(SHORTEST);
        state.until = state.until.max(Some(until));
        if !was_held {
            let first = || Pace { pause: FIRST_PAUSE, next: Some(now + FIRST_PAUSE), changed: Some(now) };
            (state.good, state.streams) = (first(), first());
        } else if let Some(pace) = state.pace_of(class)
            && pace.changed.is_none_or(|changed| changed <= began)
        {
            let pause = (pace.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            *pace = Pace { pause, next: pace.next.max(Some(now + pause)), changed: Some(now) };
        }
    }

    /// Scalekit gave a verdict for a call that began at `began`.
    pub(super) fn record_answer(&self, class: Class, began: Instant) {
        let mut state = self.lock();
        if let Some(pace) = state.pace_of(class)
            && pace.changed.is_some_and(|changed| changed <= began)
        {
            let half = pace.pause / 2;
            pace.pause = if half < NO_PAUSE { Duration::ZERO } else { half };
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pace_of(&mut self, class: Class) -> Option<&mut Pace> {
        match class {
            Class::Unknown => None,
            Class::Good => Some(&mut self.good),
            Class::Stream => Some(&mut self.streams),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(30);
    const LIMIT: Duration = Duration::from_secs(1);

    fn held() -> (Backoff, Instant) {
        let (hold, now) = (Backoff::default(), Instant::now());
        hold.record_throttled(Class::Unknown, Some(WAIT), now, now);
        (hold, now)
    }

    #[test]
    fn unknown_keys_are_held_until_retry_after() {
        let (hold, now) = held();
        assert_eq!(hold.check(Class::Unknown, now), Err(WAIT));
        assert_eq!(hold.reserve(Class::Unknown, now, now + LIMIT), Err(WAIT));
        hold.record_throttled(Class::Unknown, Some(WAIT / 3), now, now);
        assert_eq!(hold.check(Class::Unknown, now + WAIT / 2), Err(WAIT / 2), "never shortened");
        assert!(hold.check(Class::Unknown, now + WAIT).is_ok());
        assert_eq!(hold.reserve(Class::Unknown, now + WAIT, now + WAIT), Ok(now + WAIT));
    }

    #[test]
    fn throttling_without_retry_after_holds_unknown_keys_briefly() {
        let (hold, now) = (Backoff::default(), Instant::now());
        hold.record_throttled(Class::Good, None, now, now);
        assert_eq!(hold.check(Class::Unknown, now), Err(SHORTEST));
        assert!(hold.check(Class::Good, now).is_ok());
    }

    #[test]
    fn good_keys_and_streams_queue_separately() {
        let (hold, now) = held();
        let slots: Vec<_> = (0..20).map_while(|_| hold.reserve(Class::Good, now, now + LIMIT).ok()).collect();
        assert_eq!(slots, (1..=10).map(|slot| now + FIRST_PAUSE * slot).collect::<Vec<_>>());
        assert_eq!(hold.reserve(Class::Good, now, now + LIMIT), Err(FIRST_PAUSE * 11));
        assert_eq!(hold.reserve(Class::Stream, now, now + LIMIT), Ok(now + FIRST_PAUSE));
    }

    #[test]
    fn pause_doubles_on_429_and_halves_on_answer() {
        let (hold, now) = held();
        for _ in 0..9 {
            // These began before the first 429 was known.
            hold.record_throttled(Class::Good, Some(WAIT), now - LIMIT, now);
        }
        let pause = |now| {
            let first = hold.reserve(Class::Good, now, now + WAIT).unwrap();
            hold.reserve(Class::Good, now, now + WAIT).unwrap() - first
        };
        assert_eq!(pause(now), FIRST_PAUSE);
        hold.record_throttled(Class::Good, Some(WAIT), now, now);
        assert_eq!(pause(now), FIRST_PAUSE * 2);
        for second in 1..9 {
            let now = now + second * LIMIT;
            hold.record_throttled(Class::Good, Some(WAIT), now, now);
        }
        let now = now + LIMIT * 9;
        assert_eq!(pause(now), LONGEST_PAUSE);
        for halved in [500, 250, 125, 62] {
            hold.record_answer(Class::Good, now);
            assert_eq!(pause(now).as_millis(), halved);
        }
        for _ in 0..4 {
            hold.record_answer(Class::Good, now);
        }
        assert_eq!(pause(now), Duration::ZERO, "answers all along: no more pauses");
    }
}
