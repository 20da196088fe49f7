//! Forwarding to the service behind Keyward. Takes a `Permit`, so nothing gets here without one. Bodies stream both ways;
//! a request goes out once.

mod capacity;
mod failure_log;
pub mod forwarded;
pub mod tunnel;
pub mod websocket;

pub mod request_body;

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode, Version};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use self::capacity::Capacity;
use self::failure_log::FailureLog;
use self::request_body::{Limits, Progress, RequestBody};
use crate::body::Body;
use crate::hop_by_hop::{self, WebSocket};
use crate::identity::IdentityHeaders;
use crate::policy::Permit;
use crate::pool::{self, Origin, PooledBody, Protocol, SendError};
use crate::rejection::{self, KEYWARD_ERROR, Rejection};
use crate::request_head;
use crate::tls::TlsError;

/// One `[upstreams.NAME]` of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name in the file.
    pub name: Arc<str>,
    /// Where it is.
    pub origin: pool::Settings,
    /// The time to the head of the answer, from the last of the request that was sent.
    pub response_timeout: Duration,
    /// Whether the service tells paths apart by letter case.
    pub case_sensitive_paths: bool,
    /// Requests at once, of which a quarter is for routes that ask for a key.
    pub max_requests: usize,
}

/// A service behind Keyward.
pub struct Upstream {
    /// What it was made from.
    pub settings: Settings,
    origin: Arc<Origin>,
    failures: FailureLog,
    capacity: Arc<Capacity>,
}

/// A request's place at its upstream, to be held until its answer has ended.
pub struct Exchange(Arc<Progress>);

impl Drop for Exchange {
    /// What the caller still sends is nobody's answer any more, and has its time limit again.
    fn drop(&mut self) {
        self.0.set_answering(false);
    }
}

/// Why there is no answer of the upstream's.
#[derive(Debug)]
pub struct Failure {
    /// What the caller is told.
    pub rejection: Rejection,
    /// What the log says.
    pub cause: String,
}

impl Upstream {
    /// An upstream without connections. They run in `tasks`.
    ///
    /// # Errors
    /// When a certificate cannot be used.
    pub fn new(settings: &Settings, tasks: TaskTracker) -> Result<Self, TlsError> {
        Ok(Self {
            origin: Origin::new(&settings.origin, tasks)?,
            capacity: Capacity::new(settings.max_requests),
            settings: settings.clone(),
            failures: FailureLog::default(),
        })
    }

    /// Forwards a request whose headers are as the upstream shall see them, and gives the head of its answer. The task is
    /// woken at `wake_at`, if there is no head by then: one timer serves that and the time limit.
    ///
    /// # Errors
    /// `Overloaded`, `UpstreamUnreachable`, `UpstreamTimeout`, or what the request's body came to.
    pub(crate) async fn forward(
        &self,
        request: Request<Body>,
        permit: &Permit,
        upgrade: Option<WebSocket>,
        wake_at: Option<Instant>,
        identity: &Arc<IdentityHeaders>,
        limits: Limits,
    ) -> Result<(Response<PooledBody>, Exchange), Failure> {
        let place = self.capacity.take(permit.identity().is_none())?;
        let progress = Arc::new(Progress::begin(place));
        let (head, body) = request.into_parts();
        // A stream of gRPC may be quiet for as long as it likes. SECURITY: not on a public route, where anybody could hold
        // places by naming that content type.
        let may_be_quiet = permit.identity().is_some() && rejection::is_grpc(&head.headers);
        let limits = Limits { timeout: limits.timeout.filter(|_| !may_be_quiet), ..limits };
        let body = RequestBody::wrap(body, limits, Arc::clone(identity), Arc::clone(&progress))?;
        let mut request = Request::from_parts(head, body);
        let mut response = if upgrade.is_some() {
            set_upgrade(request.headers_mut());
            self.answered(self.origin.send_upgrade(request), wake_at, &progress).await?
        } else {
            self.answered(self.origin.send_request(request), wake_at, &progress).await?
        };
        progress.set_answering(true);
        let exchange = Exchange(progress);
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        // SECURITY: a 101 that nobody asked for, or to something else, leaves a connection in an unknown language.
        if switched && (upgrade.is_none() || !is_websocket(response.headers())) {
            return Err(Failure::unreachable("it switched protocols unasked"));
        }
        if !request_head::has_single_framing(response.headers()) {
            return Err(Failure::unreachable(
                "its answer is framed twice, or in a coding that Keyward does not know",
            ));
        }
        // An intermediary answers in its own version (RFC 9110 section 2.5), not in an upstream's HTTP/1.0.
        *response.version_mut() = Version::HTTP_11;
        clean(response.headers_mut());
        if response.status() == StatusCode::NO_CONTENT {
            // It has no body, and no length of one (RFC 9110 section 8.6).
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        if switched {
            set_upgrade(response.headers_mut());
        }
        Ok((response, exchange))
    }

    /// Waits for the head of the answer. The time limit runs while it is the upstream's turn, so that it never cuts
    /// an upload.
    async fn answered(
        &self,
        sending: impl Future<Output = Result<Response<PooledBody>, SendError>>,
        mut wake_at: Option<Instant>,
        progress: &Progress,
    ) -> Result<Response<PooledBody>, Failure> {
        let mut sending = std::pin::pin!(sending);
        loop {
            let deadline = progress.last() + self.settings.response_timeout;
            let deadline = wake_at.map_or(deadline, |wake_at| wake_at.min(deadline));
            tokio::select! {
                sent = &mut sending => return sent.map_err(|error| self.sending_failed(&error, progress)),
                () = sleep_until(deadline) => {
                    wake_at = wake_at.filter(|wake_at| *wake_at > Instant::now());
                    if progress.last() + self.settings.response_timeout <= Instant::now() {
                        let rejection = Rejection::UpstreamTimeout;
                        return Err(Failure { rejection, cause: "no answer in time".into() });
                    }
                }
            }
        }
    }
}

impl Upstream {
    /// Says in the log, once in a while, that the upstream fails and why.
    pub fn log_failure(&self, failure: &Failure) {
        if matches!(failure.rejection, Rejection::UpstreamUnreachable | Rejection::UpstreamTimeout) {
            self.failures.failed(&self.settings.name, &failure.cause);
        }
    }

    fn sending_failed(&self, error: &SendError, progress: &Progress) -> Failure {
        let mut failure = Failure::sending(error, progress);
        // A server of HTTP/2 alone answers HTTP/1.1 with a SETTINGS frame, which hyper takes for a status line.
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

/// What hyper says of an answer that does not begin with an HTTP/1 status line, and of one that comes before the request.
const NOT_HTTP1: [&str; 2] = ["invalid HTTP version", "received unexpected message"];

impl Failure {
    fn unreachable(cause: impl Into<String>) -> Self {
        Self { rejection: Rejection::UpstreamUnreachable, cause: cause.into() }
    }

    fn sending(error: &SendError, progress: &Progress) -> Self {
        match (progress.broken(), error) {
            (Some(rejection), _) => {
                Self { rejection: rejection.clone(), cause: "the caller's body broke off".into() }
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

/// Removes from the headers of an answer, or from its trailers, what is not the upstream's to say to the caller.
pub fn clean(headers: &mut HeaderMap) {
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
