//! The budget of calls to Scalekit in a minute. A quarter is kept for keys that were good lately; open streams have none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::bad_key_limit::Allowance;
use super::shares::Class;

pub(super) struct CallBudget {
    pub(super) per_minute: u32,
    allowance: Arc<Mutex<Allowance>>,
}

impl CallBudget {
    pub(super) fn new(per_minute: u32) -> Self {
        Self { per_minute, allowance: Arc::new(Mutex::new(Allowance::new(per_minute, Instant::now()))) }
    }

    /// The same budget, with another limit.
    pub(super) fn with_limit(&self, per_minute: u32) -> Self {
        Self { per_minute, allowance: Arc::clone(&self.allowance) }
    }

    /// Takes one call.
    ///
    /// # Errors
    /// In how long there will be one.
    pub(super) fn spend(&self, class: Class, now: Instant) -> Result<(), Duration> {
        let keep = match class {
            Class::Unknown => self.per_minute / 4,
            Class::Good => 0,
            Class::Stream => return Ok(()),
        };
        self.lock().take(self.per_minute, keep, now)
    }

    /// Gives back a call that was not made.
    pub(super) fn refund(&self, class: Class, now: Instant) {
        if class != Class::Stream {
            self.lock().refund(self.per_minute, now);
        }
    }

    /// Calls that are left now.
    pub(super) fn headroom(&self, now: Instant) -> f64 {
        self.lock().refill(self.per_minute, now)
    }

    fn lock(&self) -> MutexGuard<'_, Allowance> {
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
