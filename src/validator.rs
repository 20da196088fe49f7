//! A verdict for each request: never older than the request, shared where that rule allows, and never a guess.

pub mod flights;

mod breaker;
mod throttle;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use self::breaker::{Breaker, Ended};
use self::flights::{Arrival, Board};
use self::throttle::{Allowance, Throttle};
use crate::credential::{ApiKey, Digester, KeyDigest};
use crate::identity::Identity;
use crate::metrics::{Metrics, Outcome};
use crate::rejection::Rejection;
use crate::scalekit::tokens::Verdict;
use crate::scalekit::{Fault, Scalekit};

/// Limits of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From a request's arrival to its verdict, whatever it takes.
    pub timeout: Duration,
    /// Validations of one key at once, from 1.
    pub max_in_flight_per_key: usize,
    /// Calls to Scalekit at once, from 1.
    pub max_in_flight: usize,
    /// Requests without a verdict beyond `max_in_flight`.
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
            timeout: Duration::from_secs(2),
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

impl Settings {
    fn negative(&self) -> Option<Cache<KeyDigest, ()>> {
        let cache = Cache::builder().max_capacity(self.negative_entries).time_to_live(self.negative_ttl);
        (!self.negative_ttl.is_zero()).then(|| cache.build())
    }

    fn budget(&self) -> Option<Arc<Mutex<Allowance>>> {
        let full = |limit| Arc::new(Mutex::new(Allowance::new(limit, Instant::now())));
        self.max_per_minute.map(full)
    }
}

/// Asks Scalekit, and remembers nothing but keys that are definitely bad.
pub struct Validator {
    settings: Settings,
    scalekit: Arc<Scalekit>,
    digester: Arc<Digester>,
    negative: Option<Cache<KeyDigest, ()>>,
    board: Mutex<Board<KeyDigest, Flight>>,
    in_flight: Semaphore,
    breaker: Arc<Breaker>,
    throttle: Option<Throttle>,
    budget: Option<Arc<Mutex<Allowance>>>,
    alarm: Arc<Mutex<Alarm>>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

type Answer = Result<Verdict, Rejection>;

/// One validation.
#[derive(Clone)]
struct Flight {
    /// Each request aboard holds a receiver.
    landed: watch::Sender<Option<Answer>>,
    /// Whose request made it necessary: a bad key is counted against this address, once for each call.
    client: Option<IpAddr>,
}

/// Says what went wrong with Scalekit once in a while, however many requests it hits.
#[derive(Default)]
struct Alarm {
    last: Option<(&'static str, Instant)>,
    suppressed: u64,
}

const ALARM_EVERY: Duration = Duration::from_secs(10);
/// What callers are told to wait when nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Validator {
    /// Flights run in `tasks`.
    ///
    /// # Errors
    /// When the system has no randomness for the digests.
    pub fn new(
        settings: Settings,
        scalekit: Arc<Scalekit>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, ring::error::Unspecified> {
        Ok(Arc::new(Self {
            digester: Arc::new(Digester::new()?),
            negative: settings.negative(),
            board: Mutex::new(Board::new(settings.max_in_flight_per_key)),
            in_flight: Semaphore::new(settings.max_in_flight),
            breaker: Arc::default(),
            throttle: settings.bad_keys_per_minute.map(Throttle::new),
            budget: settings.budget(),
            alarm: Arc::default(),
            settings,
            scalekit,
            metrics,
            tasks,
        }))
    }

    /// The same, within other limits. What is known of Scalekit and of callers stays, and of bad keys too, unless it is their
    /// limits that change. What is on its way keeps its limits, and does not count towards the new ones.
    #[must_use]
    pub fn with(self: &Arc<Self>, settings: &Settings) -> Arc<Self> {
        if self.settings == *settings {
            return Arc::clone(self);
        }
        let remembers = |settings: &Settings| (settings.negative_ttl, settings.negative_entries);
        let same = remembers(&self.settings) == remembers(settings);
        let throttle = |limit| match &self.throttle {
            Some(throttle) => throttle.with(limit),
            None => Throttle::new(limit),
        };
        Arc::new(Self {
            digester: Arc::clone(&self.digester),
            negative: if same { self.negative.clone() } else { settings.negative() },
            board: Mutex::new(Board::new(settings.max_in_flight_per_key)),
            in_flight: Semaphore::new(settings.max_in_flight),
            breaker: Arc::clone(&self.breaker),
            throttle: settings.bad_keys_per_minute.map(throttle),
            // The limit itself is said at each use.
            budget: settings.budget().map(|new| self.budget.clone().unwrap_or(new)),
            alarm: Arc::clone(&self.alarm),
            settings: settings.clone(),
            scalekit: Arc::clone(&self.scalekit),
            metrics: Arc::clone(&self.metrics),
            tasks: self.tasks.clone(),
        })
    }

    /// The identity of a key, by a validation that begins after this call.
    ///
    /// # Errors
    /// `InvalidKey` when it is definitely bad, `Throttled`, `Overloaded`, or `ValidationUnavailable`.
    pub async fn validate(
        self: &Arc<Self>,
        key: &ApiKey,
        client: Option<IpAddr>,
    ) -> Result<Arc<Identity>, Rejection> {
        let (digest, now) = (self.digester.digest(key), Instant::now());
        if self.is_known_bad(&digest) {
            self.metrics.negative_hits.inc();
            return Err(Rejection::InvalidKey);
        }
        if let (Some(throttle), Some(client)) = (&self.throttle, client) {
            throttle.admit(client, &digest, now).map_err(|wait| {
                self.metrics.throttled.inc();
                Rejection::Throttled(wait)
            })?;
        }
        match self.ask(key, digest, client, now).await? {
            Verdict::Valid(identity) => {
                if let Some(throttle) = &self.throttle {
                    throttle.good(digest);
                }
                Ok(identity)
            }
            Verdict::Invalid => Err(Rejection::InvalidKey),
        }
    }

    /// What is counted only when somebody looks.
    pub fn observe(&self) {
        if let Some(negative) = &self.negative {
            negative.run_pending_tasks();
            self.metrics.negative_entries.set(negative.entry_count());
        }
        if let (Some(budget), Some(limit)) = (&self.budget, self.settings.max_per_minute) {
            self.metrics.validation_headroom.set(lock(budget).left(limit, Instant::now()));
        } else {
            self.metrics.validation_headroom.clear();
        }
    }

    async fn ask(
        self: &Arc<Self>,
        key: &ApiKey,
        digest: KeyDigest,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<Verdict, Rejection> {
        self.breaker.check(now).map_err(Rejection::ValidationUnavailable)?;
        let _waiting = Waiting::begin(self)?;
        let mut answer = {
            let mut board = lock(&self.board);
            let arrival = board.arrive(digest, || Flight { landed: watch::Sender::new(None), client });
            let (Arrival::Departs(flight) | Arrival::Boards(flight)) = &arrival;
            // Aboard while the board is locked: a flight that nobody is aboard of is not sent.
            let answer = flight.landed.subscribe();
            drop(board);
            if let Arrival::Departs(flight) = arrival {
                // SECURITY: detached, so that one caller who leaves takes the answer from nobody, and resets no stream.
                self.tasks.spawn(Arc::clone(self).fly(key.clone(), digest, flight));
            }
            answer
        };
        let landed = timeout_at(now + self.settings.timeout, answer.wait_for(Option::is_some)).await;
        match landed {
            Ok(Ok(landed)) => landed.clone().unwrap_or(Err(Rejection::ValidationUnavailable(RETRY_AFTER))),
            // The flight crashed, or took too long.
            Ok(Err(_)) | Err(_) => Err(Rejection::ValidationUnavailable(RETRY_AFTER)),
        }
    }

    /// Flies this flight, and those that board for the same key meanwhile.
    async fn fly(self: Arc<Self>, key: ApiKey, digest: KeyDigest, flight: Flight) {
        let crash = Crash { validator: &self, digest };
        let mut next = Some(flight);
        while let Some(flight) = next {
            let permit = tokio::select! {
                biased;
                () = flight.landed.closed() => None,
                permit = self.in_flight.acquire() => permit.ok(),
            };
            // Without a permit nobody is left waiting: it is not sent.
            if permit.is_some() {
                let answer = self.call(&key, digest, flight.client).await;
                flight.landed.send_replace(Some(answer));
            }
            drop(permit);
            next = lock(&self.board).land(&digest);
        }
        std::mem::forget(crash);
    }

    /// Asks Scalekit, unless what became known while this flight waited makes it needless.
    async fn call(&self, key: &ApiKey, digest: KeyDigest, client: Option<IpAddr>) -> Answer {
        if self.is_known_bad(&digest) {
            return Ok(Verdict::Invalid);
        }
        let began = Instant::now();
        self.breaker.admit(began).map_err(Rejection::ValidationUnavailable)?;
        self.spend(began)?;
        let answer = self.scalekit.validate(key).await;
        let ended = Instant::now();
        self.metrics.validation_seconds.observe((ended - began).as_secs_f64());
        let outcome = match &answer {
            Ok(Verdict::Valid(_)) => "valid",
            Ok(Verdict::Invalid) => "invalid",
            Err(fault) => fault.label(),
        };
        self.metrics.validations.get_or_create(&Outcome { outcome }).inc();
        let open = self.breaker.record(Ended::of(&answer), began, ended);
        self.metrics.breaker_open.set(open.into());
        match answer {
            Ok(Verdict::Invalid) => {
                // Only what is definite, for as long as the answer is young.
                if let Some(negative) = &self.negative {
                    negative.insert(digest, ());
                }
                if let (Some(throttle), Some(client)) = (&self.throttle, client) {
                    throttle.bad(client, ended);
                }
                Ok(Verdict::Invalid)
            }
            Ok(valid) => Ok(valid),
            Err(fault) => {
                lock(&self.alarm).raise(fault.label(), &fault);
                let wait = match fault {
                    Fault::Throttled(Some(wait)) => wait,
                    _ => RETRY_AFTER,
                };
                Err(Rejection::ValidationUnavailable(wait))
            }
        }
    }

    /// Takes one call out of the budget.
    fn spend(&self, now: Instant) -> Result<(), Rejection> {
        let (Some(budget), Some(limit)) = (&self.budget, self.settings.max_per_minute) else {
            return Ok(());
        };
        let taken = lock(budget).take(limit, now);
        taken.map_err(|wait| {
            let spent = "the budget of validations a minute is used up (scalekit.validations_per_minute)";
            lock(&self.alarm).raise("budget", &spent);
            Rejection::Overloaded(wait)
        })
    }

    fn is_known_bad(&self, digest: &KeyDigest) -> bool {
        self.negative.as_ref().is_some_and(|negative| negative.contains_key(digest))
    }
}

/// One request that waits for a verdict.
struct Waiting<'a>(&'a Validator);

impl<'a> Waiting<'a> {
    fn begin(validator: &'a Validator) -> Result<Self, Rejection> {
        let limit = validator.settings.max_in_flight.saturating_add(validator.settings.max_waiting);
        let before = validator.metrics.validations_waiting.inc();
        let waiting = Self(validator);
        if usize::try_from(before).is_ok_and(|before| before < limit) {
            Ok(waiting)
        } else {
            Err(Rejection::Overloaded(RETRY_AFTER))
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.metrics.validations_waiting.dec();
    }
}

/// What remains to be done should a flight panic: nobody may wait for it, or for the one behind it, in vain.
struct Crash<'a> {
    validator: &'a Validator,
    digest: KeyDigest,
}

impl Drop for Crash<'_> {
    fn drop(&mut self) {
        // Dropped without an answer, a flight wakes everybody aboard.
        while lock(&self.validator.board).land(&self.digest).is_some() {}
    }
}

impl Alarm {
    fn raise(&mut self, label: &'static str, cause: &dyn std::fmt::Display) {
        let now = Instant::now();
        match self.last {
            Some((last, at)) if last == label && now - at < ALARM_EVERY => self.suppressed += 1,
            _ => {
                tracing::error!(
                    error.kind = label,
                    suppressed = self.suppressed,
                    "no verdict, so requests get 503: {cause}"
                );
                *self = Self { last: Some((label, now)), suppressed: 0 };
            }
        }
    }
}

/// What a lock guards here is whole between any two statements, so a poisoned one is as good as any.
fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}
