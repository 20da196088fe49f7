//! Traces over OTLP, where the environment names a collector: one SERVER span per request, and CLIENT spans for what it waited for.
//! Spans are made when a request has ended, and wait in a bounded queue; what does not fit is dropped and counted.

mod collector;
mod context;
mod span;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Request;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::http::uri::PathAndQuery;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, ShouldSample, SpanData,
    SpanExporter as _, SpanProcessor,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use self::collector::{Collector, CountingExporter, LastExport};
pub use self::context::parse_trace_id;
pub use self::span::{RequestSpan, Summary};
use crate::metrics::{Metrics, Outcome};
use crate::peer::Peer;
use crate::pool::{self, Address, Origin};
use crate::tls::TlsError;

/// The collector, and what it gets: from the variables of OpenTelemetry.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to connect to the collector.
    pub origin: pool::Settings,
    /// Its URL, which has no credentials.
    pub endpoint: String,
    /// The authority of that URL.
    pub host: HeaderValue,
    /// The path of that URL.
    pub path: PathAndQuery,
    /// Further headers. SECURITY: they may have credentials, and are marked as sensitive.
    pub headers: HeaderMap,
    /// Time limit of one export.
    pub timeout: Duration,
    /// Which requests are traced.
    pub sampler: Sampler,
    /// Attributes of the resource, `service.name` among them.
    pub resource: Vec<(String, String)>,
    /// The most spans that wait or are being sent, from 1.
    pub queue: usize,
    /// The most spans in one export, from 1.
    pub batch: usize,
    /// The longest time until spans are sent.
    pub delay: Duration,
}

/// `traces.trust_parent`: whose `traceparent` is continued, and whose flag says whether a request is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustParent {
    /// That of trusted proxies.
    TrustedProxies,
    /// Everybody's.
    Always,
    /// Nobody's.
    Never,
}

impl TrustParent {
    fn applies(self, is_trusted: bool) -> bool {
        match self {
            Self::TrustedProxies => is_trusted,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A certificate, or the roots.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The exporter refuses its settings.
    #[error("the exporter cannot be set up: {0}")]
    Exporter(String),
}

/// For the last spans at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// In the order of the documentation.
const OUTCOMES: [&str; 4] = ["exported", "queue_full", "failed", "rejected"];

/// Makes the spans of requests, and exports them.
pub struct Traces {
    sampler: Sampler,
    trust_parent: TrustParent,
    /// For the spans of validations.
    scalekit: Address,
    scope: InstrumentationScope,
    export: Arc<Export>,
    metrics: Arc<Metrics>,
}

/// The queue and the thread that empties it, which are kept over reloads.
struct Export {
    processor: BatchSpanProcessor,
    queue: usize,
    pending: Arc<AtomicUsize>,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").finish_non_exhaustive()
    }
}

impl Traces {
    /// Starts the thread that exports. Connections are opened in `tasks`. Must be called within a runtime.
    ///
    /// # Errors
    /// When a certificate cannot be used.
    pub fn start(
        settings: &Settings,
        trust_parent: TrustParent,
        scalekit: Address,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, TracesError> {
        let last = Arc::<LastExport>::default();
        let collector = Collector {
            origin: Origin::new(&settings.origin, tasks.clone())?,
            host: settings.host.clone(),
            path: settings.path.clone(),
            headers: settings.headers.clone(),
            timeout: settings.timeout,
            runtime: Handle::current(),
            tasks,
            last: Arc::clone(&last),
        };
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&settings.endpoint)
            .with_timeout(settings.timeout)
            .build()
            .map_err(|error| TracesError::Exporter(error.to_string()))?;
        exporter.set_resource(&make_resource(&settings.resource));
        let pending = Arc::<AtomicUsize>::default();
        let exporter =
            CountingExporter { exporter, pending: Arc::clone(&pending), last, metrics: Arc::clone(&metrics) };
        for outcome in OUTCOMES {
            // Present from the start, so that the first one shows in a rate.
            drop(metrics.trace_spans.get_or_create(&Outcome { outcome }));
        }
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(settings.queue)
            .with_max_export_batch_size(settings.batch)
            .with_scheduled_delay(settings.delay)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batch).build();
        Ok(Arc::new(Self {
            sampler: settings.sampler.clone(),
            trust_parent,
            scalekit,
            scope: InstrumentationScope::builder("keyward").with_version(env!("CARGO_PKG_VERSION")).build(),
            export: Arc::new(Export { processor, queue: settings.queue, pending }),
            metrics,
        }))
    }

    /// The same with another `traces.trust_parent`.
    #[must_use]
    pub fn with_trust(self: &Arc<Self>, trust_parent: TrustParent) -> Arc<Self> {
        if self.trust_parent == trust_parent {
            return Arc::clone(self);
        }
        Arc::new(Self {
            sampler: self.sampler.clone(),
            trust_parent,
            scalekit: self.scalekit.clone(),
            scope: self.scope.clone(),
            export: Arc::clone(&self.export),
            metrics: Arc::clone(&self.metrics),
        })
    }

    /// Begins the spans of a request. `is_trusted` is whether its peer is a trusted proxy.
    pub fn begin<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        peer: Peer,
        is_trusted: bool,
    ) -> Box<RequestSpan> {
        Box::new(RequestSpan::begin(self, request, peer, is_trusted))
    }

    /// Exports what waits, for at most three seconds, and ends. Gives the number of spans that are lost.
    pub async fn shutdown(&self) -> usize {
        let (done, flushed) = oneshot::channel();
        let export = Arc::clone(&self.export);
        // The call blocks. A thread of its own, as the end of the process would wait for one of the runtime's.
        let waiting = std::thread::Builder::new().name("traces-flush".to_owned()).spawn(move || {
            let result = export.processor.shutdown_with_timeout(FLUSH_TIMEOUT);
            let _ = done.send(result.is_ok());
        });
        if waiting.is_ok() {
            let _ = flushed.await;
        }
        self.export.pending.load(Ordering::Relaxed)
    }

    fn is_sampled(&self, parent: Option<&SpanContext>, trace_id: TraceId) -> bool {
        let parent = parent.map(|parent| Context::new().with_remote_span_context(parent.clone()));
        let result = self.sampler.should_sample(parent.as_ref(), trace_id, "", &SpanKind::Server, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }

    /// Takes places in the queue for all spans of a request, or none: half of a request's spans would mislead.
    fn reserve(&self, spans: usize) -> bool {
        let Export { pending, queue, .. } = &*self.export;
        if pending.fetch_add(spans, Ordering::Relaxed) + spans <= *queue {
            return true;
        }
        pending.fetch_sub(spans, Ordering::Relaxed);
        self.metrics.trace_spans.get_or_create(&Outcome { outcome: "queue_full" }).inc_by(spans as u64);
        false
    }

    /// There must be a place for it.
    fn export(&self, span: SpanData) {
        self.export.processor.on_end(span);
    }
}

fn make_resource(attributes: &[(String, String)]) -> Resource {
    let attributes = attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let sdk = Box::new(TelemetryResourceDetector);
    Resource::builder_empty().with_detector(sdk).with_attributes(attributes).build()
}

fn random_trace_id() -> TraceId {
    TraceId::from_bytes(fastrand::u128(1..).to_be_bytes())
}

fn random_span_id() -> SpanId {
    SpanId::from_bytes(fastrand::u64(1..).to_be_bytes())
}
