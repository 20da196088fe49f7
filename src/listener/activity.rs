//! What a connection is doing, and since when: the time limits go by it. A request costs it a few atomic writes and no timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use hyper::Version;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::budget::Account;

/// The state of one connection, read and written without a lock.
pub(super) struct Activity {
    pub(super) accepted_at: Instant,
    /// Requests under way, until their responses have ended.
    in_flight: AtomicUsize,
    /// Whether any byte has arrived.
    has_begun: AtomicBool,
    /// Whether a request's head is due: it has begun to arrive, or it is the first one.
    head_due: AtomicBool,
    /// Whether a body was dropped of which the client still had more to send.
    upload_aborted: AtomicBool,
    /// HTTP/2 sends frames between requests, from which its heads are not told apart.
    is_http2: AtomicBool,
    /// When the present state began, in milliseconds since the connection was accepted.
    since_ms: AtomicU64,
    /// Since when the socket has taken nothing of what was to be written, in the same milliseconds; 0 when nothing waits.
    stalled_ms: AtomicU64,
    evicted: Notify,
    /// Whether the connection has reached its maximum age.
    is_expired: AtomicBool,
    /// Whether it is a tunnel (WebSocket), whose silence means nothing.
    is_tunnel: AtomicBool,
    /// What the connection holds in memory.
    pub(super) account: Arc<Account>,
}

/// How long nothing has been under way on a connection.
pub(super) enum Silence {
    /// A request or a tunnel is under way.
    Busy,
    /// A request's head has been due for so long.
    HeadDue(Duration),
    /// Idle between requests for so long.
    Idle(Duration),
}

impl Activity {
    pub(super) fn start(account: Arc<Account>) -> Self {
        Self {
            accepted_at: Instant::now(),
            in_flight: AtomicUsize::new(0),
            has_begun: AtomicBool::new(false),
            head_due: AtomicBool::new(true),
            upload_aborted: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            since_ms: AtomicU64::new(0),
            stalled_ms: AtomicU64::new(0),
            evicted: Notify::new(),
            is_expired: AtomicBool::new(false),
            is_tunnel: AtomicBool::new(false),
            account,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.accepted_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn elapsed_since(&self, since_ms: &AtomicU64) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(since_ms.load(Ordering::Relaxed)))
    }

    pub(super) fn silence(&self) -> Silence {
        if self.in_flight.load(Ordering::Relaxed) > 0 || self.is_tunnel.load(Ordering::Relaxed) {
            return Silence::Busy;
        }
        let time = self.elapsed_since(&self.since_ms);
        if self.head_due.load(Ordering::Relaxed) { Silence::HeadDue(time) } else { Silence::Idle(time) }
    }

    /// Whether any byte has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// How long the client has read nothing of what waits for it.
    pub(super) fn stalled_for(&self) -> Duration {
        match self.stalled_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            _ => self.elapsed_since(&self.stalled_ms),
        }
    }

    /// Asks the connection to end, since a new one needs its place.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Completes when the connection must end for a new one.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Records that the connection has reached its maximum age.
    pub(super) fn expire(&self) {
        self.is_expired.store(true, Ordering::Relaxed);
    }

    /// Whether the connection has reached its maximum age.
    pub(super) fn is_expired(&self) -> bool {
        self.is_expired.load(Ordering::Relaxed)
    }

    /// From now on the connection is a tunnel.
    pub(super) fn become_tunnel(&self) {
        self.is_tunnel.store(true, Ordering::Relaxed);
    }

    /// Records that the client still had more of a body to send. HTTP/2 says on the stream that nobody wants it, and goes on.
    pub(super) fn record_aborted_upload(&self) {
        if !self.is_http2() {
            self.upload_aborted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the client may still be sending: a body, or a head that was rejected before its end.
    pub(super) fn may_be_sending(&self) -> bool {
        self.upload_aborted.load(Ordering::Relaxed)
            || (self.has_begun() && matches!(self.silence(), Silence::HeadDue(_)))
    }

    pub(super) fn record_write<T>(&self, polled: &Poll<T>) {
        let is_stalled = self.stalled_ms.load(Ordering::Relaxed) != 0;
        match polled {
            Poll::Pending if !is_stalled => self.stalled_ms.store(self.now_ms().max(1), Ordering::Relaxed),
            Poll::Ready(_) if is_stalled => self.stalled_ms.store(0, Ordering::Relaxed),
            Poll::Pending | Poll::Ready(_) => {}
        }
    }

    pub(super) fn record_read(&self, bytes: &[u8]) {
        if !self.has_begun.swap(true, Ordering::Relaxed) && bytes.starts_with(b"PRI ") {
            self.is_http2.store(true, Ordering::Relaxed);
            self.since_ms.store(self.now_ms(), Ordering::Relaxed);
            self.head_due.store(false, Ordering::Relaxed);
        } else if self.in_flight.load(Ordering::Relaxed) == 0
            && !self.is_http2()
            && !self.head_due.swap(true, Ordering::Relaxed)
        {
            self.since_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }
}

/// One direction of a request under way, until this is dropped.
pub(super) struct InFlight(Arc<Activity>);

impl InFlight {
    pub(super) fn begin(activity: &Arc<Activity>, version: Version) -> Self {
        activity.is_http2.store(version >= Version::HTTP_2, Ordering::Relaxed);
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        activity.head_due.store(false, Ordering::Relaxed);
        activity.upload_aborted.store(false, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }

    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.since_ms.store(self.0.now_ms().max(1), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
