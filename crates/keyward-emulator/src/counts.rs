//! How often each endpoint was called. Validations are followed more closely: tests of freshness and of sharing
//! ask when they began, and how many were open at once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use scalekit::call::Operation;
use tokio::sync::watch;

use crate::endpoint::Endpoint;

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted; refused ones are not among them.
    pub connections: u64,
    /// Calls for an access token.
    pub token_fetches: u64,
    /// Calls that create.
    pub creations: u64,
    /// Calls that validate, counted when the request's head has arrived.
    pub validations: u64,
    /// Validations whose verdict was taken from the store.
    pub validations_decided: u64,
    /// Validations begun and neither answered nor given up by the caller.
    pub validations_open: u64,
    /// The most of them at once.
    pub validations_open_max: u64,
    /// Calls that invalidate.
    pub invalidations: u64,
    /// Calls that list.
    pub lists: u64,
    /// Calls that update.
    pub updates: u64,
}

/// The counters behind [`Counts`].
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

/// A call that is open until this is dropped.
pub(crate) struct Open<'a>(Option<&'a Counters>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(counters) = self.0 {
            counters.open.fetch_sub(1, Relaxed);
        }
    }
}

impl Counters {
    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// Counts a call whose head has arrived.
    pub(crate) fn begin(&self, endpoint: Endpoint) -> Open<'_> {
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
                return Open(Some(self));
            }
        };
        Open(None)
    }

    /// Counts a verdict.
    pub(crate) fn decide(&self) {
        self.decided.fetch_add(1, Relaxed);
    }

    /// Waits until so many validations have begun.
    pub(crate) async fn validations_begun(&self, at_least: u64) {
        // The sender lives as long as `self`, so that the wait cannot fail.
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
