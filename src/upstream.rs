//! Forwarding to the service behind Keyward, which takes a `Permit`. Bodies stream both ways; a request is processed at most
//! once.

mod capacity;
pub mod forwarded;
pub mod websocket_tunnel;
pub mod websocket;

pub mod request_body;

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode, Version};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use self::capacity::Capacity;
use self::request_body::{Limits, Progress, RequestBody};
use crate::body::Body;
use crate::hop_by_hop::{self, WebSocket};
use crate::identity::IdentityHeaders;
use crate::logging::outage_tracker::OutageTracker;
use crate::policy::Permit;
use crate::pool::{self, Origin, PooledBody, Protocol, SendError};
use crate::rejection::{self, KEYWARD_ERROR, Rejection};
use crate::request_head;
use crate::tls::TlsError;

/// One `[upstreams.NAME]` of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// As in the route file.
    pub name: Arc<str>,
    /// How to connect to it.
    pub origin: pool::Settings,
    /// From the last part of the request that was sent to the response's head.
    pub response_timeout: Duration,
    /// Whether the service distinguishes paths by letter case.
    pub case_sensitive_paths: bool,
    /// Concurrent requests, a quarter of them reserved for routes that require a key.
    pub max_requests: usize,
}

/// A service behind Keyward.
pub struct Upstream {
    /// Compared at a reload: an upstream whose settings are unchanged is kept.
    pub settings: Settings,
    origin: Arc<Origin>,
    failures: OutageTracker,
    capacity: Arc<Capacity>,
}

/// A request's place at its upstream, to be held until its response has ended.
pub struct Exchange(Arc<Progress>);

impl Drop for Exchange {
    /// From now on the time limit applies again to the rest of the request's body.
    fn drop(&mut self) {
        self.0.set_answering(false);
    }
}

/// What `Upstream::forward` does beside sending the request.
pub(crate) struct ForwardOptions<'a> {
    /// The upgrade to ask for.
    pub(crate) upgrade: Option<WebSocket>,
    /// When to wake the task if there is no response by then: one timer serves that and the time limit.
    pub(crate) wake_at: Option<Instant>,
    /// Identity headers are removed from the request's trailers.
    pub(crate) identity: &'a Arc<IdentityHeaders>,
    /// Limits on the request's body.
    pub(crate) limits: Limits,
}

/// Why there is no response from the upstream.
#[derive(Debug)]
pub struct Failure {
    /// Keyward's response to the client.
    pub rejection: Rejection,
    /// For the log.
    pub cause: String,
}

impl Upstream {
    /// An upstream without connections, which are opened in `tasks`.
    ///
    /// # Errors
    /// When a certificate cannot be used.
    pub fn new(settings: &Settings, tasks: TaskTracker) -> Result<Self, TlsError> {
        Ok(Self {
            origin: Origin::new(&settings.origin, tasks)?,
            capacity: Capacity::new(settings.max_requests),
            settings: settings.clone(),
            failures: OutageTracker::default(),
        })
    }

    /// Forwards a request, with its headers as they are, and gives the head of the upstream's response.
    ///
    /// # Errors
    /// `Overloaded`, `UpstreamUnreachable`, `UpstreamTimeout`, or the rejection for a request body that broke its limits.
    pub(crate) async fn forward(
        &self,
        request: Request<Body>,
        permit: &Permit,
        options: ForwardOptions<'_>,
    ) -> Result<(Response<PooledBody>, Exchange), Failure> {
        let ForwardOptions { upgrade, wake_at, identity, limits } = options;
        let place = self.capacity.reserve_place(permit.identity().is_none())?;
        let progress = Arc::new(Progress::begin(place));
        let (head, body) = request.into_parts();
        // A gRPC stream may be quiet without limit. SECURITY: not on a public route, where any client could hold places by
        // naming that content type.
        let may_be_quiet = permit.identity().is_some() && rejection::is_grpc(&head.headers);
        let limits = Limits { timeout: limits.timeout.filter(|_| !may_be_quiet), ..limits };
        let body = RequestBody::wrap(body, limits, Arc::clone(identity), Arc::clone(&progress))?;
        let mut request = Request::from_parts(head, body);
        let mut response = if upgrade.is_some() {
            set_upgrade(request.headers_mut());
            self.wait_for_head(self.origin.send_upgrade(request), wake_at, &progress).await?
        } else {
            self.wait_for_head(self.origin.send_request(request), wake_at, &progress).await?
        };
        progress.set_answering(true);
        let exchange = Exchange(progress);
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        // SECURITY: after a 101 that was not asked for, or to another protocol, the connection's protocol is unknown.
        if switched && (upgrade.is_none() || !is_websocket(response.headers())) {
            return Err(Failure::unreachable("it switched protocols unasked"));
        }
        if !request_head::has_single_framing(response.headers()) {
            return Err(Failure::unreachable(
                "its answer is framed twice, or in a coding that Keyward does not know",
            ));
        }
        // An intermediary responds in its own version (RFC 9110 section 2.5), not in an upstream's HTTP/1.0.
        *response.version_mut() = Version::HTTP_11;
        clean_response_headers(response.headers_mut());
        if response.status() == StatusCode::NO_CONTENT {
            // It has no body, and must not have a Content-Length (RFC 9110 section 8.6).
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        if switched {
            set_upgrade(response.headers_mut());
        }
        Ok((response, exchange))
    }

    /// Waits for the response's head. The time limit runs only while the upstream has to act, so that it never cuts an
    /// upload.
    async fn wait_for_head(
        &self,
        sending: impl Future<Output = Result<Response<PooledBody>, SendError>>,
        mut wake_at: Option<Instant>,
        progress: &Progress,
    ) -> Result<Response<PooledBody>, Failure> {
        let mut sending = std::pin::pin!(sending);
        loop {
            let deadline = progress.upstream_turn_since() + self.settings.response_timeout;
            let deadline = wake_at.map_or(deadline, |wake_at| wake_at.min(deadline));
            tokio::select! {
                sent = &mut sending => return sent.map_err(|error| self.explain_send_error(&error, progress)),
                () = sleep_until(deadline) => {
                    wake_at = wake_at.filter(|wake_at| *wake_at > Instant::now());
                    if progress.upstream_turn_since() + self.settings.response_timeout <= Instant::now() {
                        let rejection = Rejection::UpstreamTimeout;
                        return Err(Failure { rejection, cause: "no answer in time".into() });
                    }
                }
            }
        }
    }
}

impl Upstream {
    /// Logs that the upstream fails and why, and that it answers again; both at a limited rate, and also where requests are
    /// not logged. `began` is when the request was forwarded.
    pub fn log_outcome(&self, began: Instant, failure: Option<&Failure>) {
        let upstream = &*self.settings.name;
        match failure {
            None => {
                if let Some((outage, failures)) = self.failures.record_success(began) {
                    let seconds = outage.as_secs_f64().ceil();
                    tracing::info!(
                        keyward.upstream = upstream,
                        keyward.failures = failures,
                        "the upstream {upstream:?} answers again after {seconds} s"
                    );
                }
            }
            Some(Failure {
                rejection: Rejection::UpstreamUnreachable | Rejection::UpstreamTimeout,
                cause,
            }) => {
                if let Some(suppressed) =
                    self.failures.record_failure("", Some(Duration::ZERO), Instant::now())
                {
                    tracing::warn!(
                        keyward.upstream = upstream,
                        keyward.failures = suppressed + 1,
                        "the upstream {upstream:?} fails: {cause}"
                    );
                }
            }
            Some(_) => {}
        }
    }

    fn explain_send_error(&self, error: &SendError, progress: &Progress) -> Failure {
        let mut failure = Failure::from_send_error(error, progress);
        // A server that speaks only HTTP/2 answers HTTP/1.1 with a SETTINGS frame, which hyper reads as a status line.
        let http1 = self.settings.origin.tls.is_none() && self.settings.origin.protocol != Protocol::Http2;
        if http1
            && matches!(error, SendError::Broken(_))
            && NOT_HTTP1.iter().any(|text| failure.cause.contains(text))
        {
            failure
                .cause
                .push_str("; a service that speaks HTTP/2 alone, as gRPC does, needs h2c:// in its url");
            if matches!(self.settings.origin.address, pool::Address::Unix(_)) {
                failure.cause.push_str(", or http = \"2\" behind a unix socket");
            }
        }
        failure
    }
}

/// hyper's errors for a response without an HTTP/1 status line, and for one that arrives before the request.
const NOT_HTTP1: [&str; 2] = ["invalid HTTP version", "received unexpected message"];

impl Failure {
    fn unreachable(cause: impl Into<String>) -> Self {
        Self { rejection: Rejection::UpstreamUnreachable, cause: cause.into() }
    }

    fn from_send_error(error: &SendError, progress: &Progress) -> Self {
        match (progress.broken(), error) {
            (Some(rejection), _) => {
                Self { rejection: rejection.clone(), cause: "the client's body broke off".into() }
            }
            (None, SendError::NoUpgrade) => Self::unreachable("it speaks HTTP/2 alone, which has no upgrade"),
            (None, SendError::Connect(_) | SendError::Broken(_)) => Self::unreachable(error.format_chain()),
        }
    }
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        let cause = rejection.code().to_owned();
        Self { rejection, cause }
    }
}

/// Removes what the upstream may not send to the client: hop-by-hop headers, `Keyward-Error` and invalid names. Also for
/// trailers.
pub fn clean_response_headers(headers: &mut HeaderMap) {
    hop_by_hop::strip_headers(headers);
    headers.remove(KEYWARD_ERROR);
    request_head::remove_invalid_names(headers);
}

fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}
