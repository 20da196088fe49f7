//! Validation of keys. A verdict comes from a call that began after the request arrived, and is shared among requests where
//! that rule allows; without a verdict a request is refused.

pub mod flights;

mod breaker;
mod call;
mod call_budget;
mod backoff;
mod shares;
mod bad_key_limit;

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use moka::sync::Cache;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use self::backoff::Backoff;
use self::bad_key_limit::BadKeyLimit;
use self::breaker::Breaker;
use self::call_budget::CallBudget;
use self::flights::{Arrival, Board};
use self::shares::{Calls, Class, GoodKeys, kept_share};
use crate::credential::{ApiKey, Digester, KeyDigest};
use crate::identity::Identity;
use crate::logging::outage_tracker::OutageTracker;
use crate::metrics::Metrics;
use crate::rejection::Rejection;
use crate::scalekit::{Scalekit, Verdict};
use crate::shared::SharedServer;

/// Limits on validations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From a request's arrival to its verdict, including waiting and retries.
    pub timeout: Duration,
    /// Validations of one key at once, from 1.
    pub max_in_flight_per_key: usize,
    /// Calls to Scalekit at once, from 1. Open streams may have an eighth more.
    pub max_in_flight: usize,
    /// Requests without a verdict beyond `max_in_flight`.
    pub max_waiting: usize,
    /// Calls to Scalekit in a minute, without those for open streams; `None` for no budget.
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
    backoff: Arc<Backoff>,
    throttle: Option<BadKeyLimit>,
    budget: Option<CallBudget>,
    /// With which replicas share the budget.
    shared: Option<Arc<SharedServer>>,
    failures: Arc<OutageTracker>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
}

/// A request's place in a validation, for its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Whether it waited for the next flight, which requests share, as enough were in the air.
    pub is_shared: bool,
    /// The requests that were aboard at the end, from 1.
    pub aboard: usize,
}

/// One validation.
#[derive(Clone)]
struct Flight {
    /// Each request aboard holds a receiver.
    landed: watch::Sender<Option<Landed>>,
    class: Class,
    /// A bad key is counted against this address, once for each call: that of the request which began the flight.
    client: Option<IpAddr>,
}

/// How a flight ended.
struct Landed {
    answer: Result<Verdict, Rejection>,
    aboard: usize,
}

/// `Retry-After` where Scalekit names no time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Validator {
    /// Flights run in `tasks`. With a shared server, replicas share the budget of calls.
    ///
    /// # Errors
    /// When the system has no randomness for the digests.
    pub fn new(
        settings: Settings,
        scalekit: Arc<Scalekit>,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        shared: Option<Arc<SharedServer>>,
    ) -> Result<Arc<Self>, ring::error::Unspecified> {
        Ok(Arc::new(Self {
            digester: Arc::new(Digester::new()?),
            negative: settings.negative_cache(),
            good: GoodKeys::default(),
            board: Mutex::new(Board::new(settings.max_in_flight_per_key)),
            streams: Mutex::new(Board::new(1)),
            calls: Calls::new(settings.max_in_flight),
            breaker: Arc::default(),
            backoff: Arc::default(),
            throttle: settings.bad_keys_per_minute.map(BadKeyLimit::new),
            budget: settings.max_per_minute.map(|limit| CallBudget::new(limit, shared.as_ref())),
            shared,
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
            None => BadKeyLimit::new(limit),
        };
        let budget = |limit| match &self.budget {
            Some(budget) => budget.with_limit(limit),
            None => CallBudget::new(limit, self.shared.as_ref()),
        };
        Arc::new(Self {
            digester: Arc::clone(&self.digester),
            negative: if same { self.negative.clone() } else { settings.negative_cache() },
            good: self.good.clone(),
            board: Mutex::new(Board::new(settings.max_in_flight_per_key)),
            streams: Mutex::new(Board::new(1)),
            calls: Calls::new(settings.max_in_flight),
            breaker: Arc::clone(&self.breaker),
            backoff: Arc::clone(&self.backoff),
            throttle: settings.bad_keys_per_minute.map(throttle),
            budget: settings.max_per_minute.map(budget),
            shared: self.shared.clone(),
            failures: Arc::clone(&self.failures),
            settings: settings.clone(),
            scalekit: Arc::clone(&self.scalekit),
            metrics: Arc::clone(&self.metrics),
            tasks: self.tasks.clone(),
        })
    }

    /// The digest by which this process remembers a key.
    pub fn digest(&self, key: &ApiKey) -> KeyDigest {
        self.digester.digest(key)
    }

    /// The identity of a key, by a validation that begins after this call. `digest` is that of the key.
    /// Sets `seat`, unless the answer needs no flight.
    ///
    /// # Errors
    /// `InvalidKey` when it is definitely invalid, `Throttled`, `Overloaded`, or `ValidationUnavailable`.
    pub async fn validate(
        self: &Arc<Self>,
        key: &ApiKey,
        digest: KeyDigest,
        client: Option<IpAddr>,
        seat: &mut Option<Seat>,
    ) -> Result<Arc<Identity>, Rejection> {
        let now = Instant::now();
        if self.is_known_bad(&digest) {
            self.metrics.negative_hits.inc();
            return Err(Rejection::InvalidKey);
        }
        let good_since = self.good.good_since(&digest);
        let class = if good_since.is_some() { Class::Good } else { Class::Unknown };
        if let (Class::Unknown, Some(throttle), Some(client)) = (class, &self.throttle, client) {
            throttle.admit(client, now).map_err(|wait| {
                self.metrics.throttled.inc();
                Rejection::Throttled(wait)
            })?;
        }
        self.breaker.check(now).map_err(Rejection::ValidationUnavailable)?;
        self.backoff.check(class, now).map_err(Rejection::ValidationUnavailable)?;
        let _waiting = Waiting::begin(self, class)?;
        let identity = self.join_flight(key, digest, class, client, now, seat).await?;
        self.good.confirm(digest, good_since, now);
        Ok(identity)
    }

    /// The same for an open stream. Neither a flood of other keys nor Keyward's limits on requests delay it: it has calls of
    /// its own and no budget, is paced apart after a 429, and is sent even while the breaker is open.
    ///
    /// # Errors
    /// `InvalidKey` when it is definitely invalid, or `ValidationUnavailable`.
    pub async fn revalidate(self: &Arc<Self>, key: &ApiKey) -> Result<Arc<Identity>, Rejection> {
        let (digest, now) = (self.digester.digest(key), Instant::now());
        if self.is_known_bad(&digest) {
            return Err(Rejection::InvalidKey);
        }
        let identity = self.join_flight(key, digest, Class::Stream, None, now, &mut None).await?;
        self.good.confirm(digest, self.good.good_since(&digest), now);
        Ok(identity)
    }

    /// Updates the gauges that are computed only when metrics are read.
    pub fn update_gauges(&self) {
        if let Some(negative) = &self.negative {
            negative.run_pending_tasks();
            self.metrics.negative_entries.set(negative.entry_count());
        }
        match &self.budget {
            Some(budget) => {
                self.metrics.validation_budget.set(budget.per_minute.into());
                self.metrics.validation_headroom.set(budget.headroom(Instant::now()));
            }
            None => {
                self.metrics.validation_budget.clear();
                self.metrics.validation_headroom.clear();
            }
        }
    }

    async fn join_flight(
        self: &Arc<Self>,
        key: &ApiKey,
        digest: KeyDigest,
        class: Class,
        client: Option<IpAddr>,
        now: Instant,
        seat: &mut Option<Seat>,
    ) -> Result<Arc<Identity>, Rejection> {
        let (arrival, mut answer) = {
            let mut board = lock(self.board_of(class));
            let mut is_first = false;
            let arrival = board.arrive(digest, || {
                is_first = true;
                Flight { landed: watch::Sender::new(None), class, client }
            });
            if !is_first {
                self.metrics.validations_shared.inc();
            }
            let (Arrival::Departs(flight) | Arrival::Boards(flight)) = &arrival;
            // Subscribed while the board is locked, as a flight without subscribers makes no call.
            let answer = flight.landed.subscribe();
            let is_shared = matches!(arrival, Arrival::Boards(_));
            *seat = Some(Seat { is_shared, aboard: flight.landed.receiver_count() });
            (arrival, answer)
        };
        let departed = match arrival {
            Arrival::Departs(flight) => Some(Arc::clone(self).run_flights(key.clone(), digest, flight)),
            Arrival::Boards(flight) => {
                // Or its waiters would keep the channel open that tells them of a crash.
                drop(flight);
                None
            }
        };
        let mut departed = departed.map(|flights| DetachOnDrop::new(flights, &self.tasks));
        if class == Class::Stream {
            // A stream's re-validation is polled by bodies, and so not while its client does not read.
            departed = None;
        }
        let landed = async {
            if let Some(departed) = &mut departed {
                tokio::select! {
                    biased;
                    () = departed => {}
                    _ = answer.wait_for(Option::is_some) => {}
                }
            }
            answer.wait_for(Option::is_some).await
        };
        let landed = timeout_at(now + self.settings.timeout, landed).await;
        let Ok(Ok(Some(Landed { answer, aboard }))) = landed.as_ref().map(|landed| landed.as_deref()) else {
            // The flight panicked, or took too long.
            return Err(Rejection::ValidationUnavailable(RETRY_AFTER));
        };
        if let Some(seat) = seat {
            seat.aboard = *aboard;
        }
        match answer {
            Ok(Verdict::Valid(identity)) => Ok(Arc::clone(identity)),
            Ok(Verdict::Invalid) => Err(Rejection::InvalidKey),
            Err(rejection) => Err(rejection.clone()),
        }
    }

    fn board_of(&self, class: Class) -> &Mutex<Board<KeyDigest, Flight>> {
        match class {
            Class::Unknown | Class::Good => &self.board,
            Class::Stream => &self.streams,
        }
    }

    /// Runs this flight, and then those of the same key that requests have boarded meanwhile.
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
            // No permit means that no request waits any more.
            if permit.is_some() {
                let answer = self.call_scalekit(&key, digest, flight.class, flight.client).await;
                let aboard = flight.landed.receiver_count();
                flight.landed.send_replace(Some(Landed { answer, aboard }));
            }
            drop(permit);
            next = lock(board).land(&digest);
        }
        std::mem::forget(crash);
    }

    fn is_known_bad(&self, digest: &KeyDigest) -> bool {
        self.negative.as_ref().is_some_and(|negative| negative.contains_key(digest))
    }
}

/// Flights that the request which began them runs itself, as nearly every flight is over before its request: a task of their
/// own would cost 2 of 30 µs. When the request leaves, or has its verdict while others have boarded, a task runs on.
///
/// SECURITY: so that a client that disconnects neither takes the answer from others nor resets a stream to Scalekit.
struct DetachOnDrop<'t> {
    flights: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    tasks: &'t TaskTracker,
}

impl<'t> DetachOnDrop<'t> {
    fn new(flights: impl Future<Output = ()> + Send + 'static, tasks: &'t TaskTracker) -> Self {
        // A panic must not end the connection of the request; its waiters are told by `CrashGuard`.
        let flights = AssertUnwindSafe(flights).catch_unwind().map(drop);
        Self { flights: Some(Box::pin(flights)), tasks }
    }
}

impl Future for DetachOnDrop<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(flights) = &mut self.flights {
            ready!(flights.as_mut().poll(cx));
            self.flights = None;
        }
        Poll::Ready(())
    }
}

impl Drop for DetachOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(flights) = self.flights.take() {
            self.tasks.spawn(flights);
        }
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

/// Ignores poisoning: the guarded values are consistent after every statement.
fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}
