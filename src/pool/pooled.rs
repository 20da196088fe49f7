//! The body of an origin's answer, and the connection that it comes on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use tokio::time::Instant;

use super::{Idle, Origin, lock};
use crate::body::{Body, BodyError};

/// What a response's body holds until its end.
pub(super) enum Lease {
    Http1 { sender: http1::SendRequest<Body>, origin: Arc<Origin> },
    Http2(#[expect(dead_code, reason = "it counts the stream as long as it lives")] Arc<()>),
}

/// A response's body. Read to its end, the connection can serve again; dropped before, it is closed.
pub(super) struct Leased {
    incoming: Incoming,
    lease: Option<Lease>,
}

impl Leased {
    pub(super) fn new(incoming: Incoming, lease: Option<Lease>) -> Self {
        let mut leased = Self { incoming, lease };
        leased.return_if_ended();
        leased
    }

    fn return_if_ended(&mut self) {
        if self.incoming.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(Lease::Http1 { sender, origin }) = self.lease.take()
            && !sender.is_closed()
        {
            lock(&origin.idle).push(Idle { sender, since: Instant::now() });
        }
    }
}

impl http_body::Body for Leased {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.end(),
            Poll::Ready(Some(Ok(_))) => self.return_if_ended(),
            Poll::Ready(Some(Err(_))) => self.lease = None,
            Poll::Pending => {}
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
