//! How long a connection has been silent, whether a request's head was due, and how long it has taken nothing: what the time
//! limits go by. Costs a request a few atomic writes and no timer.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::Open;
use super::lingering::Lingering;
use super::registry::FromAddress;
use super::strict_http1::{Broken, Framing};
use crate::body::{Body, BodyError};
use crate::budget::{self, Account, Held};

/// Where a connection stands, without a lock.
pub(super) struct Activity {
    pub(super) start: Instant,
    /// Requests under way, to the end of their answers.
    busy: AtomicUsize,
    /// Whether anything has arrived.
    began: AtomicBool,
    /// Whether a head has begun to arrive, or the first one is due.
    head: AtomicBool,
    /// Whether the caller was still sending a body when nobody wanted more of it.
    refused: AtomicBool,
    /// HTTP/2 sends frames between requests, and its heads are not told apart from them.
    http2: AtomicBool,
    /// Since when, in milliseconds from the start.
    since: AtomicU64,
    /// Since when bytes wait that the caller does not take, in milliseconds from the start; 0 when none do.
    stuck: AtomicU64,
    /// Requests that their caller took back before the answer began, less those that were answered.
    resets: AtomicUsize,
    /// Told when there are too many of them.
    rapid_reset: Notify,
    /// Told when a new connection needs the place.
    evicted: Notify,
    /// Whether it is a tunnel now, whose silence says nothing.
    is_tunnel: AtomicBool,
    /// What the connection holds.
    pub(super) account: Arc<Account>,
    /// Its place among those of its address, where that is limited.
    pub(super) from_address: OnceLock<FromAddress>,
}

pub(super) enum Silence {
    Not,
    Head(Duration),
    Idle(Duration),
}

impl Activity {
    pub(super) fn start(account: Arc<Account>) -> Self {
        Self {
            start: Instant::now(),
            busy: AtomicUsize::new(0),
            began: AtomicBool::new(false),
            head: AtomicBool::new(true),
            refused: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            since: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
            resets: AtomicUsize::new(0),
            rapid_reset: Notify::new(),
            evicted: Notify::new(),
            is_tunnel: AtomicBool::new(false),
            account,
            from_address: OnceLock::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn silence(&self) -> Silence {
        if self.busy.load(Ordering::Relaxed) > 0 || self.is_tunnel.load(Ordering::Relaxed) {
            return Silence::Not;
        }
        let time = Duration::from_millis(self.now().saturating_sub(self.since.load(Ordering::Relaxed)));
        if self.head.load(Ordering::Relaxed) { Silence::Head(time) } else { Silence::Idle(time) }
    }

    /// Completes when the caller has taken back too many of its requests: whoever opens streams and resets them makes work for
    /// nothing, at whatever pace (CVE-2023-44487).
    pub(super) async fn rapid_reset(&self) {
        self.rapid_reset.notified().await;
    }

    /// Ends the connection.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Completes when it must end for a new one.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// From now on the connection is a tunnel.
    pub(super) fn become_tunnel(&self) {
        self.is_tunnel.store(true, Ordering::Relaxed);
    }

    /// Whether anything has arrived yet.
    pub(super) fn has_begun(&self) -> bool {
        self.began.load(Ordering::Relaxed)
    }

    /// How long bytes have waited of which the caller takes none.
    pub(super) fn unread(&self) -> Duration {
        match self.stuck.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_millis(self.now().saturating_sub(since)),
        }
    }

    fn wrote<T>(&self, polled: &Poll<T>) {
        let stuck = self.stuck.load(Ordering::Relaxed);
        match polled {
            Poll::Pending if stuck == 0 => self.stuck.store(self.now().max(1), Ordering::Relaxed),
            Poll::Ready(_) if stuck != 0 => self.stuck.store(0, Ordering::Relaxed),
            Poll::Pending | Poll::Ready(_) => {}
        }
    }

    fn received(&self, bytes: &[u8]) {
        if !self.began.swap(true, Ordering::Relaxed) && bytes.starts_with(b"PRI ") {
            self.http2.store(true, Ordering::Relaxed);
            self.since.store(self.now(), Ordering::Relaxed);
            self.head.store(false, Ordering::Relaxed);
        } else if self.busy.load(Ordering::Relaxed) == 0
            && !self.http2.load(Ordering::Relaxed)
            && !self.head.swap(true, Ordering::Relaxed)
        {
            self.since.store(self.now(), Ordering::Relaxed);
        }
    }
}

/// One request under way.
pub(super) struct InFlight(Arc<Activity>);

impl InFlight {
    pub(super) fn begin(activity: &Arc<Activity>, version: Version) -> Self {
        activity.http2.store(version >= Version::HTTP_2, Ordering::Relaxed);
        activity.busy.fetch_add(1, Ordering::Relaxed);
        activity.head.store(false, Ordering::Relaxed);
        activity.refused.store(false, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.since.store(self.0.now().max(1), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request without an answer yet. Dropped before `answered`, its caller took it back.
pub(super) struct ResetGuard(Option<Arc<Activity>>);

/// Requests that may be taken back on one connection, beside one for each that was answered.
const MAX_RESETS_BY_CLIENT: usize = 256;

impl ResetGuard {
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        Self(Some(Arc::clone(activity)))
    }

    pub(super) fn answered(mut self) {
        if let Some(activity) = self.0.take() {
            let less = |count: usize| count.checked_sub(1);
            // None to make up for.
            let _ = activity.resets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
}

impl Drop for ResetGuard {
    fn drop(&mut self) {
        if let Some(activity) = &self.0
            && activity.resets.fetch_add(1, Ordering::Relaxed) + 1 == MAX_RESETS_BY_CLIENT
        {
            activity.rapid_reset.notify_one();
        }
    }
}

/// A request's body under way, which keeps its connection busy.
pub(super) struct InFlightBody {
    body: Body,
    busy: InFlight,
    /// What the request is counted for, until both directions have ended.
    held: Option<Arc<Held>>,
    account: Arc<Account>,
    ended: bool,
}

impl InFlightBody {
    pub(super) fn wrap(body: Body, busy: InFlight, held: Option<Arc<Held>>, account: Arc<Account>) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Self { body, busy, held, account, ended: false }.boxed_unsync()
    }
}

impl Drop for InFlightBody {
    fn drop(&mut self) {
        // HTTP/2 says so on the stream, and goes on.
        let activity = &self.busy.0;
        if !self.ended && !self.body.is_end_stream() && !activity.http2.load(Ordering::Relaxed) {
            activity.refused.store(true, Ordering::Relaxed);
        }
    }
}

impl http_body::Body for InFlightBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.account.poll_room(cx));
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.ended |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        if self.ended {
            self.held = None;
        }
        let account = &self.account;
        polled.map_ok(|frame| frame.map_data(|bytes| budget::counted(bytes, account)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connection's bytes, seen as they arrive.
pub(super) struct ConnectionIo<T> {
    io: T,
    activity: Arc<Activity>,
    /// The socket may outlive its HTTP, as a tunnel.
    _open: Open,
    /// Once nothing more is sent.
    lingering: Option<Lingering>,
    framing: Framing,
    /// What was read in one go, in bytes.
    read_at_once: usize,
    /// The framing broke, and nothing more is read.
    broken: Option<Broken>,
    /// What of `NO_HEAD` is to be read.
    refusal: &'static [u8],
}

/// What is read of an HTTP/2 connection before others have their turn, in bytes.
const READ_AT_ONCE: usize = 32 * 1024;
/// A head that hyper refuses, whatever came before: it answers 400 then, and closes.
const NO_HEAD: &[u8] = b"\0\r\n\r\n";

impl<T> ConnectionIo<T> {
    pub(super) fn new(io: T, activity: Arc<Activity>, open: Open) -> Self {
        Self {
            io,
            activity,
            _open: open,
            lingering: None,
            framing: Framing::new(),
            read_at_once: 0,
            broken: None,
            refusal: NO_HEAD,
        }
    }

    /// Instead of what is ambiguous; then nothing.
    fn poison(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.refusal.split_at(self.refusal.len().min(buf.remaining()));
        self.refusal = later;
        buf.put_slice(now);
        if now.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ConnectionIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.broken {
            Some(Broken::Head(_)) => return this.poison(buf),
            Some(Broken::Body(_)) => return Poll::Ready(Err(ambiguous())),
            None => {}
        }
        let before = buf.filled().len();
        // SECURITY: all heads that are there are in memory before the first of them is answered, and a few bytes make a long one.
        if this.read_at_once >= READ_AT_ONCE && this.activity.http2.load(Ordering::Relaxed) {
            this.read_at_once = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        match polled {
            Poll::Pending => this.read_at_once = 0,
            Poll::Ready(_) => this.read_at_once += buf.filled().len() - before,
        }
        let new = &buf.filled()[before..];
        if new.is_empty() {
            return polled;
        }
        this.activity.received(new);
        if let Err(broken) = this.framing.follow(new) {
            let (Broken::Head(at) | Broken::Body(at)) = broken;
            this.broken = Some(broken);
            buf.set_filled(before + at);
            if at == 0 {
                return Pin::new(this).poll_read(cx, buf);
            }
        }
        polled
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ConnectionIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let lingering = this.lingering.get_or_insert_with(Lingering::begin);
        lingering.poll(&mut this.io, this.activity.refused.load(Ordering::Relaxed), cx).map(Ok)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

fn ambiguous() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the framing can be read in two ways")
}

/// The socket's bytes, seen as they leave: below TLS, which takes some that the caller does not.
pub(super) struct StallWatch<T> {
    pub(super) io: T,
    pub(super) activity: Arc<Activity>,
}

impl<T: AsyncRead + Unpin> AsyncRead for StallWatch<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for StallWatch<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.activity.wrote(&polled);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket has nothing to flush.
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.activity.wrote(&polled);
        polled
    }
}
