//! The share of calls, budget and waiting places that each class of validations may use, so that unknown keys cannot take
//! all.

use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::credential::KeyDigest;

/// How long a key counts as recently good. It decides about shares alone: the key is still validated.
const GOOD_FOR: Duration = Duration::from_secs(600);
/// A good key is recorded again after this time, not at each request.
const REFRESH_EVERY: Duration = Duration::from_secs(60);
const GOOD_KEYS: u64 = 20_000;

/// What a validation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A request with a key that was not good in the last ten minutes.
    Unknown,
    /// A request with a key that was good in the last ten minutes.
    Good,
    /// An open stream, whose key was good when it was opened.
    Stream,
}

/// The share of a limit that is kept for keys that were good lately.
pub(super) fn kept_share(limit: usize) -> usize {
    limit / 4
}

/// Keys that were good in the last ten minutes, by keyed digest, in bounded number.
#[derive(Clone)]
pub(super) struct GoodKeys(Cache<KeyDigest, Instant>);

impl Default for GoodKeys {
    fn default() -> Self {
        let cache = Cache::builder().max_capacity(GOOD_KEYS).time_to_live(GOOD_FOR + REFRESH_EVERY);
        Self(cache.build())
    }
}

impl GoodKeys {
    /// When this key was last recorded as good, unless that is too long ago.
    pub(super) fn good_since(&self, key: &KeyDigest) -> Option<Instant> {
        self.0.get(key)
    }

    /// The key is valid; `since` is the result of [`Self::good_since`] before the call.
    pub(super) fn confirm(&self, key: KeyDigest, since: Option<Instant>, now: Instant) {
        if since.is_none_or(|since| now.saturating_duration_since(since) >= REFRESH_EVERY) {
            self.0.insert(key, now);
        }
    }

    /// The key is invalid.
    pub(super) fn forget(&self, key: &KeyDigest) {
        // Most bad keys were never good, and a lookup is cheaper than an invalidation.
        if self.0.contains_key(key) {
            self.0.invalidate(key);
        }
    }
}

/// Limits concurrent calls to Scalekit.
pub(super) struct Calls {
    /// For every class.
    shared: Semaphore,
    /// For keys that were good lately, and for streams.
    kept: Semaphore,
    /// For streams alone, beyond the limit on calls at once.
    streams: Semaphore,
}

impl Calls {
    pub(super) fn new(max_in_flight: usize) -> Self {
        let kept = kept_share(max_in_flight);
        Self {
            shared: Semaphore::new(max_in_flight - kept),
            kept: Semaphore::new(kept),
            streams: Semaphore::new((max_in_flight / 8).max(1)),
        }
    }

    /// Waits for a place. `None` never happens, as the semaphores are never closed.
    pub(super) async fn acquire(&self, class: Class) -> Option<SemaphorePermit<'_>> {
        let permit = match class {
            Class::Unknown => self.shared.acquire().await,
            Class::Good => tokio::select! {
                biased;
                permit = self.shared.acquire() => permit,
                permit = self.kept.acquire() => permit,
            },
            Class::Stream => tokio::select! {
                biased;
                permit = self.streams.acquire() => permit,
                permit = self.shared.acquire() => permit,
                permit = self.kept.acquire() => permit,
            },
        };
        permit.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::credential::{ApiKey, Digester, Settings};

    fn take(calls: &Calls, class: Class) -> Vec<SemaphorePermit<'_>> {
        std::iter::from_fn(|| calls.acquire(class).now_or_never().flatten()).collect()
    }

    #[test]
    fn unknown_keys_leave_quarter_of_calls_to_good() {
        let calls = Calls::new(8);
        let unknown = take(&calls, Class::Unknown);
        let good = take(&calls, Class::Good);
        let streams = take(&calls, Class::Stream);
        assert_eq!((unknown.len(), good.len(), streams.len()), (6, 2, 1));
        drop(unknown);
        assert_eq!(take(&calls, Class::Stream).len(), 6, "streams use what is free, too");
    }

    #[test]
    fn smallest_call_limit_still_serves_streams() {
        let calls = Calls::new(1);
        let unknown = take(&calls, Class::Unknown);
        assert_eq!((unknown.len(), take(&calls, Class::Stream).len()), (1, 1));
    }

    #[test]
    fn good_key_refreshes_each_minute_until_bad() {
        let keys = GoodKeys::default();
        let digest = {
            let key = ApiKey::parse("0123456789012345678901", &Settings::default()).unwrap();
            Digester::new().unwrap().digest(&key)
        };
        let began = Instant::now();
        assert_eq!(keys.good_since(&digest), None);
        keys.confirm(digest, None, began);
        keys.confirm(digest, Some(began), began + REFRESH_EVERY / 2);
        assert_eq!(keys.good_since(&digest), Some(began));
        let later = began + REFRESH_EVERY;
        keys.confirm(digest, Some(began), later);
        assert_eq!(keys.good_since(&digest), Some(later));
        keys.forget(&digest);
        assert_eq!(keys.good_since(&digest), None);
    }
}
