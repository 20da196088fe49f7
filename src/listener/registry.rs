//! The open connections of a listener, oldest first, and which of them ends when a new one needs its place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::activity::{Activity, Silence};

/// The least age of a connection that is closed while requests are under way on it none of which was admitted. Longer than a
/// verdict takes.
const MIN_EVICTED_AGE: Duration = Duration::from_secs(4);
/// The least silence of a connection, before its first request or after any, that is closed for a new one.
const MIN_EVICTED_SILENCE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Registry(Mutex<OpenConnections>);

#[derive(Default)]
struct OpenConnections {
    next_id: u64,
    by_id: BTreeMap<u64, Arc<Activity>>,
}

/// A connection's entry, until this is dropped.
pub(super) struct Entry {
    registry: Arc<Registry>,
    id: u64,
}

impl Registry {
    pub(super) fn register(self: &Arc<Self>, activity: &Arc<Activity>) -> Entry {
        let mut open = self.lock();
        let id = open.next_id;
        open.next_id += 1;
        open.by_id.insert(id, Arc::clone(activity));
        Entry { registry: Arc::clone(self), id }
    }

    /// Ends the oldest connection on which no good key is in use: a silent one that never had one, else one whose requests
    /// were all refused, else a silent one.
    ///
    /// SECURITY: so that strangers who hold connections in silence shut nobody out. Those with requests under way are limited
    /// in number ([`Account::admit_public`](crate::budget::Account::admit_public)) and keep their places.
    pub(super) fn evict_one(&self) {
        let mut open = self.lock();
        let strangers = || open.by_id.iter().filter(|(_, activity)| !activity.account.is_of_good_key());
        let is_silent = |activity: &Activity| match activity.silence() {
            Silence::Busy => false,
            Silence::HeadDue(time) | Silence::Idle(time) => time >= MIN_EVICTED_SILENCE,
        };
        let is_refused = |activity: &Activity| {
            !activity.account.has_admitted_work() && activity.accepted_at.elapsed() >= MIN_EVICTED_AGE
        };
        let found = strangers()
            .find(|(_, activity)| is_silent(activity) && !activity.account.was_of_good_key())
            .or_else(|| strangers().find(|(_, activity)| !is_silent(activity) && is_refused(activity)))
            .or_else(|| strangers().find(|(_, activity)| is_silent(activity)));
        let found = found.map(|(id, _)| *id);
        // Removed at once, since it may take a moment to end and must not be chosen again.
        if let Some(activity) = found.and_then(|id| open.by_id.remove(&id)) {
            activity.evict();
        }
    }

    /// The list is consistent between any two statements, so a poisoned lock can be used.
    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.lock().by_id.remove(&self.id);
    }
}
