//! The request path. `Gateway::pass` is all of it: route, credential, hop-by-hop, validation, policy, identity, upstream;
//! `Gateway::handle` around it records what happened.

mod answer;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http_body::Body as _;
use hyper::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::answer::Answer;
use self::watch::{Watch, Watched};
use crate::access_log::{self, Record};
use crate::body::Body;
use crate::budget::Account;
use crate::credential::{self, ApiKey};
use crate::hop;
use crate::identity;
use crate::message::{self, Host};
use crate::metrics::{self, Metrics};
use crate::policy::{Permit, Requirement};
use crate::rejection::{Caller, Rejection};
use crate::route::{Auth, Route, RouteTable};
use crate::upstream::forwarded::{self, Peer, REQUEST_ID, Trusted};
use crate::upstream::websocket::CloseCode;
use crate::upstream::{Exchange, Failure, Upstream, outgoing, tunnel};
use crate::validator::Validator;

/// What holds for every route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The realm of `WWW-Authenticate`: printable ASCII without `"` and `\`.
    pub realm: String,
    /// The most of a request's head.
    pub head: message::Limits,
    /// The most of a request's body.
    pub body: outgoing::Limits,
    /// How often the key of an open stream is asked about again.
    pub revalidate_every: Duration,
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
    pub async fn handle(&self, request: Request<Body>, peer: Peer, account: &Account) -> Response<Body> {
        let believed = self.trusted.believes(peer);
        let request_id = forwarded::request_id(request.headers(), believed);
        let client = self.trusted.client(peer, request.headers());
        let (line, metrics) = (self.settings.access_log, Arc::clone(&self.metrics));
        let mut record = Record::begin(&request, client, request_id.clone(), line, metrics);
        let caller = Caller::of(&request);
        let arrival = Arrival { peer, believed, client, account };
        let mut response = match self.pass(request, arrival, &mut record).await {
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
        let mut response = rejection.response(&Caller::of(request), id, &self.settings.realm);
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    /// The request path, from a head to the head of the answer.
    async fn pass(
        &self,
        mut request: Request<Body>,
        arrival: Arrival<'_>,
        record: &mut Record,
    ) -> Result<Passed, Rejection> {
        let host = message::check(&request, self.settings.head)?;
        let (route, requirement) = self.route(&request, &host)?;
        record.route = Arc::clone(&route.label);
        let key = ApiKey::take(request.headers_mut(), &self.credential);
        let upgrade = hop::upgrade(request.method(), request.version(), request.headers());
        hop::strip(request.headers_mut());
        let (permit, mut watched) = match requirement {
            None => (Permit::public(), Watched::default()),
            Some(requirement) => {
                let (key, began) = (key?, Instant::now());
                let identity = self.validator.validate(&key, arrival.client).await;
                record.validation = Some(began.elapsed());
                let identity = identity?;
                arrival.account.show_a_good_key();
                record.identity = Some(Arc::clone(&identity));
                let watch = Watch::new(self, key, &identity, requirement);
                (requirement.admit(identity)?, Watched::by(watch))
            }
        };
        self.identify(&permit, request.headers_mut(), record)?;
        forwarded::set(
            request.headers_mut(),
            arrival.peer,
            arrival.believed,
            &host.value,
            &record.request_id,
        );
        address(&mut request, &host);
        let sending = !request.body().is_end_stream();
        if sending {
            request = request.map(|body| watched.upload(body));
        }
        let (response, tunnel, exchange) = tokio::select! {
            // This first: the upload breaks off for the same reason.
            biased;
            // What is sent without end, as a stream of gRPC, may outlast its key before there is an answer.
            rejection = watched.ended(), if sending => return Err(rejection),
            forwarded = self.forward(request, route, &permit, upgrade, record) => forwarded?,
        };
        Ok(Passed { response, tunnel, watched, exchange })
    }

    /// The route, and what it asks for; nothing of a real CORS preflight that the route lets pass.
    fn route(
        &self,
        request: &Request<Body>,
        host: &Host,
    ) -> Result<(&Route, Option<&Requirement>), Rejection> {
        let path = request.uri().path();
        if let Some(asked) = preflight(request)
            && let Some(route) = self.routes.find_preflight(&asked, &host.name, path)
        {
            return Ok((route, None));
        }
        let route = self.routes.find(request.method(), &host.name, path)?;
        match &route.auth {
            Auth::Public => Ok((route, None)),
            Auth::Key(requirement) => Ok((route, Some(requirement))),
        }
    }

    /// Removes who the caller claims to be, and says who it is.
    fn identify(
        &self,
        permit: &Permit,
        headers: &mut hyper::HeaderMap,
        record: &Record,
    ) -> Result<(), Rejection> {
        if self.identity.strip(headers) > 0 {
            let route = metrics::Route { route: Arc::clone(&record.route) };
            self.metrics.forged.get_or_create(&route).inc();
        }
        if let Some(identity) = permit.identity() {
            let left_out = self.identity.set(identity, headers)?;
            if left_out > 0 && self.metrics.claims_left_out.inc_by(left_out as u64).is_power_of_two() {
                let token = identity.token_id.as_ref().and_then(|id| id.to_str().ok());
                tracing::warn!(
                    keyward.token.id = token,
                    left_out,
                    "claims that would share a header are left out"
                );
            }
        }
        Ok(())
    }

    async fn forward(
        &self,
        mut request: Request<Body>,
        route: &Route,
        permit: &Permit,
        upgrade: Option<hop::WebSocket>,
        record: &mut Record,
    ) -> Result<(Response<Body>, Option<Tunnel>, Exchange), Rejection> {
        let Some(upstream) = self.upstreams.get(&route.upstream) else {
            return Err(Rejection::UpstreamUnreachable);
        };
        let caller = upgrade.map(|_| hyper::upgrade::on(&mut request));
        let began = Instant::now();
        let answered = upstream.forward(request, permit, upgrade, &self.identity, self.settings.body).await;
        record.upstream = Some(began.elapsed());
        let (mut response, exchange) = answered.map_err(|Failure { rejection, cause }| {
            record.cause = Some(cause);
            rejection
        })?;
        record.answered(response.status().as_u16());
        let switched = caller.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
        let tunnel = switched.map(|caller| Tunnel { caller, upstream: hyper::upgrade::on(&mut response) });
        Ok((response, tunnel, exchange))
    }

    /// The answer, watched and recorded to its end.
    fn answer(&self, passed: Passed, mut record: Record, caller: &Caller) -> Response<Body> {
        let Passed { response, tunnel, mut watched, exchange } = passed;
        let Some(Tunnel { caller, upstream }) = tunnel else {
            let status = caller.takes_status(response.headers());
            return response.map(|body| Answer::wrap(body, record, watched, status, exchange));
        };
        let closing = self.closing.clone();
        self.tunnels.spawn(async move {
            let _exchange = exchange;
            let cut = async {
                tokio::select! {
                    () = closing.cancelled() => (CloseCode::GoingAway, "shutdown"),
                    _ = watched.ended() => (CloseCode::PolicyViolation, "key_no_longer_valid"),
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

/// A request that passed, and its answer.
struct Passed {
    response: Response<Body>,
    tunnel: Option<Tunnel>,
    watched: Watched,
    exchange: Exchange,
}

/// Both ends of a WebSocket to be.
struct Tunnel {
    caller: OnUpgrade,
    upstream: OnUpgrade,
}

/// What is known of a request beside itself.
struct Arrival<'a> {
    peer: Peer,
    believed: bool,
    client: Option<std::net::IpAddr>,
    account: &'a Account,
}

/// The method that a CORS preflight asks about: OPTIONS with `Origin` and `Access-Control-Request-Method`, and no body.
fn preflight(request: &Request<Body>) -> Option<Method> {
    let headers = request.headers();
    let asks =
        request.method() == Method::OPTIONS && headers.contains_key(ORIGIN) && request.body().is_end_stream();
    let method = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| asks)?;
    Method::from_bytes(method.as_bytes()).ok()
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
    request.headers_mut().insert(hyper::header::HOST, host.value.clone());
}
