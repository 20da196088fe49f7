//! Streamed responses of the echo upstream, each in constant memory.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};

use super::OpenResponse;
use crate::body::Body;

const LINE_INTERVAL: Duration = Duration::from_millis(100);

static CHUNK: [u8; 16 * 1024] = [b'.'; 16 * 1024];

pub(super) fn stream_lines(open: OpenResponse, lines: u64) -> Response<Body> {
    let frames = stream::unfold((open, 0), move |(open, line)| async move {
        if line == lines {
            return None;
        }
        pause_between(line, LINE_INTERVAL).await;
        Some((Ok(Frame::data(Bytes::from(format!("line {line}\n")))), (open, line + 1)))
    });
    streamed_response("text/plain", StreamBody::new(frames).boxed_unsync())
}

pub(super) fn stream_events(open: OpenResponse, every: Duration) -> Response<Body> {
    let frames = stream::unfold((open, 0), move |(open, event)| async move {
        pause_between(event, every).await;
        Some((
            Ok(Frame::data(Bytes::from(format!("id: {event}\ndata: event {event}\n\n")))),
            (open, event + 1),
        ))
    });
    let mut response = streamed_response("text/event-stream", StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Sends `bytes`; if `announced` is larger, the transfer breaks after them.
pub(super) fn stream_bytes(open: OpenResponse, bytes: u64, announced: u64) -> Response<Body> {
    let breaks = announced > bytes;
    let frames = stream::unfold((open, bytes), move |(open, left)| async move {
        if left == 0 && breaks {
            // Lets hyper flush the data before the error.
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Some((Err("broken off on request".into()), (open, left)));
        }
        if left == 0 {
            return None;
        }
        let size = usize::try_from(left).unwrap_or(CHUNK.len()).min(CHUNK.len());
        Some((Ok(Frame::data(Bytes::from_static(&CHUNK[..size]))), (open, left - size as u64)))
    });
    let mut response = streamed_response("application/octet-stream", StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(announced));
    response
}

/// Waits before each item but the first.
async fn pause_between(number: u64, time: Duration) {
    if number > 0 {
        tokio::time::sleep(time).await;
    }
}

fn streamed_response(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
