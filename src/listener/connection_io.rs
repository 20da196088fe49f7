//! The bytes of a connection as they pass: [`ConnectionIo`] above TLS, where requests are read, and [`StallWatch`] below it,
//! where it shows whether the client reads.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;
use super::connection_place::ConnectionPlace;
use super::lingering_close::LingeringClose;
use super::strict_http1::{Framing, FramingError};

/// Bytes read of an HTTP/2 connection before other connections have their turn.
const READ_AT_ONCE: usize = 32 * 1024;

/// hyper offers no way to have it reject a request from outside. Therefore a head that must be rejected is continued with bytes
/// other than its own, to which hyper answers by itself, after all responses that are still due, and closes.
///
/// These end a head so that it is invalid whatever came before: 400.
const INVALID_HEAD: &[u8] = b"\0\r\n\r\n";
/// SECURITY: these continue any part of a head and complete none, so that it becomes longer than hyper's buffer: 431.
const ENDLESS_HEAD: &[u8] = &[b'x'; 16 * 1024];

pub(super) struct ConnectionIo<T> {
    io: T,
    activity: Arc<Activity>,
    /// Held by the socket itself, which outlives HTTP where the connection becomes a tunnel.
    _place: ConnectionPlace,
    /// Present once nothing more is sent.
    lingering: Option<LingeringClose>,
    framing: Framing,
    /// Bytes read since the connection last yielded.
    read_at_once: usize,
    /// Once the framing is ambiguous, nothing more is read.
    broken: Option<FramingError>,
    /// The part of [`INVALID_HEAD`] that hyper has not read yet.
    invalid_head: &'static [u8],
}

impl<T> ConnectionIo<T> {
    pub(super) fn new(io: T, activity: Arc<Activity>, place: ConnectionPlace, max_head: usize) -> Self {
        Self {
            io,
            activity,
            _place: place,
            lingering: None,
            framing: Framing::new(max_head),
            read_at_once: 0,
            broken: None,
            invalid_head: INVALID_HEAD,
        }
    }

    fn read_endless_head(buf: &mut ReadBuf<'_>) {
        buf.put_slice(&ENDLESS_HEAD[..ENDLESS_HEAD.len().min(buf.remaining())]);
    }

    fn poll_invalid_head(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.invalid_head.split_at(self.invalid_head.len().min(buf.remaining()));
        self.invalid_head = later;
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
            Some(FramingError::Head(_)) => return this.poll_invalid_head(buf),
            Some(FramingError::HeadTooLarge(_)) => {
                Self::read_endless_head(buf);
                return Poll::Ready(Ok(()));
            }
            Some(FramingError::Body(_)) => {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "ambiguous framing")));
            }
            None => {}
        }
        // SECURITY: hyper decodes all heads that it has read before it answers the first, and a few bytes of HPACK make a long one.
        if this.read_at_once >= READ_AT_ONCE && this.activity.is_http2() {
            this.read_at_once = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        match polled {
            Poll::Pending => this.read_at_once = 0,
            Poll::Ready(_) => this.read_at_once += buf.filled().len() - before,
        }
        let new = &buf.filled()[before..];
        if new.is_empty() {
            return polled;
        }
        this.activity.record_read(new);
        if let Err(error) = this.framing.follow(new) {
            let (FramingError::Head(at) | FramingError::Body(at) | FramingError::HeadTooLarge(at)) = error;
            this.broken = Some(error);
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
        let lingering = this.lingering.get_or_insert_with(LingeringClose::begin);
        lingering.poll(&mut this.io, this.activity.may_be_sending(), cx).map(Ok)
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

/// Records when the socket takes nothing more. Below TLS, which buffers what the client does not read.
pub(super) struct StallWatch<T> {
    io: T,
    activity: Arc<Activity>,
}

impl<T> StallWatch<T> {
    pub(super) fn new(io: T, activity: &Arc<Activity>) -> Self {
        Self { io, activity: Arc::clone(activity) }
    }
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
        self.activity.record_write(&polled);
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
        self.activity.record_write(&polled);
        polled
    }
}
