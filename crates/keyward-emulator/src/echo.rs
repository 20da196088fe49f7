//! An upstream that answers with the request that it received, as JSON. Some paths differ:
//!
//! | path | response |
//! | --- | --- |
//! | `/status/{code}` | this status |
//! | `/stream/{n}` | n numbered lines, 100 ms apart |
//! | `/events` | an event stream without end, an event a second, or `?every=50ms` |
//! | `/bytes/{n}` | n bytes, with Content-Length |
//! | `/cut/{n}` | Content-Length 2n, n bytes, then the transfer breaks |
//! | `/slow/{ms}` | JSON, after so many milliseconds |
//! | `/trailers` | JSON and trailers |
//! | `/reset` | none; closes the connection, or resets the HTTP/2 stream |
//! | `/ws` | a WebSocket that echoes messages |
//!
//! On every path each `?header=Name:value` sets a response header.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, TRAILER};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::body::{Body, BodyError, empty, full};
use crate::connections::Tasks;
use crate::duration::parse_duration;

mod streams;
mod websocket;

/// Limit of a request body to record, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Limit of recorded requests; above it the oldest is dropped.
const MAX_RECEIVED: usize = 1024;

/// A handle on an echo upstream. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Echo {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    connections: AtomicU64,
    requests: AtomicU64,
    broken_bodies: AtomicU64,
    body_bytes: AtomicU64,
    open: AtomicU64,
    received: Mutex<VecDeque<Received>>,
}

/// A received request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Received {
    /// The method.
    pub method: String,
    /// Path and query, byte for byte.
    pub path: String,
    /// The HTTP version.
    pub version: String,
    /// All header fields in order.
    pub headers: Vec<(String, String)>,
    /// The trailers.
    pub trailers: Vec<(String, String)>,
    /// The body, if it is UTF-8 of at most 64 KiB.
    pub body: Option<String>,
    /// Length of the body.
    pub body_bytes: u64,
}

impl Received {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_values(name).first().copied()
    }

    /// All values of a header.
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(header, _)| header.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

/// The counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted connections.
    pub connections: u64,
    /// Requests, counted when the head has arrived.
    pub requests: u64,
    /// Requests whose body ended early.
    pub broken_bodies: u64,
    /// Bytes of request bodies read.
    pub body_bytes: u64,
    /// Responses in progress and open WebSockets.
    pub open: u64,
}

/// Counts a response as open until dropped.
#[derive(Debug)]
struct OpenResponse(Arc<Shared>);

impl Drop for OpenResponse {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Counts a body as broken if dropped before `ended`.
struct BodyReader<'a> {
    shared: &'a Shared,
    ended: bool,
}

impl Drop for BodyReader<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.broken_bodies.fetch_add(1, Relaxed);
        }
    }
}

impl Echo {
    /// An echo upstream that serves no listener yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves HTTP/1.1 and, with prior knowledge, HTTP/2 until `stop` is cancelled, which closes all connections.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        let (tasks, _guard) = Tasks::new(&stop);
        while let Some(stream) = tasks.accept(&listener).await {
            self.shared.connections.fetch_add(1, Relaxed);
            let (echo, upgrades) = (self.clone(), tasks.clone());
            let handler = move |request| echo.clone().handle_request(request, upgrades.clone());
            tasks.spawn(tasks.clone().serve_connection(stream, handler));
        }
        tasks.shut_down().await;
    }

    /// The last requests, oldest first. A request is recorded when its body has ended, or with its head on paths that do not
    /// read the body.
    pub fn received(&self) -> Vec<Received> {
        self.shared.lock_received().iter().cloned().collect()
    }

    /// Drops the recorded requests and keeps the counters.
    pub fn clear(&self) {
        self.shared.lock_received().clear();
    }

    /// The counters.
    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.shared.connections.load(Relaxed),
            requests: self.shared.requests.load(Relaxed),
            broken_bodies: self.shared.broken_bodies.load(Relaxed),
            body_bytes: self.shared.body_bytes.load(Relaxed),
            open: self.shared.open.load(Relaxed),
        }
    }

    async fn handle_request(
        self,
        mut request: Request<Incoming>,
        tasks: Tasks,
    ) -> Result<Response<Body>, BodyError> {
        self.shared.requests.fetch_add(1, Relaxed);
        self.shared.open.fetch_add(1, Relaxed);
        let open = OpenResponse(Arc::clone(&self.shared));
        let (path, argument) = split_path(request.uri().path());
        let extra = requested_headers(&request);
        let head_only = request.method() == Method::HEAD;
        if matches!(
            (path, argument),
            ("ws" | "reset" | "events", None) | ("stream" | "bytes" | "cut", Some(_))
        ) {
            self.record_request(Received::from_head(&request));
        }
        let mut response = match (path, argument) {
            ("ws", None) => websocket::accept_upgrade(&mut request, open, &tasks),
            ("reset", None) => return Err("reset on request".into()),
            ("events", None) => streams::stream_events(open, event_interval(&request)),
            ("stream", Some(lines)) => streams::stream_lines(open, lines),
            ("bytes", Some(bytes)) => streams::stream_bytes(open, bytes, bytes),
            ("cut", Some(bytes)) => streams::stream_bytes(open, bytes, bytes.saturating_mul(2)),
            ("slow", Some(millis)) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                self.echo_request(request).await?
            }
            ("status", Some(code)) => self.echo_with_status(code, request).await?,
            ("trailers", None) => add_trailers(self.echo_request(request).await?),
            _ => self.echo_request(request).await?,
        };
        response.headers_mut().extend(extra);
        Ok(if head_only { response.map(|_| empty()) } else { response })
    }

    /// Reads the whole request and returns it as JSON.
    async fn echo_request(&self, request: Request<Incoming>) -> Result<Response<Body>, BodyError> {
        let mut received = Received::from_head(&request);
        let mut body = request.into_body();
        let mut reading = BodyReader { shared: &self.shared, ended: false };
        let mut kept = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    received.body_bytes += data.len() as u64;
                    self.shared.body_bytes.fetch_add(data.len() as u64, Relaxed);
                    kept.extend_from_slice(&data[..data.len().min(MAX_BODY - kept.len())]);
                }
                Err(frame) => received.trailers = frame.trailers_ref().map(header_pairs).unwrap_or_default(),
            }
        }
        reading.ended = true;
        if kept.len() as u64 == received.body_bytes {
            received.body = String::from_utf8(kept).ok();
        }
        let mut json = serde_json::to_vec(&received)?;
        json.push(b'\n');
        self.record_request(received);
        let mut response = Response::new(full(json));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    async fn echo_with_status(
        &self,
        code: u64,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, BodyError> {
        let status = u16::try_from(code).ok().filter(|code| *code >= 200).map(StatusCode::from_u16);
        let mut response = self.echo_request(request).await?;
        *response.status_mut() = status.and_then(Result::ok).unwrap_or(StatusCode::BAD_REQUEST);
        match response.status() {
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED => {
                response.headers_mut().remove(CONTENT_TYPE);
                Ok(response.map(|_| empty()))
            }
            _ => Ok(response),
        }
    }

    fn record_request(&self, received: Received) {
        let mut all = self.shared.lock_received();
        if all.len() == MAX_RECEIVED {
            all.pop_front();
        }
        all.push_back(received);
    }
}

impl Shared {
    fn lock_received(&self) -> MutexGuard<'_, VecDeque<Received>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Received {
    fn from_head(request: &Request<Incoming>) -> Self {
        let uri = request.uri();
        Self {
            method: request.method().to_string(),
            path: uri.path_and_query().map_or_else(|| uri.to_string(), ToString::to_string),
            version: format!("{:?}", request.version()),
            headers: header_pairs(request.headers()),
            trailers: Vec::new(),
            body: None,
            body_bytes: 0,
        }
    }
}

/// Splits `/name/number`.
fn split_path(path: &str) -> (&str, Option<u64>) {
    let path = path.strip_prefix('/').unwrap_or(path);
    match path.split_once('/') {
        None => (path, None),
        Some((name, number)) => match number.parse() {
            Ok(number) => (name, Some(number)),
            Err(_) => ("", None),
        },
    }
}

fn event_interval(request: &Request<Incoming>) -> Duration {
    let query = request.uri().query().unwrap_or_default();
    let every = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "every");
    every.and_then(|(_, every)| parse_duration(&every)).unwrap_or(Duration::from_secs(1))
}

fn requested_headers(request: &Request<Incoming>) -> HeaderMap {
    let query = request.uri().query().unwrap_or_default();
    let wanted = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "header");
    let header = |text: &str| {
        let (name, value) = text.split_once(':')?;
        Some((HeaderName::try_from(name).ok()?, HeaderValue::from_str(value.trim()).ok()?))
    };
    wanted.filter_map(|(_, text)| header(&text)).collect()
}

fn add_trailers(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-echo, grpc-status"));
    response.headers_mut().remove(CONTENT_LENGTH);
    let trailers = [("x-echo", "done"), ("grpc-status", "0")]
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let trailers = HeaderMap::from_iter(trailers);
    // HTTP/1.1 sends trailers only with a chunked body, so its length must not be known.
    let trailers = stream::once(std::future::ready(Ok(Frame::trailers(trailers))));
    response.map(|body| StreamBody::new(body.into_stream().chain(trailers)).boxed_unsync())
}

fn header_pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let lossy = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), lossy(value))).collect()
}

#[cfg(test)]
mod tests;
