//! A connection's place among those that may be open at once.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::address_limit::AddressPlace;
use super::registry::Entry;
use crate::metrics::Metrics;

/// Held as long as the socket, tunnels included.
pub(super) struct ConnectionPlace {
    metrics: Arc<Metrics>,
    _entry: Entry,
    _permit: Option<OwnedSemaphorePermit>,
    /// Present once the client's address is known, if connections are limited by it.
    pub(super) address: Option<AddressPlace>,
}

impl ConnectionPlace {
    pub(super) fn new(permit: Option<OwnedSemaphorePermit>, entry: Entry, metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self { metrics: Arc::clone(metrics), _entry: entry, _permit: permit, address: None }
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}
