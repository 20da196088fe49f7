//! Misbehaviour on command: what an unreliable Scalekit, network or proxy does to a call. Without a fault a call
//! pays one atomic load for them.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::call::Endpoint;

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
        Self {
            status,
            retry_after: None,
            content_type: None,
            body: None,
        }
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
        Self {
            target,
            effect,
            times: None,
        }
    }

    /// Only the next n calls.
    pub fn times(self, n: u32) -> Self {
        Self {
            times: Some(n),
            ..self
        }
    }
}

/// The faults that stand.
#[derive(Default)]
pub(super) struct Faults {
    any: AtomicBool,
    standing: Mutex<Vec<Fault>>,
    cleared: watch::Sender<()>,
}

/// What is in store for one call.
#[derive(Default)]
pub(super) struct Plan {
    /// In the order in which the faults were set. `RevokeAfter` stands here only when it is due.
    pub(super) effects: Vec<Effect>,
    cleared: Option<watch::Receiver<()>>,
}

impl Faults {
    pub(super) fn set(&self, fault: Fault) {
        self.standing().push(fault);
        self.any.store(true, Relaxed);
    }

    pub(super) fn clear(&self) {
        let mut standing = self.standing();
        standing.clear();
        self.any.store(false, Relaxed);
        self.cleared.send_replace(());
    }

    /// Takes what the next call to this endpoint meets.
    pub(super) fn plan(&self, endpoint: Endpoint) -> Plan {
        if !self.any.load(Relaxed) {
            return Plan::default();
        }
        let mut standing = self.standing();
        let effects = take(&mut standing, |fault| {
            fault.target.covers(endpoint) && fault.effect != Effect::Refuse
        });
        // Subscribed under the lock, so that no clearing is missed.
        Plan {
            effects,
            cleared: Some(self.cleared.subscribe()),
        }
    }

    /// Whether the next connection is refused.
    pub(super) fn refuse(&self) -> bool {
        self.any.load(Relaxed)
            && !take(&mut self.standing(), |fault| fault.effect == Effect::Refuse).is_empty()
    }

    fn standing(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    /// Waits until the faults are cleared.
    pub(super) async fn released(&mut self) {
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
            Self::Create => endpoint == Endpoint::Create,
            Self::Validate => endpoint == Endpoint::Validate,
            Self::Invalidate => endpoint == Endpoint::Invalidate,
            Self::List => endpoint == Endpoint::List,
            Self::Update => endpoint == Endpoint::Update,
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
     status=CODE[,retry-after=SECONDS][,content-type=TYPE][,body=ALL THE REST]"
)]
pub struct FaultError {
    fault: String,
    problem: String,
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        read(text).map_err(|problem| FaultError {
            fault: text.to_owned(),
            problem,
        })
    }
}

fn read(text: &str) -> Result<Fault, String> {
    let (target, rest) = text.split_once(':').ok_or("there is no `:` in it")?;
    let target = match target {
        "any" | "listener" => Target::Any,
        "token" => Target::Token,
        "create" => Target::Create,
        "validate" => Target::Validate,
        "invalidate" => Target::Invalidate,
        "list" => Target::List,
        "update" => Target::Update,
        _ => return Err(format!("unknown target `{target}`")),
    };
    let (head, body) = match rest.split_once(",body=") {
        Some((head, body)) => (head, Some(Bytes::copy_from_slice(body.as_bytes()))),
        None => (rest, None),
    };
    let mut parts = head
        .split(',')
        .map(|part| part.split_once('=').unwrap_or((part, "")));
    let (name, value) = parts.next().unwrap_or_default();
    let mut effect = effect(name, value)?;
    let mut times = None;
    for (name, value) in parts {
        match (name, &mut effect) {
            ("times", _) => times = Some(number(name, value)?),
            ("retry-after", Effect::Answer(answer)) => answer.retry_after = Some(number(name, value)?),
            ("content-type", Effect::Answer(answer)) => answer.content_type = Some(content_type(value)?),
            _ => return Err(format!("`{name}` does not go with it")),
        }
    }
    match (body, &mut effect) {
        (None, _) => {}
        (body, Effect::Answer(answer)) => answer.body = body,
        _ => return Err("`body` goes with `status` only".to_owned()),
    }
    if text.starts_with("listener:") != (effect == Effect::Refuse) {
        return Err("`listener` and `refuse` go together only".to_owned());
    }
    Ok(Fault {
        target,
        effect,
        times,
    })
}

fn effect(name: &str, value: &str) -> Result<Effect, String> {
    if value.is_empty() {
        return Ok(match name {
            "hang" => Effect::Hang,
            "hang-after" => Effect::HangAfter,
            "reset" => Effect::Reset,
            "garbage" => Effect::Garbage,
            "truncated" => Effect::Truncated,
            "expire-access-tokens" => Effect::ExpireAccessTokens,
            "refuse" => Effect::Refuse,
            _ => return Err(format!("unknown effect `{name}`, or one that needs a value")),
        });
    }
    Ok(match name {
        "latency" => Effect::Latency(duration(name, value)?),
        "latency-after" => Effect::LatencyAfter(duration(name, value)?),
        "content-type" => Effect::ContentType(content_type(value)?),
        "revoke-after" => Effect::RevokeAfter(number(name, value)?),
        "status" => match number(name, value)? {
            status @ 200..=599 => Effect::Answer(Answer::status(status)),
            _ => return Err("`status` is a number from 200 to 599".to_owned()),
        },
        _ => return Err(format!("unknown effect `{name}`, or one that takes no value")),
    })
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("`{name}` needs a number, not `{value}`"))
}

fn duration(name: &str, value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value)
        .map_err(|_| format!("`{name}` needs a duration such as 200ms, not `{value}`"))
}

fn content_type(value: &str) -> Result<String, String> {
    match hyper::header::HeaderValue::from_str(value) {
        Ok(_) if !value.is_empty() => Ok(value.to_owned()),
        _ => Err(format!("`{value}` is not a content type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Fault) {
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }

    #[test]
    fn a_fault_is_read_from_a_line() {
        use Target::*;
        let ms = Duration::from_millis;
        check(
            "validate:latency=200ms",
            Fault::new(Validate, Effect::Latency(ms(200))),
        );
        check(
            "validate:latency-after=1s",
            Fault::new(Validate, Effect::LatencyAfter(ms(1000))),
        );
        check("any:hang", Fault::new(Any, Effect::Hang));
        check("list:hang-after", Fault::new(List, Effect::HangAfter));
        check("create:reset,times=2", Fault::new(Create, Effect::Reset).times(2));
        check("update:garbage", Fault::new(Update, Effect::Garbage));
        check("invalidate:truncated", Fault::new(Invalidate, Effect::Truncated));
        check(
            "validate:expire-access-tokens",
            Fault::new(Validate, Effect::ExpireAccessTokens),
        );
        check(
            "validate:revoke-after=10",
            Fault::new(Validate, Effect::RevokeAfter(10)),
        );
        check(
            "validate:content-type=text/html",
            Fault::new(Validate, Effect::ContentType("text/html".to_owned())),
        );
        check(
            "listener:refuse,times=3",
            Fault::new(Any, Effect::Refuse).times(3),
        );
        check(
            "token:status=401",
            Fault::new(Token, Effect::Answer(Answer::status(401))),
        );
        let throttled = Answer {
            retry_after: Some(3),
            ..Answer::status(429)
        };
        check(
            "validate:status=429,retry-after=3",
            Fault::new(Validate, Effect::Answer(throttled)),
        );
        let page = Answer {
            content_type: Some("text/html".to_owned()),
            body: Some(Bytes::from_static(b"<p>a=b,times=1")),
            ..Answer::status(200)
        };
        let page = Fault::new(Validate, Effect::Answer(page)).times(4);
        check(
            "validate:status=200,content-type=text/html,times=4,body=<p>a=b,times=1",
            page,
        );
    }

    #[test]
    fn what_is_not_a_fault_is_refused_with_the_list_of_those_that_are() {
        for text in [
            "",
            "hang",
            "validate",
            "validate:",
            "nobody:hang",
            "validate:latency",
            "validate:latency=fast",
            "validate:hang=1",
            "validate:status=99",
            "validate:status=2000000",
            "validate:status=429,retry-after=soon",
            "validate:hang,retry-after=3",
            "validate:hang,times=-1",
            "validate:hang,body=x",
            "validate:content-type=a\u{7}b",
            "validate:refuse",
            "listener:hang",
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains("revoke-after=N"), "{error}");
        }
    }

    #[test]
    fn a_fault_with_a_number_of_times_is_used_up() {
        let faults = Faults::default();
        let effects = |endpoint| faults.plan(endpoint).effects;
        assert_eq!(effects(Endpoint::Validate), []);
        faults.set(Fault::new(Target::Validate, Effect::Reset).times(2));
        faults.set(Fault::new(Target::Any, Effect::Garbage));
        assert_eq!(effects(Endpoint::List), [Effect::Garbage]);
        assert_eq!(effects(Endpoint::Validate), [Effect::Reset, Effect::Garbage]);
        assert_eq!(effects(Endpoint::Validate), [Effect::Reset, Effect::Garbage]);
        assert_eq!(effects(Endpoint::Validate), [Effect::Garbage]);
        faults.clear();
        assert_eq!(effects(Endpoint::Validate), []);
    }

    #[test]
    fn a_revocation_is_due_at_the_nth_call_only() {
        let faults = Faults::default();
        faults.set(Fault::new(Target::Validate, Effect::RevokeAfter(3)));
        let due = || faults.plan(Endpoint::Validate).effects.len();
        assert_eq!([due(), due(), due(), due()], [0, 0, 1, 0]);
    }

    #[test]
    fn refusing_connections_is_no_call_and_can_be_used_up() {
        let faults = Faults::default();
        faults.set("listener:refuse,times=1".parse().unwrap());
        assert_eq!(faults.plan(Endpoint::Validate).effects, []);
        assert_eq!([faults.refuse(), faults.refuse()], [true, false]);
    }
}
