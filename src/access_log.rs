//! One log line and one count for each request, with OpenTelemetry's attribute names. Never a query string or a key.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Version};

use crate::identity::Identity;
use crate::logging::json_line::{self, JsonLine, truncate_text};
use crate::logging::{self, output};
use crate::metrics::{self, Metrics};
use crate::rejection::Rejection;
use crate::traces::{self, RequestSpan};

/// What is written of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Nothing.
    Off,
    /// A JSON object with all fields.
    Json,
    /// One sentence, to be read on a terminal.
    Short,
}

impl Line {
    /// Fields for JSON, a sentence for text.
    pub fn from_settings(log: logging::Settings) -> Self {
        match (log.access, log.is_json()) {
            (false, _) => Self::Off,
            (true, true) => Self::Json,
            (true, false) => Self::Short,
        }
    }
}

/// What is known of a request. On drop it writes the log line and counts the request.
pub struct Record {
    metrics: Arc<Metrics>,
    line: Line,
    began: Instant,
    method: Method,
    path: Option<PathAndQuery>,
    version: Version,
    client: Option<IpAddr>,
    user_agent: Option<HeaderValue>,
    /// The trace id that the client sent, where there is no `span`.
    trace: Option<HeaderValue>,
    /// `None` where traces are not exported.
    pub span: Option<Box<RequestSpan>>,
    /// A trusted proxy's, or one of Keyward's own.
    pub request_id: HeaderValue,
    /// The route's label, or empty when there was none.
    pub route: Arc<str>,
    /// `None` before the verdict, and on public routes.
    pub identity: Option<Arc<Identity>>,
    /// Time to the verdict.
    pub validation: Option<Duration>,
    /// Time from forwarding the request to the response's head.
    pub upstream: Option<Duration>,
    /// `None` until there is a response: if the client closes before, 499 is logged.
    status: Option<u16>,
    /// Why Keyward rejected the request, or ended the response early.
    reason: Option<&'static str>,
    is_denied: bool,
    /// What the client is told in the response's headers: of its rate limits, and of the end of its key.
    pub notices: HeaderMap,
    /// Details for the operator, which the client does not see.
    pub cause: Option<String>,
    /// Bytes of the response's body.
    pub sent: u64,
    is_complete: bool,
}

impl Record {
    /// Begins when a request's head has arrived.
    pub fn begin<B>(
        request: &Request<B>,
        client: Option<IpAddr>,
        request_id: HeaderValue,
        span: Option<Box<RequestSpan>>,
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
            trace: if span.is_none() { traces::parse_trace_id(request.headers()) } else { None },
            span,
            request_id,
            route: Arc::from(""),
            identity: None,
            validation: None,
            upstream: None,
            status: None,
            reason: None,
            is_denied: false,
            notices: HeaderMap::new(),
            cause: None,
            sent: 0,
            is_complete: false,
        }
    }

    /// Records a response of Keyward's own.
    pub fn set_rejection(&mut self, rejection: &Rejection) {
        self.status = Some(rejection.status().as_u16());
        self.reason = Some(rejection.code());
        self.is_denied = rejection.is_denial();
        self.is_complete = true;
        if *rejection == Rejection::KeyIdPresented {
            self.cause = Some("the credential is the id of a key (apit_…), not a key".to_owned());
        }
    }

    /// The status of the upstream's response.
    pub fn set_status(&mut self, status: u16) {
        self.status = Some(status);
    }

    /// The response body was sent completely.
    pub fn mark_complete(&mut self) {
        self.is_complete = true;
    }

    /// The response was ended early.
    pub fn mark_cut(&mut self, reason: &'static str, cause: Option<String>) {
        self.reason = Some(reason);
        self.cause = cause;
    }

    fn decision(&self) -> &'static str {
        match (self.reason, self.is_denied) {
            (None, _) if self.status.is_some() => "allow",
            (Some(_), true) => "deny",
            _ => "error",
        }
    }

    fn reason(&self) -> Option<&'static str> {
        // The client closed before it had the whole response.
        self.reason.or_else(|| (!self.is_complete).then_some("caller_gone"))
    }

    fn write_short_line(&self, elapsed: Duration) {
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

    fn finish_span(&self, span: RequestSpan) {
        span.finish(&traces::Summary {
            method: &self.method,
            path: self.path.as_ref().map_or("", PathAndQuery::path),
            version: version_name(self.version),
            client: self.client,
            user_agent: self.user_agent.as_ref(),
            request_id: &self.request_id,
            route: &self.route,
            identity: self.identity.as_deref(),
            status: self.status,
            decision: self.decision(),
            reason: self.reason(),
            cause: self.cause.as_deref(),
            upstream: self.upstream,
        });
    }

    fn write_json(&self, elapsed: Duration) {
        let fields = |line: &mut JsonLine<'_>| {
            line.text("http.request.method", self.method.as_str());
            line.text("url.path", self.path.as_ref().map_or("", PathAndQuery::path));
            line.text("http.route", &self.route);
            line.number("http.response.status_code", self.status.unwrap_or(499).into());
            line.number("http.response.body.size", self.sent);
            line.text("network.protocol.version", version_name(self.version));
            if let Some(client) = self.client {
                line.text("client.address", &client.to_string());
            }
            if let Some(user_agent) = &self.user_agent {
                line.bytes("user_agent.original", user_agent.as_bytes());
            }
            line.text("keyward.decision", self.decision());
            if let Some(reason) = self.reason() {
                line.text("keyward.reason", reason);
            }
            line.text("keyward.route", &self.route);
            if let Some(identity) = &self.identity {
                line.bytes("keyward.org.id", identity.org_id.as_bytes());
                for (name, id) in
                    [("keyward.user.id", &identity.user_id), ("keyward.token.id", &identity.token_id)]
                {
                    if let Some(id) = id {
                        line.bytes(name, id.as_bytes());
                    }
                }
            }
            line.bytes("keyward.request.id", self.request_id.as_bytes());
            for (name, time) in [
                ("keyward.validation.duration", self.validation),
                ("keyward.upstream.duration", self.upstream),
                ("http.server.request.duration", Some(elapsed)),
            ] {
                if let Some(time) = time {
                    line.seconds(name, time);
                }
            }
            if let Some(trace) = &self.trace {
                line.bytes("trace_id", trace.as_bytes());
            }
            if let Some(span) = &self.span {
                line.text("trace_id", &span.trace_id());
                line.text("span_id", &span.span_id());
            }
            if let Some(cause) = &self.cause {
                line.text("error.message", cause);
            }
        };
        json_line::write_line("request", "access", fields, output::append_line);
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
            Line::Json => self.write_json(elapsed),
            Line::Short => self.write_short_line(elapsed),
        }
        if let Some(span) = self.span.take() {
            self.finish_span(*span);
        }
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
