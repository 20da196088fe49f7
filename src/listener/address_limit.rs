//! How many connections each client address has open (`limits.connections_per_address`).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub(super) struct AddressLimit(Mutex<HashMap<IpAddr, usize>>);

/// One of the connections of an address, until this is dropped.
pub(super) struct AddressPlace {
    limit: Arc<AddressLimit>,
    network: IpAddr,
}

impl AddressLimit {
    /// A place among the `max` of an address, if one is free. IPv6 addresses of one /64 count as one, since a client can use
    /// all of them.
    pub(super) fn take_place(self: &Arc<Self>, address: IpAddr, max: usize) -> Option<AddressPlace> {
        let network = network_of(address);
        let mut counts = self.lock();
        let count = counts.entry(network).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(AddressPlace { limit: Arc::clone(self), network })
    }

    /// The counts are consistent between any two statements, so a poisoned lock can be used.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut counts = self.limit.lock();
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_places_are_released() {
        let limit = Arc::<AddressLimit>::default();
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::ffff:1".parse().unwrap();
        let held = limit.take_place(one, 1);
        assert!(held.is_some() && limit.take_place(neighbour, 1).is_none());
        assert!(limit.take_place("2001:db8:0:1::1".parse().unwrap(), 1).is_some());
        drop(held);
        assert!(limit.take_place(neighbour, 1).is_some());
        assert!(limit.lock().is_empty());
    }
}
