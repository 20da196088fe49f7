//! One log line and one count for each request, with OpenTelemetry's attribute names. Never a query string or a key.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Version};

use crate::identity::Identity;
use crate::logging;
use crate::metrics::{self, Metrics};
use crate::rejection::Rejection;

/// What is written of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Nothing.
    Off,
    /// All that is known, field by field.
    Fields,
    /// What a person wants to see.
    Short,
}

impl Line {
    /// What these settings ask for.
    pub fn from_settings(log: logging::Settings) -> Self {
        match (log.access, log.is_json()) {
            (false, _) => Self::Off,
            (true, true) => Self::Fields,
            (true, false) => Self::Short,
        }
    }
}

/// What a caller can put into a line, in characters for each field.
const LONGEST_TEXT: usize = 512;

/// What is known of a request so far. On drop it writes the log line and counts the request.
pub struct Record {
    metrics: Arc<Metrics>,
    line: Line,
    began: Instant,
    method: Method,
    path: Option<PathAndQuery>,
    version: Version,
    client: Option<IpAddr>,
    user_agent: Option<HeaderValue>,
    trace: Option<HeaderValue>,
    /// `X-Request-Id`.
    pub request_id: HeaderValue,
    /// The route's label.
    pub route: Arc<str>,
    /// Whom the request speaks for.
    pub identity: Option<Arc<Identity>>,
    /// The time spent on the verdict.
    pub validation: Option<Duration>,
    /// The time from sending upstream to the head of the answer.
    pub upstream: Option<Duration>,
    /// The status that the caller got; none yet if it went away before.
    status: Option<u16>,
    /// Why Keyward answered itself, or cut the answer.
    reason: Option<&'static str>,
    denied: bool,
    /// What went wrong, for the operator.
    pub cause: Option<String>,
    /// Bytes of the answer's body.
    pub sent: u64,
    whole: bool,
}

impl Record {
    /// Begins with the arrival of a request's head.
    pub fn begin<B>(
        request: &Request<B>,
        client: Option<IpAddr>,
        request_id: HeaderValue,
        line: Line,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.requests_in_flight.inc();
        Self {
            metrics,
            line,
            began: Instant::now(),
            method: request.method().clone(),
            path: request.uri().path_and_query().cloned(),
            version: request.version(),
            client,
            user_agent: request.headers().get(USER_AGENT).cloned(),
            trace: parse_trace_id(request.headers()),
            request_id,
            route: Arc::from(""),
            identity: None,
            validation: None,
            upstream: None,
            status: None,
            reason: None,
            denied: false,
            cause: None,
            sent: 0,
            whole: false,
        }
    }

    /// Keyward rejects the request.
    pub fn set_rejection(&mut self, rejection: &Rejection) {
        self.status = Some(rejection.status().as_u16());
        self.reason = Some(rejection.code());
        self.denied = rejection.is_denial();
        self.whole = true;
        if *rejection == Rejection::KeyIdPresented {
            self.cause = Some("the credential is the id of a key (apit_…), not a key".to_owned());
        }
    }

    /// The upstream has answered with this status.
    pub fn set_status(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// The response body was sent completely.
    pub fn mark_complete(&mut self) {
        self.whole = true;
    }

    /// The response was ended early.
    pub fn mark_cut(&mut self, reason: &'static str, cause: Option<String>) {
        self.reason = Some(reason);
        self.cause = cause;
    }

    fn decision(&self) -> &'static str {
        match (self.reason, self.denied) {
            (None, _) if self.status.is_some() => "allow",
            (Some(_), true) => "deny",
            _ => "error",
        }
    }

    fn reason(&self) -> Option<&'static str> {
        // Nobody was there to take the answer, or the rest of it.
        self.reason.or_else(|| (!self.whole).then_some("caller_gone"))
    }

    fn write_short(&self, elapsed: Duration) {
        let ids =
            self.identity.iter().flat_map(|identity| [Some(&identity.org_id), identity.user_id.as_ref()]);
        let ids = ids
            .flatten()
            .map(|id| format!(" {}", String::from_utf8_lossy(id.as_bytes())))
            .collect::<String>();
        let reason = self.reason().map_or_else(String::new, |reason| format!(" {reason}"));
        let time = |what, time: Option<Duration>| {
            time.map_or_else(String::new, |time| format!(", {what} {:.1} ms", time.as_secs_f64() * 1e3))
        };
        tracing::info!(
            target: "access",
            "{} {} {} {}{reason}{ids} in {:.1} ms{}{}{}",
            self.status.unwrap_or(499),
            self.method,
            truncate_text(self.path.as_ref().map_or("", PathAndQuery::path)),
            self.decision(),
            elapsed.as_secs_f64() * 1e3,
            time("validation", self.validation),
            time("upstream", self.upstream),
            self.cause.as_ref().map_or_else(String::new, |cause| format!(": {cause}")),
        );
    }

    fn write(&self, elapsed: Duration) {
        let path = self.path.as_ref().map_or("", PathAndQuery::path);
        let identity = self.identity.as_deref();
        let text =
            |value: &HeaderValue| truncate_text(&String::from_utf8_lossy(value.as_bytes())).into_owned();
        tracing::event!(
            target: "access",
            tracing::Level::INFO,
            http.request.method = self.method.as_str(),
            url.path = &*truncate_text(path),
            http.route = &*self.route,
            http.response.status_code = self.status.unwrap_or(499),
            http.response.body.size = self.sent,
            network.protocol.version = version_name(self.version),
            client.address = self.client.map(tracing::field::display),
            user_agent.original = self.user_agent.as_ref().map(text),
            keyward.decision = self.decision(),
            keyward.reason = self.reason(),
            keyward.route = &*self.route,
            keyward.org.id = identity.map(|identity| text(&identity.org_id)),
            keyward.user.id = identity.and_then(|identity| identity.user_id.as_ref()).map(text),
            keyward.token.id = identity.and_then(|identity| identity.token_id.as_ref()).map(text),
            keyward.request.id = text(&self.request_id),
            keyward.validation.duration = self.validation.map(|time| time.as_secs_f64()),
            keyward.upstream.duration = self.upstream.map(|time| time.as_secs_f64()),
            http.server.request.duration = elapsed.as_secs_f64(),
            trace_id = self.trace.as_ref().map(text),
            error.message = self.cause.as_deref(),
            "request"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.began.elapsed();
        let labels = metrics::Request {
            route: Arc::clone(&self.route),
            method: metrics::method_label(&self.method),
            code: self.status.unwrap_or(499),
            outcome: self.decision(),
        };
        self.metrics.requests.get_or_create(&labels).inc();
        let route = metrics::Route { route: Arc::clone(&self.route) };
        self.metrics.request_seconds.get_or_create(&route).observe(elapsed.as_secs_f64());
        if let Some(upstream) = self.upstream {
            self.metrics.upstream_seconds.get_or_create(&route).observe(upstream.as_secs_f64());
        }
        self.metrics.requests_in_flight.dec();
        match self.line {
            Line::Off => {}
            Line::Fields => self.write(elapsed),
            Line::Short => self.write_short(elapsed),
        }
    }
}

/// The trace id of `traceparent` (W3C Trace Context section 3.2), which is passed on as it is.
fn parse_trace_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let id = value
        .split('-')
        .nth(1)
        .filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    HeaderValue::from_str(id).ok()
}

fn truncate_text(text: &str) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]).into(),
        None => text.into(),
    }
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_11 => "1.1",
        Version::HTTP_2 => "2",
        _ => "other",
    }
}
