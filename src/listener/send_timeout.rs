//! Answers on their way to the caller. Of an HTTP/2 stream it is known which bytes are not sent yet, and since when nothing of
//! them was: hyper asks for no more of such an answer, so that nothing within it could end it.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::activity::InFlight;
use crate::body::{Body, BodyError};
use crate::budget::{Account, Held};
use crate::metrics::{Metrics, Outcome};
use crate::pool::Tasks;

/// How it is counted that an answer was not read.
pub(super) const OUTCOME: &str = "answer_unread";
/// The limit where memory is tight, for a connection that holds more than its share of it, if the one that is set is longer.
pub(super) const TIGHT_LIMIT: Duration = Duration::from_secs(2);

tokio::task_local! {
    /// Of the HTTP/2 stream whose task this is, where there is a limit.
    static SEND_PROGRESS: Arc<SendProgress>;
}

/// Runs HTTP/2 streams. One whose caller takes nothing of its answer for `limit` is dropped, which resets it.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) tasks: Tasks,
    pub(super) limit: Option<Duration>,
    pub(super) metrics: Arc<Metrics>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let Some(limit) = self.limit else { return self.tasks.execute(stream) };
        let (taken, metrics) = (Arc::new(SendProgress::begin()), Arc::clone(&self.metrics));
        self.tasks.execute(async move {
            tokio::select! {
                () = SEND_PROGRESS.scope(Arc::clone(&taken), stream) => {}
                () = taken.unread_for(limit) => {
                    metrics.connection_errors.get_or_create(&Outcome { outcome: OUTCOME }).inc();
                }
            }
        });
    }
}

/// What of an answer was given to hyper and not sent.
struct SendProgress {
    start: Instant,
    bytes: AtomicUsize,
    /// When the last of them was sent, or the first given, in milliseconds from the start.
    last: AtomicU64,
    given: Notify,
    all: AtomicWaker,
    /// Of the connection, once there is an answer.
    account: OnceLock<Arc<Account>>,
}

impl SendProgress {
    fn begin() -> Self {
        Self {
            start: Instant::now(),
            bytes: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            given: Notify::new(),
            all: AtomicWaker::new(),
            account: OnceLock::new(),
        }
    }

    fn moved(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn give(&self, count: usize) {
        if count > 0 && self.bytes.fetch_add(count, Ordering::AcqRel) == 0 {
            self.moved();
            self.given.notify_one();
        }
    }

    fn take(&self, count: usize) {
        if count > 0 {
            self.moved();
            if self.bytes.fetch_sub(count, Ordering::AcqRel) == count {
                self.all.wake();
            }
        }
    }

    /// Ready once nothing is left unsent.
    fn poll_all(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.all.register(cx.waker());
        if self.bytes.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    async fn unread_for(&self, limit: Duration) {
        loop {
            self.given.notified().await;
            // Set for a while at a time, so that sending costs no timer.
            while self.bytes.load(Ordering::Acquire) > 0 {
                let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
                let is_over_share = self.account.get().is_some_and(|account| account.is_over_share());
                let limit = if is_over_share { limit.min(TIGHT_LIMIT) } else { limit };
                let left = limit.saturating_sub(self.start.elapsed().saturating_sub(last));
                if left.is_zero() {
                    return;
                }
                sleep(left.min(TIGHT_LIMIT / 2)).await;
            }
        }
    }
}

/// Bytes of an answer, which say when they are sent.
pub(super) struct TrackedBytes {
    bytes: Bytes,
    taken: Option<Arc<SendProgress>>,
    _held: Held,
}

impl TrackedBytes {
    fn give(bytes: Bytes, taken: &Option<Arc<SendProgress>>, account: &Arc<Account>) -> Self {
        if let Some(taken) = taken {
            taken.give(bytes.len());
        }
        Self { _held: account.piece(bytes.len()), bytes, taken: taken.clone() }
    }
}

impl Buf for TrackedBytes {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(taken) = &self.taken {
            taken.take(count);
        }
    }
}

impl Drop for TrackedBytes {
    fn drop(&mut self) {
        if let Some(taken) = &self.taken {
            taken.take(self.bytes.len());
        }
    }
}

/// An answer's body, which keeps its connection busy.
pub(super) struct TrackedBody {
    body: Body,
    account: Arc<Account>,
    _open: Option<(InFlight, Option<Arc<Held>>)>,
    /// Of an HTTP/2 stream, where there is a limit.
    taken: Option<Arc<SendProgress>>,
    /// What the body ended with, once it has.
    end: Option<Option<Frame<TrackedBytes>>>,
}

impl TrackedBody {
    /// Within the task of the stream, if it is one.
    pub(super) fn wrap(body: Body, busy: InFlight, held: Option<Arc<Held>>, account: Arc<Account>) -> Self {
        if body.is_end_stream() {
            return Self { body, account, _open: None, taken: None, end: None };
        }
        let taken = SEND_PROGRESS.try_with(Arc::clone).ok();
        if let Some(taken) = &taken {
            // Set once.
            let _ = taken.account.set(Arc::clone(&account));
        }
        Self { body, account, _open: Some((busy, held)), taken, end: None }
    }
}

impl http_body::Body for TrackedBody {
    type Data = TrackedBytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<TrackedBytes>, BodyError>>> {
        let this = &mut *self;
        if this.end.is_none() {
            ready!(this.account.poll_room(cx));
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    frame.map_data(|bytes| TrackedBytes::give(bytes, &this.taken, &this.account))
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return this.poll_end(None, cx),
            };
            return if frame.is_trailers() {
                this.poll_end(Some(frame), cx)
            } else {
                Poll::Ready(Some(Ok(frame)))
            };
        }
        let trailers = this.end.take().flatten();
        this.poll_end(trailers, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.taken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl TrackedBody {
    /// The end waits until all before it is sent: a stream that has come to its end cannot be reset any more.
    fn poll_end(
        &mut self,
        trailers: Option<Frame<TrackedBytes>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<TrackedBytes>, BodyError>>> {
        if let Some(taken) = &self.taken
            && taken.poll_all(cx).is_pending()
        {
            self.end = Some(trailers);
            return Poll::Pending;
        }
        self.end = Some(None);
        Poll::Ready(trailers.map(Ok))
    }
}
