//! The admin port: health, metrics, routes, version, all of it read-only; and for this machine alone, the use of keys and the drain.

pub mod drain;
pub(crate) mod usage;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::watch;

use self::drain::{Drain, Progress};
use crate::body::{self, Body};
use crate::browser::{self, NamedHost};
use crate::budget::Account;
use crate::gateway::Current;
use crate::listener::{Handler, Listen};
use crate::metrics::{Format, Metrics};
use crate::peer::Peer;
use crate::route::{Auth, Route};
use crate::usage::Usage;

/// Whether Keyward is ready, and if not, why.
#[derive(Debug)]
pub struct Readiness(watch::Sender<Result<(), String>>);

const DRAINING: &str = "draining";

impl Default for Readiness {
    fn default() -> Self {
        Self(watch::Sender::new(Err("starting".to_owned())))
    }
}

impl Readiness {
    /// Sets the state, with the reason when not ready. Ignored once draining.
    pub fn set(&self, state: Result<(), String>) {
        self.0.send_if_modified(|current| {
            let draining = current.as_ref().is_err_and(|reason| reason == DRAINING);
            if !draining {
                *current = state;
            }
            !draining
        });
    }

    /// Makes Keyward not ready for the rest of its life.
    pub fn drain(&self) {
        self.set(Err(DRAINING.to_owned()));
    }

    /// The state that was set last.
    pub fn get(&self) -> Result<(), String> {
        self.0.borrow().clone()
    }

    /// To watch the state.
    pub fn subscribe(&self) -> watch::Receiver<Result<(), String>> {
        self.0.subscribe()
    }

    /// Waits until ready.
    pub async fn wait_until_ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(Result::is_ok).await;
    }
}

/// Answers on the admin port.
pub struct Admin {
    /// For `/readyz`.
    pub readiness: Arc<Readiness>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/routes`.
    pub current: Arc<Current>,
    /// For `/usage`; `None` if it is not counted.
    pub usage: Option<Arc<Usage>>,
    /// For `/drain`.
    pub drain: Arc<Drain>,
    /// The address of the admin port.
    pub address: Listen,
}

impl Handler for Admin {
    async fn handle(
        self: Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        _account: &Arc<Account>,
    ) -> Response<Body> {
        let mut response = match (request.method(), request.uri().path()) {
            _ if browser::is_from_web_page(request.headers()) => {
                text_response(StatusCode::FORBIDDEN, "the admin port does not serve web pages\n")
            }
            (_, path) if !self.trusts_host(&request, peer) && !is_probe(path) => text_response(
                StatusCode::FORBIDDEN,
                "from this machine, use an IP address or localhost as the host\n",
            ),
            (&Method::POST, DRAIN) if !self.is_of_this_machine(&request, peer) => text_response(
                StatusCode::FORBIDDEN,
                "only requests from this machine may drain Keyward: use 127.0.0.1 or [::1]\n",
            ),
            (&Method::POST, DRAIN) => self.answer_drain().await,
            (_, DRAIN) => refuse_method("use POST\n", "POST"),
            (&Method::GET | &Method::HEAD, USAGE) => match self.is_of_this_machine(&request, peer) {
                true => usage::answer_usage(self.usage.as_deref(), request.uri().query().unwrap_or_default()),
                false => text_response(
                    StatusCode::FORBIDDEN,
                    "only requests from this machine may read the use of keys: use 127.0.0.1 or [::1]\n",
                ),
            },
            (&Method::GET | &Method::HEAD, path) => self.answer_get(path, request.headers()),
            _ => refuse_method("use GET or HEAD\n", "GET, HEAD"),
        };
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

impl Admin {
    /// SECURITY: if a web page's own host name is resolved to this machine (DNS rebinding), its browser takes the admin port for the
    /// page's origin, and sends neither `Origin` nor, over plain HTTP, `Sec-Fetch-Site`. From other machines any name is
    /// accepted, as Prometheus uses names of services.
    fn trusts_host(&self, request: &Request<Body>, peer: Peer) -> bool {
        let is_local = peer.address.is_some_and(|address| address.to_canonical().is_loopback());
        !is_local || NamedHost::from_request(request.uri(), request.headers()).is_safe()
    }

    /// Whether the request was made on this machine, or in this pod.
    ///
    /// SECURITY: the admin port is often open to other machines, for probes and scrapes, and whoever can read metrics must not be able to
    /// end the service. A service mesh may hand over requests of others from loopback: Istio from 127.0.0.6, and any proxy for HTTP
    /// with one of these headers.
    fn is_of_this_machine(&self, request: &Request<Body>, peer: Peer) -> bool {
        if FORWARDED_HEADERS.iter().any(|name| request.headers().contains_key(*name)) {
            return false;
        }
        let own = match &self.address {
            Listen::Tcp(address) => Some(address.ip().to_canonical()),
            Listen::Unix(_) => None,
        };
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let is_own = |address: IpAddr| loopback.contains(&address) || Some(address) == own;
        // A unix socket has no address.
        peer.address.is_none_or(|address| is_own(address.to_canonical()))
    }

    /// Begins the drain, if it has not begun: 202 while it is under way, 200 when it has ended.
    async fn answer_drain(&self) -> Response<Body> {
        let progress = self.drain.request().await;
        let status = match progress {
            Progress::Serving | Progress::Draining { .. } => StatusCode::ACCEPTED,
            Progress::Drained => StatusCode::OK,
        };
        build_response(status, "application/json", format!("{}\n", progress.to_json()))
    }

    fn answer_get(&self, path: &str, headers: &HeaderMap) -> Response<Body> {
        match path {
            "/livez" => text_response(StatusCode::OK, "live\n"),
            "/readyz" => match self.readiness.get() {
                Ok(()) => text_response(StatusCode::OK, "ready\n"),
                Err(reason) => {
                    text_response(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n"))
                }
            },
            "/metrics" => {
                let gateway = self.current.gateway();
                gateway.validator.update_gauges();
                gateway.expiry.update_gauge(&gateway.metrics);
                if let Some(usage) = &self.usage {
                    usage.update_gauge();
                }
                self.metrics.ready.set(self.readiness.get().is_ok().into());
                let format = Format::accepted(headers);
                build_response(StatusCode::OK, format.content_type(), self.metrics.encode_as(format))
            }
            "/routes" => {
                let gateway = self.current.gateway();
                let routes: Vec<_> = gateway.routes.routes().iter().map(route_as_json).collect();
                build_response(
                    StatusCode::OK,
                    "application/json",
                    format!("{}\n", serde_json::json!({ "routes": routes })),
                )
            }
            "/version" => {
                let version = serde_json::json!({ "name": "keyward", "version": env!("CARGO_PKG_VERSION") });
                build_response(StatusCode::OK, "application/json", format!("{version}\n"))
            }
            _ => text_response(
                StatusCode::NOT_FOUND,
                "not found; try /livez, /readyz, /metrics, /routes, /usage or /version\n",
            ),
        }
    }
}

/// The path of the use of keys.
const USAGE: &str = "/usage";
/// The path of the drain.
const DRAIN: &str = "/drain";
/// Headers that proxies add.
const FORWARDED_HEADERS: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-proto"];

fn refuse_method(text: &'static str, allow: &'static str) -> Response<Body> {
    let mut response = text_response(StatusCode::METHOD_NOT_ALLOWED, text);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// Load balancers send a `Host` of their own to these. Their responses contain nothing confidential.
fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

/// A route for `/routes` and `keyward check`. It repeats the route file, which holds no secrets.
pub(crate) fn route_as_json(route: &Route) -> serde_json::Value {
    let methods: Option<Vec<&str>> =
        route.methods.as_ref().map(|methods| methods.iter().map(Method::as_str).collect());
    let auth = match &route.auth {
        Auth::Public => "none",
        Auth::Key(_) | Auth::Shadow(_) => "key",
    };
    serde_json::json!({
        "route": &*route.label,
        "host": route.host,
        "path": route.pattern.to_string(),
        "methods": methods,
        "upstream": &*route.upstream,
        "auth": auth,
        "mode": if matches!(route.auth, Auth::Shadow(_)) { "shadow" } else { "enforce" },
        "preflight": route.preflight,
        "rate_limits": route.rate_limits.iter().map(|name| &**name).collect::<Vec<_>>(),
    })
}

fn text_response(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    build_response(status, "text/plain; charset=utf-8", text)
}

fn build_response(
    status: StatusCode,
    kind: &'static str,
    content: impl Into<bytes::Bytes>,
) -> Response<Body> {
    let mut response = Response::new(body::full(content));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
