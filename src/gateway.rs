//! The request path. `Gateway::pass` is all of it: route, credential, hop-by-hop, validation, policy, identity, upstream;
//! `Gateway::handle` around it records what happened.

mod decide;
mod preflight;
mod response_body;
mod revalidation;
mod shadow;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http_body::Body as _;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::decide::HEADERS_TO_REMOVE;
use self::preflight::{keep_preflight_headers, preflight_method};
use self::response_body::ResponseBody;
use self::revalidation::{Revalidation, close_code, close_reason};
use crate::access_log::{self, Client, Record};
use crate::body::{self, Body};
use crate::budget::Account;
use crate::credential::{self, ApiKey};
use crate::expiry::ExpiryWarnings;
use crate::hop_by_hop;
use crate::identity::{self, Identity, Misfit};
use crate::logging::line_limit::LineLimit;
use crate::metrics::{self, Metrics, RouteTableSeries, StreamKind};
use crate::peer::{Peer, TrustedProxies};
use crate::policy::{Permit, Requirement};
use crate::pool::PooledBody;
use crate::rate_limit::{Exceeded, RateLimits};
use crate::rejection::{ErrorFormat, Rejection};
use crate::request_head::{self, Host};
use crate::route::{Auth, Route, RouteTable};
use crate::traces::Traces;
use crate::upstream::forwarded::{Forwarding, REQUEST_ID, choose_request_id};
use crate::upstream::websocket::CloseCode;
use crate::upstream::{Exchange, Failure, ForwardOptions, Upstream, request_body, websocket_tunnel};
use crate::usage::{Start, Usage};
use crate::validator::Validator;

/// `Retry-After` where public routes already use all the connections they may.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Settings that apply to every route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The realm of `WWW-Authenticate`: printable ASCII without `"` and `\`.
    pub realm: String,
    /// Limits on a request's head.
    pub head: request_head::Limits,
    /// Limits on a request's body.
    pub body: request_body::Limits,
    /// Interval at which the key of a long-lived request is validated again.
    pub revalidate_every: Duration,
    /// Forwarding headers kept from trusted proxies, in addition to the standard ones.
    pub pass_headers: Vec<HeaderName>,
    /// How long such a request may continue while its key cannot be confirmed; at least `revalidate_every`.
    pub unconfirmed_for: Duration,
    /// How each request is logged.
    pub access_log: access_log::Line,
}

/// The request path and everything it needs.
pub struct Gateway {
    /// Settings that apply to every route.
    pub settings: Settings,
    /// Which credentials are accepted as keys.
    pub credential: credential::Settings,
    /// The identity headers.
    pub identity: Arc<identity::IdentityHeaders>,
    /// Proxies whose `X-Forwarded-*` headers are trusted.
    pub trusted: TrustedProxies,
    /// The routes.
    pub routes: RouteTable,
    /// Upstreams by name. Every route's upstream is present.
    pub upstreams: HashMap<Arc<str>, Arc<Upstream>>,
    /// Validates keys.
    pub validator: Arc<Validator>,
    /// Warnings that a key expires soon.
    pub expiry: Arc<ExpiryWarnings>,
    /// The use of keys and by organizations, where it is counted.
    pub usage: Option<Arc<Usage>>,
    /// The rate limits. Every limit of a route is present.
    pub rate_limits: RateLimits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Makes the spans of requests; `None` where traces are not exported.
    pub traces: Option<Arc<Traces>>,
    /// What is counted of each route.
    pub series: RouteTableSeries,
    /// Tracks the tasks of open tunnels.
    pub tunnels: TaskTracker,
    /// Cancelled on shutdown, when open tunnels must close.
    pub closing: CancellationToken,
}

impl Gateway {
    /// Handles a request. Its log line is written when the response has ended.
    pub async fn handle(&self, request: Request<Body>, peer: Peer, account: &Arc<Account>) -> Response<Body> {
        let format = ErrorFormat::from_request(&request);
        let (downstream, mut record) = self.begin_request(&request, peer, account);
        let request_id = record.request_id.clone();
        let passed = self.pass(request, downstream, &mut record).await;
        let notices = std::mem::take(&mut record.notices);
        let mut response = match passed {
            Ok(forwarded) => self.relay_response(forwarded, record, &format),
            Err(rejection) => self.reject(&rejection, &format, record),
        };
        add_notices(notices, &mut response);
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    fn begin_request<'a>(
        &self,
        request: &Request<Body>,
        peer: Peer,
        account: &'a Arc<Account>,
    ) -> (Downstream<'a>, Record) {
        let is_trusted = self.trusted.trusts(peer);
        let request_id = choose_request_id(request.headers(), is_trusted);
        let record = self.begin_record(request, peer, is_trusted, request_id);
        (Downstream { peer, is_trusted, client: record.client(), account }, record)
    }

    fn begin_record(
        &self,
        request: &Request<Body>,
        peer: Peer,
        is_trusted: bool,
        request_id: HeaderValue,
    ) -> Record {
        let client = Client {
            address: self.trusted.client_address(peer, request.headers()),
            scheme: self.trusted.client_scheme(peer, request.headers()),
        };
        let span = self.traces.as_ref().map(|traces| traces.begin(request, peer, is_trusted));
        let (line, metrics) = (self.settings.access_log, Arc::clone(&self.metrics));
        Record::begin(request, client, request_id, span, line, metrics, Arc::clone(&self.series.none))
    }

    fn reject(&self, rejection: &Rejection, format: &ErrorFormat, mut record: Record) -> Response<Body> {
        let request_id = record.request_id.to_str().unwrap_or_default();
        let response = rejection.to_response(format, request_id, &self.settings.realm);
        record.set_rejection(rejection, &response);
        response
    }

    /// Rejects a request without looking at it, and logs it.
    pub fn refuse(
        &self,
        request: &Request<Body>,
        peer: Peer,
        rejection: &Rejection,
        format: &ErrorFormat,
    ) -> Response<Body> {
        let request_id = choose_request_id(request.headers(), false);
        let record = self.begin_record(request, peer, self.trusted.trusts(peer), request_id.clone());
        let mut response = self.reject(rejection, format, record);
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    /// The request path, from the request's head to the response's head.
    async fn pass(
        &self,
        mut request: Request<Body>,
        downstream: Downstream<'_>,
        record: &mut Record,
    ) -> Result<Forwarded, Rejection> {
        let host = request_head::check_head(&request, self.settings.head)?;
        let found = self.find_route(&request, &host)?;
        if found.route.upstream.is_empty() {
            return Err(Rejection::NoRoute);
        }
        let Admission { route, upgrade, permit, mut revalidation, kind } =
            self.admit(&mut request, found, &downstream, record).await?;
        self.strip_identity_headers(request.headers_mut(), record);
        self.set_identity_headers(&permit, kind, request.headers_mut(), record)?;
        let forwarding = Forwarding {
            peer: downstream.peer,
            is_trusted: downstream.is_trusted,
            pass_headers: &self.settings.pass_headers,
            host: &host.value,
            request_id: &record.request_id,
        };
        forwarding.set_headers(request.headers_mut());
        if let Some(span) = &record.span {
            span.set_parent(request.headers_mut());
        }
        set_target_and_host(&mut request, &host);
        if !request.body().is_end_stream() {
            request = request.map(|body| revalidation.wrap_upload(body));
        }
        let options = ForwardOptions {
            upgrade,
            wake_at: revalidation.due_at(),
            identity: &self.identity,
            limits: self.settings.body,
        };
        let (response, tunnel, exchange) = tokio::select! {
            // Polled first: a revoked key also aborts the upload, which would look like a fault of the upstream.
            biased;
            // A slow service or an endless upload may outlive the key before the response begins.
            rejection = revalidation.wait_until_refused() => return Err(rejection),
            forwarded = self.forward(request, route, &permit, options, record) => forwarded?,
        };
        // SECURITY: a late head or 101 opens nothing for a key that was revoked while it was awaited.
        revalidation.wait_until_confirmed().await?;
        Ok(Forwarded { response, tunnel, revalidation, exchange })
    }

    /// The part of the request path that forwarding and decisions share: from the route to the permit. Takes the key and the
    /// hop-by-hop headers out of the request.
    async fn admit<'g>(
        &'g self,
        request: &mut Request<Body>,
        found: FoundRoute<'g>,
        downstream: &Downstream<'_>,
        record: &mut Record,
    ) -> Result<Admission<'g>, Rejection> {
        let FoundRoute { route, requirement, kind } = found;
        record.route = Arc::clone(self.series.of_route(&route.label));
        let authorization = shadow::keep_authorization(kind, request.headers());
        let key = ApiKey::take_from(request.headers_mut(), &self.credential);
        let upgrade = hop_by_hop::find_upgrade(request.method(), request.version(), request.headers());
        hop_by_hop::strip_headers(request.headers_mut());
        if kind == Kind::Preflight {
            keep_preflight_headers(request.headers_mut());
        }
        let (permit, revalidation) = match requirement {
            None => admit_public(downstream)?,
            Some(requirement) => {
                let admitted = self.admit_key(key, route, requirement, downstream, record).await;
                match kind {
                    Kind::Shadow => {
                        shadow::restore_authorization(authorization, request.headers_mut());
                        shadow::observe(admitted, downstream, record)?
                    }
                    Kind::Request | Kind::Preflight => admitted?,
                }
            }
        };
        Ok(Admission { route, upgrade, permit, revalidation, kind })
    }

    /// Validates the key, checks it against the requirement, and takes the request out of the route's rate limits.
    async fn admit_key(
        &self,
        key: Result<ApiKey, Rejection>,
        route: &Route,
        requirement: &Requirement,
        downstream: &Downstream<'_>,
        record: &mut Record,
    ) -> Result<(Permit, Revalidation), Rejection> {
        let (key, began, mut seat) = (key?, Instant::now(), None);
        let digest = self.validator.digest(&key);
        self.rate_limits
            .check_key(&route.rate_limits, &digest, began.into(), &self.metrics)
            .map_err(|exceeded| reject_exceeded(&exceeded, record))?;
        if let Some(span) = &mut record.span {
            span.begin_validation(began);
        }
        let identity = self.validator.validate(&key, digest, downstream.client, &mut seat).await;
        record.validation = Some(began.elapsed());
        if let Some(span) = &mut record.span {
            span.end_validation(seat, identity.as_ref().err());
        }
        let identity = identity.inspect_err(|rejection| {
            if *rejection == Rejection::InvalidKey {
                downstream.account.record_bad_key();
            }
        })?;
        let admitted = downstream.account.admit();
        let start = Start { route: record.route.label(), client: downstream.client };
        record.usage = self.usage.as_ref().map(|usage| usage.begin(&identity, &start));
        record.identity = Some(Arc::clone(&identity));
        self.expiry.warn_of_end(&identity, &self.metrics, &mut record.notices);
        let revalidation = Revalidation::new(self, key, &identity, requirement, began.into(), admitted);
        let permit = requirement.admit(Arc::clone(&identity)).map_err(|unmet| {
            record.unmet = Some(unmet);
            Rejection::NotPermitted
        })?;
        self.rate_limits
            .take_request(&route.rate_limits, &identity, digest, &self.metrics, &mut record.notices)
            .await
            .map_err(|exceeded| reject_exceeded(&exceeded, record))?;
        Ok((permit, revalidation))
    }

    /// The route and its requirement: `None` for a public route, and for a CORS preflight that the route lets pass.
    fn find_route(&self, request: &Request<Body>, host: &Host) -> Result<FoundRoute<'_>, Rejection> {
        let path = request.uri().path();
        if let Some(asked) = preflight_method(request)
            && let Some(route) = self.routes.find_preflight(&asked, &host.name, path)
        {
            return Ok(FoundRoute { route, requirement: None, kind: Kind::Preflight });
        }
        let route = self.routes.find(request.method(), &host.name, path)?;
        let (requirement, kind) = match &route.auth {
            Auth::Public => (None, Kind::Request),
            Auth::Key(requirement) => (Some(requirement), Kind::Request),
            Auth::Shadow(requirement) => (Some(requirement), Kind::Shadow),
        };
        Ok(FoundRoute { route, requirement, kind })
    }

    /// Removes the identity headers that the client sent, counts the request if it had any, and returns their names.
    fn strip_identity_headers(&self, headers: &mut HeaderMap, record: &Record) -> Vec<HeaderName> {
        let forged = self.identity.strip(headers);
        if !forged.is_empty() {
            let route = metrics::Route { route: Arc::clone(record.route.label()) };
            self.metrics.spoofed_headers.get_or_create(&route).inc();
        }
        forged
    }

    /// Sets the identity headers of the permit; in shadow mode none, if they do not fit.
    fn set_identity_headers(
        &self,
        permit: &Permit,
        kind: Kind,
        headers: &mut HeaderMap,
        record: &mut Record,
    ) -> Result<(), Rejection> {
        let Some(identity) = permit.identity() else { return Ok(()) };
        let Err(misfit) = self.identity.set(identity, headers) else { return Ok(()) };
        if let Misfit::SharedHeader { header, claims } = &misfit {
            self.metrics.claims_left_out.inc_by(claims.len() as u64);
            record.cause = Some(format!("the claims {claims:?} would share the header {header}"));
            warn_of_shared_header(identity, header, claims);
        }
        if kind == Kind::Shadow {
            record.observe(Some(&misfit.into()));
            self.identity.strip(headers);
            return Ok(());
        }
        Err(misfit.into())
    }

    async fn forward(
        &self,
        mut request: Request<Body>,
        route: &Route,
        permit: &Permit,
        options: ForwardOptions<'_>,
        record: &mut Record,
    ) -> Result<(Response<PooledBody>, Option<Tunnel>, Exchange), Rejection> {
        let Some(upstream) = self.upstreams.get(&route.upstream) else {
            return Err(Rejection::UpstreamUnreachable);
        };
        let client = options.upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let began = Instant::now();
        if let Some(span) = &mut record.span {
            span.begin_upstream(began, upstream);
        }
        let answered = upstream.forward(request, permit, options).await;
        let answered_at = Instant::now();
        record.upstream = Some(answered_at - began);
        if let Some(span) = &mut record.span {
            let answer = answered.as_ref().map(|(response, _)| response.status().as_u16());
            span.end_upstream(answer.map_err(|failure| &failure.rejection));
        }
        upstream.log_outcome(began.into(), answered.as_ref().err());
        let (mut response, exchange) = answered.map_err(|failure| {
            let Failure { rejection, cause } = failure;
            record.cause = Some(cause);
            rejection
        })?;
        record.set_status(response.status(), answered_at);
        let switched = client.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
        let tunnel = switched.map(|client| Tunnel { client, upstream: hyper::upgrade::on(&mut response) });
        Ok((response, tunnel, exchange))
    }

    /// The response with its body or tunnel under re-validation; `record` is written at its end.
    fn relay_response(
        &self,
        forwarded: Forwarded,
        mut record: Record,
        format: &ErrorFormat,
    ) -> Response<Body> {
        let Forwarded { response, tunnel, mut revalidation, exchange } = forwarded;
        let Some(Tunnel { client, upstream }) = tunnel else {
            if let Some(stream) = StreamKind::from_headers(response.headers()) {
                record.set_stream(stream);
                // Of a response that is trailers alone.
                record.set_grpc_status(response.headers());
            }
            let status = format.takes_grpc_status(response.headers());
            return response.map(|body| ResponseBody::wrap(body, record, revalidation, status, exchange));
        };
        record.set_stream(StreamKind::WebSocket);
        // A 101 has no body.
        let response = response.map(|_| body::empty());
        let closing = self.closing.clone();
        self.tunnels.spawn(async move {
            let _exchange = exchange;
            let cut = async {
                tokio::select! {
                    () = closing.cancelled() => (CloseCode::GoingAway, "shutdown"),
                    rejection = revalidation.wait_until_closed() => (close_code(&rejection), close_reason(&rejection)),
                }
            };
            match websocket_tunnel::relay(client, upstream, cut).await {
                Some(reason) => record.mark_cut(reason, None),
                None => record.mark_complete(),
            }
        });
        response
    }
}

/// The gateway for new requests. After a reload, a request under way keeps the one it began with.
pub struct Current(RwLock<Arc<Gateway>>);

impl Current {
    /// Starts with this gateway.
    pub fn new(gateway: Gateway) -> Self {
        Self(RwLock::new(Arc::new(gateway)))
    }

    /// The gateway now in force.
    pub fn gateway(&self) -> Arc<Gateway> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another gateway in force.
    pub fn replace(&self, gateway: Gateway) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(gateway);
    }
}

/// A request that was forwarded, and its response.
struct Forwarded {
    response: Response<PooledBody>,
    tunnel: Option<Tunnel>,
    revalidation: Revalidation,
    exchange: Exchange,
}

/// Both sides of a WebSocket that is about to open.
struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
}

/// The client side of a request.
struct Downstream<'a> {
    peer: Peer,
    is_trusted: bool,
    client: Option<IpAddr>,
    account: &'a Arc<Account>,
}

/// The route of a request.
struct FoundRoute<'g> {
    route: &'g Route,
    /// `None` for a public route, and for a CORS preflight that the route lets pass.
    requirement: Option<&'g Requirement>,
    kind: Kind,
}

/// A request that may pass.
struct Admission<'g> {
    route: &'g Route,
    upgrade: Option<hop_by_hop::WebSocket>,
    permit: Permit,
    revalidation: Revalidation,
    kind: Kind,
}

/// How a route treats a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    /// A CORS preflight, which needs no key.
    Preflight,
    /// A request that is not refused for its key.
    Shadow,
}

fn admit_public(downstream: &Downstream<'_>) -> Result<(Permit, Revalidation), Rejection> {
    let admitted = downstream.account.admit_public().ok_or(Rejection::Overloaded(RETRY_AFTER))?;
    Ok((Permit::public(), Revalidation::disabled(admitted)))
}

/// Adds the headers of Keyward's own to those of the service.
fn add_notices(notices: HeaderMap, response: &mut Response<Body>) {
    let mut last = None;
    for (name, value) in notices {
        // Only the first of several values has the name.
        last = name.or(last);
        if let Some(name) = &last {
            response.headers_mut().append(name, value);
        }
    }
}

fn reject_exceeded(exceeded: &Exceeded, record: &mut Record) -> Rejection {
    record.cause = Some(format!("rate_limits.{} is exceeded", exceeded.limit));
    Rejection::RateLimited(exceeded.wait)
}

/// Warns the operator even where the access log is off: the key cannot be used until the configuration changes.
fn warn_of_shared_header(identity: &Identity, header: &HeaderName, claims: &[String]) {
    static LIMIT: LineLimit = LineLimit::new(Duration::from_secs(1));
    if let Some(suppressed) = LIMIT.admit() {
        tracing::warn!(
            keyward.token.id = identity.token_id.as_ref().and_then(|id| id.to_str().ok()),
            suppressed,
            "refused a key whose claims {claims:?} would share the header {header}; name a header for one under \
             identity.claim_headers, or choose the claims in identity.claims"
        );
    }
}

/// Sets the target in origin-form, byte for byte, and the client's authority as `Host`.
fn set_target_and_host(request: &mut Request<Body>, host: &Host) {
    let path = match request.uri().path_and_query() {
        // `http://a` and `http://a#x` have no path, and were matched as `/`; hyper would write an empty target.
        None => PathAndQuery::from_static("/"),
        Some(path) if path.as_str() == "/" => PathAndQuery::from_static("/"),
        Some(path) => path.clone(),
    };
    *request.uri_mut() = path.into();
    request.headers_mut().insert(HOST, host.value.clone());
}
