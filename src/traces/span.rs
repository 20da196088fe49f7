//! The spans of one request, made from its record when it has ended: a SERVER span, and as its children the validation of the key
//! and the request to the upstream. Names are those of OpenTelemetry's semantic conventions. Never a key, a query or a claim.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request};
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{Traces, context};
use crate::identity::Identity;
use crate::metrics;
use crate::peer::Peer;
use crate::pool::Address;
use crate::rejection::Rejection;
use crate::upstream::Upstream;
use crate::validator::Seat;

/// The longest texts that spans hold, in bytes.
///
/// SECURITY: clients choose them, and `memory_plan::SPAN` counts with these lengths.
const MAX_PATH: usize = 512;
const MAX_TEXT: usize = 256;

/// What becomes the spans of a request. It is made when the request's head has arrived.
pub struct RequestSpan {
    traces: Arc<Traces>,
    /// Of the SERVER span.
    context: SpanContext,
    /// The span that the request continues.
    parent: SpanId,
    /// The span that an untrusted request names, whose trace is not continued.
    link: Option<SpanContext>,
    /// Of the CLIENT span for the upstream.
    upstream_id: SpanId,
    began: Instant,
    scheme: &'static str,
    host: Option<HeaderValue>,
    peer: Option<IpAddr>,
    validation: Option<Validated>,
    upstream: Option<Forwarded>,
}

struct Validated {
    began: Instant,
    /// With the outcome; `None` until then.
    ended: Option<(Instant, &'static str)>,
    is_error: bool,
    seat: Option<Seat>,
}

struct Forwarded {
    began: Instant,
    upstream: Arc<Upstream>,
    /// The status, or why there is none; `None` until either.
    answer: Option<Result<u16, (Instant, &'static str)>>,
}

/// What the record knows of a request that has ended.
pub struct Summary<'r> {
    /// The method.
    pub method: &'r Method,
    /// The path without the query.
    pub path: &'r str,
    /// `1.1` or `2`.
    pub version: &'static str,
    /// The client.
    pub client: Option<IpAddr>,
    /// `User-Agent`.
    pub user_agent: Option<&'r HeaderValue>,
    /// `X-Request-Id`.
    pub request_id: &'r HeaderValue,
    /// The route's label, or empty.
    pub route: &'r str,
    /// Whose key it was.
    pub identity: Option<&'r Identity>,
    /// `None` if the client closed before the response.
    pub status: Option<u16>,
    /// `allow`, `deny` or `error`.
    pub decision: &'static str,
    /// Why it was rejected, or ended early.
    pub reason: Option<&'static str>,
    /// Details for the operator.
    pub cause: Option<&'r str>,
    /// From forwarding to the response's head.
    pub upstream: Option<Duration>,
}

impl RequestSpan {
    pub(super) fn begin<B>(traces: &Arc<Traces>, request: &Request<B>, peer: Peer, is_trusted: bool) -> Self {
        let named = context::parse_parent(request.headers());
        let (parent, link) = match traces.trust_parent.applies(is_trusted) {
            true => (named, None),
            false => (None, named),
        };
        let trace_id = parent.as_ref().map_or_else(super::random_trace_id, SpanContext::trace_id);
        let is_sampled = traces.is_sampled(parent.as_ref(), trace_id);
        let flags = parent.as_ref().map_or(TraceFlags::NOT_SAMPLED, SpanContext::trace_flags);
        let state = parent.as_ref().map(|parent| parent.trace_state().clone()).unwrap_or_default();
        let (flags, span_id) = (flags.with_sampled(is_sampled), super::random_span_id());
        let host = request.uri().authority().map_or_else(
            || request.headers().get(HOST).cloned(),
            |authority| HeaderValue::try_from(authority.as_str()).ok(),
        );
        Self {
            traces: Arc::clone(traces),
            context: SpanContext::new(trace_id, span_id, flags, false, state),
            parent: parent.map_or(SpanId::INVALID, |parent| parent.span_id()),
            link,
            upstream_id: super::random_span_id(),
            began: Instant::now(),
            scheme: choose_scheme(request.headers(), peer, is_trusted),
            host: host.filter(|host| is_sampled && host.len() <= MAX_TEXT),
            peer: peer.address,
            validation: None,
            upstream: None,
        }
    }

    /// The trace's id, as text.
    pub fn trace_id(&self) -> String {
        self.context.trace_id().to_string()
    }

    /// The SERVER span's id, as text.
    pub fn span_id(&self) -> String {
        self.context.span_id().to_string()
    }

    /// Makes the span for the upstream the parent of what the upstream does.
    pub fn set_parent(&self, headers: &mut HeaderMap) {
        let keeps_state = self.parent != SpanId::INVALID;
        context::set_parent(headers, &self.context_of(self.upstream_id), keeps_state);
    }

    /// The validation of the key begins.
    pub fn begin_validation(&mut self, began: Instant) {
        self.validation = Some(Validated { began, ended: None, is_error: false, seat: None });
    }

    /// There is a verdict, or the reason why there is none.
    pub fn end_validation(&mut self, seat: Option<Seat>, rejection: Option<&Rejection>) {
        if let Some(validation) = &mut self.validation {
            validation.ended = Some((Instant::now(), rejection.map_or("valid", Rejection::code)));
            validation.is_error = rejection.is_some_and(|rejection| !rejection.is_denial());
            validation.seat = seat;
        }
    }

    /// The request is forwarded.
    pub fn begin_upstream(&mut self, began: Instant, upstream: &Arc<Upstream>) {
        self.upstream = Some(Forwarded { began, upstream: Arc::clone(upstream), answer: None });
    }

    /// There is the response's head, or the reason why there is none.
    pub fn end_upstream(&mut self, answer: Result<u16, &Rejection>) {
        if let Some(upstream) = &mut self.upstream {
            upstream.answer = Some(answer.map_err(|rejection| (Instant::now(), rejection.code())));
        }
    }

    /// Exports the spans, if the trace is sampled.
    pub fn finish(self, summary: &Summary<'_>) {
        if !self.context.is_sampled() {
            return;
        }
        let spans = 1 + usize::from(self.validation.is_some()) + usize::from(self.upstream.is_some());
        // Before they are made, as a queue that is full stays full under load.
        if !self.traces.reserve(spans) {
            return;
        }
        let clock = Clock { now: Instant::now(), time: SystemTime::now() };
        if let Some(validation) = &self.validation {
            self.traces.export(self.validation_span(validation, &clock));
        }
        if let Some(upstream) = &self.upstream {
            self.traces.export(self.upstream_span(upstream, summary, &clock));
        }
        self.traces.export(self.server_span(summary, &clock));
    }

    fn server_span(&self, summary: &Summary<'_>, clock: &Clock) -> SpanData {
        let mut attributes = Attributes::with_capacity(24);
        let name = attributes.add_method(summary.method);
        let name = match summary.route {
            "" => Cow::Borrowed(name),
            route => Cow::Owned(format!("{name} {route}")),
        };
        attributes.add_path("url.path", summary.path);
        attributes.add("url.scheme", self.scheme);
        if !summary.route.is_empty() {
            attributes.add("http.route", summary.route.to_owned());
        }
        if let Some(status) = summary.status {
            attributes.add("http.response.status_code", i64::from(status));
        }
        let authority = self.host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
        if let Some(authority) = &authority {
            attributes.add_text("server.address", authority.host());
            if let Some(port) = authority.port_u16() {
                attributes.add("server.port", i64::from(port));
            }
        }
        for (name, address) in [("client.address", summary.client), ("network.peer.address", self.peer)] {
            if let Some(address) = address {
                attributes.add(name, address.to_canonical().to_string());
            }
        }
        attributes.add("network.protocol.version", summary.version);
        attributes.add_header("user_agent.original", summary.user_agent);
        attributes.add("keyward.decision", summary.decision);
        if let Some(reason) = summary.reason {
            attributes.add("keyward.reason", reason);
        }
        if let Some(identity) = summary.identity {
            attributes.add_header("keyward.org.id", Some(&identity.org_id));
            attributes.add_header("keyward.user.id", identity.user_id.as_ref());
            attributes.add_header("keyward.token.id", identity.token_id.as_ref());
        }
        attributes.add_header("keyward.request.id", Some(summary.request_id));
        // A 4xx is the client's error, and a client that has gone is none of the server's (HTTP spans, "Status").
        let failure = summary.status.filter(|status| *status >= 500).map(|status| match summary.reason {
            Some(reason) => Cow::Borrowed(reason),
            None => Cow::Owned(status.to_string()),
        });
        let cut = summary.reason.filter(|reason| BROKEN_RESPONSES.contains(reason)).map(Cow::Borrowed);
        let status = match failure.or(cut) {
            Some(kind) => {
                attributes.add("error.type", kind);
                Status::error(shorten(summary.cause.unwrap_or_default(), MAX_TEXT).into_owned())
            }
            None => Status::Unset,
        };
        let times = (clock.time_of(self.began), clock.time);
        let mut span = self.span(self.context.span_id(), SpanKind::Server, name, times, attributes, status);
        (span.parent_span_id, span.parent_span_is_remote) = (self.parent, self.parent != SpanId::INVALID);
        span.links.links.extend(self.link.clone().map(|link| Link::new(link, Vec::new(), 0)));
        span
    }

    fn validation_span(&self, validation: &Validated, clock: &Clock) -> SpanData {
        let mut attributes = Attributes::with_capacity(6);
        let (ended, outcome) = validation.ended.unwrap_or((clock.now, CANCELLED));
        attributes.add("keyward.validation.outcome", outcome);
        let flight = match &validation.seat {
            None => "none",
            Some(seat) if seat.is_shared => "shared",
            Some(_) => "own",
        };
        attributes.add("keyward.validation.flight", flight);
        if let Some(seat) = &validation.seat {
            attributes.add("keyward.validation.requests", i64::try_from(seat.aboard).unwrap_or(i64::MAX));
            attributes.add_server(&self.traces.scalekit);
        }
        let is_error = validation.is_error || validation.ended.is_none();
        let status = attributes.add_failure(is_error.then_some(Cow::Borrowed(outcome)));
        // Without a flight, Keyward's own memory or limits gave the answer.
        let kind = if validation.seat.is_some() { SpanKind::Client } else { SpanKind::Internal };
        let times = (clock.time_of(validation.began), clock.time_of(ended));
        self.span(super::random_span_id(), kind, "validate key".into(), times, attributes, status)
    }

    /// Ends with the response, or where there is none.
    fn upstream_span(&self, forwarded: &Forwarded, summary: &Summary<'_>, clock: &Clock) -> SpanData {
        let settings = &forwarded.upstream.settings;
        let mut attributes = Attributes::with_capacity(10);
        let name = attributes.add_method(summary.method);
        attributes.add_server(&settings.origin.address);
        if let Address::Tcp(host, port) = &settings.origin.address {
            let scheme = if settings.origin.tls.is_some() { "https" } else { "http" };
            let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
            // Without the query, which may have secrets.
            let path = shorten(summary.path, MAX_PATH);
            attributes.add("url.full", format!("{scheme}://{bracketed}:{port}{path}"));
        }
        attributes.add("keyward.upstream", settings.name.to_string());
        if let Some(duration) = summary.upstream {
            attributes.add("keyward.upstream.duration", duration.as_secs_f64());
        }
        let (ended, failure) = match forwarded.answer {
            Some(Ok(status)) => {
                attributes.add("http.response.status_code", i64::from(status));
                let broken = summary.reason.filter(|reason| BROKEN_RESPONSES.contains(reason));
                let failure = (status >= 400).then(|| Cow::Owned(status.to_string()));
                (clock.now, failure.or_else(|| broken.map(Cow::Borrowed)))
            }
            Some(Err((ended, code))) => (ended, Some(Cow::Borrowed(code))),
            // The client has gone, or its key was revoked, before the response.
            None => (clock.now, Some(Cow::Borrowed(CANCELLED))),
        };
        let status = attributes.add_failure(failure);
        let times = (clock.time_of(forwarded.began), clock.time_of(ended));
        self.span(self.upstream_id, SpanKind::Client, name.into(), times, attributes, status)
    }

    fn context_of(&self, id: SpanId) -> SpanContext {
        let (flags, state) = (self.context.trace_flags(), self.context.trace_state().clone());
        SpanContext::new(self.context.trace_id(), id, flags, false, state)
    }

    /// A child of the SERVER span.
    fn span(
        &self,
        id: SpanId,
        span_kind: SpanKind,
        name: Cow<'static, str>,
        (start_time, end_time): (SystemTime, SystemTime),
        attributes: Attributes,
        status: Status,
    ) -> SpanData {
        SpanData {
            span_context: self.context_of(id),
            parent_span_id: self.context.span_id(),
            parent_span_is_remote: false,
            span_kind,
            name,
            start_time,
            end_time: end_time.max(start_time),
            attributes: attributes.0,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.traces.scope.clone(),
        }
    }
}

/// The reasons of the record for a response that broke off, which is an error although its status is none.
const BROKEN_RESPONSES: [&str; 2] = ["upstream_broke_off", "key_not_confirmed"];
/// What did not end before its request.
const CANCELLED: &str = "cancelled";

/// Turns instants into times of day.
struct Clock {
    now: Instant,
    time: SystemTime,
}

impl Clock {
    fn time_of(&self, instant: Instant) -> SystemTime {
        let ago = self.now.saturating_duration_since(instant);
        self.time.checked_sub(ago).unwrap_or(self.time)
    }
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(name, value));
    }

    fn add_text(&mut self, name: &'static str, value: &str) {
        self.add(name, shorten(value, MAX_TEXT).into_owned());
    }

    fn add_path(&mut self, name: &'static str, value: &str) {
        self.add(name, shorten(value, MAX_PATH).into_owned());
    }

    fn add_header(&mut self, name: &'static str, value: Option<&HeaderValue>) {
        if let Some(value) = value {
            self.add_text(name, &String::from_utf8_lossy(value.as_bytes()));
        }
    }

    /// Gives the method's part of the span's name.
    fn add_method(&mut self, method: &Method) -> &'static str {
        match metrics::method_label(method) {
            "other" => {
                self.add("http.request.method", "_OTHER");
                self.add_text("http.request.method_original", method.as_str());
                "HTTP"
            }
            known => {
                self.add("http.request.method", known);
                known
            }
        }
    }

    fn add_server(&mut self, address: &Address) {
        match address {
            Address::Tcp(host, port) => {
                self.add_text("server.address", host);
                self.add("server.port", i64::from(*port));
            }
            Address::Unix(path) => self.add_text("server.address", &path.to_string_lossy()),
        }
    }

    fn add_failure(&mut self, kind: Option<Cow<'static, str>>) -> Status {
        match kind {
            Some(kind) => {
                self.add("error.type", kind);
                Status::error("")
            }
            None => Status::Unset,
        }
    }
}

/// Cuts a text to this number of bytes.
fn shorten(text: &str, longest: usize) -> Cow<'_, str> {
    match text.len() <= longest {
        true => text.into(),
        false => {
            let end = (0..=longest - '…'.len_utf8()).rev().find(|at| text.is_char_boundary(*at));
            format!("{}…", &text[..end.unwrap_or_default()]).into()
        }
    }
}

/// The client's scheme: a trusted proxy's statement, or else that of the connection.
fn choose_scheme(headers: &HeaderMap, peer: Peer, is_trusted: bool) -> &'static str {
    const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    match headers.get(PROTO).filter(|_| is_trusted).map(HeaderValue::as_bytes) {
        Some(b"https") => "https",
        Some(b"http") => "http",
        _ if peer.tls => "https",
        _ => "http",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("abcdef", 5), "ab…");
        assert_eq!(shorten("éééé", 6), "é…");
        assert!(shorten(&"é".repeat(300), MAX_TEXT).len() <= MAX_TEXT);
    }
}
