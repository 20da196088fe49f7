//! What Keyward counts, in Prometheus' words: base units, and labels that come from the configuration or from a closed
//! list, never from a request.

mod exposition;
mod process;
mod route_series;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

pub use self::exposition::Format;
pub use self::route_series::{RouteSeries, RouteTableSeries, StreamKind};

/// Upper bounds in seconds: from the fastest response from memory to the longest wait.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Of what Keyward adds to a request.
const OWN_BUCKETS: [f64; 9] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25];
/// Of streams: from a gRPC call to a tunnel that is open for a day.
const STREAM_BUCKETS: [f64; 11] = [0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0];

/// Labels of a finished request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// The route's label, or empty when there was none.
    pub route: Arc<str>,
    /// The method; `other` for one that neither RFC 9110 nor RFC 5789 defines.
    pub method: &'static str,
    /// The HTTP status code.
    pub code: u16,
    /// `allow`, `deny` or `error`.
    pub outcome: &'static str,
    /// Why Keyward rejected the request or ended the response early; empty if it did neither.
    pub reason: &'static str,
}

/// Label of metrics by route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Route {
    /// The route's label.
    pub route: Arc<str>,
}

/// Labels of the duration of requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteClass {
    /// The route's label.
    pub route: Arc<str>,
    /// The class of the status code: `2xx`, `3xx`, `4xx` or `5xx`.
    pub class: &'static str,
}

/// Labels of the duration of streams.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteStream {
    /// The route's label.
    pub route: Arc<str>,
    /// `websocket`, `event_stream` or `grpc`.
    pub kind: &'static str,
}

/// Label of metrics by listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Listener {
    /// The table of the route file: `server`, `decision` or `management`.
    pub listener: &'static str,
}

/// Label of metrics by outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// One of a closed list.
    pub outcome: &'static str,
}

/// Labels of `shadow_requests`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Shadow {
    /// The route's label.
    pub route: Arc<str>,
    /// `allowed`, or the code of the rejection.
    pub outcome: &'static str,
}

/// Labels of `rate_limit_requests`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RateLimit {
    /// The limit's name.
    pub limit: Arc<str>,
    /// `allowed`, `exceeded`, or `exceeded_unvalidated`.
    pub outcome: &'static str,
}

/// Labels of `organization_requests`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OrganizationClass {
    /// The organization's id, or `other`.
    pub organization: Arc<str>,
    /// The class of the status code, such as `2xx`.
    pub class: &'static str,
}

/// Labels of a request to the key management API, both from closed lists.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Management {
    /// `create`, `list`, `show`, `update`, `revoke`, `rotate`, `usage`, or `none`.
    pub operation: &'static str,
    /// `done`, or the code of the problem.
    pub outcome: &'static str,
}

/// Label of `build_info`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// A gauge that is absent while it has no value, as 0 would mean something else.
#[derive(Clone, Debug)]
pub struct OptionalGauge(Arc<AtomicU64>);

impl Default for OptionalGauge {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(f64::NAN.to_bits())))
    }
}

impl OptionalGauge {
    /// Sets the value, which makes the gauge present.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Removes the value, which makes the gauge absent.
    pub fn clear(&self) {
        self.set(f64::NAN);
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl EncodeMetric for OptionalGauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&self.get())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.get().is_nan()
    }
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Declares `Metrics`: each metric once, with its name on the wire and its initial value. Its documentation is its HELP text.
macro_rules! declare_metrics {
    ($($(#[doc = $help:literal])+ $vis:vis $field:ident: $type:ty = $name:literal, $initial:expr;)*) => {
        /// All metrics of a process. Cheap to update, shared by `Arc`.
        pub struct Metrics {
            registry: Registry,
            dropped_lines: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
            $($(#[doc = $help])+ $vis $field: $type,)*
        }

        impl Metrics {
            /// How many families there are, besides those of the process.
            pub const FAMILIES: usize = [$($name),*].len();

            fn register() -> Self {
                let mut registry = Registry::default();
                registry.register_collector(Box::new(process::Process::default()));
                let own = registry.sub_registry_with_prefix("keyward");
                $(let $field: $type = $initial;
                register_metric(own, $name, concat!($($help),+), $field.clone());)*
                Self { registry, dropped_lines: OnceLock::new(), $($field,)* }
            }
        }
    };
}

// Names are those of the text format, without the prefix, and without the `_total` that every counter gets.
declare_metrics! {
    /// Finished requests, by route, method, status code, outcome and reason.
    pub requests: Family<Request, Counter> = "http_requests", Family::default();
    /// Time from a request's head to the end of its response, by class of the status code. Streams are not in it.
    pub request_seconds: Histograms<RouteClass> = "http_request_duration_seconds", Family::new_with_constructor(histogram);
    /// Time from the head of a request to the end of its stream: a WebSocket tunnel, a server-sent event stream, or a gRPC call.
    pub stream_seconds: Histograms<RouteStream> = "stream_duration_seconds", Family::new_with_constructor(stream_histogram);
    /// Time from a request's head to its response's head that is Keyward's own: without the wait for a verdict and for the upstream.
    pub own_seconds: Histogram = "own_duration_seconds", Histogram::new(OWN_BUCKETS);
    /// Requests in progress, tunnels included.
    pub requests_in_flight: Gauge = "http_requests_in_flight", Gauge::default();
    /// Time from sending a request to the upstream to the head of its response.
    pub upstream_seconds: Histograms<Route> = "upstream_duration_seconds", Family::new_with_constructor(histogram);
    /// Requests that carried headers or trailers that only Keyward may set; they were removed.
    pub spoofed_headers: Family<Route, Counter> = "forged_headers", Family::default();
    /// Claims that would have shared a header with another claim of the same key; such requests are rejected.
    pub claims_left_out: Counter = "claims_left_out", Counter::default();
    /// Validations of keys by Scalekit, by outcome.
    pub validations: Family<Outcome, Counter> = "validations", Family::default();
    /// Duration of validations by Scalekit, retries included.
    pub validation_seconds: Histogram = "validation_duration_seconds", histogram();
    /// Retries of validation calls that failed.
    pub validation_retries: Counter = "validation_retries", Counter::default();
    /// Requests that are waiting for the validation of their key.
    pub validations_waiting: Gauge = "validations_waiting", Gauge::default();
    /// Requests and streams that took the verdict of a validation which another one with the same key asked for.
    pub validations_shared: Counter = "validations_shared", Counter::default();
    /// Validation calls that the budget allows in a minute; absent without a budget.
    pub validation_budget: OptionalGauge = "validation_budget", OptionalGauge::default();
    /// Validation calls left in this minute's budget; absent without a budget.
    pub validation_headroom: OptionalGauge = "validation_headroom", OptionalGauge::default();
    /// 1 while the circuit breaker is open because Scalekit is unavailable, otherwise 0.
    pub breaker_open: Gauge = "breaker_open", Gauge::default();
    /// Requests rejected because their key is in the cache of invalid keys.
    pub negative_hits: Counter = "negative_cache_hits", Counter::default();
    /// Keys in the cache of invalid keys.
    pub negative_entries: Gauge<u64, AtomicU64> = "negative_cache_entries", Gauge::default();
    /// Requests rejected because too many invalid keys came from their client's address.
    pub throttled: Counter = "throttled", Counter::default();
    /// Requests counted by a rate limit, by outcome: allowed, exceeded, or exceeded and therefore not validated.
    pub rate_limits: Family<RateLimit, Counter> = "rate_limit_requests", Family::default();
    /// Requests in shadow mode, by what would have become of them: allowed, or the code of the rejection.
    pub shadow_requests: Family<Shadow, Counter> = "shadow_requests", Family::default();
    /// Routes in shadow mode, whose requests are not refused.
    pub shadow_routes: Gauge = "shadow_routes", Gauge::default();
    /// 1 while the server that replicas share answers, 0 while each replica limits on its own share; absent without one.
    pub shared_up: OptionalGauge = "shared_up", OptionalGauge::default();
    /// Commands to the server that replicas share, by outcome.
    pub shared_operations: Family<Outcome, Counter> = "shared_operations", Family::default();
    /// Time from a command to the server that replicas share to its answer, or to the deadline.
    pub shared_seconds: Histogram = "shared_duration_seconds", histogram();
    /// Keys that were used within the last day, and expired or were about to expire within expiry.warn_before.
    pub expiring_keys: Gauge<u64, AtomicU64> = "expiring_keys", Gauge::default();
    /// Requests with keys that expire within expiry.warn_before.
    pub expiring_key_requests: Counter = "expiring_key_requests", Counter::default();
    /// Keys whose use is remembered.
    pub usage_keys: Gauge<u64, AtomicU64> = "usage_keys", Gauge::default();
    /// Keys whose use was forgotten because more than usage.max_keys were used.
    pub usage_forgotten_keys: Counter = "usage_forgotten_keys", Counter::default();
    /// Writes of usage.file, by outcome: ok or error.
    pub usage_file_writes: Family<Outcome, Counter> = "usage_file_writes", Family::default();
    /// Requests with valid keys, by organization and class of the status code; only with usage.metrics.
    pub organization_requests: Family<OrganizationClass, Counter> = "organization_requests", Family::default();
    /// Fetches of Keyward's own access token from Scalekit, by outcome.
    pub token_fetches: Family<Outcome, Counter> = "access_token_fetches", Family::default();
    /// Unix time at which Keyward's own access token expires; 0 without a token.
    pub token_expiry: Gauge<u64, AtomicU64> = "access_token_expiry_timestamp_seconds", Gauge::default();
    /// Open connections from clients.
    pub connections: Gauge = "connections", Gauge::default();
    /// Connections from clients that ended with an error before or between requests, by outcome.
    pub connection_errors: Family<Outcome, Counter> = "connection_errors", Family::default();
    /// Open streams (responses and WebSocket tunnels) whose key is re-validated periodically.
    pub open_streams: Gauge = "open_streams", Gauge::default();
    /// Open streams whose last re-validation gave no verdict.
    pub unconfirmed_streams: Gauge = "unconfirmed_streams", Gauge::default();
    /// Streams closed because their key was revoked, expired or no longer permitted, or could not be re-validated for
    /// too long (unconfirmed).
    pub streams_closed: Family<Outcome, Counter> = "streams_closed", Family::default();
    /// Requests to the key management API, by operation and outcome.
    pub management: Family<Management, Counter> = "management_requests", Family::default();
    /// Spans of traces, by outcome: exported, queue_full (dropped because the collector could not keep up), failed (the export
    /// failed), rejected (by the collector). Absent where traces are not exported.
    pub trace_spans: Family<Outcome, Counter> = "trace_spans", Family::default();
    /// Log lines dropped because the log's output could not keep up.
    log_lines_dropped: Counter = "log_lines_dropped", Counter::default();
    /// 1 if the last reload of the configuration took effect, otherwise 0.
    pub reload_successful: Gauge = "config_last_reload_successful", Gauge::default();
    /// Unix time at which a configuration last took effect.
    pub reload_time: Gauge<u64, AtomicU64> = "config_last_reload_success_timestamp_seconds", Gauge::default();
    /// Unix time at which the drain began; absent before.
    pub drain_begin: OptionalGauge = "drain_begin_timestamp_seconds", OptionalGauge::default();
    /// Unix time at which the drain ended; absent before.
    pub drain_end: OptionalGauge = "drain_end_timestamp_seconds", OptionalGauge::default();
    /// Unix time at which the certificate that a listener presents expires.
    pub certificate_expiry: Family<Listener, Gauge> = "certificate_expiry_timestamp_seconds", Family::default();
    /// 1 while Keyward is ready for requests, otherwise 0.
    pub ready: Gauge = "ready", Gauge::default();
    /// Always 1, with Keyward's version as a label.
    build_info: Family<Build, Gauge> = "build_info", Family::default();
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

fn stream_histogram() -> Histogram {
    Histogram::new(STREAM_BUCKETS)
}

fn register_metric(registry: &mut Registry, name: &str, documentation: &str, metric: impl Metric) {
    // The encoder appends a full stop to the help, and `_seconds` and `_total` to the name.
    let help = documentation.trim().trim_end_matches('.');
    match name.strip_suffix("_seconds") {
        Some(name) => registry.register_with_unit(name, help, Unit::Seconds, metric),
        None => registry.register(name, help, metric),
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self::register();
        metrics.build_info.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        for outcome in ["revoked", "expired", "not_permitted", "unconfirmed"] {
            // Present from the start, so that the first one shows in a rate.
            drop(metrics.streams_closed.get_or_create(&Outcome { outcome }));
        }
        metrics
    }
}

impl Metrics {
    /// Sets the source of the number of dropped log lines, which is asked at each scrape.
    pub fn count_dropped_lines(&self, count: impl Fn() -> u64 + Send + Sync + 'static) {
        // The first one stays: a second log in one process, as in tests, is not written to.
        let _ = self.dropped_lines.set(Box::new(count));
    }

    /// Encodes all metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let dropped = self.dropped_lines.get().map_or(0, |count| count());
        self.log_lines_dropped.inc_by(dropped.saturating_sub(self.log_lines_dropped.get()));
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// Encodes all metrics in this format.
    pub fn encode_as(&self, format: Format) -> String {
        match format {
            Format::OpenMetrics => self.encode(),
            Format::Text => exposition::to_text(&self.encode()),
        }
    }
}

/// Returns the label of a method. The list is closed, so that clients cannot create time series.
pub fn method_label(method: &hyper::Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];
    KNOWN.iter().copied().find(|known| *known == method.as_str()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_keep_their_names_and_labels() {
        let metrics = Metrics::default();
        let labels =
            Request { route: "/v1/*".into(), method: "GET", code: 200, outcome: "allow", reason: "" };
        metrics.requests.get_or_create(&labels).inc();
        metrics.validations.get_or_create(&Outcome { outcome: "valid" }).inc();
        metrics.validation_seconds.observe(0.02);
        let text = metrics.encode();
        for line in [
            "keyward_http_requests_total{route=\"/v1/*\",method=\"GET\",code=\"200\",outcome=\"allow\",reason=\"\"} 1",
            "keyward_validations_total{outcome=\"valid\"} 1",
            "keyward_validation_duration_seconds_bucket{le=\"0.025\"} 1",
            "keyward_build_info{version=\"0.1.0\"} 1",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn headroom_is_absent_without_a_budget() {
        let metrics = Metrics::default();
        assert!(!metrics.encode().contains("headroom"));
        metrics.validation_headroom.set(0.0);
        assert!(metrics.encode().contains("\nkeyward_validation_headroom 0.0\n"));
        metrics.validation_headroom.clear();
        assert!(!metrics.encode().contains("headroom"));
    }

    #[test]
    fn unknown_method_is_labelled_other() {
        assert_eq!(method_label(&hyper::Method::PATCH), "PATCH");
        assert_eq!(method_label(&hyper::Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
