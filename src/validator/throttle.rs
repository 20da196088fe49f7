//! Limits attempts with bad keys by client address, in bounded memory. Keys that were good lately are exempt.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;

/// How many addresses are remembered, in some 300 bytes each (`budget::Plan` counts them with the process).
const ADDRESSES: u64 = 10_000;

/// An allowance that refills evenly over a minute.
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    since: Instant,
}

impl Allowance {
    /// A full one.
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        Self { left: f64::from(per_minute), since: now }
    }

    /// What is left now.
    pub(super) fn left(&mut self, per_minute: u32, now: Instant) -> f64 {
        let per_minute = f64::from(per_minute);
        let gained = now.saturating_duration_since(self.since).as_secs_f64() / 60.0 * per_minute;
        self.left = (self.left + gained).min(per_minute);
        self.since = now;
        self.left
    }

    /// Takes one and leaves at least `keep`, or says in how long that will be possible.
    pub(super) fn take(&mut self, per_minute: u32, keep: u32, now: Instant) -> Result<(), Duration> {
        let left = self.left(per_minute, now) - f64::from(keep);
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) * 60.0 / f64::from(per_minute.max(1))));
        }
        self.left -= 1.0;
        Ok(())
    }

    /// Gives back one that was taken and not used.
    fn refund(&mut self, per_minute: u32, now: Instant) {
        self.left = (self.left(per_minute, now) + 1.0).min(f64::from(per_minute));
    }
}

/// Allowances of bad keys by address.
pub(super) struct Throttle {
    per_minute: u32,
    addresses: Cache<IpAddr, Arc<Mutex<Allowance>>>,
}

impl Throttle {
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

    /// Whether a key that was not good lately may be asked about; if not, in how long.
    pub(super) fn admit(&self, client: IpAddr, now: Instant) -> Result<(), Duration> {
        let Some(allowance) = self.addresses.get(&subscriber_network(client)) else {
            return Ok(());
        };
        let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
        let left = allowance.left(self.per_minute, now);
        if left >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - left) * 60.0 / f64::from(self.per_minute)))
    }

    /// Takes one bad key out of the allowance for a call that is about to begin, or says in how long that will be possible.
    ///
    /// SECURITY: before the call, or as many as may wait would be asked about each time there is one left.
    pub(super) fn reserve(&self, client: IpAddr, now: Instant) -> Result<(), Duration> {
        self.allowance_of(client, now).lock().unwrap_or_else(PoisonError::into_inner).take(
            self.per_minute,
            0,
            now,
        )
    }

    /// The call that was reserved for found the key good, or nothing.
    pub(super) fn give_back(&self, client: IpAddr, now: Instant) {
        self.allowance_of(client, now)
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .refund(self.per_minute, now);
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

    #[test]
    fn only_address_without_allowance_is_throttled() {
        let (throttle, now) = (Throttle::new(60), Instant::now());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for _ in 0..60 {
            assert!(throttle.admit(address("2001:db8::1"), now).is_ok());
            assert!(throttle.reserve(address("2001:db8::1"), now).is_ok());
        }
        assert_eq!(throttle.admit(address("2001:db8::2"), now), Err(Duration::from_secs(1)));
        assert!(throttle.admit(address("2001:db8:0:1::1"), now).is_ok());
        assert!(throttle.admit(address("192.0.2.1"), now).is_ok());
        assert!(throttle.admit(address("2001:db8::2"), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn concurrent_bad_keys_do_not_exceed_allowance() {
        let (throttle, now) = (Throttle::new(60), Instant::now());
        let client = IpAddr::from([192, 0, 2, 1]);
        let mut through = 0;
        for second in 0..600 {
            let now = now + Duration::from_secs(second);
            through += (0..1000).filter(|_| throttle.reserve(client, now).is_ok()).count();
        }
        assert!((600..=60 + 600).contains(&through), "in ten minutes: {through}");
    }

    #[test]
    fn call_without_bad_key_refunds_allowance() {
        let (throttle, now) = (Throttle::new(2), Instant::now());
        let client = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..10 {
            assert!(throttle.reserve(client, now).is_ok());
            throttle.give_back(client, now);
        }
        assert_eq!((0..10).filter(|_| throttle.reserve(client, now).is_ok()).count(), 2);
    }

    #[test]
    fn ipv4_mapped_ipv6_address_shares_allowance() {
        let (throttle, now) = (Throttle::new(1), Instant::now());
        assert!(throttle.reserve(IpAddr::from([192, 0, 2, 1]), now).is_ok());
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
