//! What Keyward counts, in Prometheus' words: base units, and labels that come from the configuration or from a closed
//! list, never from a request.

mod exposition;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub use self::exposition::Format;

/// From the fastest answer from memory to the longest wait, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The labels of a finished request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// The route's label, or empty when there was none.
    pub route: Arc<str>,
    /// The method, `other` outside RFC 9110 and RFC 5789.
    pub method: &'static str,
    /// The status.
    pub code: u16,
    /// `allow`, `deny` or `error`.
    pub outcome: &'static str,
}

/// The label of things that belong to a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Route {
    /// The route's label.
    pub route: Arc<str>,
}

/// The label of things that end in one of a few ways.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// From a closed list.
    pub outcome: &'static str,
}

/// The labels of a request for key management, both from closed lists.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Management {
    /// `create`, `list`, `show`, `update`, `revoke`, `rotate`, or `none`.
    pub operation: &'static str,
    /// `done`, or the code of the problem.
    pub outcome: &'static str,
}

/// The label of the metric that says what runs.
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
    /// Has this value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Has no value.
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

/// All metrics of a process. Cheap to update, shared by `Arc`.
pub struct Metrics {
    registry: Registry,
    /// Requests finished.
    pub requests: Family<Request, Counter>,
    /// From a request's head to the end of its answer.
    pub request_seconds: Histograms<Route>,
    /// Requests under way, tunnels included.
    pub requests_in_flight: Gauge,
    /// From sending a request to the head of the upstream's answer.
    pub upstream_seconds: Histograms<Route>,
    /// Requests that carried headers, or trailers, of Keyward's own.
    pub spoofed_headers: Family<Route, Counter>,
    /// Claims not passed on because two of one key would have shared a header; such requests are refused.
    pub claims_left_out: Counter,
    /// Validations by Scalekit.
    pub validations: Family<Outcome, Counter>,
    /// How long they took, retries included.
    pub validation_seconds: Histogram,
    /// Tries again after a validation's first call failed.
    pub validation_retries: Counter,
    /// Requests without a verdict yet.
    pub validations_waiting: Gauge,
    /// Calls left in this minute's budget; absent without one.
    pub validation_headroom: OptionalGauge,
    /// 1 while Scalekit is taken to be down.
    pub breaker_open: Gauge,
    /// Requests refused from memory.
    pub negative_hits: Counter,
    /// Keys remembered as bad.
    pub negative_entries: Gauge<u64, AtomicU64>,
    /// Requests refused for too many bad keys from their address.
    pub throttled: Counter,
    /// Fetches of the own access token.
    pub token_fetches: Family<Outcome, Counter>,
    /// When the own access token expires, in seconds since 1970; 0 without one.
    pub token_expiry: Gauge<u64, AtomicU64>,
    /// Open connections from callers.
    pub connections: Gauge,
    /// Connections that ended with an error before or between requests.
    pub connection_errors: Family<Outcome, Counter>,
    /// Answers and tunnels whose key is asked about again.
    pub open_streams: Gauge,
    /// Of these, those whose last question got no answer.
    pub unconfirmed_streams: Gauge,
    /// Streams closed because their key is no longer good (`revoked`, `expired`, `not_permitted`), or could not be confirmed
    /// for too long (`unconfirmed`).
    pub streams_closed: Family<Outcome, Counter>,
    /// Requests for key management.
    pub management: Family<Management, Counter>,
    /// Lines that the log could not take, from whoever counts them.
    log_lines_dropped: Counter,
    dropped_lines: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// 1 when the last reload took effect.
    pub reload_successful: Gauge,
    /// When a configuration last took effect, in seconds since 1970.
    pub reload_time: Gauge<u64, AtomicU64>,
    /// 1 when ready.
    pub ready: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let mut metrics = Self {
            registry: Registry::with_prefix("keyward"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(histogram),
            requests_in_flight: Gauge::default(),
            upstream_seconds: Family::new_with_constructor(histogram),
            spoofed_headers: Family::default(),
            claims_left_out: Counter::default(),
            validations: Family::default(),
            validation_seconds: histogram(),
            validation_retries: Counter::default(),
            validations_waiting: Gauge::default(),
            validation_headroom: OptionalGauge::default(),
            breaker_open: Gauge::default(),
            negative_hits: Counter::default(),
            negative_entries: Gauge::default(),
            throttled: Counter::default(),
            token_fetches: Family::default(),
            token_expiry: Gauge::default(),
            connections: Gauge::default(),
            connection_errors: Family::default(),
            open_streams: Gauge::default(),
            unconfirmed_streams: Gauge::default(),
            streams_closed: Family::default(),
            management: Family::default(),
            log_lines_dropped: Counter::default(),
            dropped_lines: OnceLock::new(),
            reload_successful: Gauge::default(),
            reload_time: Gauge::default(),
            ready: Gauge::default(),
        };
        metrics.register();
        for outcome in ["revoked", "expired", "not_permitted", "unconfirmed"] {
            // There from the start, so that the first one shows in a rate.
            drop(metrics.streams_closed.get_or_create(&Outcome { outcome }));
        }
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        // The encoder appends `_total` to counters and the unit to what has one.
        registry.register("http_requests", "Requests finished", self.requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "From a request's head to the end of its answer",
            Unit::Seconds,
            self.request_seconds.clone(),
        );
        registry.register("http_requests_in_flight", "Requests under way", self.requests_in_flight.clone());
        registry.register_with_unit(
            "upstream_duration",
            "From sending a request to the head of the upstream's answer",
            Unit::Seconds,
            self.upstream_seconds.clone(),
        );
        registry.register(
            "forged_headers",
            "Requests that carried headers of Keyward's own",
            self.spoofed_headers.clone(),
        );
        registry.register(
            "claims_left_out",
            "Claims that would have shared a header, in requests refused for it",
            self.claims_left_out.clone(),
        );
        registry.register("validations", "Validations by Scalekit", self.validations.clone());
        registry.register_with_unit(
            "validation_duration",
            "Validations by Scalekit, retries included",
            Unit::Seconds,
            self.validation_seconds.clone(),
        );
        registry.register("validation_retries", "Second and later tries", self.validation_retries.clone());
        registry.register(
            "validations_waiting",
            "Requests without a verdict yet",
            self.validations_waiting.clone(),
        );
        registry.register(
            "validation_headroom",
            "Calls left in this minute's budget",
            self.validation_headroom.clone(),
        );
        registry.register("breaker_open", "1 while Scalekit is taken to be down", self.breaker_open.clone());
        registry.register("negative_cache_hits", "Requests refused from memory", self.negative_hits.clone());
        registry.register("negative_cache_entries", "Keys remembered as bad", self.negative_entries.clone());
        registry.register(
            "throttled",
            "Requests refused for bad keys from their address",
            self.throttled.clone(),
        );
        registry.register(
            "access_token_fetches",
            "Fetches of the own access token",
            self.token_fetches.clone(),
        );
        registry.register_with_unit(
            "access_token_expiry_timestamp",
            "When the own access token expires",
            Unit::Seconds,
            self.token_expiry.clone(),
        );
        registry.register("connections", "Open connections from callers", self.connections.clone());
        registry.register(
            "connection_errors",
            "Connections that ended badly",
            self.connection_errors.clone(),
        );
        registry.register("open_streams", "Answers and tunnels asked about again", self.open_streams.clone());
        registry.register(
            "unconfirmed_streams",
            "Of these, those whose key could not be confirmed when it was last asked about",
            self.unconfirmed_streams.clone(),
        );
        registry.register(
            "streams_closed",
            "Streams closed because their key was revoked, expired, not permitted any more, or unconfirmed for too long",
            self.streams_closed.clone(),
        );
        registry.register("management_requests", "Requests for key management", self.management.clone());
        registry.register(
            "log_lines_dropped",
            "Lines the log could not take",
            self.log_lines_dropped.clone(),
        );
        registry.register(
            "config_last_reload_successful",
            "1 when it took effect",
            self.reload_successful.clone(),
        );
        registry.register_with_unit(
            "config_last_reload_success_timestamp",
            "When a configuration last took effect",
            Unit::Seconds,
            self.reload_time.clone(),
        );
        registry.register("ready", "1 when ready", self.ready.clone());
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "1, with the version", build);
    }

    /// Where the number of lines that the log could not take is to be found.
    pub fn count_dropped_lines(&self, count: impl Fn() -> u64 + Send + Sync + 'static) {
        // A second log in one process, as in tests, is not the one that is written to.
        let _ = self.dropped_lines.set(Box::new(count));
    }

    /// Everything, in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let dropped = self.dropped_lines.get().map_or(0, |count| count());
        self.log_lines_dropped.inc_by(dropped.saturating_sub(self.log_lines_dropped.get()));
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// Everything, in this format.
    pub fn encode_as(&self, format: Format) -> String {
        match format {
            Format::OpenMetrics => self.encode(),
            Format::Text => exposition::to_text(&self.encode()),
        }
    }
}

/// The label of a method.
pub fn method(method: &hyper::Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];
    KNOWN.iter().copied().find(|known| *known == method.as_str()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_the_names_and_labels_that_dashboards_use() {
        let metrics = Metrics::default();
        let labels = Request { route: "/v1/*".into(), method: "GET", code: 200, outcome: "allow" };
        metrics.requests.get_or_create(&labels).inc();
        metrics.validations.get_or_create(&Outcome { outcome: "valid" }).inc();
        metrics.validation_seconds.observe(0.02);
        let text = metrics.encode();
        for line in [
            "keyward_http_requests_total{route=\"/v1/*\",method=\"GET\",code=\"200\",outcome=\"allow\"} 1",
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
    fn an_unknown_method_cannot_make_a_new_label() {
        assert_eq!(method(&hyper::Method::PATCH), "PATCH");
        assert_eq!(method(&hyper::Method::from_bytes(b"BREW").unwrap()), "other");
    }
}
