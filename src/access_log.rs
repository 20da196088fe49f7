//! One log line and one count for each request, with OpenTelemetry's attribute names. Never a query string or a key.

mod grpc_status;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body::Body as _;
use hyper::header::{HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};

use crate::body::Body;
use crate::identity::Identity;
use crate::logging::json_line::{self, JsonLine, truncate_text};
use crate::logging::{self, output};
use crate::metrics::{self, Metrics, RouteSeries, StreamKind};
use crate::policy::Unmet;
use crate::rejection::Rejection;
use crate::traces::{self, RequestSpan};
use crate::usage::{End, OpenRequest};

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

/// The status of a request whose client closed before there was a response, as nginx logs it.
const CLIENT_CLOSED: u16 = 499;

/// Who sent a request, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// `None` on a unix socket that names no client.
    pub address: Option<IpAddr>,
    /// `http` or `https`.
    pub scheme: &'static str,
}

/// What is known of a request. On drop it writes the log line and counts the request.
pub struct Record {
    metrics: Arc<Metrics>,
    line: Line,
    began: Instant,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    version: Version,
    client: Client,
    user_agent: Option<HeaderValue>,
    /// The trace id that the client sent, where there is no `span`.
    trace: Option<HeaderValue>,
    /// `None` where traces are not exported.
    pub span: Option<Box<RequestSpan>>,
    /// A trusted proxy's, or one of Keyward's own.
    pub request_id: HeaderValue,
    /// Of the route, or without a label when there was none.
    pub route: Arc<RouteSeries>,
    /// The use of the key, where it is counted; present together with the identity.
    pub usage: Option<OpenRequest>,
    /// `None` before the verdict, and on public routes.
    pub identity: Option<Arc<Identity>>,
    /// Time to the verdict.
    pub validation: Option<Duration>,
    /// Time from forwarding the request to the response's head.
    pub upstream: Option<Duration>,
    /// When the head of the upstream's response arrived.
    head_at: Option<Instant>,
    /// `None` until there is a response: if the client closes before, 499 is logged.
    status: Option<StatusCode>,
    /// The status of a rejection, which a gRPC client gets as 200 with a `grpc-status`.
    rejected: Option<StatusCode>,
    grpc_status: Option<&'static str>,
    stream: Option<StreamKind>,
    /// Why Keyward rejected the request, or ended the response early.
    reason: Option<&'static str>,
    is_denied: bool,
    /// What the client is told in the response's headers: of its rate limits, and of the end of its key.
    pub notices: HeaderMap,
    /// Why the key is not permitted.
    pub unmet: Option<Unmet>,
    /// In shadow mode, what would have become of the request.
    shadow: Option<Shadow>,
    /// Details for the operator, which the client does not see.
    pub cause: Option<String>,
    /// Bytes of the response's body.
    pub sent: u64,
    is_complete: bool,
}

impl Record {
    /// Begins when a request's head has arrived. `route` is that of requests without a route.
    pub fn begin<B>(
        request: &Request<B>,
        client: Client,
        request_id: HeaderValue,
        span: Option<Box<RequestSpan>>,
        line: Line,
        metrics: Arc<Metrics>,
        route: Arc<RouteSeries>,
    ) -> Self {
        metrics.requests_in_flight.inc();
        Self {
            metrics,
            line,
            began: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: request.headers().get(HOST).cloned(),
            version: request.version(),
            client,
            user_agent: request.headers().get(USER_AGENT).cloned(),
            trace: if span.is_none() { traces::parse_trace_id(request.headers()) } else { None },
            span,
            request_id,
            route,
            usage: None,
            identity: None,
            validation: None,
            upstream: None,
            head_at: None,
            status: None,
            rejected: None,
            grpc_status: None,
            stream: None,
            reason: None,
            is_denied: false,
            notices: HeaderMap::new(),
            unmet: None,
            shadow: None,
            cause: None,
            sent: 0,
            is_complete: false,
        }
    }

    /// The client's address.
    pub fn client(&self) -> Option<IpAddr> {
        self.client.address
    }

    /// Records a rejection, and the response that states it.
    pub fn set_rejection(&mut self, rejection: &Rejection, response: &Response<Body>) {
        self.status = Some(response.status());
        self.rejected = Some(rejection.status());
        self.grpc_status = grpc_status::parse(response.headers());
        self.sent = response.body().size_hint().exact().unwrap_or_default();
        self.reason = Some(rejection.code());
        self.is_denied = rejection.is_denial();
        self.is_complete = true;
        if *rejection == Rejection::KeyIdPresented {
            self.cause = Some("the credential is the id of a key (apit_…), not a key".to_owned());
        }
    }

    /// The request is forwarded in shadow mode, although it would have been rejected with this.
    pub fn observe(&mut self, rejection: Option<&Rejection>) {
        // The response is the service's, to which limits do not apply.
        self.notices.clear();
        self.cause = None;
        let (reason, unmet) = (rejection.map(Rejection::code), self.unmet.take());
        self.shadow = Some(Shadow { reason, unmet });
    }

    /// A response of Keyward's own that permits the request, or the head of the upstream's, which arrived at `at`.
    pub fn set_status(&mut self, status: StatusCode, at: Instant) {
        self.status = Some(status);
        self.head_at = Some(at);
    }

    /// The response is a stream, which is not counted among the durations of other responses.
    pub fn set_stream(&mut self, stream: StreamKind) {
        self.stream = Some(stream);
    }

    /// The status of a gRPC call, if this is one and these headers or trailers have it.
    pub fn set_grpc_status(&mut self, headers: &HeaderMap) {
        if self.stream == Some(StreamKind::Grpc) {
            self.grpc_status = grpc_status::parse(headers).or(self.grpc_status);
        }
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

    /// The label of metrics: a requirement in place of the code that all of them share.
    fn reason_label(&self) -> &'static str {
        self.unmet.as_ref().map(Unmet::kind).or_else(|| self.reason()).unwrap_or_default()
    }

    /// Why the request failed by the fault of a server (`error.type` of OpenTelemetry's conventions).
    fn error_type(&self) -> Option<&str> {
        match (self.decision(), &self.status) {
            ("error", _) => self.reason(),
            ("allow", Some(status)) if status.is_server_error() => Some(status.as_str()),
            _ => None,
        }
    }

    fn path(&self) -> &str {
        self.uri.path_and_query().map_or("", |path| path.path())
    }

    /// The status code on the wire.
    fn status_code(&self) -> u16 {
        self.status.map_or(CLIENT_CLOSED, |status| status.as_u16())
    }

    fn write_short_line(&self, elapsed: Duration) {
        let ids =
            self.identity.iter().flat_map(|identity| [Some(&identity.org_id), identity.user_id.as_ref()]);
        let ids = ids
            .flatten()
            .map(|id| format!(" {}", String::from_utf8_lossy(id.as_bytes())))
            .collect::<String>();
        let mut reason = self.reason().map_or_else(String::new, |reason| format!(" {reason}"));
        if let Some(Shadow { reason: Some(would_be), .. }) = &self.shadow {
            reason += &format!(" (shadow mode: {would_be})");
        }
        let time = |what, time: Option<Duration>| {
            time.map_or_else(String::new, |time| format!(", {what} {:.1} ms", time.as_secs_f64() * 1e3))
        };
        let unmet = self.unmet.as_ref().map_or_else(String::new, |unmet| {
            format!(": the key does not meet the required {} {}", unmet.kind(), truncate_text(unmet.name()))
        });
        tracing::info!(
            target: "access",
            "{} {} {} {}{reason}{ids} in {:.1} ms{}{}{unmet}{}",
            self.status_code(),
            self.method,
            truncate_text(self.path()),
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
            path: self.path(),
            version: version_name(self.version),
            client: self.client.address,
            user_agent: self.user_agent.as_ref(),
            request_id: &self.request_id,
            route: self.route.label(),
            identity: self.identity.as_deref(),
            status: self.rejected.or(self.status).map(|status| status.as_u16()),
            decision: self.decision(),
            reason: self.reason(),
            cause: self.cause.as_deref(),
            upstream: self.upstream,
        });
    }

    fn write_json(&self, elapsed: Duration) {
        let fields = |line: &mut JsonLine<'_>| {
            line.text("http.request.method", self.method.as_str());
            line.text("url.scheme", self.client.scheme);
            line.text("url.path", self.path());
            self.write_server(line);
            if !self.route.label().is_empty() {
                line.text("http.route", self.route.label());
                line.text("keyward.route", self.route.label());
            }
            line.number("http.response.status_code", self.status_code().into());
            line.number("http.response.body.size", self.sent);
            if let Some(status) = self.grpc_status {
                line.text("rpc.response.status_code", status);
            }
            line.text("network.protocol.version", version_name(self.version));
            if let Some(client) = self.client.address {
                line.text("client.address", &client.to_string());
            }
            if let Some(user_agent) = &self.user_agent {
                line.bytes("user_agent.original", user_agent.as_bytes());
            }
            self.write_decision(line);
            line.bytes("keyward.request.id", self.request_id.as_bytes());
            for (name, time) in [
                ("keyward.validation.duration", self.validation),
                ("keyward.upstream.duration", self.upstream),
                ("keyward.request.duration", Some(elapsed)),
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
            if let Some(error) = self.error_type() {
                line.text("error.type", error);
            }
            if let Some(cause) = &self.cause {
                line.text("keyward.error.message", cause);
            }
        };
        json_line::write_line("request", "access", fields, output::append_line);
    }

    /// The host that the client asked for.
    fn write_server(&self, line: &mut JsonLine<'_>) {
        let authority = self.uri.authority().map(Authority::as_str).map(str::as_bytes);
        let Some(authority) = authority.or_else(|| self.host.as_ref().map(HeaderValue::as_bytes)) else {
            return;
        };
        let (address, port) = split_port(authority);
        line.bytes("server.address", address);
        if let Some(port) = port {
            line.number("server.port", port.into());
        }
    }

    fn write_decision(&self, line: &mut JsonLine<'_>) {
        line.text("keyward.decision", self.decision());
        if let Some(reason) = self.reason() {
            line.text("keyward.reason", reason);
        }
        if let Some(Shadow { reason, .. }) = &self.shadow {
            line.text("keyward.mode", "shadow");
            if let Some(reason) = reason {
                line.text("keyward.shadow.reason", reason);
            }
        }
        let unmet = self.unmet.as_ref().or_else(|| self.shadow.as_ref()?.unmet.as_ref());
        if let Some(unmet) = unmet {
            line.text("keyward.requirement.kind", unmet.kind());
            line.text("keyward.requirement.name", unmet.name());
        }
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
    }

    /// The status of a rejection, whatever a gRPC client got, or else that on the wire.
    fn counted_code(&self) -> u16 {
        self.rejected.map_or_else(|| self.status_code(), |rejected| rejected.as_u16())
    }

    fn count(&self, elapsed: Duration) {
        let code = self.counted_code();
        let labels = metrics::Request {
            route: Arc::clone(self.route.label()),
            method: metrics::method_label(&self.method),
            code,
            outcome: self.decision(),
            reason: self.reason_label(),
        };
        self.metrics.requests.get_or_create(&labels).inc();
        if let Some(shadow) = &self.shadow {
            let outcome = shadow.reason.unwrap_or("allowed");
            let labels = metrics::Shadow { route: Arc::clone(self.route.label()), outcome };
            self.metrics.shadow_requests.get_or_create(&labels).inc();
        }
        self.route.observe_request(&self.metrics, code, self.stream, elapsed);
        if let Some(upstream) = self.upstream {
            self.route.observe_upstream(&self.metrics, upstream);
        }
        if self.status.is_some() {
            let head = self.head_at.map_or(elapsed, |at| at.saturating_duration_since(self.began));
            let waits = self.validation.unwrap_or_default() + self.upstream.unwrap_or_default();
            self.metrics.own_seconds.observe(head.saturating_sub(waits).as_secs_f64());
        }
        self.metrics.requests_in_flight.dec();
    }
}

/// What would have become of a request.
struct Shadow {
    /// The code of the rejection, if it would have been rejected.
    reason: Option<&'static str>,
    unmet: Option<Unmet>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.began.elapsed();
        self.count(elapsed);
        if let (Some(usage), Some(identity)) = (self.usage.take(), &self.identity) {
            usage.finish(identity, End { status: self.counted_code(), outcome: self.decision() });
        }
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

/// The host and port of an authority. A name that is not one is left as it is.
fn split_port(authority: &[u8]) -> (&[u8], Option<u16>) {
    let (host, port) = match authority.iter().rposition(|byte| *byte == b':') {
        Some(at) => {
            let port = std::str::from_utf8(&authority[at + 1..]).ok().and_then(|port| port.parse().ok());
            (if port.is_some() { &authority[..at] } else { authority }, port)
        }
        None => (authority, None),
    };
    (host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host), port)
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_11 => "1.1",
        Version::HTTP_2 => "2",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_split_into_host_and_port() {
        for (authority, host, port) in [
            ("a.test", "a.test", None),
            ("a.test:80", "a.test", Some(80)),
            ("[::1]:4480", "::1", Some(4480)),
            ("[::1]", "::1", None),
            ("a:99999", "a:99999", None),
            ("", "", None),
        ] {
            assert_eq!(split_port(authority.as_bytes()), (host.as_bytes(), port), "{authority}");
        }
    }
}
