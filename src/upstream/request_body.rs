//! A request's body on its way to the upstream: streamed as it comes, within its limits, its trailers without what is
//! Keyward's to say, and watched, so that waiting for an answer begins when sending ends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, TRANSFER_ENCODING};
use tokio::time::{Instant, Sleep, sleep};

use super::capacity::Place;
use crate::body::{self, Adapted, Adapter, Body, PolledFrame};
use crate::hop_by_hop;
use crate::identity::IdentityHeaders;
use crate::rejection::Rejection;
use crate::request_head;

/// Limits of a request's body; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes.
    pub max_bytes: Option<u64>,
    /// How long the client may send nothing while the upstream waits, and no answer is under way.
    pub timeout: Option<Duration>,
}

/// How far sending has come.
pub(super) struct Progress {
    began: Instant,
    last_ms: AtomicU64,
    /// Whether the next of the body is the client's to send.
    waiting: AtomicBool,
    /// Whether the answer has begun and not ended: a client who listens may be quiet.
    answering: AtomicBool,
    /// Why the body ended before its end, if that is the client's doing.
    broken: OnceLock<Rejection>,
    /// At the upstream, until both directions have ended.
    _place: Place,
}

impl Progress {
    pub(super) fn begin(place: Place) -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            broken: OnceLock::new(),
            _place: place,
        }
    }

    pub(super) fn set_answering(&self, answering: bool) {
        self.answering.store(answering, Ordering::Relaxed);
    }

    /// Since when it is the upstream's turn: to take more of the body, or to answer. While the client's next bytes are
    /// awaited, since now.
    pub(super) fn upstream_turn_since(&self) -> Instant {
        if self.waiting.load(Ordering::Relaxed) {
            return Instant::now();
        }
        self.began + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    /// What the client did wrong with the body, if anything.
    pub(super) fn broken(&self) -> Option<&Rejection> {
        self.broken.get()
    }

    fn record_broken(&self, rejection: Rejection) {
        // The first reason stands.
        let _ = self.broken.set(rejection);
    }

    fn record_movement(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed, Ordering::Relaxed);
    }
}

pub(super) struct RequestBody {
    identity: Arc<IdentityHeaders>,
    progress: Arc<Progress>,
    /// Bytes that may still come.
    left: u64,
    timeout: Option<Duration>,
    /// Runs while the client's next bytes are awaited, if there is a limit.
    patience: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    /// A body that ends at once stays as it is.
    ///
    /// # Errors
    /// `BodyTooLarge` where its length is announced, and over the limit.
    pub(super) fn wrap(
        body: Body,
        limits: Limits,
        identity: Arc<IdentityHeaders>,
        progress: Arc<Progress>,
    ) -> Result<Body, Rejection> {
        let left = limits.max_bytes.unwrap_or(u64::MAX);
        if body.size_hint().lower() > left {
            return Err(Rejection::BodyTooLarge);
        }
        if body.is_end_stream() {
            return Ok(body);
        }
        let adapter = Self { identity, progress, left, timeout: limits.timeout, patience: None };
        Ok(Adapted::new(body, adapter).boxed_unsync())
    }

    /// Whether the client has been silent for too long.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(timeout) = self.timeout else { return false };
        loop {
            let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(timeout)));
            if patience.as_mut().poll(cx).is_pending() {
                return false;
            }
            if !self.progress.answering.load(Ordering::Relaxed) {
                return true;
            }
            self.patience = None;
        }
    }

    fn end_with_rejection(&self, rejection: Rejection) -> PolledFrame {
        let code = rejection.code();
        self.progress.record_broken(rejection);
        Poll::Ready(Some(Err(code.into())))
    }
}

impl Drop for RequestBody {
    /// Nothing more is sent: whatever is awaited now is the upstream's.
    fn drop(&mut self) {
        self.progress.record_movement();
        self.progress.waiting.store(false, Ordering::Relaxed);
    }
}

impl Adapter for RequestBody {
    type Body = Body;
    type Data = Bytes;

    fn poll_frame(&mut self, body: &mut Body, cx: &mut Context<'_>) -> PolledFrame {
        let polled = body::poll_next(body, cx);
        self.progress.waiting.store(polled.is_pending(), Ordering::Relaxed);
        if polled.is_pending() {
            return if self.is_late(cx) {
                self.end_with_rejection(Rejection::BodyTimeout)
            } else {
                Poll::Pending
            };
        }
        self.progress.record_movement();
        self.patience = None;
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                let Some(left) = self.left.checked_sub(length) else {
                    return self.end_with_rejection(Rejection::BodyTooLarge);
                };
                self.left = left;
                if let Some(trailers) = frame.trailers_mut() {
                    strip_trailers(trailers, &self.identity);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.progress.record_broken(Rejection::MalformedRequest("The request's body broke off."));
                Poll::Ready(Some(Err(error)))
            }
            other => other,
        }
    }
}

/// SECURITY: a backend may merge trailers into headers. None may say who the client is, carry the key, or frame or address
/// a message (RFC 9110 section 6.5.1).
fn strip_trailers(trailers: &mut HeaderMap, identity: &IdentityHeaders) {
    identity.strip(trailers);
    hop_by_hop::strip_headers(trailers);
    for name in [AUTHORIZATION, PROXY_AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING, HOST] {
        trailers.remove(name);
    }
    super::forwarded::strip_forwarding(trailers);
    request_head::remove_invalid_names(trailers);
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::identity::Settings;

    #[test]
    fn trailers_lose_identity_and_forwarding_fields() {
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
            "\"x\"",
            "grpc-status",
            "x-checksum",
        ] {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        strip_trailers(&mut trailers, &IdentityHeaders::new(Settings::default()));
        let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-checksum"]);
    }
}
