//! Warnings that a key expires soon: to its client, and to the operator.

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::identity::Identity;
use crate::metrics::Metrics;

/// When the request's key expires, as an HTTP-date (RFC 9110 section 5.6.7).
pub const KEYWARD_KEY_EXPIRES: HeaderName = HeaderName::from_static("keyward-key-expires");

/// Keys of which the log has a line, in some 200 bytes each.
const LOGGED_KEYS: u64 = 10_000;
/// Between two lines of one key.
const LOG_INTERVAL: Duration = Duration::from_secs(86_400);

/// `[expiry]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How long before its end a key is warned of; `None` for no warnings.
    pub warn_before: Option<Duration>,
}

/// The keys that were warned of.
pub struct ExpiryWarnings {
    settings: Settings,
    /// By token id, for a day from the line in the log.
    logged: Cache<HeaderValue, ()>,
}

impl ExpiryWarnings {
    /// `before` are those in force, after which no key is logged anew.
    pub fn new(settings: Settings, before: Option<&Self>) -> Self {
        let new = || {
            let cache = Cache::builder().max_capacity(LOGGED_KEYS).time_to_live(LOG_INTERVAL);
            cache.eviction_policy(EvictionPolicy::lru()).build()
        };
        Self { settings, logged: before.map_or_else(new, |before| before.logged.clone()) }
    }

    /// Warns if the identity's key expires soon: adds a header to `notices`, counts the request, and logs the key once a day.
    pub fn warn_of_end(&self, identity: &Identity, metrics: &Metrics, notices: &mut HeaderMap) {
        let (Some(warn_before), Some(expiry)) = (self.settings.warn_before, identity.expiry) else { return };
        // One that is past has expired between Scalekit's verdict and now.
        let left = expiry.duration_since(SystemTime::now()).unwrap_or_default();
        if left > warn_before {
            return;
        }
        let Ok(date) = Timestamp::try_from(expiry)
            .and_then(|expiry| DateTimePrinter::new().timestamp_to_rfc9110_string(&expiry))
        else {
            return;
        };
        metrics.expiring_key_requests.inc();
        if let Some(token_id) = &identity.token_id
            && !self.logged.contains_key(token_id)
        {
            self.logged.insert(token_id.clone(), ());
            tracing::warn!(
                keyward.token.id = token_id.to_str().ok(),
                keyward.org.id = identity.org_id.to_str().ok(),
                keyward.key.expires = date,
                "a key that is in use expires soon"
            );
        }
        if let Ok(date) = HeaderValue::try_from(date) {
            notices.insert(KEYWARD_KEY_EXPIRES, date);
        }
    }

    /// Updates the gauge that is computed only when metrics are read.
    pub fn update_gauge(&self, metrics: &Metrics) {
        self.logged.run_pending_tasks();
        metrics.expiring_keys.set(self.logged.entry_count());
    }
}
