//! Misbehaviour on command: what an unreliable Scalekit, network or proxy does to a call. Without a fault a call
//! pays one atomic load for them.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use scalekit::call::Operation;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::endpoint::Endpoint;

mod spec;

/// Which calls a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every call.
    Any,
    /// Calls for an access token.
    Token,
    /// Calls that create.
    Create,
    /// Calls that validate.
    Validate,
    /// Calls that invalidate.
    Invalidate,
    /// Calls that list.
    List,
    /// Calls that update.
    Update,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Waits before the call is decided.
    Latency(Duration),
    /// Decides at once, and waits before the answer.
    LatencyAfter(Duration),
    /// Waits before the call is decided until the faults are cleared or the caller leaves.
    Hang,
    /// Decides at once, and waits as [`Effect::Hang`] does before the answer.
    HangAfter,
    /// Another answer instead of a decision.
    Answer(Answer),
    /// The real answer under another content type.
    ContentType(String),
    /// The real answer's length and type with a body that cannot be read.
    Garbage,
    /// The real answer, cut in the middle of the transfer.
    Truncated,
    /// HTTP/1.1: closes without an answer. HTTP/2: resets the stream.
    Reset,
    /// Every access token expires before this call is judged.
    ExpireAccessTokens,
    /// The key that the n-th of these calls presents is revoked after its verdict was taken.
    RevokeAfter(u32),
    /// Calls beyond a rate limit get a 429.
    Quota(Quota),
    /// Connections are accepted and closed at once, whatever the target; those open when it is set are closed too.
    Refuse,
}

/// An answer that Scalekit never gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The HTTP status; in gRPC, unless there is a body, the code that it stands for.
    pub status: u16,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u64>,
    /// The content type; none: JSON.
    pub content_type: Option<String>,
    /// The body, any bytes at all; none: Scalekit's own error body for the status.
    pub body: Option<Bytes>,
}

impl Answer {
    /// This status with Scalekit's own error body.
    pub fn status(status: u16) -> Self {
        Self { status, retry_after: None, content_type: None, body: None }
    }
}

/// A rate limit that refills evenly.
#[derive(Clone, Debug, PartialEq)]
pub struct Quota {
    /// How many calls, all at once if need be.
    calls: u32,
    /// In what time they refill.
    per: Duration,
    /// Seconds for `Retry-After`.
    retry_after: Option<u64>,
    left: f64,
    since: Option<Instant>,
}

impl Quota {
    /// A full one: so many calls in this time.
    pub fn new(calls: u32, per: Duration, retry_after: Option<u64>) -> Self {
        Self { calls, per, retry_after, left: f64::from(calls), since: None }
    }

    /// Takes a call, or says what it is answered instead.
    fn take(&mut self, now: Instant) -> Option<Answer> {
        let most = f64::from(self.calls);
        let passed = self.since.map_or(Duration::ZERO, |since| now - since);
        self.left = (self.left + most * passed.div_duration_f64(self.per)).min(most);
        self.since = Some(now);
        if self.left < 1.0 {
            return Some(Answer { retry_after: self.retry_after, ..Answer::status(429) });
        }
        self.left -= 1.0;
        None
    }
}

/// A fault and the calls it meets.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Which calls.
    pub target: Target,
    /// What happens to them.
    pub effect: Effect,
    /// How many of them; none: all until the faults are cleared.
    pub times: Option<u32>,
}

impl Fault {
    /// A fault that stands until the faults are cleared.
    pub fn new(target: Target, effect: Effect) -> Self {
        Self { target, effect, times: None }
    }

    /// Only the next n calls.
    pub fn times(self, n: u32) -> Self {
        Self { times: Some(n), ..self }
    }
}

/// The faults that stand.
#[derive(Default)]
pub(crate) struct Faults {
    any: AtomicBool,
    standing: Mutex<Vec<Fault>>,
    cleared: watch::Sender<()>,
}

/// What is in store for one call.
#[derive(Default)]
pub(crate) struct Plan {
    /// In the order in which the faults were set. `RevokeAfter` stands here only when it is due.
    pub(crate) effects: Vec<Effect>,
    cleared: Option<watch::Receiver<()>>,
}

impl Faults {
    pub(crate) fn set(&self, fault: Fault) {
        self.standing().push(fault);
        self.any.store(true, Relaxed);
    }

    pub(crate) fn clear(&self) {
        let mut standing = self.standing();
        standing.clear();
        self.any.store(false, Relaxed);
        self.cleared.send_replace(());
    }

    /// Takes what the next call to this endpoint meets.
    pub(crate) fn plan(&self, endpoint: Endpoint) -> Plan {
        if !self.any.load(Relaxed) {
            return Plan::default();
        }
        let mut standing = self.standing();
        let effects =
            take(&mut standing, |fault| fault.target.covers(endpoint) && fault.effect != Effect::Refuse);
        // Subscribed under the lock, so that no clearing is missed.
        Plan { effects, cleared: Some(self.cleared.subscribe()) }
    }

    /// Whether the next connection is refused.
    pub(crate) fn refuse(&self) -> bool {
        self.any.load(Relaxed)
            && !take(&mut self.standing(), |fault| fault.effect == Effect::Refuse).is_empty()
    }

    fn standing(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    /// Waits until the faults are cleared.
    pub(crate) async fn released(&mut self) {
        if let Some(cleared) = &mut self.cleared {
            // The sender lives as long as the emulator; were it gone, there would be nothing to wait for.
            let _ = cleared.changed().await;
        }
    }
}

/// One use of each fault that meets the call; those used up are gone afterwards.
fn take(standing: &mut Vec<Fault>, meets: impl Fn(&Fault) -> bool) -> Vec<Effect> {
    let mut effects = Vec::new();
    standing.retain_mut(|fault| {
        if !meets(fault) {
            return true;
        }
        if let Effect::RevokeAfter(calls) = &mut fault.effect {
            *calls = calls.saturating_sub(1);
            if *calls > 0 {
                return true;
            }
            effects.push(fault.effect.clone());
            return false;
        }
        if let Effect::Quota(quota) = &mut fault.effect {
            effects.extend(quota.take(Instant::now()).map(Effect::Answer));
            return true;
        }
        if fault.times == Some(0) {
            return false;
        }
        effects.push(fault.effect.clone());
        fault.times = fault.times.map(|times| times - 1);
        fault.times != Some(0)
    });
    effects
}

impl Target {
    fn covers(self, endpoint: Endpoint) -> bool {
        match self {
            Self::Any => true,
            Self::Token => endpoint == Endpoint::Token,
            Self::Create => endpoint == Endpoint::Api(Operation::Create),
            Self::Validate => endpoint == Endpoint::Api(Operation::Validate),
            Self::Invalidate => endpoint == Endpoint::Api(Operation::Invalidate),
            Self::List => endpoint == Endpoint::Api(Operation::List),
            Self::Update => endpoint == Endpoint::Api(Operation::Update),
        }
    }
}

/// Why a fault could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{fault}`: {problem}\n\
     a fault is TARGET:EFFECT[,times=N] with\n  \
     TARGET  any, token, create, validate, invalidate, list, update; or the whole of listener:refuse\n  \
     EFFECT  latency=200ms, latency-after=200ms, hang, hang-after, reset, garbage, truncated,\n          \
     expire-access-tokens, revoke-after=N, content-type=TYPE,\n          \
     quota=CALLS/TIME[,retry-after=SECONDS], as in quota=300/1m,\n          \
     status=CODE[,retry-after=SECONDS][,content-type=TYPE][,body=ALL THE REST]"
)]
pub struct FaultError {
    fault: String,
    problem: String,
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        spec::read(text).map_err(|problem| FaultError { fault: text.to_owned(), problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_with_a_number_of_times_is_used_up() {
        let faults = Faults::default();
        let effects = |endpoint| faults.plan(endpoint).effects;
        assert_eq!(effects(Endpoint::Api(Operation::Validate)), []);
        faults.set(Fault::new(Target::Validate, Effect::Reset).times(2));
        faults.set(Fault::new(Target::Any, Effect::Garbage));
        assert_eq!(effects(Endpoint::Api(Operation::List)), [Effect::Garbage]);
        assert_eq!(effects(Endpoint::Api(Operation::Validate)), [Effect::Reset, Effect::Garbage]);
        assert_eq!(effects(Endpoint::Api(Operation::Validate)), [Effect::Reset, Effect::Garbage]);
        assert_eq!(effects(Endpoint::Api(Operation::Validate)), [Effect::Garbage]);
        faults.clear();
        assert_eq!(effects(Endpoint::Api(Operation::Validate)), []);
    }

    #[test]
    fn a_revocation_is_due_at_the_nth_call_only() {
        let faults = Faults::default();
        faults.set(Fault::new(Target::Validate, Effect::RevokeAfter(3)));
        let due = || faults.plan(Endpoint::Api(Operation::Validate)).effects.len();
        assert_eq!([due(), due(), due(), due()], [0, 0, 1, 0]);
    }

    #[test]
    fn quota_refuses_what_is_beyond_it_and_refills() {
        let (mut quota, now) = (Quota::new(3, Duration::from_secs(3), Some(7)), Instant::now());
        let mut at =
            |seconds| quota.take(now + Duration::from_secs(seconds)).map(|answer| answer.retry_after);
        assert_eq!([at(0), at(0), at(0), at(0)], [None, None, None, Some(Some(7))]);
        assert_eq!([at(1), at(1)], [None, Some(Some(7))]);
        assert_eq!([at(9), at(9), at(9), at(9)], [None, None, None, Some(Some(7))]);
    }

    #[test]
    fn refusing_connections_is_no_call_and_can_be_used_up() {
        let faults = Faults::default();
        faults.set("listener:refuse,times=1".parse().unwrap());
        assert_eq!(faults.plan(Endpoint::Api(Operation::Validate)).effects, []);
        assert_eq!([faults.refuse(), faults.refuse()], [true, false]);
    }
}
