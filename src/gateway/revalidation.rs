//! Re-validation of requests that last: their key is asked about again every `revalidate_every`, from the verdict on, and
//! they are closed when it is no longer good, has expired, or could not be confirmed for `unconfirmed_for`.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Shared;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Gateway;
use crate::body::{Body, BodyError};
use crate::budget::Admitted;
use crate::credential::ApiKey;
use crate::identity::Identity;
use crate::metrics::{Metrics, Outcome};
use crate::policy::Requirement;
use crate::rejection::Rejection;
use crate::upstream::websocket::CloseCode;
use crate::validator::Validator;

/// The re-validation of one request. It takes no timer and no memory of its own before the request has lasted for most of
/// an interval, or becomes a stream. On a public route there is none.
pub(super) struct Revalidation {
    /// Until it begins.
    question: Option<Question>,
    running: Option<Running>,
    /// Until the request has ended.
    admitted: Arc<Admitted>,
}

/// What it takes to ask again.
struct Question {
    validator: Arc<Validator>,
    metrics: Arc<Metrics>,
    key: ApiKey,
    requirement: Requirement,
    every: Duration,
    unconfirmed_for: Duration,
    expiry: Option<SystemTime>,
    /// When the validation began that let the request in.
    admitted: Instant,
}

struct Running {
    every: Duration,
    confirmed: Arc<Confirmed>,
    closed: Closed,
}

/// When the last validation that confirmed the key began: it says nothing of what happened since.
struct Confirmed(Mutex<Instant>);

/// Both directions of a stream look at it.
type Closed = Shared<Pin<Box<dyn Future<Output = Rejection> + Send>>>;

/// What part of an interval passes before the key is asked about, at least. The rest is for the answer and for a second try.
const EARLIEST: f64 = 0.8;
/// Streams that began together, as after a restart, are not asked about all at once.
const JITTER: f64 = 0.1;
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
        let question = Question {
            validator: Arc::clone(&gateway.validator),
            metrics: Arc::clone(&gateway.metrics),
            key,
            requirement: requirement.clone(),
            every: gateway.settings.revalidate_every,
            unconfirmed_for: gateway.settings.unconfirmed_for,
            expiry: identity.expiry,
            admitted: began,
        };
        Self { question: Some(question), running: None, admitted: Arc::new(admitted) }
    }

    /// For a request on a public route, which is never asked about.
    pub(super) fn none(admitted: Admitted) -> Self {
        Self { question: None, running: None, admitted: Arc::new(admitted) }
    }

    /// When a request without a head of its answer must be looked at, if it is still there.
    pub(super) fn due(&self) -> Option<Instant> {
        self.question.as_ref().map(Question::due)
    }

    /// Completes when a request that waits for the head of its answer must be refused. Sets no timer: whoever polls this
    /// polls it again when it is [`Self::due`].
    pub(super) async fn closed_while_waiting(&mut self) -> Rejection {
        let poll = |cx: &mut Context<'_>| match &self.question {
            Some(question) if Instant::now() < question.due() => Poll::Pending,
            _ => self.poll_closed(cx),
        };
        std::future::poll_fn(poll).await
    }

    /// Waits until the key has been confirmed within the last interval, which it nearly always has.
    ///
    /// # Errors
    /// What a new request would be told, where the key is not good any more or nobody can say within another interval.
    pub(super) async fn confirm(&mut self) -> Result<(), Rejection> {
        let Some(every) = self.overdue() else { return Ok(()) };
        let confirmed = std::future::poll_fn(|cx| match self.poll_closed(cx) {
            Poll::Ready(rejection) => Poll::Ready(Err(rejection)),
            Poll::Pending if self.overdue().is_none() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        timeout(every, confirmed).await.unwrap_or(Err(Rejection::ValidationUnavailable(RETRY_AFTER)))
    }

    /// The interval, where the last confirmation is older than that.
    fn overdue(&self) -> Option<Duration> {
        let (confirmed, every) = match (&self.question, &self.running) {
            (Some(question), _) => (question.admitted, question.every),
            (None, Some(running)) => (running.confirmed.get(), running.every),
            (None, None) => return None,
        };
        (Instant::now().saturating_duration_since(confirmed) > every).then_some(every)
    }

    fn begin(&mut self) -> Option<&mut Running> {
        if let Some(question) = self.question.take() {
            let (every, confirmed) = (question.every, Arc::new(Confirmed(Mutex::new(question.admitted))));
            let closed = question.ask_until_closed(Arc::clone(&confirmed));
            let closed: Pin<Box<dyn Future<Output = Rejection> + Send>> = Box::pin(closed);
            self.running = Some(Running { every, confirmed, closed: closed.shared() });
        }
        self.running.as_mut()
    }

    /// Ready when the stream must be closed, with what a new request would be told.
    pub(super) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Rejection> {
        self.begin().map_or(Poll::Pending, |running| running.closed.poll_unpin(cx))
    }

    /// Completes when the stream must be closed.
    pub(super) async fn closed(&mut self) -> Rejection {
        std::future::poll_fn(|cx| self.poll_closed(cx)).await
    }

    /// What is sent on the stream ends with it, whether or not the caller reads the answer. An upload may outlast its answer,
    /// and the request is admitted until both have ended.
    pub(super) fn upload(&mut self, body: Body) -> Body {
        let closed = self.begin().map(|running| running.closed.clone());
        Upload { body, closed, _admitted: Arc::clone(&self.admitted) }.boxed_unsync()
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

impl Question {
    fn due(&self) -> Instant {
        self.admitted + self.every.mul_f64(EARLIEST)
    }

    async fn ask_until_closed(mut self, confirmed: Arc<Confirmed>) -> Rejection {
        let metrics = Arc::clone(&self.metrics);
        let _open = Counted::begin(&metrics.open_streams);
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
                    // Roles and claims may have changed: what would no longer be let in is not kept in either.
                    if let Err(rejection) = self.requirement.admit(identity) {
                        break ("not_permitted", rejection);
                    }
                }
                Err(Rejection::InvalidKey) => break ("revoked", Rejection::InvalidKey),
                Err(rejection) => {
                    // SECURITY: sooner than after an interval, so that a caller who makes a question fail does not gain one.
                    ask_at = Instant::now() + retry_after.mul_f64(1.0 - JITTER * fastrand::f64());
                    retry_after = (retry_after * 2).min(self.every / 2);
                    unconfirmed.get_or_insert_with(|| self.begin_unconfirmed(&rejection));
                }
            }
        };
        let closed = metrics.streams_closed.get_or_create(&Outcome { outcome }).inc() + 1;
        if outcome == "unconfirmed" && closed.is_power_of_two() {
            tracing::warn!(
                closed,
                "streams were closed whose key could not be confirmed (streams.unconfirmed_for)"
            );
        }
        rejection
    }

    fn begin_unconfirmed(&self, rejection: &Rejection) -> Counted<'_> {
        // Said of the first one alone; the gauge says how many there are.
        if self.metrics.unconfirmed_streams.get() == 0 {
            tracing::warn!(
                keyward.reason = rejection.code(),
                "the keys of open streams cannot be confirmed; streams are closed after streams.unconfirmed_for of that"
            );
        }
        Counted::begin(&self.metrics.unconfirmed_streams)
    }
}

/// Why a stream is closed, for the log.
pub(super) fn close_reason(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::ValidationUnavailable(_) => "key_not_confirmed",
        _ => "key_no_longer_valid",
    }
}

/// Why a stream is closed, for the caller at the other end of a WebSocket.
pub(super) fn close_code(rejection: &Rejection) -> CloseCode {
    match rejection {
        Rejection::ValidationUnavailable(_) => CloseCode::TryAgainLater,
        _ => CloseCode::PolicyViolation,
    }
}

struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn begin(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct Upload {
    body: Body,
    /// None on a public route.
    closed: Option<Closed>,
    _admitted: Arc<Admitted>,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(closed) = &mut self.closed
            && let Poll::Ready(rejection) = closed.poll_unpin(cx)
        {
            return Poll::Ready(Some(Err(close_reason(&rejection).into())));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
