//! Fault injection: what an unreliable Scalekit, network or proxy does to a call. Without faults a call costs one atomic
//! load.

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

/// Which calls a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every call.
    Any,
    /// Requests for an access token.
    Token,
    /// Create calls.
    Create,
    /// Validate calls.
    Validate,
    /// Invalidate calls.
    Invalidate,
    /// List calls.
    List,
    /// Update calls.
    Update,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Delays the decision on the call.
    Latency(Duration),
    /// Decides at once and delays the response.
    LatencyAfter(Duration),
    /// Delays the decision until the faults are cleared or the client disconnects.
    Hang,
    /// Decides at once and delays the response as [`Effect::Hang`] does.
    HangAfter,
    /// Sends this response instead of a decision.
    Answer(Answer),
    /// Changes the content type of the response.
    ContentType(String),
    /// Keeps length and content type, and makes the body invalid UTF-8.
    Garbage,
    /// Breaks the transfer in the middle of the body.
    Truncated,
    /// Closes the HTTP/1.1 connection, or resets the HTTP/2 stream, without a response.
    Reset,
    /// Expires all access tokens before this call is authorized.
    ExpireAccessTokens,
    /// Revokes the key of the n-th call after its verdict was read.
    RevokeAfter(u32),
    /// Answers 429 to calls above a rate limit.
    Quota(Quota),
    /// Closes connections as soon as they are accepted, whatever the target, and those that are open when the fault is set.
    Refuse,
}

/// A response in place of that of the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The HTTP status. Over gRPC, and without a body, it is sent as the corresponding gRPC code.
    pub status: u16,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
    /// The content type; `None` is JSON.
    pub content_type: Option<String>,
    /// The body, which may be any bytes; `None` is Scalekit's error body for the status.
    pub body: Option<Bytes>,
}

impl Answer {
    /// A response of this status with Scalekit's error body.
    pub fn status(status: u16) -> Self {
        Self { status, retry_after: None, content_type: None, body: None }
    }
}

/// A rate limit: a token bucket that refills evenly.
#[derive(Clone, Debug, PartialEq)]
pub struct Quota {
    /// Size of the bucket.
    calls: u32,
    /// Time in which an empty bucket becomes full.
    per: Duration,
    /// `Retry-After`, in seconds.
    retry_after: Option<u64>,
    left: f64,
    since: Option<Instant>,
}

impl Quota {
    /// A full bucket of `calls`, refilled in `per`.
    pub fn new(calls: u32, per: Duration, retry_after: Option<u64>) -> Self {
        Self { calls, per, retry_after, left: f64::from(calls), since: None }
    }

    /// Takes a call from the bucket; where it is empty, the response instead.
    fn take_call(&mut self, now: Instant) -> Option<Answer> {
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

/// An effect and the calls it applies to.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The calls affected.
    pub target: Target,
    /// The effect on them.
    pub effect: Effect,
    /// How many calls; `None` is all until the faults are cleared.
    pub times: Option<u32>,
}

impl Fault {
    /// A fault that lasts until the faults are cleared.
    pub fn new(target: Target, effect: Effect) -> Self {
        Self { target, effect, times: None }
    }

    /// Limits the fault to the next `n` calls.
    pub fn times(self, n: u32) -> Self {
        Self { times: Some(n), ..self }
    }
}

/// The active faults.
#[derive(Default)]
pub(crate) struct Faults {
    any: AtomicBool,
    active: Mutex<Vec<Fault>>,
    cleared: watch::Sender<()>,
}

/// The effects on one call.
#[derive(Default)]
pub(crate) struct Plan {
    /// In the order in which the faults were set. `RevokeAfter` is listed only when due.
    pub(crate) effects: Vec<Effect>,
    cleared: Option<watch::Receiver<()>>,
}

impl Faults {
    pub(crate) fn set(&self, fault: Fault) {
        self.lock_faults().push(fault);
        self.any.store(true, Relaxed);
    }

    pub(crate) fn clear(&self) {
        let mut active = self.lock_faults();
        active.clear();
        self.any.store(false, Relaxed);
        self.cleared.send_replace(());
    }

    /// Takes the effects on a call to this endpoint.
    pub(crate) fn take_plan(&self, endpoint: Endpoint) -> Plan {
        if !self.any.load(Relaxed) {
            return Plan::default();
        }
        let mut active = self.lock_faults();
        let effects = take_effects(&mut active, |fault| {
            fault.target.covers(endpoint) && fault.effect != Effect::Refuse
        });
        // Subscribes under the lock: `clear` cannot run between reading the faults and subscribing.
        Plan { effects, cleared: Some(self.cleared.subscribe()) }
    }

    pub(crate) fn refuses_connection(&self) -> bool {
        self.any.load(Relaxed)
            && !take_effects(&mut self.lock_faults(), |fault| fault.effect == Effect::Refuse).is_empty()
    }

    fn lock_faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    /// Waits until the faults are cleared.
    pub(crate) async fn wait_for_release(&mut self) {
        if let Some(cleared) = &mut self.cleared {
            // The sender is gone only when the emulator is; then nothing is left to wait for.
            let _ = cleared.changed().await;
        }
    }
}

/// Uses each matching fault once and removes those that are used up.
fn take_effects(active: &mut Vec<Fault>, matches: impl Fn(&Fault) -> bool) -> Vec<Effect> {
    let mut effects = Vec::new();
    active.retain_mut(|fault| {
        if !matches(fault) {
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
            effects.extend(quota.take_call(Instant::now()).map(Effect::Answer));
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

/// The text is no [`Fault`]; the message has the grammar.
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
        spec::parse_fault(text).map_err(|problem| FaultError { fault: text.to_owned(), problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limited_fault_is_used_up() {
        let faults = Faults::default();
        let effects = |endpoint| faults.take_plan(endpoint).effects;
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
    fn revocation_is_due_at_nth_call() {
        let faults = Faults::default();
        faults.set(Fault::new(Target::Validate, Effect::RevokeAfter(3)));
        let due = || faults.take_plan(Endpoint::Api(Operation::Validate)).effects.len();
        assert_eq!([due(), due(), due(), due()], [0, 0, 1, 0]);
    }

    #[test]
    fn quota_refuses_excess_calls_and_refills() {
        let (mut quota, now) = (Quota::new(3, Duration::from_secs(3), Some(7)), Instant::now());
        let mut at =
            |seconds| quota.take_call(now + Duration::from_secs(seconds)).map(|answer| answer.retry_after);
        assert_eq!([at(0), at(0), at(0), at(0)], [None, None, None, Some(Some(7))]);
        assert_eq!([at(1), at(1)], [None, Some(Some(7))]);
        assert_eq!([at(9), at(9), at(9), at(9)], [None, None, None, Some(Some(7))]);
    }

    #[test]
    fn refused_connections_are_not_calls() {
        let faults = Faults::default();
        faults.set("listener:refuse,times=1".parse().unwrap());
        assert_eq!(faults.take_plan(Endpoint::Api(Operation::Validate)).effects, []);
        assert_eq!([faults.refuses_connection(), faults.refuses_connection()], [true, false]);
    }
}
