//! A minimal receiver of OTLP over HTTP.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response};
use keyward::body::{self, Body, BodyError};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio_rustls::TlsAcceptor;

use crate::support::http::{serve, start_upstream};
use crate::support::{bind_loopback, wait_until};

/// How it answers.
#[derive(Clone, Copy, PartialEq)]
pub enum Answer {
    Accept,
    Status(u16),
    /// Accepts the message, but rejects this many spans.
    Reject(u8),
    Never,
}

/// What a request had.
pub struct Export {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    pub exports: Arc<Mutex<Vec<Export>>>,
}

impl Collector {
    pub async fn start() -> Self {
        Self::answering(Answer::Accept).await
    }

    pub async fn answering(answer: Answer) -> Self {
        let exports = Arc::<Mutex<Vec<Export>>>::default();
        let kept = Arc::clone(&exports);
        let address = start_upstream(move |request| receive(request, answer, Arc::clone(&kept))).await;
        Self { address, exports }
    }

    /// Over TLS.
    pub async fn over_tls(config: Arc<rustls::ServerConfig>) -> Self {
        let exports = Arc::<Mutex<Vec<Export>>>::default();
        let (listener, address) = bind_loopback().await;
        let kept = Arc::clone(&exports);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, kept) = (TlsAcceptor::from(Arc::clone(&config)), Arc::clone(&kept));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = move |request| receive(request, Answer::Accept, Arc::clone(&kept));
                    serve(stream, Arc::new(answer)).await;
                });
            }
        });
        Self { address, exports }
    }

    /// The variables that make Keyward export to it, soon.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", self.address)),
            ("OTEL_BSP_SCHEDULE_DELAY", "10".to_owned()),
        ]
    }

    /// The first export.
    pub fn with_first<T>(&self, read: impl FnOnce(&Export) -> T) -> T {
        read(self.exports.lock().unwrap().first().expect("an export"))
    }

    /// All bytes that arrived, headers included.
    pub fn all_bytes(&self) -> Vec<u8> {
        let exports = self.exports.lock().unwrap();
        exports
            .iter()
            .flat_map(|export| [format!("{:?}", export.headers).into_bytes(), export.body.to_vec()])
            .flatten()
            .collect()
    }

    /// The attributes of the resource of the first export.
    pub fn resource(&self) -> Attributes {
        self.with_first(|export| {
            let message = ExportTraceServiceRequest::decode(export.body.clone()).unwrap();
            let resource = message.resource_spans[0].resource.clone().unwrap();
            Attributes(resource.attributes.into_iter().map(to_pair).collect())
        })
    }

    /// The spans so far.
    pub fn spans(&self) -> Spans {
        let exports = self.exports.lock().unwrap();
        let messages =
            exports.iter().map(|export| ExportTraceServiceRequest::decode(export.body.clone()).unwrap());
        let spans = messages.flat_map(|message| message.resource_spans);
        let spans = spans.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        Spans(spans.collect())
    }

    /// Waits for this number of spans.
    pub async fn wait_for(&self, count: usize) -> Spans {
        wait_until(|| self.spans().0.len() >= count).await;
        let spans = self.spans();
        assert_eq!(spans.0.len(), count, "{spans:?}");
        spans
    }
}

async fn receive(
    request: Request<Incoming>,
    answer: Answer,
    exports: Arc<Mutex<Vec<Export>>>,
) -> Result<Response<Body>, BodyError> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let export = Export { path: head.uri.path().to_owned(), headers: head.headers, body };
    exports.lock().unwrap().push(export);
    let mut response = Response::new(body::empty());
    match answer {
        Answer::Accept => {}
        Answer::Status(status) => *response.status_mut() = status.try_into().unwrap(),
        // `partial_success { rejected_spans: n }`
        Answer::Reject(spans) => *response.body_mut() = body::full(vec![0x0a, 2, 0x08, spans]),
        Answer::Never => std::future::pending().await,
    }
    Ok(response)
}

#[derive(Debug)]
pub struct Spans(pub Vec<Span>);

impl Spans {
    pub fn named(&self, name: &str) -> &Span {
        let found = self.0.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("no span {name:?} in {self:?}"))
    }
}

/// Attributes as text.
#[derive(Debug)]
pub struct Attributes(HashMap<String, String>);

impl Attributes {
    pub fn of(span: &Span) -> Self {
        Self(span.attributes.iter().cloned().map(to_pair).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    #[track_caller]
    pub fn check(&self, expected: &[(&str, &str)]) {
        for (name, value) in expected {
            assert_eq!(self.get(name), Some(*value), "{name} in {self:?}");
        }
    }
}

fn to_pair(attribute: opentelemetry_proto::tonic::common::v1::KeyValue) -> (String, String) {
    let text = match attribute.value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    (attribute.key, text)
}

/// Ids as `traceparent` has them.
pub fn to_hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
