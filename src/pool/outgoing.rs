//! The body of a request that is sent, and a copy of the request for sending it again: its head, and the part of its body that
//! was sent, if that is small.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::{Method, Request};

use super::lock;
use crate::body::{self, Body, BodyError, PolledFrame};

/// A request is not sent again after more than this of its body was sent, in bytes. Less than the memory that each request is
/// accounted for (`memory_plan::REQUEST`).
const MAX_RECORDED: usize = 16 * 1024;

/// A request's body as hyper sends it.
pub(super) enum OutgoingBody {
    /// Sent once.
    Once(Body),
    /// Recorded while it is sent, so that it can be sent again.
    Recorded(Arc<Mutex<Recording>>),
    /// Sent again: first the recorded part, then the rest.
    Replayed { recorded: Bytes, rest: Option<Box<OutgoingBody>>, size_hint: SizeHint },
}

/// A body that is being sent over HTTP/2.
pub(super) struct Recording {
    /// `None` once it has ended, or was taken to be sent again.
    body: Option<OutgoingBody>,
    /// The part that was sent; `None` once that was too much.
    recorded: Option<Vec<u8>>,
    size_hint: SizeHint,
}

/// A request to send again.
pub(super) struct Replay {
    head: Request<()>,
    body: Option<Arc<Mutex<Recording>>>,
}

impl Replay {
    /// For any request, in case the origin states that it did not process it. Its body is recorded while it is sent.
    pub(super) fn record(request: Request<OutgoingBody>) -> (Request<OutgoingBody>, Self) {
        let head = copy_head(&request);
        if request.body().is_end_stream() {
            return (request, Self { head, body: None });
        }
        let (parts, body) = request.into_parts();
        let size_hint = body.size_hint();
        let recording =
            Arc::new(Mutex::new(Recording { body: Some(body), recorded: Some(Vec::new()), size_hint }));
        let body = OutgoingBody::Recorded(Arc::clone(&recording));
        (Request::from_parts(parts, body), Self { head, body: Some(recording) })
    }

    /// For a request without a body, which cannot have been sent in part.
    pub(super) fn without_body(request: &Request<OutgoingBody>) -> Option<Self> {
        request.body().is_end_stream().then(|| Self { head: copy_head(request), body: None })
    }

    /// Whether the request may be repeated even if the origin may have processed it: its method is idempotent (RFC 9110
    /// section 9.2.2), and it has no body.
    pub(super) fn is_safe(&self) -> bool {
        let is_idempotent = matches!(
            *self.head.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
        );
        is_idempotent && self.body.is_none()
    }

    /// The request to send again; `None` if too much of its body was sent.
    pub(super) fn into_request(self) -> Option<Request<OutgoingBody>> {
        let body = match self.body {
            None => OutgoingBody::Once(body::empty()),
            Some(recording) => {
                let mut recording = lock(&recording);
                OutgoingBody::Replayed {
                    recorded: recording.recorded.take()?.into(),
                    rest: recording.body.take().map(Box::new),
                    size_hint: recording.size_hint,
                }
            }
        };
        Some(self.head.map(|()| body))
    }
}

fn copy_head<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

impl Recording {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PolledFrame {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => self.body = None,
            Poll::Ready(Some(frame)) => {
                let data = frame.as_ref().ok().and_then(Frame::data_ref);
                match (data, &mut self.recorded) {
                    // Copied, because the original bytes count against the memory of their connection until they are dropped,
                    // and the rest of the body may wait for that memory.
                    (Some(data), Some(recorded)) if recorded.len() + data.len() <= MAX_RECORDED => {
                        recorded.extend_from_slice(data);
                    }
                    // Too long, trailers, or an error.
                    _ => self.recorded = None,
                }
            }
        }
        polled
    }
}

impl http_body::Body for OutgoingBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame {
        match &mut *self {
            Self::Once(body) => Pin::new(body).poll_frame(cx),
            Self::Recorded(recording) => lock(recording).poll_frame(cx),
            Self::Replayed { recorded, .. } if !recorded.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(recorded)))))
            }
            Self::Replayed { rest: Some(rest), .. } => Pin::new(rest).poll_frame(cx),
            Self::Replayed { rest: None, .. } => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Once(body) => body.is_end_stream(),
            Self::Recorded(recording) => lock(recording).body.as_ref().is_none_or(Self::is_end_stream),
            Self::Replayed { recorded, rest, .. } => {
                recorded.is_empty() && rest.as_deref().is_none_or(Self::is_end_stream)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Once(body) => body.size_hint(),
            Self::Recorded(recording) => {
                lock(recording).body.as_ref().map_or_else(|| SizeHint::with_exact(0), Self::size_hint)
            }
            // Of the whole body: it is asked for before the first frame.
            Self::Replayed { size_hint, .. } => *size_hint,
        }
    }
}
