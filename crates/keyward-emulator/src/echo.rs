//! An upstream that shows what it received, as JSON. Some paths do something else:
//!
//! | path | answer |
//! | --- | --- |
//! | `/status/{code}` | this status |
//! | `/stream/{n}` | n numbered lines, one each 100 ms |
//! | `/events` | an event stream, one event a second, or `?every=50ms`, until the client leaves |
//! | `/bytes/{n}` | n bytes, their length announced |
//! | `/cut/{n}` | n bytes of twice as many announced; then the transfer breaks |
//! | `/slow/{ms}` | the usual, so much later |
//! | `/trailers` | the usual, with trailers after it |
//! | `/reset` | none: closes the connection, or resets the HTTP/2 stream |
//! | `/ws` | a WebSocket that gives back what it gets |
//!
//! On every path each `?header=Name:value` sets a header of the answer.

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

/// How much of a body is kept.
const MAX_BODY: usize = 64 * 1024;

/// How many requests are kept.
const MAX_RECEIVED: usize = 1024;

/// A handle on an echo upstream. Clones are handles on the same one.
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

/// A request as it was received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Received {
    /// The method.
    pub method: String,
    /// Path and query, byte for byte.
    pub path: String,
    /// The HTTP version.
    pub version: String,
    /// Every header with every value, in order.
    pub headers: Vec<(String, String)>,
    /// The trailers.
    pub trailers: Vec<(String, String)>,
    /// The body, where it is text and short.
    pub body: Option<String>,
    /// The body's length.
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

/// What an echo upstream saw so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Requests whose head arrived.
    pub requests: u64,
    /// Requests that broke off within their body.
    pub broken_bodies: u64,
    /// Bytes of request bodies read.
    pub body_bytes: u64,
    /// Answers being made or sent and WebSockets open.
    pub open: u64,
}

/// An answer that is open until this is dropped.
#[derive(Debug)]
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// A request body that counts as broken unless it was read to its end.
struct Reading<'a> {
    shared: &'a Shared,
    ended: bool,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.broken_bodies.fetch_add(1, Relaxed);
        }
    }
}

impl Echo {
    /// An echo upstream that serves nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves HTTP/1.1 and HTTP/2 with prior knowledge on one port until told to stop, when every connection ends.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        let (tasks, _guard) = Tasks::new(&stop);
        while let Some(stream) = tasks.accept(&listener).await {
            self.shared.connections.fetch_add(1, Relaxed);
            let (echo, upgrades) = (self.clone(), tasks.clone());
            let answer = move |request| echo.clone().answer(request, upgrades.clone());
            tasks.spawn(tasks.clone().connection(stream, answer));
        }
        tasks.end().await;
    }

    /// The last requests, oldest first; each is added once its body has ended, or at once where its path is not one
    /// that reads it.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received().iter().cloned().collect()
    }

    /// Forgets the requests received, but not the counts.
    pub fn clear(&self) {
        self.shared.received().clear();
    }

    /// What was seen so far.
    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.shared.connections.load(Relaxed),
            requests: self.shared.requests.load(Relaxed),
            broken_bodies: self.shared.broken_bodies.load(Relaxed),
            body_bytes: self.shared.body_bytes.load(Relaxed),
            open: self.shared.open.load(Relaxed),
        }
    }

    async fn answer(self, mut request: Request<Incoming>, tasks: Tasks) -> Result<Response<Body>, BodyError> {
        self.shared.requests.fetch_add(1, Relaxed);
        self.shared.open.fetch_add(1, Relaxed);
        let open = Open(Arc::clone(&self.shared));
        let (path, argument) = special(request.uri().path());
        let extra = extra_headers(&request);
        let head_only = request.method() == Method::HEAD;
        if matches!(
            (path, argument),
            ("ws" | "reset" | "events", None) | ("stream" | "bytes" | "cut", Some(_))
        ) {
            self.record(Received::of(&request));
        }
        let mut response = match (path, argument) {
            ("ws", None) => websocket::accept(&mut request, open, &tasks),
            ("reset", None) => return Err("reset on request".into()),
            ("events", None) => streams::events(open, every(&request)),
            ("stream", Some(lines)) => streams::lines(open, lines),
            ("bytes", Some(bytes)) => streams::bytes(open, bytes, bytes),
            ("cut", Some(bytes)) => streams::bytes(open, bytes, bytes.saturating_mul(2)),
            ("slow", Some(millis)) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                self.echo(request).await?
            }
            ("status", Some(code)) => self.status(code, request).await?,
            ("trailers", None) => with_trailers(self.echo(request).await?),
            _ => self.echo(request).await?,
        };
        response.headers_mut().extend(extra);
        Ok(if head_only { response.map(|_| empty()) } else { response })
    }

    /// Reads the whole request and answers with what it was.
    async fn echo(&self, request: Request<Incoming>) -> Result<Response<Body>, BodyError> {
        let mut received = Received::of(&request);
        let mut body = request.into_body();
        let mut reading = Reading { shared: &self.shared, ended: false };
        let mut kept = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    received.body_bytes += data.len() as u64;
                    self.shared.body_bytes.fetch_add(data.len() as u64, Relaxed);
                    kept.extend_from_slice(&data[..data.len().min(MAX_BODY - kept.len())]);
                }
                Err(frame) => received.trailers = frame.trailers_ref().map(pairs).unwrap_or_default(),
            }
        }
        reading.ended = true;
        if kept.len() as u64 == received.body_bytes {
            received.body = String::from_utf8(kept).ok();
        }
        let mut json = serde_json::to_vec(&received)?;
        json.push(b'\n');
        self.record(received);
        let mut response = Response::new(full(json));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    async fn status(&self, code: u64, request: Request<Incoming>) -> Result<Response<Body>, BodyError> {
        let status = u16::try_from(code).ok().filter(|code| *code >= 200).map(StatusCode::from_u16);
        let mut response = self.echo(request).await?;
        *response.status_mut() = status.and_then(Result::ok).unwrap_or(StatusCode::BAD_REQUEST);
        match response.status() {
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED => {
                response.headers_mut().remove(CONTENT_TYPE);
                Ok(response.map(|_| empty()))
            }
            _ => Ok(response),
        }
    }

    fn record(&self, received: Received) {
        let mut all = self.shared.received();
        if all.len() == MAX_RECEIVED {
            all.pop_front();
        }
        all.push_back(received);
    }
}

impl Shared {
    fn received(&self) -> MutexGuard<'_, VecDeque<Received>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Received {
    fn of(request: &Request<Incoming>) -> Self {
        let uri = request.uri();
        Self {
            method: request.method().to_string(),
            path: uri.path_and_query().map_or_else(|| uri.to_string(), ToString::to_string),
            version: format!("{:?}", request.version()),
            headers: pairs(request.headers()),
            trailers: Vec::new(),
            body: None,
            body_bytes: 0,
        }
    }
}

/// The special path and its number, where it is one.
fn special(path: &str) -> (&str, Option<u64>) {
    let path = path.strip_prefix('/').unwrap_or(path);
    match path.split_once('/') {
        None => (path, None),
        Some((name, number)) => match number.parse() {
            Ok(number) => (name, Some(number)),
            Err(_) => ("", None),
        },
    }
}

fn every(request: &Request<Incoming>) -> Duration {
    let query = request.uri().query().unwrap_or_default();
    let every = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "every");
    every.and_then(|(_, every)| parse_duration(&every)).unwrap_or(Duration::from_secs(1))
}

fn extra_headers(request: &Request<Incoming>) -> HeaderMap {
    let query = request.uri().query().unwrap_or_default();
    let wanted = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "header");
    let header = |text: &str| {
        let (name, value) = text.split_once(':')?;
        Some((HeaderName::try_from(name).ok()?, HeaderValue::from_str(value.trim()).ok()?))
    };
    wanted.filter_map(|(_, text)| header(&text)).collect()
}

fn with_trailers(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-echo, grpc-status"));
    response.headers_mut().remove(CONTENT_LENGTH);
    let trailers = [("x-echo", "done"), ("grpc-status", "0")]
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let trailers = HeaderMap::from_iter(trailers);
    // A body of known length has no trailers in HTTP/1.1.
    let trailers = stream::once(std::future::ready(Ok(Frame::trailers(trailers))));
    response.map(|body| StreamBody::new(body.into_stream().chain(trailers)).boxed_unsync())
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let lossy = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), lossy(value))).collect()
}

#[cfg(test)]
mod tests;
