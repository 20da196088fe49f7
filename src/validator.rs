//! A verdict for each request.

use std::time::Duration;

/// Limits of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Validations of one key at once, from 1.
    pub max_in_flight_per_key: usize,
    /// Calls to Scalekit at once, from 1.
    pub max_in_flight: usize,
    /// Requests that may wait for a call to begin.
    pub max_waiting: usize,
    /// Calls to Scalekit in a minute; `None` for no budget.
    pub max_per_minute: Option<u32>,
    /// How long a key that is definitely invalid is remembered. Zero: not at all.
    pub negative_ttl: Duration,
    /// How many such keys are remembered.
    pub negative_entries: u64,
    /// Bad keys in a minute from one client address; `None` for no throttle.
    pub bad_keys_per_minute: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_in_flight_per_key: 4,
            max_in_flight: 512,
            max_waiting: 2048,
            max_per_minute: None,
            negative_ttl: Duration::from_secs(5),
            negative_entries: 100_000,
            bad_keys_per_minute: None,
        }
    }
}
