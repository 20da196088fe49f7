//! The generic cell rate algorithm (ITU-T I.371): an allowance of `burst` requests that refills evenly, of which one instant is
//! stored.

use std::time::Duration;

use tokio::time::Instant;

/// How many requests are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests in `per`, from 1.
    pub requests: u32,
    /// The time in which they refill.
    pub per: Duration,
    /// Requests at once, from 1 to `requests`.
    pub burst: u32,
}

impl Quota {
    /// The time in which one request refills.
    pub fn interval(self) -> Duration {
        (self.per / self.requests.max(1)).max(Duration::from_nanos(1))
    }

    /// The time in which an exhausted allowance is full again.
    pub fn refill_time(self) -> Duration {
        self.interval().saturating_mul(self.burst)
    }

    /// The quota with another number of requests, and a burst in proportion, each at least 1.
    pub fn with_requests(self, requests: u32) -> Self {
        let burst = u64::from(self.burst) * u64::from(requests) / u64::from(self.requests.max(1));
        Self { requests, burst: u32::try_from(burst).unwrap_or(u32::MAX).max(1), ..self }
    }

    /// An equal part of the quota, for one of so many.
    pub fn divided_by(self, parts: u32) -> Self {
        let part = |whole: u32| (whole / parts.max(1)).max(1);
        // By time where requests cannot be divided: of ten in an hour, three parts are one each in 18 minutes.
        let per = self.per.saturating_mul(parts.max(1)) / self.requests.max(1) * part(self.requests);
        Self { requests: part(self.requests), per, burst: part(self.burst) }
    }
}

/// What is left of an allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Requests that are allowed now.
    pub remaining: u32,
    /// Until one more request is allowed than now: for an exhausted allowance the time to wait.
    pub next: Duration,
    /// Until the allowance is full.
    pub full: Duration,
}

/// An allowance, which is kept as the instant at which it is full again.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// When it is full ("theoretical arrival time").
    full_at: Instant,
}

impl Allowance {
    /// An allowance that is full at this instant.
    pub fn full_at(instant: Instant) -> Self {
        Self { full_at: instant }
    }

    /// Until it is full.
    pub fn time_to_full(self, now: Instant) -> Duration {
        self.full_at.saturating_duration_since(now)
    }

    /// Makes it full sooner.
    pub fn advance(&mut self, time: Duration) {
        // Where the clock began less than that ago, the allowance is not made full.
        self.full_at = self.full_at.checked_sub(time).unwrap_or(self.full_at);
    }

    /// Takes one request.
    ///
    /// # Errors
    /// The level, if nothing is left.
    pub fn take(&mut self, quota: Quota, now: Instant) -> Result<Level, Level> {
        let level = self.level(quota, now);
        if level.remaining == 0 {
            return Err(level);
        }
        self.full_at = self.full_at.max(now) + quota.interval();
        Ok(self.level(quota, now))
    }

    /// Gives back one request that was taken.
    pub fn give_back(&mut self, quota: Quota) {
        self.advance(quota.interval());
    }

    /// What is left.
    pub fn level(&self, quota: Quota, now: Instant) -> Level {
        let interval = quota.interval();
        let full = self.time_to_full(now);
        let free = quota.refill_time().saturating_sub(full);
        let remaining = u32::try_from(free.as_nanos() / interval.as_nanos()).unwrap_or(u32::MAX);
        let part = free.saturating_sub(interval.saturating_mul(remaining));
        let next = if free.is_zero() {
            // The quota may have been larger when the requests were taken.
            full.saturating_sub(quota.refill_time()) + interval
        } else {
            interval - part
        };
        Level { remaining, next: next.min(full), full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn quota(requests: u32, burst: u32) -> Quota {
        Quota { requests, per: 60 * SECOND, burst }
    }

    #[test]
    fn allowance_is_burst_then_even_rate() {
        let (quota, now) = (quota(60, 3), Instant::now());
        let mut allowance = Allowance::full_at(now);
        let remaining: Vec<u32> = (0..3).map(|_| allowance.take(quota, now).unwrap().remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        let exhausted = Level { remaining: 0, next: SECOND, full: 3 * SECOND };
        assert_eq!(allowance.take(quota, now), Err(exhausted));
        assert_eq!(allowance.take(quota, now + SECOND).unwrap().remaining, 0);
        assert!(allowance.take(quota, now + SECOND).is_err());
        let taken = (0..600).filter(|tenth| {
            allowance.take(quota, now + 2 * SECOND + *tenth * Duration::from_millis(100)).is_ok()
        });
        assert_eq!(taken.count(), 60, "in the next minute");
    }

    #[test]
    fn unused_allowance_never_exceeds_burst() {
        let (quota, now) = (quota(60, 3), Instant::now());
        let mut allowance = Allowance::full_at(now);
        let later = now + 3600 * SECOND;
        assert_eq!((0..10).filter(|_| allowance.take(quota, later).is_ok()).count(), 3);
    }

    #[test]
    fn request_given_back_is_allowed_again() {
        let (quota, now) = (quota(60, 1), Instant::now());
        let mut allowance = Allowance::full_at(now);
        allowance.take(quota, now).unwrap();
        allowance.give_back(quota);
        assert!(allowance.take(quota, now).is_ok());
        assert!(allowance.take(quota, now).is_err());
    }

    #[test]
    fn wait_is_exact_between_two_refills() {
        let (quota, now) = (quota(60, 2), Instant::now());
        let mut allowance = Allowance::full_at(now);
        while allowance.take(quota, now).is_ok() {}
        let soon = now + Duration::from_millis(400);
        let level = allowance.take(quota, soon).unwrap_err();
        assert_eq!(level.next, Duration::from_millis(600));
        assert!(allowance.take(quota, soon + level.next).is_ok());
    }

    #[test]
    fn smaller_quota_waits_for_what_larger_one_allowed() {
        let now = Instant::now();
        let (large, small) = (quota(600, 100), quota(60, 1));
        let mut allowance = Allowance::full_at(now);
        while allowance.take(large, now).is_ok() {}
        let level = allowance.take(small, now).unwrap_err();
        assert_eq!(level.next, 10 * SECOND, "what was taken refills in ten seconds");
        assert!(allowance.take(small, now + level.next - Duration::from_millis(1)).is_err());
        assert!(allowance.take(small, now + level.next).is_ok());
    }

    #[test]
    fn parts_of_a_quota_have_its_rate_in_sum() {
        for (whole, parts) in [(quota(600, 100), 3), (quota(10, 10), 4), (quota(1, 1), 7), (quota(7, 2), 7)] {
            let part = whole.divided_by(parts);
            let (own, sum) = (whole.interval(), part.interval() / parts);
            assert!(own.abs_diff(sum) < Duration::from_micros(1), "{whole:?} {part:?}");
            assert!(part.burst * parts <= whole.burst.max(parts), "{part:?}");
        }
    }

    #[test]
    fn number_of_claim_scales_burst() {
        assert_eq!(quota(600, 100).with_requests(1200), quota(1200, 200));
        assert_eq!(quota(600, 100).with_requests(1), quota(1, 1));
    }
}
