//! The open connections of a listener, oldest first: which of them makes room for a new one, and how many come from one
//! address.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::activity::{Activity, Silence};

/// How old a connection is, at least, that is closed while it has requests under way, none of which was admitted. Longer than
/// a verdict takes.
const UNADMITTED: Duration = Duration::from_secs(4);
/// How long a connection may be silent, before its first request or after it, and not be closed for a new one.
const SILENCE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Registry {
    open: Mutex<Open>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

#[derive(Default)]
struct Open {
    next: u64,
    activities: BTreeMap<u64, Arc<Activity>>,
}

/// A connection's entry, until this is dropped.
pub(super) struct Entry {
    registry: Arc<Registry>,
    number: u64,
}

/// One of the connections of an address, until this is dropped.
pub(super) struct FromAddress {
    registry: Arc<Registry>,
    address: IpAddr,
}

impl Registry {
    pub(super) fn enter(self: &Arc<Self>, activity: &Arc<Activity>) -> Entry {
        let mut open = lock(&self.open);
        let number = open.next;
        open.next += 1;
        open.activities.insert(number, Arc::clone(activity));
        Entry { registry: Arc::clone(self), number }
    }

    /// Ends the oldest connection on which no good key is in use: a silent one that never had one, else one whose requests
    /// were all refused, else a silent one.
    ///
    /// SECURITY: so that strangers who hold connections in silence shut nobody out. Those with requests under way are limited
    /// in number ([`Account::admit_public`](crate::budget::Account::admit_public)) and keep their places.
    pub(super) fn evict_one(&self) -> bool {
        let mut open = lock(&self.open);
        let strangers = || open.activities.iter().filter(|(_, activity)| !activity.account.is_of_good_key());
        let silent = |activity: &Activity| match activity.silence() {
            Silence::Not => false,
            Silence::Head(time) | Silence::Idle(time) => time >= SILENCE,
        };
        let refused = |activity: &Activity| {
            !activity.account.has_admitted_work() && activity.start.elapsed() >= UNADMITTED
        };
        let found = strangers()
            .find(|(_, activity)| silent(activity) && !activity.account.was_of_good_key())
            .or_else(|| strangers().find(|(_, activity)| !silent(activity) && refused(activity)))
            .or_else(|| strangers().find(|(_, activity)| silent(activity)));
        let Some(number) = found.map(|(number, _)| *number) else { return false };
        // Out of the list, as it may take a moment to end.
        if let Some(activity) = open.activities.remove(&number) {
            activity.evict();
        }
        true
    }

    /// A place among those of an address (IPv6: of its /64), if it has one left.
    pub(super) fn take_from(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<FromAddress> {
        let address = network(address);
        let mut addresses = lock(&self.addresses);
        let count = addresses.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(FromAddress { registry: Arc::clone(self), address })
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        address => address,
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.registry.open).activities.remove(&self.number);
    }
}

impl Drop for FromAddress {
    fn drop(&mut self) {
        let mut addresses = lock(&self.registry.addresses);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// The lists are whole between any two statements, so a poisoned lock is as good as any.
fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_gets_them_back() {
        let registry = Arc::<Registry>::default();
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::ffff:1".parse().unwrap();
        let held = registry.take_from(one, 1);
        assert!(held.is_some() && registry.take_from(neighbour, 1).is_none());
        assert!(registry.take_from("2001:db8:0:1::1".parse().unwrap(), 1).is_some());
        drop(held);
        assert!(registry.take_from(neighbour, 1).is_some());
        assert!(lock(&registry.addresses).is_empty());
    }
}
