//! What it takes to send a request once more: its head, and so much of its body as went out, where that is little.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{Method, Request};

use super::lock;
use crate::body::{self, Body, BodyError};

/// A body of which more than this went out is not sent again, in bytes. Within what a request is counted for (`memory_plan::REQUEST`).
const KEPT: usize = 16 * 1024;

/// A request to send again.
pub(super) struct Replay {
    head: Request<()>,
    body: Option<Arc<Mutex<Recorded>>>,
}

impl Replay {
    /// Of any request: for when the origin says that it did not process it. The body is recorded from now on.
    pub(super) fn record(request: Request<Body>) -> (Request<Body>, Self) {
        let head = head(&request);
        if request.body().is_end_stream() {
            return (request, Self { head, body: None });
        }
        let (parts, body) = request.into_parts();
        let recorded = Recorded { hint: body.size_hint(), body: Some(body), kept: Some(Vec::new()), size: 0 };
        let shared = Arc::new(Mutex::new(recorded));
        let body = Recording(Arc::clone(&shared)).boxed_unsync();
        (Request::from_parts(parts, body), Self { head, body: Some(shared) })
    }

    /// Of a request without a body, which could be half sent: for when nobody knows what the origin did with it.
    pub(super) fn without_body(request: &Request<Body>) -> Option<Self> {
        request.body().is_end_stream().then(|| Self { head: head(request), body: None })
    }

    /// Whether the method may be repeated, come what may (RFC 9110 section 9.2.2), and there is no body.
    pub(super) fn is_safe(&self) -> bool {
        let idempotent = matches!(
            *self.head.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
        );
        idempotent && self.body.is_none()
    }

    /// The request again, unless too much of its body is gone.
    pub(super) fn request(self) -> Option<Request<Body>> {
        let body = match self.body {
            None => body::empty(),
            Some(shared) => {
                let mut recorded = lock(&shared);
                let (kept, rest) = (recorded.kept.take()?, recorded.body.take());
                let hint = recorded.hint;
                Repeated { kept: kept.into(), rest, hint }.boxed_unsync()
            }
        };
        Some(self.head.map(|()| body))
    }
}

fn head(request: &Request<Body>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

struct Recorded {
    /// None once it has ended, or was taken to be sent again.
    body: Option<Body>,
    /// None once there was too much.
    kept: Option<Vec<u8>>,
    size: usize,
    hint: SizeHint,
}

/// The body as it goes out for the first time.
struct Recording(Arc<Mutex<Recorded>>);

impl http_body::Body for Recording {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut recorded = lock(&self.0);
        let Some(body) = &mut recorded.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => recorded.body = None,
            Poll::Ready(Some(frame)) => match frame.as_ref().ok().and_then(Frame::data_ref) {
                Some(data) if recorded.size + data.len() <= KEPT => {
                    recorded.size += data.len();
                    // A copy: the piece itself counts against its connection until it is dropped, and with memory tight the
                    // rest of the body waits for that.
                    recorded.kept.iter_mut().for_each(|kept| kept.extend_from_slice(data));
                }
                // Too much, trailers, or broken.
                _ => recorded.kept = None,
            },
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0).body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

/// The body as it goes out again.
struct Repeated {
    /// Until it is sent.
    kept: Bytes,
    rest: Option<Body>,
    hint: SizeHint,
}

impl http_body::Body for Repeated {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = std::mem::take(&mut self.kept);
        if !data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kept.is_empty() && self.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    /// As of the whole; asked before the first frame.
    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
