//! Validation of keys. A verdict is never older than the request it is for, and is shared where that rule allows; without one
//! a request is refused.

pub mod flights;

mod breaker;
mod hold;
mod shares;
mod throttle;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::scalekit::error::{self, Error};
use moka::sync::Cache;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;

use self::breaker::{Breaker, Ended};
use self::flights::{Arrival, Board};
use self::hold::Hold;
use self::shares::{Calls, Class, GoodKeys, kept_share};
use self::throttle::{Allowance, Throttle};
use crate::credential::{ApiKey, Digester, KeyDigest};
use crate::identity::Identity;
use crate::logging::failure_log::FailureLog;
use crate::metrics::{Metrics, Outcome};
use crate::rejection::Rejection;
use crate::scalekit::{Explained, Scalekit, Verdict};

/// Limits on validations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Longest time from a request's arrival to its verdict, with waiting and retries.
    pub timeout: Duration,
    /// Validations of one key at once, from 1.
    pub max_in_flight_per_key: usize,
    /// Calls to Scalekit at once, from 1. Open streams may have an eighth more.
    pub max_in_flight: usize,
    /// Requests without a verdict beyond `max_in_flight`.
    pub max_waiting: usize,
    /// Calls to Scalekit in a minute, those for open streams apart; `None` for no budget.
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
    fn negative_cache(&self) -> Option<Cache<KeyDigest, ()>> {
        let cache = Cache::builder().max_capacity(self.negative_entries).time_to_live(self.negative_ttl);
        (!self.negative_ttl.is_zero()).then(|| cache.build())
    }

    fn full_budget(&self) -> Option<Arc<Mutex<Allowance>>> {
        let full = |limit| Arc::new(Mutex::new(Allowance::new(limit, Instant::now())));
        self.max_per_minute.map(full)
    }
}

/// Validates keys with Scalekit. Of verdicts, only a definite "invalid" is cached.
pub struct Validator {
    settings: Settings,
    scalekit: Arc<Scalekit>,
    digester: Arc<Digester>,
    negative: Option<Cache<KeyDigest, ()>>,
    good: GoodKeys,
    board: Mutex<Board<KeyDigest, Flight>>,
    /// Flights for open streams, apart so that they never wait behind requests.
    streams: Mutex<Board<KeyDigest, Flight>>,
    calls: Calls,
    breaker: Arc<Breaker>,
    hold: Arc<Hold>,
    throttle: Option<Throttle>,
    budget: Option<Arc<Mutex<Allowance>>>,
    failures: Arc<FailureLog>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

/// One validation.
#[derive(Clone)]
struct Flight {
    /// Each request aboard holds a receiver.
    landed: watch::Sender<Option<Result<Verdict, Rejection>>>,
    class: Class,
    /// Whose request made it necessary: a bad key is counted against this address, once for each call.
    client: Option<IpAddr>,
}

/// `Retry-After` where Scalekit names no time.
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
            negative: settings.negative_cache(),
            good: GoodKeys::default(),
            board: Mutex::new(Board::new(settings.max_in_flight_per_key)),
            streams: Mutex::new(Board::new(1)),
            calls: Calls::new(settings.max_in_flight),
            breaker: Arc::default(),
            hold: Arc::default(),
            throttle: settings.bad_keys_per_minute.map(Throttle::new),
            budget: settings.full_budget(),
            failures: Arc::default(),
            settings,
            scalekit,
            metrics,
            tasks,
        }))
    }

    /// A validator with other limits. The state of Scalekit and of clients is kept, and so is the negative cache unless its own
    /// limits change. Validations under way keep the old limits and do not count towards the new ones.
    #[must_use]
    pub fn with_settings(self: &Arc<Self>, settings: &Settings) -> Arc<Self> {
        if self.settings == *settings {
            return Arc::clone(self);
        }
        let remembers = |settings: &Settings| (settings.negative_ttl, settings.negative_entries);
        let same = remembers(&self.settings) == remembers(settings);
        let throttle = |limit| match &self.throttle {
            Some(throttle) => throttle.with_limit(limit),
            None => Throttle::new(limit),
        };
        Arc::new(Self {
            digester: Arc::clone(&self.digester),
            negative: if same { self.negative.clone() } else { settings.negative_cache() },
            good: self.good.clone(),
            board: Mutex::new(Board::new(settings.max_in_flight_per_key)),
            streams: Mutex::new(Board::new(1)),
            calls: Calls::new(settings.max_in_flight),
            breaker: Arc::clone(&self.breaker),
            hold: Arc::clone(&self.hold),
            throttle: settings.bad_keys_per_minute.map(throttle),
            // The allowance takes the limit at each use.
            budget: settings.full_budget().map(|new| self.budget.clone().unwrap_or(new)),
            failures: Arc::clone(&self.failures),
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
        let good_since = self.good.since(&digest);
        let class = if good_since.is_some() { Class::Good } else { Class::Unknown };
        if let (Class::Unknown, Some(throttle), Some(client)) = (class, &self.throttle, client) {
            throttle.admit(client, now).map_err(|wait| {
                self.metrics.throttled.inc();
                Rejection::Throttled(wait)
            })?;
        }
        self.breaker.check(now).map_err(Rejection::ValidationUnavailable)?;
        self.hold.check(class, now).map_err(Rejection::ValidationUnavailable)?;
        let _waiting = Waiting::begin(self, class)?;
        let identity = self.join_flight(key, digest, class, client, now).await?;
        self.good.confirm(digest, good_since, now);
        Ok(identity)
    }

    /// The same for an open stream, whose key was good when it was opened. Neither a flood of other keys nor Keyward's own
    /// limits on requests keep it from being asked about: it has calls of its own and no budget, waits out no 429, and asks
    /// on while Scalekit is taken to be down.
    ///
    /// # Errors
    /// `InvalidKey` when it is definitely bad, or `ValidationUnavailable`.
    pub async fn revalidate(self: &Arc<Self>, key: &ApiKey) -> Result<Arc<Identity>, Rejection> {
        let (digest, now) = (self.digester.digest(key), Instant::now());
        if self.is_known_bad(&digest) {
            return Err(Rejection::InvalidKey);
        }
        let identity = self.join_flight(key, digest, Class::Stream, None, now).await?;
        self.good.confirm(digest, self.good.since(&digest), now);
        Ok(identity)
    }

    /// Updates the gauges that are computed only when metrics are read.
    pub fn update_gauges(&self) {
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

    async fn join_flight(
        self: &Arc<Self>,
        key: &ApiKey,
        digest: KeyDigest,
        class: Class,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<Arc<Identity>, Rejection> {
        let mut answer = {
            let mut board = lock(self.board_of(class));
            let new = || Flight { landed: watch::Sender::new(None), class, client };
            let arrival = board.arrive(digest, new);
            let (Arrival::Departs(flight) | Arrival::Boards(flight)) = &arrival;
            // Subscribed while the board is locked, as a flight without subscribers is not sent.
            let answer = flight.landed.subscribe();
            drop(board);
            if let Arrival::Departs(flight) = arrival {
                // SECURITY: detached, so that a client that disconnects neither takes the answer from others nor resets a stream.
                self.tasks.spawn(Arc::clone(self).run_flights(key.clone(), digest, flight));
            }
            answer
        };
        let landed = timeout_at(now + self.settings.timeout, answer.wait_for(Option::is_some)).await;
        match landed.as_ref().map(|landed| landed.as_deref()) {
            Ok(Ok(Some(Ok(Verdict::Valid(identity))))) => Ok(Arc::clone(identity)),
            Ok(Ok(Some(Ok(Verdict::Invalid)))) => Err(Rejection::InvalidKey),
            Ok(Ok(Some(Err(rejection)))) => Err(rejection.clone()),
            // The flight panicked, or took too long.
            Ok(Ok(None) | Err(_)) | Err(_) => Err(Rejection::ValidationUnavailable(RETRY_AFTER)),
        }
    }

    fn board_of(&self, class: Class) -> &Mutex<Board<KeyDigest, Flight>> {
        match class {
            Class::Unknown | Class::Good => &self.board,
            Class::Stream => &self.streams,
        }
    }

    /// Runs this flight, and those that board for the same key meanwhile.
    async fn run_flights(self: Arc<Self>, key: ApiKey, digest: KeyDigest, flight: Flight) {
        let board = self.board_of(flight.class);
        let crash = CrashGuard { board, digest };
        let mut next = Some(flight);
        while let Some(flight) = next {
            let permit = tokio::select! {
                biased;
                () = flight.landed.closed() => None,
                permit = self.calls.acquire(flight.class) => permit,
            };
            // Without a permit nobody waits any more, so that no call is made.
            if permit.is_some() {
                let answer = self.call_scalekit(&key, digest, flight.class, flight.client).await;
                flight.landed.send_replace(Some(answer));
            }
            drop(permit);
            next = lock(board).land(&digest);
        }
        std::mem::forget(crash);
    }

    /// Calls Scalekit, unless what became known while this flight waited makes the call needless.
    async fn call_scalekit(
        &self,
        key: &ApiKey,
        digest: KeyDigest,
        class: Class,
        client: Option<IpAddr>,
    ) -> Result<Verdict, Rejection> {
        if self.is_known_bad(&digest) {
            return Ok(Verdict::Invalid);
        }
        if class != Class::Stream {
            self.breaker.check(Instant::now()).map_err(Rejection::ValidationUnavailable)?;
        }
        // A call that begins later would hardly be answered in time.
        let latest = Instant::now() + self.settings.timeout / 2;
        loop {
            let now = Instant::now();
            let begins = self.hold.reserve(class, now, latest).map_err(Rejection::ValidationUnavailable)?;
            if begins > now {
                sleep_until(begins).await;
            }
            // Only a bad key costs its sender's allowance; of a key that was good lately, not even that.
            let reserved = self.throttle.as_ref().zip(client).filter(|_| class == Class::Unknown);
            if let Some((throttle, client)) = reserved {
                throttle.reserve(client, latest).await.map_err(Rejection::Throttled)?;
            }
            let answer = self.call_and_record(key, class).await;
            if let Some((throttle, client)) = reserved {
                let found_bad_key = matches!(answer, Ok(Ok(Verdict::Invalid)));
                throttle.settle(client, found_bad_key, Instant::now());
            }
            match answer? {
                Ok(Verdict::Invalid) => {
                    if let Some(negative) = &self.negative {
                        negative.insert(digest, ());
                    }
                    self.good.forget(&digest);
                    return Ok(Verdict::Invalid);
                }
                Ok(valid) => return Ok(valid),
                // Throttled: tried again when the paced queue of this class gives it a turn.
                Err(error) => match error.class() {
                    error::Class::Throttled(_) if class != Class::Unknown => {}
                    error::Class::Throttled(Some(wait)) => {
                        return Err(Rejection::ValidationUnavailable(wait));
                    }
                    _ => return Err(Rejection::ValidationUnavailable(RETRY_AFTER)),
                },
            }
        }
    }

    /// One call, charged to the budget and admitted by the breaker; its outcome goes to metrics, breaker, hold and log.
    async fn call_and_record(&self, key: &ApiKey, class: Class) -> Result<Result<Verdict, Error>, Rejection> {
        let began = Instant::now();
        self.spend_budget(class, began)?;
        // Last, as an open breaker admits one call a second: none that is refused for another reason may take its place.
        if class != Class::Stream
            && let Err(wait) = self.breaker.admit(began)
        {
            self.refund_budget(began);
            return Err(Rejection::ValidationUnavailable(wait));
        }
        let answer = self.scalekit.validate(key).await;
        let ended = Instant::now();
        self.metrics.validation_seconds.observe((ended - began).as_secs_f64());
        let outcome = match &answer {
            Ok(Verdict::Valid(_)) => "valid",
            Ok(Verdict::Invalid) => "invalid",
            Err(error) => error.kind(),
        };
        self.metrics.validations.get_or_create(&Outcome { outcome }).inc();
        let open = self.breaker.record(Ended::from_result(&answer), began, ended);
        self.metrics.breaker_open.set(open.into());
        match &answer {
            Ok(_) => self.hold.record_answer(class, began),
            Err(error) if matches!(error.class(), error::Class::Throttled(_)) => {
                self.hold.record_throttled(class, error.hold(), began, ended);
            }
            Err(_) => {}
        }
        self.log_outcome(began, answer.as_ref().err());
        Ok(answer)
    }

    /// Logs at a limited rate that Scalekit gives no verdict, and that it answers again.
    fn log_outcome(&self, began: Instant, failure: Option<&Error>) {
        let Some(error) = failure else {
            if let Some((outage, suppressed)) = self.failures.record_success(began) {
                let seconds = outage.as_secs_f64().ceil();
                tracing::info!(suppressed, "Scalekit answers again after {seconds} s");
            }
            return;
        };
        let outage = match error.class() {
            error::Class::Outage | error::Class::Throttled(_) => Some(error.hold().unwrap_or_default()),
            error::Class::Misconfigured | error::Class::Refused => None,
        };
        if let Some(suppressed) = self.failures.record_failure(error.kind(), outage, Instant::now()) {
            log_missing_verdict(error.kind(), suppressed, &Explained(error));
        }
    }

    /// Takes one call out of the budget, of which a quarter is kept for keys that were good lately.
    fn spend_budget(&self, class: Class, now: Instant) -> Result<(), Rejection> {
        let (Some(budget), Some(limit)) = (&self.budget, self.settings.max_per_minute) else {
            return Ok(());
        };
        let keep = match class {
            Class::Unknown => limit / 4,
            Class::Good => 0,
            Class::Stream => return Ok(()),
        };
        let taken = lock(budget).take(limit, keep, now);
        taken.map_err(|wait| {
            if let Some(suppressed) = self.failures.record_failure("budget", None, now) {
                let spent = "the budget of validations a minute is used up (scalekit.validations_per_minute)";
                log_missing_verdict("budget", suppressed, &spent);
            }
            Rejection::Overloaded(wait)
        })
    }

    fn refund_budget(&self, now: Instant) {
        if let (Some(budget), Some(limit)) = (&self.budget, self.settings.max_per_minute) {
            lock(budget).refund(limit, now);
        }
    }

    fn is_known_bad(&self, digest: &KeyDigest) -> bool {
        self.negative.as_ref().is_some_and(|negative| negative.contains_key(digest))
    }
}

/// One request that waits for a verdict.
struct Waiting<'a>(&'a Validator);

impl<'a> Waiting<'a> {
    fn begin(validator: &'a Validator, class: Class) -> Result<Self, Rejection> {
        let Settings { max_in_flight, max_waiting, .. } = validator.settings;
        let keep =
            if class == Class::Unknown { kept_share(max_in_flight) + kept_share(max_waiting) } else { 0 };
        let limit = max_in_flight.saturating_add(max_waiting) - keep;
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

/// Releases the waiters of a flight that panics, and of the one that boards behind it.
struct CrashGuard<'a> {
    board: &'a Mutex<Board<KeyDigest, Flight>>,
    digest: KeyDigest,
}

impl Drop for CrashGuard<'_> {
    fn drop(&mut self) {
        // A flight that is dropped without an answer wakes its subscribers.
        while lock(self.board).land(&self.digest).is_some() {}
    }
}

fn log_missing_verdict(kind: &'static str, suppressed: u64, cause: &dyn std::fmt::Display) {
    tracing::error!(error.kind = kind, suppressed, "no verdict, so requests get 503: {cause}");
}

/// Ignores poisoning: the guarded values are consistent after every statement.
fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}
