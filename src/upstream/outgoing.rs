//! A request's body on its way to the upstream: streamed as it comes, its trailers without what is Keyward's to say, and
//! watched, so that waiting for an answer begins when sending ends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, TRANSFER_ENCODING};
use tokio::time::Instant;

use crate::body::{Body, BodyError};
use crate::hop;
use crate::identity::Headers;

/// How far sending has come.
pub(super) struct Progress {
    began: Instant,
    last_ms: AtomicU64,
    /// Whether the next of the body is the caller's to send.
    waiting: AtomicBool,
    broken: AtomicBool,
}

impl Progress {
    pub(super) fn begin() -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    /// Since when it is the upstream's turn: to take more of the body, or to answer. While the caller's next bytes are
    /// awaited, since now.
    pub(super) fn last(&self) -> Instant {
        if self.waiting.load(Ordering::Relaxed) {
            return Instant::now();
        }
        self.began + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    /// Whether the caller's side of the body failed.
    pub(super) fn broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn moved(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed, Ordering::Relaxed);
    }
}

pub(super) struct Outgoing {
    body: Body,
    identity: Arc<Headers>,
    progress: Arc<Progress>,
}

impl Outgoing {
    /// A body that ends at once stays as it is.
    pub(super) fn wrap(body: Body, identity: Arc<Headers>, progress: Arc<Progress>) -> Body {
        if body.is_end_stream() { body } else { Self { body, identity, progress }.boxed_unsync() }
    }
}

impl Drop for Outgoing {
    /// Nothing more is sent: whatever is awaited now is the upstream's.
    fn drop(&mut self) {
        self.progress.moved();
        self.progress.waiting.store(false, Ordering::Relaxed);
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.progress.moved();
        }
        self.progress.waiting.store(polled.is_pending(), Ordering::Relaxed);
        polled.map(|frame| {
            frame.map(|frame| match frame {
                Ok(mut frame) => {
                    if let Some(trailers) = frame.trailers_mut() {
                        strip_trailers(trailers, &self.identity);
                    }
                    Ok(frame)
                }
                Err(error) => {
                    self.progress.broken.store(true, Ordering::Relaxed);
                    Err(error)
                }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// SECURITY: a backend may merge trailers into headers. None may say who the caller is, carry the key, or frame or address
/// a message (RFC 9110 section 6.5.1).
fn strip_trailers(trailers: &mut HeaderMap, identity: &Headers) {
    identity.strip(trailers);
    hop::strip(trailers);
    for name in [AUTHORIZATION, PROXY_AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING, HOST] {
        trailers.remove(name);
    }
    super::forwarded::strip(trailers);
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::identity::Settings;

    #[test]
    fn trailers_keep_nothing_that_is_keywards_to_say() {
        let mut trailers = HeaderMap::new();
        for name in [
            "x-org-id",
            "x_claim_admin",
            "authorization",
            "connection",
            "host",
            "content-length",
            "x-forwarded-for",
            "x_request_id",
            "grpc-status",
            "x-checksum",
        ] {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        strip_trailers(&mut trailers, &Headers::new(Settings::default()));
        let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-checksum"]);
    }
}
