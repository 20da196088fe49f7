//! Call counters. Validations are counted in more detail, as tests of freshness and of sharing need to know when one began
//! and how many were open at once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use scalekit::call::Operation;
use tokio::sync::watch;

use crate::endpoint::Endpoint;

/// The counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted connections, without those that a fault refused.
    pub connections: u64,
    /// Requests for an access token.
    pub token_fetches: u64,
    /// Create calls.
    pub creations: u64,
    /// Validate calls, counted when the request head has arrived.
    pub validations: u64,
    /// Validate calls whose verdict was read from the store.
    pub validations_decided: u64,
    /// Validate calls in progress.
    pub validations_open: u64,
    /// The largest number of validate calls in progress at once.
    pub validations_open_max: u64,
    /// Invalidate calls.
    pub invalidations: u64,
    /// List calls.
    pub lists: u64,
    /// Update calls.
    pub updates: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    token_fetches: AtomicU64,
    creations: AtomicU64,
    validations: watch::Sender<u64>,
    decided: AtomicU64,
    open: AtomicU64,
    open_max: AtomicU64,
    invalidations: AtomicU64,
    lists: AtomicU64,
    updates: AtomicU64,
}

/// Counts a validate call as open until dropped.
pub(crate) struct OpenCall<'a>(Option<&'a Counters>);

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        if let Some(counters) = self.0 {
            counters.open.fetch_sub(1, Relaxed);
        }
    }
}

impl Counters {
    pub(crate) fn count_connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// Counts a call when its head has arrived.
    pub(crate) fn count_call(&self, endpoint: Endpoint) -> OpenCall<'_> {
        match endpoint {
            Endpoint::Token => self.token_fetches.fetch_add(1, Relaxed),
            Endpoint::Api(Operation::Create) => self.creations.fetch_add(1, Relaxed),
            Endpoint::Api(Operation::Invalidate) => self.invalidations.fetch_add(1, Relaxed),
            Endpoint::Api(Operation::List) => self.lists.fetch_add(1, Relaxed),
            Endpoint::Api(Operation::Update) => self.updates.fetch_add(1, Relaxed),
            Endpoint::Api(Operation::Validate) => {
                let open = self.open.fetch_add(1, Relaxed) + 1;
                self.open_max.fetch_max(open, Relaxed);
                self.validations.send_modify(|begun| *begun += 1);
                return OpenCall(Some(self));
            }
        };
        OpenCall(None)
    }

    pub(crate) fn count_verdict(&self) {
        self.decided.fetch_add(1, Relaxed);
    }

    pub(crate) async fn wait_for_validations(&self, at_least: u64) {
        // Cannot fail: `self` owns the sender.
        let _ = self.validations.subscribe().wait_for(|begun| *begun >= at_least).await;
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.load(Relaxed),
            token_fetches: self.token_fetches.load(Relaxed),
            creations: self.creations.load(Relaxed),
            validations: *self.validations.borrow(),
            validations_decided: self.decided.load(Relaxed),
            validations_open: self.open.load(Relaxed),
            validations_open_max: self.open_max.load(Relaxed),
            invalidations: self.invalidations.load(Relaxed),
            lists: self.lists.load(Relaxed),
            updates: self.updates.load(Relaxed),
        }
    }
}
