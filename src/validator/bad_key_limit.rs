//! Limits attempts with bad keys by client address, in bounded memory. Keys that were good lately are exempt.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::{Instant, sleep};

/// How many addresses are remembered, in some 300 bytes each (`memory_plan::Plan` counts them with the process).
const ADDRESSES: u64 = 10_000;
/// Between two looks whether another call has given back its reservation.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// An allowance that refills evenly over a minute.
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    /// Taken, and may still be given back.
    outstanding: u32,
    since: Instant,
}

impl Allowance {
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        Self { left: f64::from(per_minute), outstanding: 0, since: now }
    }

    /// Adds what has accrued, and gives what is left.
    pub(super) fn refill(&mut self, per_minute: u32, now: Instant) -> f64 {
        let per_minute = f64::from(per_minute);
        let gained = now.saturating_duration_since(self.since).as_secs_f64() / 60.0 * per_minute;
        self.left = (self.left + gained).min(per_minute);
        self.since = now;
        self.left
    }

    /// Takes one and leaves at least `keep`.
    ///
    /// # Errors
    /// In how long that will be possible.
    pub(super) fn take(&mut self, per_minute: u32, keep: u32, now: Instant) -> Result<(), Duration> {
        let left = self.refill(per_minute, now) - f64::from(keep);
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) * 60.0 / f64::from(per_minute.max(1))));
        }
        self.left -= 1.0;
        Ok(())
    }

    /// Gives back one that was taken and not used.
    pub(super) fn refund(&mut self, per_minute: u32, now: Instant) {
        self.left = (self.refill(per_minute, now) + 1.0).min(f64::from(per_minute));
    }
}

/// Allowances of bad keys by address.
pub(super) struct BadKeyLimit {
    per_minute: u32,
    addresses: Cache<IpAddr, Arc<Mutex<Allowance>>>,
}

impl BadKeyLimit {
    pub(super) fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            // After two minutes without a bad key an allowance is full again, which is what a missing one means.
            addresses: Cache::builder()
                .max_capacity(ADDRESSES)
                .time_to_idle(Duration::from_secs(120))
                .build(),
        }
    }

    /// The same allowances, with another limit.
    pub(super) fn with_limit(&self, per_minute: u32) -> Self {
        Self { per_minute, addresses: self.addresses.clone() }
    }

    /// Whether a key that was not good lately may be validated for this client.
    ///
    /// # Errors
    /// In how long it may be.
    pub(super) fn admit(&self, client: IpAddr, now: Instant) -> Result<(), Duration> {
        let Some(allowance) = self.addresses.get(&subscriber_network(client)) else {
            return Ok(());
        };
        let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
        let left = allowance.refill(self.per_minute, now) + f64::from(allowance.outstanding);
        if left >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - left) * 60.0 / f64::from(self.per_minute)))
    }

    /// Takes one bad key out of the allowance for a call that is about to begin. If none is left, but calls under way may still
    /// give theirs back, waits for them until `latest`.
    ///
    /// SECURITY: taken before the call, as otherwise all waiting requests would be sent whenever one is left.
    ///
    /// # Errors
    /// In how long it will be possible.
    pub(super) async fn reserve(&self, client: IpAddr, latest: Instant) -> Result<(), Duration> {
        loop {
            let now = Instant::now();
            {
                let allowance = self.allowance_of(client, now);
                let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
                match allowance.take(self.per_minute, 0, now) {
                    Ok(()) => {
                        allowance.outstanding += 1;
                        return Ok(());
                    }
                    Err(wait) if allowance.outstanding == 0 || now >= latest => return Err(wait),
                    Err(_) => {}
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends a reservation: only a bad key costs allowance.
    pub(super) fn settle(&self, client: IpAddr, found_bad_key: bool, now: Instant) {
        let allowance = self.allowance_of(client, now);
        let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
        allowance.outstanding = allowance.outstanding.saturating_sub(1);
        if !found_bad_key {
            allowance.refund(self.per_minute, now);
        }
    }

    fn allowance_of(&self, client: IpAddr, now: Instant) -> Arc<Mutex<Allowance>> {
        let full = || Arc::new(Mutex::new(Allowance::new(self.per_minute, now)));
        self.addresses.get_with(subscriber_network(client), full)
    }
}

/// The network of one subscriber: an IPv6 subscriber has a /64, and could try each address of it.
fn subscriber_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks about a bad key, where that is allowed.
    async fn spend(throttle: &BadKeyLimit, client: IpAddr, now: Instant) -> bool {
        let reserved = throttle.reserve(client, now).await.is_ok();
        if reserved {
            throttle.settle(client, true, now);
        }
        reserved
    }

    #[tokio::test(start_paused = true)]
    async fn only_address_without_allowance_waits() {
        let (throttle, now) = (BadKeyLimit::new(60), Instant::now());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for _ in 0..60 {
            assert!(throttle.admit(address("2001:db8::1"), now).is_ok());
            assert!(spend(&throttle, address("2001:db8::1"), now).await);
        }
        assert_eq!(throttle.admit(address("2001:db8::2"), now), Err(Duration::from_secs(1)));
        assert!(throttle.admit(address("2001:db8:0:1::1"), now).is_ok());
        assert!(throttle.admit(address("192.0.2.1"), now).is_ok());
        assert!(throttle.admit(address("2001:db8::2"), now + Duration::from_secs(1)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_attempts_do_not_exceed_allowance() {
        let throttle = BadKeyLimit::new(60);
        let client = IpAddr::from([192, 0, 2, 1]);
        let mut through = 0;
        for _ in 0..600 {
            for _ in 0..100 {
                through += usize::from(spend(&throttle, client, Instant::now()).await);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((600..=60 + 600).contains(&through), "in ten minutes: {through}");
    }

    #[tokio::test]
    async fn call_without_bad_key_costs_no_allowance() {
        let (throttle, now) = (BadKeyLimit::new(2), Instant::now());
        let client = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..10 {
            assert!(throttle.reserve(client, now).await.is_ok());
            throttle.settle(client, false, now);
        }
        assert!(spend(&throttle, client, now).await && spend(&throttle, client, now).await);
        assert!(!spend(&throttle, client, now).await);
    }

    #[tokio::test(start_paused = true)]
    async fn call_waits_for_allowance_others_may_return() {
        let throttle = Arc::new(BadKeyLimit::new(1));
        let client = IpAddr::from([192, 0, 2, 1]);
        let latest = Instant::now() + Duration::from_secs(1);
        assert!(throttle.reserve(client, latest).await.is_ok());
        assert!(throttle.admit(client, Instant::now()).is_ok(), "none of it is spent");
        let second = tokio::spawn({
            let throttle = Arc::clone(&throttle);
            async move { throttle.reserve(client, latest).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        throttle.settle(client, false, Instant::now());
        assert!(second.await.unwrap().is_ok());
        assert!(throttle.reserve(client, latest).await.is_err(), "nobody gave back in time");
    }

    #[tokio::test]
    async fn ipv4_mapped_ipv6_is_same_address() {
        let (throttle, now) = (BadKeyLimit::new(1), Instant::now());
        assert!(spend(&throttle, IpAddr::from([192, 0, 2, 1]), now).await);
        assert!(throttle.admit("::ffff:192.0.2.1".parse().unwrap(), now).is_err());
    }

    #[test]
    fn reserved_part_of_allowance_is_withheld() {
        let now = Instant::now();
        let mut allowance = Allowance::new(60, now);
        let taken = (0..60).filter(|_| allowance.take(60, 15, now).is_ok()).count();
        assert_eq!((taken, allowance.take(60, 15, now)), (45, Err(Duration::from_secs(1))));
        assert_eq!((0..60).filter(|_| allowance.take(60, 0, now).is_ok()).count(), 15);
    }
}
