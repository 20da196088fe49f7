//! The upstream's response body: streamed to the client, counted, and ended early when its key is no longer valid. A gRPC
//! client gets a status in the trailers then; any other connection or stream is aborted.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::header::CONTENT_LENGTH;

use super::revalidation::{Revalidation, close_reason};
use crate::access_log::Record;
use crate::body::{self, Body, BodyError};
use crate::upstream::{self, Exchange};

pub(super) struct ResponseBody {
    body: Body,
    record: Record,
    revalidation: Revalidation,
    /// Whether the client understands a gRPC status in the trailers.
    status: bool,
    _exchange: Exchange,
}

impl ResponseBody {
    pub(super) fn wrap(
        body: Body,
        mut record: Record,
        revalidation: Revalidation,
        status: bool,
        exchange: Exchange,
    ) -> Body {
        if body.is_end_stream() {
            record.mark_complete();
            return body;
        }
        Self { body, record, revalidation, status, _exchange: exchange }.boxed_unsync()
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(cx);
        match &mut polled {
            Poll::Ready(None) => self.record.mark_complete(),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    upstream::clean(trailers);
                    // hyper filters it for HTTP/1.1 only.
                    trailers.remove(CONTENT_LENGTH);
                }
                self.record.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
                if self.body.is_end_stream() {
                    self.record.mark_complete();
                }
            }
            Poll::Ready(Some(Err(error))) => {
                self.record.mark_cut("upstream_broke_off", Some(error.to_string()))
            }
            Poll::Pending => {}
        }
        let over = matches!(polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream();
        if !over && let Poll::Ready(rejection) = self.revalidation.poll_closed(cx) {
            self.record.mark_cut(close_reason(&rejection), None);
            if !self.status {
                return Poll::Ready(Some(Err(close_reason(&rejection).into())));
            }
            // The upload has its own check and ends by itself.
            self.body = body::empty();
            return Poll::Ready(Some(Ok(Frame::trailers(rejection.trailers()))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
