//! The limit on how long a client may not read its response (`limits.answer_timeout`), on an HTTP/2 stream. hyper asks such a
//! response's body for no more data, so that nothing within the body could end it. Therefore [`TrackedBody`] counts the bytes
//! that were given to hyper and not sent, and [`StreamExecutor`] drops the stream's task when none of them is sent in time.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body as _, Frame};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::activity::InFlight;
use crate::body::{self, Adapted, Adapter, Body, PolledFrame};
use crate::budget::{Account, Held};
use crate::metrics::{Metrics, Outcome};
use crate::pool::Tasks;

/// The label `outcome` of a response that was not read.
pub(super) const UNREAD_OUTCOME: &str = "answer_unread";
/// The longest limit where memory is tight, for a connection that holds more than its share.
const TIGHT_LIMIT: Duration = Duration::from_secs(2);

/// The limit that is in force now for a connection.
pub(super) fn limit_for(account: &Account, limit: Duration) -> Duration {
    if account.is_over_share() { limit.min(TIGHT_LIMIT) } else { limit }
}

tokio::task_local! {
    /// Of the HTTP/2 stream whose task this is, where there is a limit.
    static SEND_PROGRESS: Arc<SendProgress>;
}

/// Runs the tasks of HTTP/2 streams. Dropping such a task resets its stream.
#[derive(Clone)]
pub(super) struct StreamExecutor {
    pub(super) tasks: Tasks,
    pub(super) limit: Option<Duration>,
    pub(super) metrics: Arc<Metrics>,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let Some(limit) = self.limit else { return self.tasks.execute(stream) };
        let (progress, metrics) = (Arc::new(SendProgress::begin()), Arc::clone(&self.metrics));
        self.tasks.execute(async move {
            tokio::select! {
                () = SEND_PROGRESS.scope(Arc::clone(&progress), stream) => {}
                () = progress.wait_until_unread_for(limit) => {
                    metrics.connection_errors.get_or_create(&Outcome { outcome: UNREAD_OUTCOME }).inc();
                }
            }
        });
    }
}

/// How much of a response was given to hyper and is not sent.
struct SendProgress {
    began: Instant,
    unsent: AtomicUsize,
    /// When bytes were last sent, or the first ones given, in milliseconds since `began`.
    moved_ms: AtomicU64,
    given: Notify,
    all_sent: AtomicWaker,
    /// Of the connection, once there is a response.
    account: OnceLock<Arc<Account>>,
}

impl SendProgress {
    fn begin() -> Self {
        Self {
            began: Instant::now(),
            unsent: AtomicUsize::new(0),
            moved_ms: AtomicU64::new(0),
            given: Notify::new(),
            all_sent: AtomicWaker::new(),
            account: OnceLock::new(),
        }
    }

    fn record_movement(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(now, Ordering::Relaxed);
    }

    fn record_given(&self, count: usize) {
        if count > 0 && self.unsent.fetch_add(count, Ordering::AcqRel) == 0 {
            self.record_movement();
            self.given.notify_one();
        }
    }

    fn record_sent(&self, count: usize) {
        if count > 0 {
            self.record_movement();
            if self.unsent.fetch_sub(count, Ordering::AcqRel) == count {
                self.all_sent.wake();
            }
        }
    }

    fn poll_all_sent(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.all_sent.register(cx.waker());
        if self.unsent.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    async fn wait_until_unread_for(&self, limit: Duration) {
        loop {
            self.given.notified().await;
            // A timer runs for some time at once, so that sending sets none.
            while self.unsent.load(Ordering::Acquire) > 0 {
                let moved = Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
                let limit = self.account.get().map_or(limit, |account| limit_for(account, limit));
                let left = limit.saturating_sub(self.began.elapsed().saturating_sub(moved));
                if left.is_zero() {
                    return;
                }
                sleep(left.min(TIGHT_LIMIT / 2)).await;
            }
        }
    }
}

/// Bytes of a response, which record when they are sent.
pub(super) struct TrackedBytes {
    bytes: Bytes,
    progress: Option<Arc<SendProgress>>,
    _held: Held,
}

impl TrackedBytes {
    fn new(bytes: Bytes, progress: Option<&Arc<SendProgress>>, account: &Arc<Account>) -> Self {
        if let Some(progress) = progress {
            progress.record_given(bytes.len());
        }
        Self { _held: account.hold_piece(bytes.len()), bytes, progress: progress.cloned() }
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
        if let Some(progress) = &self.progress {
            progress.record_sent(count);
        }
    }
}

impl Drop for TrackedBytes {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.record_sent(self.bytes.len());
        }
    }
}

/// A response's body, which keeps its connection busy and counts against its memory.
pub(super) type TrackedBody = Adapted<Tracker>;

pub(super) struct Tracker {
    account: Arc<Account>,
    _open: Option<(InFlight, Option<Arc<Held>>)>,
    /// Of an HTTP/2 stream, where there is a limit.
    progress: Option<Arc<SendProgress>>,
    /// Present once the body has ended; hyper is told when all before it is sent.
    end: Option<End>,
}

/// How a body ended.
enum End {
    Trailers(Frame<TrackedBytes>),
    NoTrailers,
}

/// To be called in the task of the stream, if the response is one's.
pub(super) fn track_body(
    body: Body,
    in_flight: InFlight,
    held: Option<Arc<Held>>,
    account: Arc<Account>,
) -> TrackedBody {
    let (mut open, mut progress) = (None, None);
    if !body.is_end_stream() {
        open = Some((in_flight, held));
        progress = SEND_PROGRESS.try_with(Arc::clone).ok();
    }
    if let Some(progress) = &progress {
        // It is set once, as a stream has one response.
        let _ = progress.account.set(Arc::clone(&account));
    }
    Adapted::new(body, Tracker { account, _open: open, progress, end: None })
}

impl Adapter for Tracker {
    type Body = Body;
    type Data = TrackedBytes;

    fn poll_frame(&mut self, body: &mut Body, cx: &mut Context<'_>) -> PolledFrame<TrackedBytes> {
        if self.end.is_none() {
            ready!(self.account.poll_room(cx));
            let track = |bytes| TrackedBytes::new(bytes, self.progress.as_ref(), &self.account);
            self.end = match ready!(body::poll_next(body, cx)).transpose()?.map(|frame| frame.map_data(track))
            {
                Some(frame) if frame.is_trailers() => Some(End::Trailers(frame)),
                Some(frame) => return Poll::Ready(Some(Ok(frame))),
                None => Some(End::NoTrailers),
            };
        }
        self.poll_end(cx)
    }

    fn is_end_stream(&self, body: &Body) -> bool {
        self.progress.is_none() && body.is_end_stream()
    }
}

impl Tracker {
    /// Holds the end back until all before it is sent, since a stream that has ended cannot be reset any more.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> PolledFrame<TrackedBytes> {
        if let Some(progress) = &self.progress {
            ready!(progress.poll_all_sent(cx));
        }
        match self.end.replace(End::NoTrailers) {
            Some(End::Trailers(trailers)) => Poll::Ready(Some(Ok(trailers))),
            Some(End::NoTrailers) | None => Poll::Ready(None),
        }
    }
}
