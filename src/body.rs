//! The bodies of messages: streams of frames that are never collected on their way between client and upstream.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use serde::Serialize;

/// Why a body ended before its end.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// A request's or a response's body.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// What a body gives when it is polled.
pub(crate) type PolledFrame<D = Bytes> = Poll<Option<Result<Frame<D>, BodyError>>>;

/// A body of no bytes.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of these JSON values, one a line, of which only some hundred are in memory at once.
pub fn json_lines<T: Serialize>(values: impl Iterator<Item = T> + Send + 'static) -> Body {
    const AT_ONCE: usize = 200;
    let mut values = values;
    let frames = std::iter::from_fn(move || {
        let mut text = Vec::new();
        for value in values.by_ref().take(AT_ONCE) {
            if let Err(error) = serde_json::to_writer(&mut text, &value) {
                return Some(Err(error.into()));
            }
            text.push(b'\n');
        }
        (!text.is_empty()).then(|| Ok(Frame::data(text.into())))
    });
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

/// What is done to each frame of a body on its way.
pub(crate) trait Adapter {
    /// The body within.
    type Body: http_body::Body;
    /// The adapted frames' data.
    type Data: Buf;

    /// Polls the body and gives its frame, changed or replaced.
    fn poll_frame(&mut self, body: &mut Self::Body, cx: &mut Context<'_>) -> PolledFrame<Self::Data>;

    /// Whether nothing more is to come.
    fn is_end_stream(&self, body: &Self::Body) -> bool {
        http_body::Body::is_end_stream(body)
    }
}

/// A body behind an adapter. Its size is that of the body within.
pub(crate) struct Adapted<A: Adapter> {
    body: A::Body,
    adapter: A,
}

impl<A: Adapter> Adapted<A> {
    pub(crate) fn new(body: A::Body, adapter: A) -> Self {
        Self { body, adapter }
    }
}

impl<A: Adapter<Body: Unpin> + Unpin> http_body::Body for Adapted<A> {
    type Data = A::Data;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame<A::Data> {
        let Self { body, adapter } = &mut *self;
        adapter.poll_frame(body, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.adapter.is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Polls the next frame of a body within an adapter.
pub(crate) fn poll_next<B>(body: &mut B, cx: &mut Context<'_>) -> PolledFrame<B::Data>
where
    B: http_body::Body<Error: Into<BodyError>> + Unpin,
{
    Pin::new(body).poll_frame(cx).map_err(Into::into)
}
