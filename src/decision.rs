//! Decisions for gateways that hold a request and ask whether it may pass, and as whom: nginx `auth_request`, Traefik ForwardAuth,
//! Caddy `forward_auth`, Envoy `ext_authz` over HTTP and others. Routes, keys and policy are those of the proxy
//! ([`Gateway::decide`]); here the request that is asked about is read from the decision request.
//!
//! It is told in one of three forms: to `/decision` in headers, as `METHOD /decision/<path?query>` with the original `Host`, or in
//! the message of a gRPC call ([`ext_authz`]).

pub mod ext_authz;

use std::sync::Arc;
use std::time::Duration;

use http_body::Body as _;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode};

use crate::body::{self, Body};
use crate::budget::Account;
use crate::gateway::{Current, Gateway};
use crate::listener::{Handler, Listen};
use crate::logging::line_limit::LineLimit;
use crate::peer::{Peer, TrustedProxies};
use crate::rejection::{ErrorFormat, Rejection, is_grpc};
use crate::request_head::single_value;
use crate::tls::KeyPair;

/// `[decision]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Without TLS and `allow_from`, only a unix socket or a loopback address is accepted.
    pub listen: Listen,
    /// Certificate and key, where the listener speaks TLS.
    pub tls: Option<KeyPair>,
    /// The peers that may ask; `None` for all.
    pub allow_from: Option<TrustedProxies>,
    /// Where the target is told.
    pub headers: TargetHeaders,
}

/// The headers that tell the request which is asked about. Never both: a gateway that sets one set passes the other on from the
/// client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetHeaders {
    /// `X-Forwarded-Method`, `X-Forwarded-Uri` and `X-Forwarded-Host`.
    XForwarded,
    /// `X-Original-Method` and `X-Original-URL`, an absolute URL.
    XOriginal,
}

/// Limit on silence between requests, above the idle timeouts of gateways: one that finds its connection closed denies the
/// request that it holds.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3660);
/// The path of decision requests.
const PATH: &str = "/decision";
/// Between two lines about the same mistake of a gateway.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The handler of the decision listener.
pub struct Decisions {
    current: Arc<Current>,
    allow_from: Option<TrustedProxies>,
    headers: TargetHeaders,
}

impl Decisions {
    /// Decides by the gateway that is in force.
    pub fn new(settings: &Settings, current: Arc<Current>) -> Self {
        Self { current, allow_from: settings.allow_from.clone(), headers: settings.headers }
    }
}

impl Handler for Decisions {
    async fn handle(
        self: Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        account: &Arc<Account>,
    ) -> Response<Body> {
        if self.allow_from.as_ref().is_some_and(|allowed| !allowed.trusts(peer)) {
            log_mistake("a peer that is not in decision.allow_from asked for a decision");
            return forbid_peer();
        }
        let gateway = self.current.gateway();
        if request.uri().path() == ext_authz::PATH {
            let asked = match ext_authz::read_check(request).await {
                Ok(asked) => asked,
                Err(mistake) => {
                    log_mistake(mistake);
                    return ext_authz::refuse_call(mistake);
                }
            };
            let client_is_grpc = ext_authz::is_grpc_client(&asked);
            // Envoy makes a gRPC status of the HTTP status.
            let format = ErrorFormat::for_decision(asked.method(), false, false);
            let decision = gateway.decide(asked, peer, account, &format, true).await;
            return ext_authz::encode_decision(decision, client_is_grpc).await;
        }
        match read_target(&request, self.headers) {
            Ok(target) => {
                let is_grpc = target.method == Method::POST && is_grpc(request.headers());
                let format =
                    ErrorFormat::for_decision(&target.method, is_grpc, !request.body().is_end_stream());
                let is_prefixed = request.uri().path() != PATH;
                let mut headers = request.into_parts().0.headers;
                // Of the decision request's own body, which is ignored.
                headers.remove(CONTENT_LENGTH);
                headers.remove(TRANSFER_ENCODING);
                let asked = target.into_request(headers);
                gateway.decide(asked, peer, account, &format, is_prefixed).await
            }
            Err(mistake) => {
                log_mistake(mistake);
                refuse(&gateway, &request, peer, &Rejection::MalformedRequest(mistake))
            }
        }
    }

    fn refuse(&self, request: Request<Body>, peer: Peer, rejection: Rejection) -> Response<Body> {
        refuse(&self.current.gateway(), &request, peer, &rejection)
    }
}

fn refuse(gateway: &Gateway, request: &Request<Body>, peer: Peer, rejection: &Rejection) -> Response<Body> {
    let format = ErrorFormat::for_decision(request.method(), false, !request.body().is_end_stream());
    gateway.refuse(request, peer, rejection, &format)
}

fn forbid_peer() -> Response<Body> {
    let mut response = Response::new(body::full("This peer is not in decision.allow_from.\n"));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

/// SECURITY: a gateway that does not tell the target denies everything, and its operator must learn why.
fn log_mistake(mistake: &'static str) {
    static LINES: LineLimit = LineLimit::new(LINE_INTERVAL);
    if let Some(suppressed) = LINES.admit_kind(mistake, tokio::time::Instant::now()) {
        tracing::error!(suppressed, "denied a decision: {mistake}");
    }
}

/// What the request that is asked about has in its first line and in `Host`.
struct Target {
    method: Method,
    path: PathAndQuery,
    host: HeaderValue,
}

impl Target {
    /// The request that is asked about.
    fn into_request(self, headers: HeaderMap) -> Request<Body> {
        let mut request = Request::new(body::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.path.into();
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, self.host);
        request
    }
}

/// Reads the target of a decision request.
///
/// # Errors
/// What the gateway must be set up to send. SECURITY: nothing is guessed, as a default target could be one that is open.
fn read_target(request: &Request<Body>, headers: TargetHeaders) -> Result<Target, &'static str> {
    let path = request.uri().path();
    if path == PATH {
        match headers {
            TargetHeaders::XForwarded => read_forwarded(request.headers()),
            TargetHeaders::XOriginal => read_original(request.headers()),
        }
    } else if path.strip_prefix(PATH).is_some_and(|rest| rest.starts_with('/')) {
        read_prefixed(request)
    } else {
        Err("the gateway must ask at /decision, or at /decision followed by the request's path")
    }
}

const FORWARDED: &str = "the gateway must send X-Forwarded-Method, X-Forwarded-Uri (path and query) and X-Forwarded-Host, each exactly once";
const ORIGINAL: &str =
    "the gateway must send X-Original-Method and X-Original-URL (an absolute URL), each exactly once";

fn read_forwarded(headers: &HeaderMap) -> Result<Target, &'static str> {
    let method = single_value(headers, "x-forwarded-method").ok_or(FORWARDED)?;
    let target = single_value(headers, "x-forwarded-uri").ok_or(FORWARDED)?;
    let host = single_value(headers, "x-forwarded-host").ok_or(FORWARDED)?;
    parse_target(method.as_bytes(), target.as_bytes(), host.clone()).ok_or(FORWARDED)
}

fn read_original(headers: &HeaderMap) -> Result<Target, &'static str> {
    let method = single_value(headers, "x-original-method").ok_or(ORIGINAL)?;
    let url = single_value(headers, "x-original-url").and_then(|url| url.to_str().ok()).ok_or(ORIGINAL)?;
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).ok_or(ORIGINAL)?;
    let (host, target) = rest.split_at(rest.find('/').ok_or(ORIGINAL)?);
    let host = HeaderValue::from_str(host).map_err(|_| ORIGINAL)?;
    parse_target(method.as_bytes(), target.as_bytes(), host).ok_or(ORIGINAL)
}

fn read_prefixed(request: &Request<Body>) -> Result<Target, &'static str> {
    const MISTAKE: &str = "the gateway must send the request's Host, exactly once";
    let host = match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => single_value(request.headers(), HOST).cloned(),
    };
    let target = request.uri().path_and_query().map_or("", PathAndQuery::as_str);
    let target = target.strip_prefix(PATH).unwrap_or_default().as_bytes();
    parse_target(request.method().as_str().as_bytes(), target, host.ok_or(MISTAKE)?).ok_or(MISTAKE)
}

/// `None` unless the target is in origin form (RFC 9112 section 3.2.1). A `#` would be cut off, and no client sends one.
fn parse_target(method: &[u8], target: &[u8], host: HeaderValue) -> Option<Target> {
    let is_origin_form = target.starts_with(b"/") && !target.contains(&b'#');
    let method = Method::from_bytes(method).ok()?;
    let path = PathAndQuery::try_from(target).ok().filter(|_| is_origin_form)?;
    Some(Target { method, path, host })
}
