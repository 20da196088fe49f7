//! The upstream's response body: streamed to the client, counted, and ended early when its key is no longer valid. A gRPC
//! client gets a status in the trailers then; any other connection or stream is aborted.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Either, Empty};
use hyper::header::CONTENT_LENGTH;

use super::revalidation::{Revalidation, close_reason};
use crate::access_log::Record;
use crate::body::{self, Adapted, Adapter, Body, PolledFrame};
use crate::pool::PooledBody;
use crate::upstream::{self, Exchange};

pub(super) struct ResponseBody {
    record: Record,
    revalidation: Revalidation,
    /// Whether the client understands a gRPC status in the trailers.
    takes_grpc_status: bool,
    _exchange: Exchange,
}

impl ResponseBody {
    pub(super) fn wrap(
        body: PooledBody,
        mut record: Record,
        revalidation: Revalidation,
        takes_grpc_status: bool,
        exchange: Exchange,
    ) -> Body {
        if body.is_end_stream() {
            record.mark_complete();
            return body::empty();
        }
        let adapter = Self { record, revalidation, takes_grpc_status, _exchange: exchange };
        Adapted::new(Either::Left(body), adapter).boxed_unsync()
    }
}

impl Adapter for ResponseBody {
    /// On the right once a gRPC status has ended the body early, and the upstream's is dropped.
    type Body = Either<PooledBody, Empty<Bytes>>;
    type Data = Bytes;

    fn poll_frame(&mut self, body: &mut Self::Body, cx: &mut Context<'_>) -> PolledFrame {
        let mut polled = body::poll_next(body, cx);
        match &mut polled {
            Poll::Ready(None) => self.record.mark_complete(),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    upstream::clean_response_headers(trailers);
                    // hyper filters it for HTTP/1.1 only.
                    trailers.remove(CONTENT_LENGTH);
                    self.record.set_grpc_status(trailers);
                }
                self.record.sent += frame.data_ref().map_or(0, Bytes::len) as u64;
                if body.is_end_stream() {
                    self.record.mark_complete();
                }
            }
            Poll::Ready(Some(Err(error))) => {
                self.record.mark_cut("upstream_broke_off", Some(error.to_string()))
            }
            Poll::Pending => {}
        }
        let over = matches!(polled, Poll::Ready(None | Some(Err(_)))) || body.is_end_stream();
        if !over && let Poll::Ready(rejection) = self.revalidation.poll_closed(cx) {
            self.record.mark_cut(close_reason(&rejection), None);
            if !self.takes_grpc_status {
                return Poll::Ready(Some(Err(close_reason(&rejection).into())));
            }
            // The upload has its own check and ends by itself.
            *body = Either::Right(Empty::new());
            let trailers = rejection.to_trailers();
            self.record.set_grpc_status(&trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        polled
    }
}
