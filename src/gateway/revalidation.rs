//! Re-validation of long-lived requests: their key is validated again every `revalidate_every`, and they are closed when it
//! is no longer valid, has expired, or could not be confirmed for `unconfirmed_for`.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Shared;
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Gateway;
use crate::body::{self, Adapted, Adapter, Body, PolledFrame};
use crate::budget::Admitted;
use crate::credential::ApiKey;
use crate::identity::Identity;
use crate::logging::line_limit::LineLimit;
use crate::metrics::{Metrics, Outcome};
use crate::policy::Requirement;
use crate::rejection::Rejection;
use crate::upstream::websocket::CloseCode;
use crate::validator::Validator;

/// The re-validation of one request. Most requests are short, so that it takes no timer and no allocation before the request
/// has lasted for most of an interval, or becomes a stream.
pub(super) struct Revalidation {
    /// Present until the first re-validation is scheduled.
    recheck: Option<Recheck>,
    running: Option<Running>,
    /// Until the request has ended.
    admitted: Arc<Admitted>,
}

/// What is needed to validate the key again.
struct Recheck {
    validator: Arc<Validator>,
    metrics: Arc<Metrics>,
    key: ApiKey,
    requirement: Requirement,
    every: Duration,
    unconfirmed_for: Duration,
    expiry: Option<SystemTime>,
    /// When the validation that admitted the request began.
    admitted: Instant,
}

struct Running {
    every: Duration,
    confirmed: Arc<Confirmed>,
    closed: Closed,
}

/// When the last validation that confirmed the key began. Its start counts, as the key may be revoked while it runs.
struct Confirmed(Mutex<Instant>);

/// Shared by both directions of a stream.
type Closed = Shared<Pin<Box<dyn Future<Output = Rejection> + Send>>>;

/// Fraction of the interval after which the key is validated again. The rest leaves time for the answer and one retry.
const EARLIEST: f64 = 0.8;
/// Spreads the validations of streams that began together, as after a restart.
const JITTER: f64 = 0.1;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Between two lines that say the same of many streams.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

impl Revalidation {
    /// For a request with this key, whose validation began at `began`.
    pub(super) fn new(
        gateway: &Gateway,
        key: ApiKey,
        identity: &Identity,
        requirement: &Requirement,
        began: Instant,
        admitted: Admitted,
    ) -> Self {
        let recheck = Recheck {
            validator: Arc::clone(&gateway.validator),
            metrics: Arc::clone(&gateway.metrics),
            key,
            requirement: requirement.clone(),
            every: gateway.settings.revalidate_every,
            unconfirmed_for: gateway.settings.unconfirmed_for,
            expiry: identity.expiry,
            admitted: began,
        };
        Self { recheck: Some(recheck), running: None, admitted: Arc::new(admitted) }
    }

    /// For a request on a public route, which is never asked about.
    pub(super) fn disabled(admitted: Admitted) -> Self {
        Self { recheck: None, running: None, admitted: Arc::new(admitted) }
    }

    /// For a request that is not refused for its key.
    pub(super) fn without_recheck(self) -> Self {
        Self { recheck: None, ..self }
    }

    /// When a request that still waits for its response must be polled.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.recheck.as_ref().map(Recheck::due_at)
    }

    /// Completes when a request that waits for its response must be refused. Sets no timer: the caller polls it again at
    /// [`Self::due_at`].
    pub(super) async fn wait_until_refused(&mut self) -> Rejection {
        let poll = |cx: &mut Context<'_>| match &self.recheck {
            Some(recheck) if Instant::now() < recheck.due_at() => Poll::Pending,
            _ => self.poll_closed(cx),
        };
        std::future::poll_fn(poll).await
    }

    /// Waits until the key has been confirmed within the last interval, which is nearly always the case already.
    ///
    /// # Errors
    /// The rejection of a new request, where the key is no longer valid or cannot be confirmed within another interval.
    pub(super) async fn wait_until_confirmed(&mut self) -> Result<(), Rejection> {
        let Some(every) = self.overdue_interval() else { return Ok(()) };
        let confirmed = std::future::poll_fn(|cx| match self.poll_closed(cx) {
            Poll::Ready(rejection) => Poll::Ready(Err(rejection)),
            Poll::Pending if self.overdue_interval().is_none() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        timeout(every, confirmed).await.unwrap_or(Err(Rejection::ValidationUnavailable(RETRY_AFTER)))
    }

    /// The interval, if the last confirmation is older.
    fn overdue_interval(&self) -> Option<Duration> {
        let (confirmed, every) = match (&self.recheck, &self.running) {
            (Some(recheck), _) => (recheck.admitted, recheck.every),
            (None, Some(running)) => (running.confirmed.get(), running.every),
            (None, None) => return None,
        };
        (Instant::now().saturating_duration_since(confirmed) > every).then_some(every)
    }

    fn start_asking(&mut self) -> Option<&mut Running> {
        if let Some(recheck) = self.recheck.take() {
            let (every, confirmed) = (recheck.every, Arc::new(Confirmed(Mutex::new(recheck.admitted))));
            let closed = recheck.ask_until_closed(Arc::clone(&confirmed));
            let closed: Pin<Box<dyn Future<Output = Rejection> + Send>> = Box::pin(closed);
            self.running = Some(Running { every, confirmed, closed: closed.shared() });
        }
        self.running.as_mut()
    }

    /// Ready when the stream must be closed, with the rejection of a new request.
    pub(super) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Rejection> {
        self.start_asking().map_or(Poll::Pending, |running| running.closed.poll_unpin(cx))
    }

    /// Completes when the stream must be closed.
    pub(super) async fn wait_until_closed(&mut self) -> Rejection {
        std::future::poll_fn(|cx| self.poll_closed(cx)).await
    }

    /// What is sent on the stream ends with it, whether or not the client reads the answer. An upload may outlast its answer,
    /// and the request is admitted until both have ended.
    pub(super) fn wrap_upload(&mut self, body: Body) -> Body {
        let closed = self.start_asking().map(|running| running.closed.clone());
        Adapted::new(body, Upload { closed, _admitted: Arc::clone(&self.admitted) }).boxed_unsync()
    }
}

impl Confirmed {
    fn get(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

impl Recheck {
    fn due_at(&self) -> Instant {
        self.admitted + self.every.mul_f64(EARLIEST)
    }

    async fn ask_until_closed(mut self, confirmed: Arc<Confirmed>) -> Rejection {
        let metrics = Arc::clone(&self.metrics);
        let _open = GaugeGuard::increment(&metrics.open_streams);
        let mut unconfirmed = None;
        let pause = || self.every.mul_f64(EARLIEST + JITTER * fastrand::f64());
        let mut ask_at = confirmed.get() + pause();
        let mut retry_after = self.every / 16;
        let (outcome, rejection) = loop {
            let left = self.expiry.map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default());
            let expired = async {
                match left {
                    Some(left) => sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            let asked = async {
                sleep_until(ask_at).await;
                (Instant::now(), self.validator.revalidate(&self.key).await)
            };
            let (began, answer) = tokio::select! {
                biased;
                () = expired => break ("expired", Rejection::InvalidKey),
                answer = asked => answer,
                () = sleep_until(confirmed.get() + self.unconfirmed_for) => {
                    break ("unconfirmed", Rejection::ValidationUnavailable(RETRY_AFTER));
                }
            };
            match answer {
                Ok(identity) => {
                    confirmed.set(began);
                    (unconfirmed, ask_at, retry_after) = (None, began + pause(), self.every / 16);
                    self.expiry = identity.expiry;
                    // Roles and claims may have changed: what would be refused now must not stay open.
                    if self.requirement.admit(identity).is_err() {
                        break ("not_permitted", Rejection::NotPermitted);
                    }
                }
                Err(Rejection::InvalidKey) => break ("revoked", Rejection::InvalidKey),
                Err(rejection) => {
                    // SECURITY: retried sooner than after an interval, so that a client who makes a validation fail gains no extra one.
                    ask_at = Instant::now() + retry_after.mul_f64(1.0 - JITTER * fastrand::f64());
                    retry_after = (retry_after * 2).min(self.every / 2);
                    unconfirmed.get_or_insert_with(|| self.begin_unconfirmed(&rejection));
                }
            }
        };
        let closed = metrics.streams_closed.get_or_create(&Outcome { outcome }).inc() + 1;
        static LIMIT: LineLimit = LineLimit::new(LINE_INTERVAL);
        if outcome == "unconfirmed"
            && let Some(suppressed) = LIMIT.admit()
        {
            tracing::warn!(
                closed,
                suppressed,
                "closed streams whose key could not be confirmed for streams.unconfirmed_for"
            );
        }
        rejection
    }

    fn begin_unconfirmed(&self, rejection: &Rejection) -> GaugeGuard<'_> {
        static LIMIT: LineLimit = LineLimit::new(LINE_INTERVAL);
        if let Some(suppressed) = LIMIT.admit() {
            tracing::warn!(
                keyward.reason = rejection.code(),
                suppressed,
                "cannot confirm the keys of open streams; they are closed after streams.unconfirmed_for"
            );
        }
        GaugeGuard::increment(&self.metrics.unconfirmed_streams)
    }
}

/// Why a stream is closed, for the log.
pub(super) fn close_reason(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::ValidationUnavailable(_) => "key_not_confirmed",
        _ => "key_no_longer_valid",
    }
}

/// Why a stream is closed, for a WebSocket client.
pub(super) fn close_code(rejection: &Rejection) -> CloseCode {
    match rejection {
        Rejection::ValidationUnavailable(_) => CloseCode::TryAgainLater,
        _ => CloseCode::PolicyViolation,
    }
}

struct GaugeGuard<'a>(&'a Gauge);

impl<'a> GaugeGuard<'a> {
    fn increment(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct Upload {
    /// None on a public route.
    closed: Option<Closed>,
    _admitted: Arc<Admitted>,
}

impl Adapter for Upload {
    type Body = Body;
    type Data = Bytes;

    fn poll_frame(&mut self, body: &mut Body, cx: &mut Context<'_>) -> PolledFrame {
        if let Some(closed) = &mut self.closed
            && let Poll::Ready(rejection) = closed.poll_unpin(cx)
        {
            return Poll::Ready(Some(Err(close_reason(&rejection).into())));
        }
        body::poll_next(body, cx)
    }
}
