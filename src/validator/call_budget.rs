//! The budget of calls to Scalekit in a minute, which replicas may share. A quarter is kept for keys that were good lately; open
//! streams have none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::bad_key_limit::Allowance;
use super::shares::Class;
use crate::gcra::Quota;
use crate::shared::SharedServer;
use crate::shared::lease::SharedAllowance;

#[derive(Clone)]
enum Calls {
    /// Of this replica alone.
    Own(Arc<Mutex<Allowance>>),
    Shared(Arc<SharedServer>, Arc<SharedAllowance>),
}

pub(super) struct CallBudget {
    pub(super) per_minute: u32,
    calls: Calls,
}

impl CallBudget {
    /// With a server, replicas share the budget.
    pub(super) fn new(per_minute: u32, server: Option<&Arc<SharedServer>>) -> Self {
        let now = Instant::now();
        let calls = match server {
            None => Calls::Own(Arc::new(Mutex::new(Allowance::new(per_minute, now)))),
            Some(server) => Calls::Shared(Arc::clone(server), Arc::new(SharedAllowance::new(now))),
        };
        Self { per_minute, calls }
    }

    /// The same budget, with another limit.
    pub(super) fn with_limit(&self, per_minute: u32) -> Self {
        Self { per_minute, calls: self.calls.clone() }
    }

    /// Takes one call. Waits only if the budget is shared.
    ///
    /// # Errors
    /// In how long there will be one.
    pub(super) async fn spend(&self, class: Class) -> Result<(), Duration> {
        let keep = match class {
            Class::Unknown => self.per_minute / 4,
            Class::Good => 0,
            Class::Stream => return Ok(()),
        };
        match &self.calls {
            Calls::Own(allowance) => lock(allowance).take(self.per_minute, keep, Instant::now()),
            Calls::Shared(server, allowance) => {
                let taken = allowance.take(server, self.quota(keep), || server.key("validations", &[]));
                taken.await.map(drop).map_err(|level| level.next)
            }
        }
    }

    /// Gives back a call that was not made.
    pub(super) fn refund(&self, class: Class, now: Instant) {
        if class == Class::Stream {
            return;
        }
        match &self.calls {
            Calls::Own(allowance) => lock(allowance).refund(self.per_minute, now),
            Calls::Shared(server, allowance) => allowance.give_back(server, self.quota(0)),
        }
    }

    /// Calls that are left now, as far as this replica knows.
    pub(super) fn headroom(&self, now: Instant) -> f64 {
        match &self.calls {
            Calls::Own(allowance) => lock(allowance).refill(self.per_minute, now),
            Calls::Shared(_, allowance) => allowance.level(self.quota(0), now).remaining.into(),
        }
    }

    /// A smaller burst leaves the rest.
    fn quota(&self, keep: u32) -> Quota {
        let per = Duration::from_secs(60);
        Quota { requests: self.per_minute, per, burst: (self.per_minute - keep).max(1) }
    }
}

fn lock(allowance: &Mutex<Allowance>) -> MutexGuard<'_, Allowance> {
    allowance.lock().unwrap_or_else(PoisonError::into_inner)
}
