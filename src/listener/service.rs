//! What is done for each request of a connection: memory is reserved for it, it counts as under way, and the handler answers.

use std::sync::Arc;

use http_body::Body as _;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode, Version};
use tokio_util::sync::CancellationToken;

use super::Handler;
use super::activity::{Activity, InFlight};
use super::admission::reserve_memory;
use super::inbound_body::InboundBody;
use super::rapid_reset::{ResetCounter, Unanswered};
use super::send_timeout::{TrackedBody, track_body};
use crate::body::{self, Body};
use crate::peer::Peer;

/// The service of one connection.
pub(super) struct Service<H> {
    pub(super) handler: Arc<H>,
    pub(super) peer: Peer,
    pub(super) max_headers: usize,
    pub(super) activity: Arc<Activity>,
    pub(super) resets: Arc<ResetCounter>,
    /// Cancelled when clients are asked to go elsewhere.
    pub(super) draining: CancellationToken,
}

impl<H: Handler> Service<H> {
    /// Answers one request.
    pub(super) fn respond(
        self: Arc<Self>,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Response<TrackedBody>> {
        let version = request.version();
        let account = Arc::clone(&self.activity.account);
        let held = reserve_memory(&mut request, self.max_headers, &account).map(Arc::new);
        // The framing behind such a head was not checked, as it may be another protocol's.
        let is_framing_unknown = version < Version::HTTP_2 && asks_for_websocket(request.headers());
        let in_flight = InFlight::begin(&self.activity, version);
        let unanswered = Unanswered::begin(&self.resets);
        // An upload may outlast its response.
        let upload = (!request.body().is_end_stream()).then(|| InFlight::begin(&self.activity, version));
        let held_by_upload = held.as_ref().ok().cloned();
        async move {
            let request = request.map(|body| match upload {
                Some(in_flight) => InboundBody::wrap(body, in_flight, held_by_upload, Arc::clone(&account)),
                None => body::empty(),
            });
            let (mut response, held) = match held {
                // Boxed, so that the future of a request that is refused is small.
                Ok(held) => {
                    let handled = Arc::clone(&self.handler).handle(request, self.peer, &account);
                    (Box::pin(handled).await, Some(held))
                }
                Err(rejection) => (self.handler.refuse(request, self.peer, rejection), None),
            };
            unanswered.answered();
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                self.activity.become_tunnel();
            } else if is_framing_unknown || (self.is_ending() && version < Version::HTTP_2) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response.map(|body: Body| track_body(body, in_flight, held, account))
        }
    }

    /// Whether the client is asked to continue on another connection.
    fn is_ending(&self) -> bool {
        self.draining.is_cancelled() || self.activity.is_expired()
    }
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(UPGRADE)
        .iter()
        .any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"))
}
