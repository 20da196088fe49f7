//! Sends batches of spans to the collector over Keyward's own connection pool, with the roots of all its TLS, and never through
//! Scalekit's proxy. Counts what becomes of each span.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanData;
use opentelemetry_sdk::{Resource, trace};
use prost::Message;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::body;
use crate::logging::line_limit::LineLimit;
use crate::metrics::{Metrics, Outcome};
use crate::pool::{Origin, SendError};

/// The longest response that is read, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;
/// Between two lines about spans that could not be exported.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// The connections to the collector. The exporter calls it from the thread of the batch processor, which has no runtime.
pub(super) struct Collector {
    pub(super) origin: Arc<Origin>,
    /// For `Host`.
    pub(super) host: HeaderValue,
    pub(super) path: PathAndQuery,
    /// SECURITY: they may have credentials, and are never logged.
    pub(super) headers: HeaderMap,
    /// Of one attempt.
    pub(super) timeout: Duration,
    pub(super) runtime: Handle,
    pub(super) tasks: TaskTracker,
    pub(super) last: Arc<LastExport>,
}

/// What the exporter does not tell of its last attempt.
#[derive(Debug, Default)]
pub(super) struct LastExport {
    problem: Mutex<String>,
    /// Spans that the collector accepted none the less not (`partial_success`).
    rejected: AtomicU64,
}

impl LastExport {
    fn set_problem(&self, problem: String) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn take_problem(&self) -> String {
        std::mem::take(&mut *self.problem.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Collector {
    /// SECURITY: without the headers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector")
            .field("host", &self.host)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (mut head, body) = request.into_parts();
        head.uri = self.path.clone().into();
        head.headers.insert(HOST, self.host.clone());
        for (name, value) in &self.headers {
            head.headers.insert(name.clone(), value.clone());
        }
        let request = Request::from_parts(head, body::full(body));
        let (origin, limit) = (Arc::clone(&self.origin), self.timeout);
        let sending = async move {
            let began = Instant::now();
            timeout(limit, send_request(&origin, request)).await.unwrap_or_else(|_| {
                // The connections may be dead without notice.
                origin.forget_connections(began);
                Err(format!("no response within {limit:?}"))
            })
        };
        let sent = match self.tasks.spawn_on(sending, &self.runtime).await {
            Ok(sent) => sent,
            Err(_) => Err("Keyward has stopped".to_owned()),
        };
        match &sent {
            Ok(response) if response.status().is_success() => {
                let answer = ExportResponse::decode(&**response.body()).unwrap_or_default();
                let partial = answer.partial_success.unwrap_or_default();
                let rejected = u64::try_from(partial.rejected_spans).unwrap_or_default();
                self.last.rejected.store(rejected, Ordering::Relaxed);
                if rejected > 0 {
                    self.last.set_problem(format!("the collector rejected {rejected} spans"));
                }
            }
            Ok(response) => self.last.set_problem(format!("the collector answered {}", response.status())),
            Err(problem) => self.last.set_problem(problem.clone()),
        }
        sent.map_err(HttpError::from)
    }
}

async fn send_request(origin: &Arc<Origin>, request: Request<body::Body>) -> Result<Response<Bytes>, String> {
    let response = origin.send_request(request).await.map_err(|error: SendError| error.format_chain())?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_RESPONSE).collect().await.map_err(|error| error.to_string())?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// `ExportTraceServiceResponse` of OTLP.
#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

/// `ExportTracePartialSuccess` of OTLP.
#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
}

/// The exporter of OTLP, with counts and with lines at a limited rate.
pub(super) struct CountingExporter {
    pub(super) exporter: SpanExporter,
    /// Spans that wait, or are being sent.
    pub(super) pending: Arc<AtomicUsize>,
    pub(super) last: Arc<LastExport>,
    pub(super) metrics: Arc<Metrics>,
}

impl CountingExporter {
    fn count(&self, outcome: &'static str, spans: u64) {
        self.metrics.trace_spans.get_or_create(&Outcome { outcome }).inc_by(spans);
    }
}

impl fmt::Debug for CountingExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CountingExporter").finish_non_exhaustive()
    }
}

impl trace::SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        static LINES: LineLimit = LineLimit::new(LINE_INTERVAL);
        let spans = batch.len();
        self.last.rejected.store(0, Ordering::Relaxed);
        let result = self.exporter.export(batch).await;
        self.pending.fetch_sub(spans, Ordering::Relaxed);
        let lost = match &result {
            Ok(()) => self.last.rejected.load(Ordering::Relaxed).min(spans as u64),
            Err(_) => spans as u64,
        };
        self.count("exported", spans as u64 - lost);
        self.count(if result.is_ok() { "rejected" } else { "failed" }, lost);
        let problem = self.last.take_problem();
        if lost > 0
            && let Some(suppressed) = LINES.admit()
        {
            tracing::warn!(suppressed, "{lost} spans of traces were not exported: {problem}");
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
