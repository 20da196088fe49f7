//! The request path. `Gateway::pass` is all of it: route, credential, hop-by-hop, validation, policy, identity, upstream;
//! `Gateway::handle` around it records what happened.

mod response_body;
mod revalidation;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http_body::Body as _;
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_REQUEST_METHOD, FORWARDED, HOST, HeaderMap, HeaderName, ORIGIN, USER_AGENT,
};
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::response_body::ResponseBody;
use self::revalidation::{Revalidation, close_code, close_reason};
use crate::access_log::sampler::Sampler;
use crate::access_log::{self, Record};
use crate::body::Body;
use crate::budget::Account;
use crate::credential::{self, ApiKey};
use crate::hop_by_hop;
use crate::identity::{self, Identity, Misfit};
use crate::metrics::{self, Metrics};
use crate::policy::{Permit, Requirement};
use crate::rejection::{ErrorFormat, Rejection};
use crate::request_head::{self, Host};
use crate::route::{Auth, Route, RouteTable};
use crate::upstream::forwarded::{self, Peer, REQUEST_ID, Trusted};
use crate::upstream::websocket::CloseCode;
use crate::upstream::{Exchange, Failure, Upstream, request_body, tunnel};
use crate::validator::Validator;

/// What clients are told to wait where public routes have all the connections they may.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What holds for every route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The realm of `WWW-Authenticate`: printable ASCII without `"` and `\`.
    pub realm: String,
    /// The most of a request's head.
    pub head: request_head::Limits,
    /// The most of a request's body.
    pub body: request_body::Limits,
    /// How often the key of a request that lasts is asked about again.
    pub revalidate_every: Duration,
    /// Headers about forwarding that are kept from trusted proxies beside the usual ones.
    pub pass_headers: Vec<HeaderName>,
    /// How long such a request may go on when nobody can say whether its key is good; at least `revalidate_every`.
    pub unconfirmed_for: Duration,
    /// What is written of each request.
    pub access_log: access_log::Line,
}

/// Everything that a request passes.
pub struct Gateway {
    /// What holds for every route.
    pub settings: Settings,
    /// What can be a key.
    pub credential: credential::Settings,
    /// The identity headers.
    pub identity: Arc<identity::Headers>,
    /// Whose `X-Forwarded-*` is believed.
    pub trusted: Trusted,
    /// The routes.
    pub routes: RouteTable,
    /// The upstreams by name; each route's is there.
    pub upstreams: HashMap<Arc<str>, Arc<Upstream>>,
    /// Asks Scalekit.
    pub validator: Arc<Validator>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where tunnels run.
    pub tunnels: TaskTracker,
    /// Cancelled when tunnels must end.
    pub closing: CancellationToken,
}

impl Gateway {
    /// Answers a request, and records it once the answer has ended.
    pub async fn handle(&self, request: Request<Body>, peer: Peer, account: &Arc<Account>) -> Response<Body> {
        let believed = self.trusted.believes(peer);
        let request_id = forwarded::request_id(request.headers(), believed);
        let client = self.trusted.client(peer, request.headers());
        let (line, metrics) = (self.settings.access_log, Arc::clone(&self.metrics));
        let mut record = Record::begin(&request, client, request_id.clone(), line, metrics);
        let caller = ErrorFormat::of(&request);
        let downstream = Downstream { peer, believed, client, account };
        let mut response = match self.pass(request, downstream, &mut record).await {
            Ok(passed) => self.answer(passed, record, &caller),
            Err(rejection) => {
                record.rejected(&rejection);
                rejection.response(&caller, request_id.to_str().unwrap_or_default(), &self.settings.realm)
            }
        };
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    /// Refuses a request whatever it asks for, and records it.
    pub fn refuse(&self, request: &Request<Body>, peer: Peer, rejection: Rejection) -> Response<Body> {
        let request_id = forwarded::request_id(request.headers(), false);
        let (line, metrics) = (self.settings.access_log, Arc::clone(&self.metrics));
        let client = self.trusted.client(peer, request.headers());
        let mut record = Record::begin(request, client, request_id.clone(), line, metrics);
        record.rejected(&rejection);
        let id = request_id.to_str().unwrap_or_default();
        let mut response = rejection.response(&ErrorFormat::of(request), id, &self.settings.realm);
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    /// The request path, from a head to the head of the answer.
    async fn pass(
        &self,
        mut request: Request<Body>,
        downstream: Downstream<'_>,
        record: &mut Record,
    ) -> Result<Forwarded, Rejection> {
        let host = request_head::check(&request, self.settings.head)?;
        let (route, requirement, kind) = self.route(&request, &host)?;
        record.route = Arc::clone(&route.label);
        let key = ApiKey::take(request.headers_mut(), &self.credential);
        let upgrade = hop_by_hop::upgrade(request.method(), request.version(), request.headers());
        hop_by_hop::strip(request.headers_mut());
        if kind == Kind::Preflight {
            keep_preflight_headers(request.headers_mut());
        }
        let (permit, mut revalidation) = match requirement {
            None => {
                let admitted = downstream.account.admit_public();
                let admitted = admitted.ok_or(Rejection::Overloaded(RETRY_AFTER))?;
                (Permit::public(), Revalidation::none(admitted))
            }
            Some(requirement) => {
                let (key, began) = (key?, Instant::now());
                let identity = self.validator.validate(&key, downstream.client).await;
                record.validation = Some(began.elapsed());
                let identity = identity.inspect_err(|rejection| {
                    if *rejection == Rejection::InvalidKey {
                        downstream.account.show_a_bad_key();
                    }
                })?;
                let admitted = downstream.account.admit();
                record.identity = Some(Arc::clone(&identity));
                let revalidation =
                    Revalidation::new(self, key, &identity, requirement, began.into(), admitted);
                (requirement.admit(identity)?, revalidation)
            }
        };
        self.identify(&permit, request.headers_mut(), record)?;
        forwarded::set(
            request.headers_mut(),
            downstream.peer,
            downstream.believed,
            &self.settings.pass_headers,
            &host.value,
            &record.request_id,
        );
        address(&mut request, &host);
        if !request.body().is_end_stream() {
            request = request.map(|body| revalidation.upload(body));
        }
        let due = revalidation.due();
        let (response, tunnel, exchange) = tokio::select! {
            // This first: the upload breaks off for the same reason.
            biased;
            // An upload without end, or a slow service, may outlast the key before there is an answer.
            rejection = revalidation.closed_while_waiting() => return Err(rejection),
            forwarded = self.forward(request, route, &permit, upgrade, due, record) => forwarded?,
        };
        // SECURITY: a late head or 101 opens nothing for a key that was revoked while it was awaited.
        revalidation.confirm().await?;
        Ok(Forwarded { response, tunnel, revalidation, exchange })
    }

    /// The route, and what it asks for; nothing of a real CORS preflight that the route lets pass.
    fn route(
        &self,
        request: &Request<Body>,
        host: &Host,
    ) -> Result<(&Route, Option<&Requirement>, Kind), Rejection> {
        let path = request.uri().path();
        if let Some(asked) = preflight(request)
            && let Some(route) = self.routes.find_preflight(&asked, &host.name, path)
        {
            return Ok((route, None, Kind::Preflight));
        }
        let route = self.routes.find(request.method(), &host.name, path)?;
        match &route.auth {
            Auth::Public => Ok((route, None, Kind::Request)),
            Auth::Key(requirement) => Ok((route, Some(requirement), Kind::Request)),
        }
    }

    /// Removes who the caller claims to be, and says who it is.
    fn identify(
        &self,
        permit: &Permit,
        headers: &mut HeaderMap,
        record: &mut Record,
    ) -> Result<(), Rejection> {
        if self.identity.strip(headers) > 0 {
            let route = metrics::Route { route: Arc::clone(&record.route) };
            self.metrics.spoofed_headers.get_or_create(&route).inc();
        }
        if let Some(identity) = permit.identity() {
            self.identity.set(identity, headers).inspect_err(|misfit| {
                if let Misfit::SharedHeader { header, claims } = misfit {
                    self.metrics.claims_left_out.inc_by(claims.len() as u64);
                    record.cause = Some(format!("the claims {claims:?} would share the header {header}"));
                    warn_of_shared_header(identity, header, claims);
                }
            })?;
        }
        Ok(())
    }

    async fn forward(
        &self,
        mut request: Request<Body>,
        route: &Route,
        permit: &Permit,
        upgrade: Option<hop_by_hop::WebSocket>,
        due: Option<tokio::time::Instant>,
        record: &mut Record,
    ) -> Result<(Response<Body>, Option<Tunnel>, Exchange), Rejection> {
        let Some(upstream) = self.upstreams.get(&route.upstream) else {
            return Err(Rejection::UpstreamUnreachable);
        };
        let caller = upgrade.map(|_| hyper::upgrade::on(&mut request));
        let began = Instant::now();
        let answered =
            upstream.forward(request, permit, upgrade, due, &self.identity, self.settings.body).await;
        record.upstream = Some(began.elapsed());
        let (mut response, exchange) = answered.map_err(|failure| {
            upstream.log_failure(&failure);
            let Failure { rejection, cause } = failure;
            record.cause = Some(cause);
            rejection
        })?;
        record.answered(response.status().as_u16());
        let switched = caller.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
        let tunnel = switched.map(|caller| Tunnel { caller, upstream: hyper::upgrade::on(&mut response) });
        Ok((response, tunnel, exchange))
    }

    /// The answer, watched and recorded to its end.
    fn answer(&self, passed: Forwarded, mut record: Record, caller: &ErrorFormat) -> Response<Body> {
        let Forwarded { response, tunnel, mut revalidation, exchange } = passed;
        let Some(Tunnel { caller, upstream }) = tunnel else {
            let status = caller.takes_status(response.headers());
            return response.map(|body| ResponseBody::wrap(body, record, revalidation, status, exchange));
        };
        let closing = self.closing.clone();
        self.tunnels.spawn(async move {
            let _exchange = exchange;
            let cut = async {
                tokio::select! {
                    () = closing.cancelled() => (CloseCode::GoingAway, "shutdown"),
                    rejection = revalidation.closed() => (close_code(&rejection), close_reason(&rejection)),
                }
            };
            match tunnel::run(caller, upstream, cut).await {
                Some(reason) => record.cut(reason, None),
                None => record.ended(),
            }
        });
        response
    }
}

/// The gateway that new requests take. A request keeps the one that it began with.
pub struct Current(RwLock<Arc<Gateway>>);

impl Current {
    /// Begins with this one.
    pub fn new(gateway: Gateway) -> Self {
        Self(RwLock::new(Arc::new(gateway)))
    }

    /// The one in force.
    pub fn gateway(&self) -> Arc<Gateway> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another one, from now on.
    pub fn replace(&self, gateway: Gateway) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(gateway);
    }
}

/// A request that was forwarded, and its response.
struct Forwarded {
    response: Response<Body>,
    tunnel: Option<Tunnel>,
    revalidation: Revalidation,
    exchange: Exchange,
}

/// Both ends of a WebSocket to be.
struct Tunnel {
    caller: OnUpgrade,
    upstream: OnUpgrade,
}

/// What is known of a request beside itself.
struct Downstream<'a> {
    peer: Peer,
    believed: bool,
    client: Option<std::net::IpAddr>,
    account: &'a Arc<Account>,
}

/// What a request is to its route.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Request,
    /// Passes without a key.
    Preflight,
}

/// The method that a CORS preflight asks about: OPTIONS with one `Origin` and one `Access-Control-Request-Method`, and no body.
fn preflight(request: &Request<Body>) -> Option<Method> {
    let asks = request.method() == Method::OPTIONS && request.body().is_end_stream();
    let only = |name: HeaderName| {
        let mut values = request.headers().get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    // SECURITY: of two, the service could take the other one.
    only(ORIGIN).filter(|_| asks)?;
    let method = only(ACCESS_CONTROL_REQUEST_METHOD)?;
    Method::from_bytes(method.as_bytes()).ok()
}

/// SECURITY: nobody has shown a key, and a service that takes every method runs its handler. It gets what the Fetch standard sends of
/// its own accord, and what trusted proxies say of the client, but no cookie, token or method override.
fn keep_preflight_headers(headers: &mut HeaderMap) {
    let kept = |name: &HeaderName| {
        [ORIGIN, HOST, ACCEPT, USER_AGENT, FORWARDED, REQUEST_ID].contains(name)
            || name.as_str().starts_with("access-control-request-")
            || name.as_str().starts_with("x-forwarded-")
    };
    let others: Vec<HeaderName> = headers.keys().filter(|name| !kept(name)).cloned().collect();
    for name in others {
        headers.remove(name);
    }
}

/// Tells the operator of a key that cannot be used as it is, also where requests are not logged.
fn warn_of_shared_header(identity: &Identity, header: &HeaderName, claims: &[String]) {
    static SAMPLER: Sampler = Sampler::new();
    if let Some(suppressed) = SAMPLER.admit() {
        tracing::warn!(
            keyward.token.id = identity.token_id.as_ref().and_then(|id| id.to_str().ok()),
            suppressed,
            "refused a key whose claims {claims:?} would share the header {header}; name a header for one under \
             identity.claim_headers, or choose the claims in identity.claims"
        );
    }
}

/// The target in origin-form, as sent, and the caller's authority as `Host`.
fn address(request: &mut Request<Body>, host: &Host) {
    let path = match request.uri().path_and_query() {
        // `http://a` and `http://a#x` have none, which was taken for `/`; hyper would write none.
        None => PathAndQuery::from_static("/"),
        Some(path) if path.as_str() == "/" => PathAndQuery::from_static("/"),
        Some(path) => path.clone(),
    };
    *request.uri_mut() = path.into();
    request.headers_mut().insert(HOST, host.value.clone());
}
