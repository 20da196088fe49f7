//! An allowance that replicas share. Each takes parts of it ("leases"), which it spends without a trip to the server. What it knows to
//! be exhausted, it refuses without a trip. Without the server, it allows its own share.
//!
//! Replicas allow no more in sum than the quota while the server answers, as all they spend was taken before; only what several
//! replicas return late can be allowed twice, at most a lease. What they took and did not spend, which others may miss, is at most
//! 1/200 of the quota and 1/20 of its burst for each replica, for a second or until the replica's next trip.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{SharedServer, Take, Taken, Unavailable};
use crate::gcra::{Allowance, Level, Quota};

/// How long a lease is spent. What is left then goes back with the next trip.
const LEASE_TIME: Duration = Duration::from_secs(1);
/// A lease that is spent sooner doubles the next one, and one that lasts longer halves it.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_millis(500);
/// The least that a lease is worth: the server counts in microseconds.
const LEAST: Duration = Duration::from_micros(100);

/// An allowance that replicas share, as one of them sees it.
pub struct SharedAllowance {
    state: Mutex<State>,
    /// One trip at a time, for all requests that wait meanwhile.
    trip: tokio::sync::Mutex<()>,
}

struct State {
    /// As it was on the server after the last trip; or as this replica counts alone, in proportion to its share.
    known: Allowance,
    /// The connection over which the last trip went.
    connection: u64,
    /// What is left of the lease.
    left: u32,
    /// In what time a request of the lease refills.
    interval: Duration,
    taken_at: Instant,
    /// How much to take next.
    size: u32,
    /// What was not spent and goes back with the next trip, as the time in which it would refill.
    returned: Duration,
    /// Requests that wait for a trip.
    waiting: u32,
    /// Whether the last request was counted without the server.
    alone: bool,
}

impl SharedAllowance {
    /// An allowance of which nothing is known.
    pub fn new(now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                known: Allowance::full_at(now),
                connection: 0,
                left: 0,
                interval: Duration::ZERO,
                taken_at: now,
                size: 1,
                returned: Duration::ZERO,
                waiting: 0,
                alone: false,
            }),
            trip: tokio::sync::Mutex::default(),
        }
    }

    /// Takes one request. `key` is the name of the allowance on the server, for `SharedServer::key`.
    ///
    /// # Errors
    /// The level, if nothing is left.
    pub async fn take(
        &self,
        server: &SharedServer,
        quota: Quota,
        key: impl FnOnce() -> String,
    ) -> Result<Level, Level> {
        if let Some(decided) = self.lock().decide(server, quota, Instant::now()) {
            return decided;
        }
        let _waiting = Waiting::begin(self);
        // Held across the trip on purpose: those who wait for it need none of their own.
        let _trip = self.trip.lock().await;
        let take = {
            let mut state = self.lock();
            let now = Instant::now();
            if let Some(decided) = state.decide(server, quota, now) {
                return decided;
            }
            state.begin_trip(quota, now)
        };
        let taken = server.take(&key(), take).await;
        let (mut state, now) = (self.lock(), Instant::now());
        match taken {
            Ok(taken) => {
                state.record(taken, quota, now);
                state.spend_lease(quota, now).ok_or_else(|| state.exhausted_level(quota, now))
            }
            Err(Unavailable) => state.take_alone(server, quota, now),
        }
    }

    /// Gives back one request that was taken.
    pub fn give_back(&self, server: &SharedServer, quota: Quota) {
        let mut state = self.lock();
        if state.alone {
            state.known.give_back(server.share_of(quota));
        } else if state.interval == quota.interval() {
            state.left += 1;
        }
    }

    /// What is left, as far as this replica knows.
    pub fn level(&self, quota: Quota, now: Instant) -> Level {
        self.lock().level(quota, now)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request that waits for a trip.
struct Waiting<'a>(&'a SharedAllowance);

impl<'a> Waiting<'a> {
    fn begin(allowance: &'a SharedAllowance) -> Self {
        allowance.lock().waiting += 1;
        Self(allowance)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl State {
    /// Decides without a trip, if that is possible.
    fn decide(&mut self, server: &SharedServer, quota: Quota, now: Instant) -> Option<Result<Level, Level>> {
        let is_old = now.saturating_duration_since(self.taken_at) >= LEASE_TIME;
        if self.left > 0 && (is_old || self.interval != quota.interval()) {
            self.end_lease(now);
        }
        if let Some(level) = self.spend_lease(quota, now) {
            return Some(Ok(level));
        }
        if !server.is_up() {
            return Some(self.take_alone(server, quota, now));
        }
        let level = self.known.level(quota, now);
        (level.remaining == 0).then_some(Err(level))
    }

    /// Spends one request of the lease, if this quota may: its burst can be smaller than that of the lease.
    fn spend_lease(&mut self, quota: Quota, now: Instant) -> Option<Level> {
        let is_within = self.known.time_to_full(now) <= quota.refill_time();
        if self.left == 0 || self.interval != quota.interval() || !is_within {
            return None;
        }
        self.left -= 1;
        self.alone = false;
        Some(self.level(quota, now))
    }

    fn take_alone(&mut self, server: &SharedServer, quota: Quota, now: Instant) -> Result<Level, Level> {
        self.alone = true;
        self.known.take(server.share_of(quota), now)
    }

    fn level(&self, quota: Quota, now: Instant) -> Level {
        let level = self.known.level(quota, now);
        let left = if self.interval == quota.interval() { self.left } else { 0 };
        Level { remaining: level.remaining.saturating_add(left), ..level }
    }

    fn exhausted_level(&self, quota: Quota, now: Instant) -> Level {
        Level { remaining: 0, ..self.known.level(quota, now) }
    }

    fn end_lease(&mut self, now: Instant) {
        let unspent = self.interval.saturating_mul(self.left);
        self.left = 0;
        self.known.advance(unspent);
        self.returned += unspent;
        self.forget_returned_if_full(now);
    }

    /// SECURITY: what was not spent has refilled by now if the allowance is full, and would be allowed twice.
    fn forget_returned_if_full(&mut self, now: Instant) {
        if self.known.time_to_full(now).is_zero() {
            self.returned = Duration::ZERO;
        }
    }

    fn begin_trip(&mut self, quota: Quota, now: Instant) -> Take {
        self.forget_returned_if_full(now);
        let lasted = now.saturating_duration_since(self.taken_at);
        if lasted < SOON {
            self.size = self.size.saturating_mul(2);
        } else if lasted > LATE {
            self.size /= 2;
        }
        let [least, most] = lease_sizes(quota);
        self.size = self.size.clamp(least, most);
        // A trip that fails may have returned it.
        let returned = std::mem::take(&mut self.returned);
        let known = (self.known.time_to_full(now), self.connection);
        Take { quota, wanted: self.size.max(self.waiting).min(quota.burst), returned, known }
    }

    fn record(&mut self, taken: Taken, quota: Quota, now: Instant) {
        self.known = Allowance::full_at(now + taken.full);
        self.connection = taken.connection;
        if self.interval != quota.interval() {
            self.left = 0;
        }
        self.left += taken.count;
        self.interval = quota.interval();
        self.taken_at = now;
        self.alone = false;
    }
}

/// The smallest and the largest lease.
fn lease_sizes(quota: Quota) -> [u32; 2] {
    let most = (quota.requests / 200).min(quota.burst / 20).max(1);
    let least = LEAST.as_nanos().div_ceil(quota.interval().as_nanos());
    [u32::try_from(least).unwrap_or(u32::MAX).min(most), most]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const QUOTA: Quota = Quota { requests: 1000, per: SECOND.saturating_mul(1000), burst: 1000 };

    /// The state after a trip that took so many requests out of a full allowance.
    fn state_with_lease(count: u32, now: Instant) -> State {
        let allowance = SharedAllowance::new(now);
        let mut state = allowance.state.into_inner().unwrap();
        state.record(Taken { count, full: QUOTA.interval() * count, connection: 1 }, QUOTA, now);
        state
    }

    #[test]
    fn busy_replica_takes_more_up_to_half_a_percent() {
        let mut now = Instant::now();
        let mut state = state_with_lease(0, now);
        let mut sizes = Vec::new();
        for pause in [10, 10, 10, 10, 200, 600, 600, 600] {
            now += Duration::from_millis(pause);
            let wanted = state.begin_trip(QUOTA, now).wanted;
            sizes.push(wanted);
            state.record(Taken { count: 0, full: SECOND, connection: 1 }, QUOTA, now);
        }
        assert_eq!(sizes, [2, 4, 5, 5, 5, 2, 1, 1]);
    }

    #[test]
    fn lease_covers_all_requests_that_wait() {
        let now = Instant::now();
        let mut state = state_with_lease(0, now);
        state.waiting = 80;
        assert_eq!(state.begin_trip(QUOTA, now).wanted, 80);
        state.waiting = 8000;
        assert_eq!(state.begin_trip(QUOTA, now).wanted, QUOTA.burst);
    }

    #[test]
    fn unspent_lease_goes_back_with_next_trip() {
        let now = Instant::now();
        let mut state = state_with_lease(5, now);
        state.record(Taken { count: 0, full: 50 * SECOND, connection: 1 }, QUOTA, now);
        assert_eq!(state.spend_lease(QUOTA, now).map(|level| level.remaining), Some(954));
        let later = now + LEASE_TIME;
        state.end_lease(later);
        assert!(state.spend_lease(QUOTA, later).is_none());
        let trip = state.begin_trip(QUOTA, later);
        assert_eq!((trip.returned, trip.known.0), (4 * SECOND, 45 * SECOND), "one was spent");
        assert_eq!(state.begin_trip(QUOTA, later).returned, Duration::ZERO, "only once");
    }

    #[test]
    fn unspent_lease_of_full_allowance_is_not_returned() {
        let now = Instant::now();
        let mut state = state_with_lease(5, now);
        // Five requests have refilled. To return them would make room for five more than the quota.
        let later = now + 5 * SECOND;
        state.end_lease(later);
        assert_eq!(state.begin_trip(QUOTA, later).returned, Duration::ZERO);
    }

    #[test]
    fn smaller_burst_does_not_spend_what_larger_one_took() {
        let now = Instant::now();
        let mut state = state_with_lease(5, now);
        state.record(Taken { count: 5, full: 900 * SECOND, connection: 1 }, QUOTA, now);
        let smaller = Quota { burst: 750, ..QUOTA };
        assert!(state.spend_lease(smaller, now).is_none());
        assert!(state.spend_lease(QUOTA, now).is_some());
        assert!(state.spend_lease(smaller, now + 150 * SECOND).is_some());
    }

    #[test]
    fn lease_of_fast_limit_is_worth_what_the_server_can_count() {
        let fast = Quota { requests: 1_000_000_000, per: SECOND, burst: 1_000_000_000 };
        assert_eq!(lease_sizes(fast), [100_000, 5_000_000]);
        assert_eq!(lease_sizes(Quota { requests: 600, per: 60 * SECOND, burst: 100 }), [1, 3]);
        assert_eq!(lease_sizes(Quota { requests: 10, per: SECOND, burst: 10 }), [1, 1]);
    }
}
