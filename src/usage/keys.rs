//! The use of keys by token id, of a bounded number of them. A key that is forgotten moves the time ahead from which the counts are
//! complete, so that it never looks as if it had been silent for longer than is known.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::network::Network;
use super::organizations::Row;
use super::report::{KeyLine, KeyUsage};
use super::{CLASSES, End, class_index, to_millis, to_timestamp};
use crate::identity::Identity;
use crate::metrics::Metrics;

/// A key that is remembered, in bytes (measured: `usage::keys::tests::entry_fits_its_share_of_memory_plan`).
pub const ENTRY_BYTES: usize = 512;

/// How a request began.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The route's label.
    pub route: &'a Arc<str>,
    /// The client's address, as far as it is known.
    pub client: Option<IpAddr>,
}

pub(super) struct KeyTable {
    entries: Cache<String, Arc<Entry>>,
    gaps: Arc<Gaps>,
}

/// What is missing because keys were forgotten.
struct Gaps {
    /// The last use of a key that is forgotten, or the begin of the counts.
    complete_since: AtomicU64,
    /// Keys that are forgotten although they are in use.
    open: AtomicU32,
}

/// The use of one key.
pub(super) struct Entry {
    organization: Box<str>,
    state: Mutex<State>,
}

struct State {
    first: u64,
    last: u64,
    requests: u64,
    open: u32,
    is_forgotten: bool,
    /// An index of `CLASSES`.
    class: Option<u8>,
    route: Arc<str>,
    network: Option<Network>,
    /// That of the organization on the day of the last end.
    row: Option<Arc<Row>>,
}

impl KeyTable {
    pub(super) fn new(max_keys: u64, complete_since: u64, metrics: &Metrics) -> Self {
        let gaps = Arc::new(Gaps { complete_since: AtomicU64::new(complete_since), open: AtomicU32::new(0) });
        let (noted, forgotten) = (Arc::clone(&gaps), metrics.usage_forgotten_keys.clone());
        let entries = Cache::builder()
            .max_capacity(max_keys)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, entry: Arc<Entry>, cause: RemovalCause| {
                if cause.was_evicted() {
                    forgotten.inc();
                    entry.forget(&noted);
                }
            })
            .build();
        Self { entries, gaps }
    }

    pub(super) fn begin(
        &self,
        token_id: &str,
        identity: &Identity,
        start: &Start<'_>,
        now: u64,
    ) -> Arc<Entry> {
        let entry = self.entries.get(token_id);
        let entry = entry.unwrap_or_else(|| {
            self.entries.get_with_by_ref(token_id, || Arc::new(Entry::new(identity, start, now)))
        });
        let mut state = entry.lock();
        if state.is_forgotten && state.open == 0 {
            self.gaps.open.fetch_add(1, Ordering::Relaxed);
        }
        state.open = state.open.saturating_add(1);
        state.last = state.last.max(now);
        if !Arc::ptr_eq(&state.route, start.route) {
            state.route = Arc::clone(start.route);
        }
        state.network = start.client.map(Network::of);
        drop(state);
        entry
    }

    /// `count` counts the request for the organization, with the row that was returned last.
    pub(super) fn finish(
        &self,
        entry: &Entry,
        end: End,
        now: u64,
        count: impl FnOnce(&str, Option<Arc<Row>>) -> Arc<Row>,
    ) {
        let mut state = entry.lock();
        let row = state.row.take();
        state.row = Some(count(&entry.organization, row));
        state.requests += 1;
        state.open = state.open.saturating_sub(1);
        state.last = state.last.max(now);
        state.class = u8::try_from(class_index(end.status)).ok();
        if state.is_forgotten && state.open == 0 {
            self.gaps.complete_since.fetch_max(state.last, Ordering::Relaxed);
            self.gaps.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A key that is not here was not used since then.
    pub(super) fn complete_since(&self, now: u64) -> u64 {
        match self.gaps.open.load(Ordering::Relaxed) {
            0 => self.gaps.complete_since.load(Ordering::Relaxed),
            _ => now,
        }
    }

    pub(super) fn find(&self, token_id: &str) -> Option<Arc<Entry>> {
        self.entries.get(token_id)
    }

    pub(super) fn list(&self) -> impl Iterator<Item = (String, Arc<Entry>)> + Send + use<> {
        let entries: Vec<_> = self.entries.iter().collect();
        entries.into_iter().map(|(id, entry)| (id.to_string(), entry))
    }

    pub(super) fn count(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.entry_count()
    }

    /// Adds keys of an earlier process, and forgets those that are too many, the oldest first.
    pub(super) fn restore(&self, mut saved: Vec<KeyLine>) {
        saved.sort_by_key(|line| line.usage.last_used);
        for KeyLine { token_id, usage } in saved {
            self.entries.insert(token_id, Arc::new(Entry::from_usage(usage)));
        }
        self.entries.run_pending_tasks();
    }
}

impl Entry {
    fn new(identity: &Identity, start: &Start<'_>, now: u64) -> Self {
        let state = State {
            first: now,
            last: now,
            requests: 0,
            open: 0,
            is_forgotten: false,
            class: None,
            route: Arc::clone(start.route),
            network: None,
            row: None,
        };
        let organization = identity.org_id.to_str().unwrap_or_default().into();
        Self { organization, state: Mutex::new(state) }
    }

    fn from_usage(usage: KeyUsage) -> Self {
        let class = usage.last_status.and_then(|name| CLASSES.iter().position(|class| *class == name));
        let state = State {
            first: to_millis(usage.first_used),
            last: to_millis(usage.last_used),
            requests: usage.requests,
            open: 0,
            is_forgotten: false,
            class: class.and_then(|index| u8::try_from(index).ok()),
            route: usage.last_route.into(),
            network: usage.last_network,
            row: None,
        };
        Self { organization: usage.organization_id.into(), state: Mutex::new(state) }
    }

    pub(super) fn to_usage(&self) -> KeyUsage {
        let state = self.lock();
        KeyUsage {
            organization_id: self.organization.to_string(),
            first_used: to_timestamp(state.first),
            last_used: to_timestamp(state.last),
            requests: state.requests,
            open_requests: state.open,
            last_status: state.class.map(|index| CLASSES[usize::from(index)].to_owned()),
            last_route: state.route.to_string(),
            last_network: state.network,
        }
    }

    fn forget(&self, gaps: &Gaps) {
        let mut state = self.lock();
        state.is_forgotten = true;
        gaps.complete_since.fetch_max(state.last, Ordering::Relaxed);
        if state.open > 0 {
            gaps.open.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
