//! The series of one route that each request updates. They are looked up once, and then neither hashed nor allocated again.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderMap};
use prometheus_client::metrics::histogram::Histogram;

use super::{Metrics, Route, RouteClass, RouteStream};

const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// A response whose length the application chooses, told by what its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// A tunnel after 101.
    WebSocket,
    /// `text/event-stream`.
    EventStream,
    /// `application/grpc`, with any suffix. A unary call is not told from a stream.
    Grpc,
}

impl StreamKind {
    const NAMES: [&str; 3] = ["websocket", "event_stream", "grpc"];

    /// What the head of a response without a tunnel says of its length.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let content_type = headers.get(CONTENT_TYPE)?.as_bytes();
        let kinds = [(&b"text/event-stream"[..], Self::EventStream), (b"application/grpc", Self::Grpc)];
        let begins_with = |prefix: &[u8]| {
            content_type.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        kinds.into_iter().find(|(prefix, _)| begins_with(prefix)).map(|(_, kind)| kind)
    }
}

/// The histograms of one route. A series appears when it gets its first value.
#[derive(Debug)]
pub struct RouteSeries {
    label: Arc<str>,
    requests: [OnceLock<Histogram>; CLASSES.len()],
    streams: [OnceLock<Histogram>; StreamKind::NAMES.len()],
    upstream: OnceLock<Histogram>,
}

impl RouteSeries {
    /// For the route with this label; empty for requests without a route.
    pub fn new(label: Arc<str>) -> Self {
        Self { label, requests: Default::default(), streams: Default::default(), upstream: OnceLock::new() }
    }

    /// The route's label.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Adds the duration of a request with this status code, or of a stream.
    pub fn observe_request(
        &self,
        metrics: &Metrics,
        code: u16,
        stream: Option<StreamKind>,
        duration: Duration,
    ) {
        let route = || Arc::clone(&self.label);
        let series = match stream {
            Some(stream) => self.streams[stream as usize].get_or_init(|| {
                let kind = StreamKind::NAMES[stream as usize];
                metrics.stream_seconds.get_or_create(&RouteStream { route: route(), kind }).clone()
            }),
            None => {
                // A response without a tunnel has no code below 200.
                let class = usize::from(code / 100).clamp(2, 5) - 2;
                self.requests[class].get_or_init(|| {
                    let labels = RouteClass { route: route(), class: CLASSES[class] };
                    metrics.request_seconds.get_or_create(&labels).clone()
                })
            }
        };
        series.observe(duration.as_secs_f64());
    }

    /// Adds the time to the head of an upstream's response.
    pub fn observe_upstream(&self, metrics: &Metrics, duration: Duration) {
        let series = self.upstream.get_or_init(|| {
            metrics.upstream_seconds.get_or_create(&Route { route: Arc::clone(&self.label) }).clone()
        });
        series.observe(duration.as_secs_f64());
    }
}

/// The series of all routes of a table.
#[derive(Debug)]
pub struct RouteTableSeries {
    /// Of requests without a route.
    pub none: Arc<RouteSeries>,
    routes: HashMap<Arc<str>, Arc<RouteSeries>>,
}

impl RouteTableSeries {
    /// For routes with these labels.
    pub fn new(labels: impl Iterator<Item = Arc<str>>) -> Self {
        let series = |label: Arc<str>| (Arc::clone(&label), Arc::new(RouteSeries::new(label)));
        Self { none: Arc::new(RouteSeries::new(Arc::from(""))), routes: labels.map(series).collect() }
    }

    /// Of the route with this label.
    pub fn of_route(&self, label: &str) -> &Arc<RouteSeries> {
        self.routes.get(label).unwrap_or(&self.none)
    }
}
