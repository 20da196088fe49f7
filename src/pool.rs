//! The connection pool of one origin server (RFC 9110 section 3.6): HTTP/1.1 connections carry one request at a time, HTTP/2
//! connections many. A request is sent again only if the origin processed nothing of it.
//!
//! hyper-util's pool is not used: it is keyed by URI and so would open a connection for each `Host` that clients choose, and
//! over HTTP/2 it sends the URI's authority.

mod dial;
mod outgoing;
mod pooled;
mod request_target;
mod proxy_tunnel;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response, StatusCode};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::outgoing::{OutgoingBody, Replay};
pub(crate) use self::pooled::PooledBody;
use self::pooled::{Connection, lease_connection};
pub use self::proxy_tunnel::{ProxyTunnel, USER_AGENT_PRODUCT};
use self::request_target::{for_http1, for_http2};
use crate::body::Body;
use crate::tls::{KeyPair, TlsError};

/// How to connect to an origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to connect.
    pub address: Address,
    /// `None` for clear text.
    pub tls: Option<Tls>,
    /// The HTTP version.
    pub protocol: Protocol,
    /// Time limit of TCP connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
}

impl Settings {
    /// Whether certificate files are read, so that a reload must build the pool anew even if these settings are equal.
    pub fn reads_files(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.roots.is_some() || tls.identity.is_some())
    }
}

/// The address of an origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A DNS name or IP address (an IPv6 address without brackets) and a port.
    Tcp(Box<str>, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// How an https origin's certificate is verified, and the certificate that Keyward presents to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// A PEM file of root certificates, instead of the system's.
    pub roots: Option<PathBuf>,
    /// The name to verify and to send as SNI, instead of the host.
    pub server_name: Option<Box<str>>,
    /// The client certificate.
    pub identity: Option<KeyPair>,
}

/// The HTTP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 in clear text; chosen by ALPN with TLS.
    Auto,
    /// Always HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

/// Maximum number of streams on one HTTP/2 connection, above which another connection is opened; RFC 9113 section 6.5.2 asks
/// servers to allow at least this many.
const STREAMS: usize = 100;
/// How often a request is sent at most. It is sent again only if the origin has not processed it.
const TRIES: usize = 3;

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke, or the response is not HTTP.
    #[error("the connection broke: {0}")]
    Broken(#[source] hyper::Error),
    /// An upgrade was requested from an origin that only speaks HTTP/2.
    #[error("HTTP/2 cannot upgrade")]
    NoUpgrade,
}

impl SendError {
    /// The error and its causes on one line.
    pub fn format_chain(&self) -> String {
        let mut text = self.to_string();
        // The text already has the first cause.
        let mut cause = std::error::Error::source(self).and_then(std::error::Error::source);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        text
    }
}

/// One origin and its connections.
pub struct Origin {
    dialer: dial::Dialer,
    idle_timeout: Duration,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    /// Whether the origin was last seen to speak HTTP/2.
    speaks_http2: AtomicBool,
    /// While HTTP/2 is likely, one task connects and the others wait to share its connection. A tokio mutex, because it is held
    /// across the connect.
    dialing: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
}

/// An HTTP/1.1 connection between two requests.
struct Idle {
    sender: http1::SendRequest<OutgoingBody>,
    since: Instant,
}

/// An HTTP/2 connection. The `Arc` counts the streams: one for itself, one for each.
struct Shared {
    sender: http2::SendRequest<OutgoingBody>,
    streams: Arc<()>,
    opened: Instant,
    /// How many streams the origin allows.
    allowed: Arc<AtomicUsize>,
    used: Instant,
}

enum Sender {
    Http1(http1::SendRequest<OutgoingBody>),
    Http2(http2::SendRequest<OutgoingBody>, Arc<()>),
}

impl Origin {
    /// An origin without connections yet. Connections run as `tasks`.
    ///
    /// # Errors
    /// When a certificate cannot be used.
    pub fn new(settings: &Settings, tasks: TaskTracker) -> Result<Arc<Self>, TlsError> {
        Self::with_tunnel(None, settings, tasks)
    }

    /// Like `new`, through an HTTP proxy if there is one.
    ///
    /// # Errors
    /// When a certificate cannot be used.
    pub fn with_tunnel(
        tunnel: Option<ProxyTunnel>,
        settings: &Settings,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, TlsError> {
        let origin = Arc::new(Self {
            dialer: dial::Dialer::new(tunnel, settings)?,
            idle_timeout: settings.idle_timeout,
            idle: Mutex::default(),
            shared: Mutex::default(),
            speaks_http2: AtomicBool::new(settings.protocol == Protocol::Http2 || settings.tls.is_some()),
            dialing: tokio::sync::Mutex::default(),
            tasks: tasks.clone(),
        });
        let (weak, period) = (Arc::downgrade(&origin), settings.idle_timeout);
        tasks.spawn(async move {
            while let Some(origin) = weak.upgrade() {
                origin.remove_expired();
                drop(origin);
                tokio::time::sleep(period).await;
            }
        });
        Ok(origin)
    }

    /// Sends a request and returns once the head of the response has arrived. The URI must be in origin-form and `Host` must be
    /// present; over HTTP/2 it becomes `:authority`. Only connecting has a time limit.
    ///
    /// # Errors
    /// When there is no response.
    pub(crate) async fn send_request(
        self: &Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<PooledBody>, SendError> {
        let mut request = request.map(OutgoingBody::Once);
        let mut tries = 0;
        loop {
            tries += 1;
            let (sender, kept) = self.acquire_sender(tries == 1).await?;
            let (connection, replay);
            (request, replay) = match &sender {
                Sender::Http1(_) => {
                    let replay = if kept { Replay::without_body(&request) } else { None };
                    connection = None;
                    (request, replay)
                }
                Sender::Http2(_, streams) => {
                    connection = Some(Arc::downgrade(streams));
                    let (request, replay) = Replay::record(request);
                    (request, Some(replay))
                }
            };
            let (error, unsent) = match self.send_on(sender, request).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            let refused = is_refused(&error);
            if refused && let Some(connection) = connection {
                // The connection is closing, or at its limit of streams.
                lock(&self.shared).retain(|shared| Arc::as_ptr(&shared.streams) != connection.as_ptr());
            }
            // A kept connection may have been closed without notice, or may be closed while the request is sent.
            let replay = replay.filter(|replay| refused || (kept && replay.is_safe()));
            let again = unsent.map(|request| *request).filter(|_| kept).or_else(|| replay?.into_request());
            request = match again {
                Some(again) if tries < TRIES => again,
                _ => return Err(SendError::Broken(error)),
            };
        }
    }

    /// Sends a request that may turn the connection into a tunnel, on a new HTTP/1.1 connection. After a 101 the
    /// response can be upgraded.
    ///
    /// # Errors
    /// As for `send_request`.
    pub(crate) async fn send_upgrade(
        self: &Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<PooledBody>, SendError> {
        let request = request.map(OutgoingBody::Once);
        let dialed = self.dialer.dial(dial::Wanted::Upgrade, &self.tasks).await?;
        let dial::Dialed::Http1(sender) = dialed else {
            return Err(SendError::NoUpgrade);
        };
        self.send_on(Sender::Http1(sender), request).await.map_err(|(error, _)| SendError::Broken(error))
    }

    /// Removes the connections that received nothing since `silent_since`. Requests in progress on them continue, new requests use
    /// other connections.
    pub fn forget_connections(&self, silent_since: Instant) {
        lock(&self.idle).retain(|idle| idle.since >= silent_since);
        lock(&self.shared).retain(|connection| connection.opened >= silent_since);
    }

    async fn send_on(
        self: &Arc<Self>,
        sender: Sender,
        request: Request<OutgoingBody>,
    ) -> Result<Response<PooledBody>, (hyper::Error, Option<Box<Request<OutgoingBody>>>)> {
        let split = |mut error: TrySendError<Request<OutgoingBody>>| {
            let unsent = error.take_message().map(Box::new);
            (error.into_error(), unsent)
        };
        match sender {
            Sender::Http1(mut sender) => {
                let response = sender.try_send_request(for_http1(request)).await.map_err(split)?;
                // SECURITY: after a 101 the connection is no longer HTTP.
                let kept = response.status() != StatusCode::SWITCHING_PROTOCOLS;
                let connection = kept.then(|| Connection::Http1 { sender, origin: Arc::clone(self) });
                Ok(response.map(|incoming| lease_connection(incoming, connection)))
            }
            Sender::Http2(mut sender, stream) => {
                let request = for_http2(request, self.dialer.scheme());
                let response = sender.try_send_request(request).await.map_err(split)?;
                Ok(response.map(|incoming| lease_connection(incoming, Some(Connection::Http2(stream)))))
            }
        }
    }

    /// Returns a connection, and whether it was open before. Without `reuse`, an HTTP/1.1 request gets a new connection.
    async fn acquire_sender(self: &Arc<Self>, reuse: bool) -> Result<(Sender, bool), SendError> {
        if let Some(sender) = self.find_sender(reuse) {
            return Ok((sender, true));
        }
        let _one_at_a_time = if self.speaks_http2.load(Ordering::Relaxed) {
            let guard = self.dialing.lock().await;
            if let Some(sender) = self.find_sender(reuse) {
                return Ok((sender, true));
            }
            Some(guard)
        } else {
            None
        };
        let dialed = self.dialer.dial(dial::Wanted::Any, &self.tasks).await?;
        self.speaks_http2.store(matches!(dialed, dial::Dialed::Http2(..)), Ordering::Relaxed);
        match dialed {
            dial::Dialed::Http1(sender) => Ok((Sender::Http1(sender), false)),
            dial::Dialed::Http2(sender, allowed) => {
                let streams = Arc::new(());
                let first = Sender::Http2(sender.clone(), Arc::clone(&streams));
                let opened = Instant::now();
                lock(&self.shared).push(Shared { sender, streams, allowed, opened, used: opened });
                Ok((first, false))
            }
        }
    }

    fn find_sender(&self, reuse: bool) -> Option<Sender> {
        let mut shared = lock(&self.shared);
        shared.retain(|connection| !connection.sender.is_closed());
        let free = |connection: &&mut Shared| {
            let allowed = connection.allowed.load(Ordering::Relaxed).clamp(1, STREAMS);
            Arc::strong_count(&connection.streams) <= allowed
        };
        if let Some(connection) = shared.iter_mut().find(free) {
            connection.used = Instant::now();
            return Some(Sender::Http2(connection.sender.clone(), Arc::clone(&connection.streams)));
        }
        drop(shared);
        if !reuse {
            return None;
        }
        let mut idle = lock(&self.idle);
        // The one used last is the least likely to have been closed. One that is not ready is still sending the body of a
        // request that was answered early.
        let usable = |idle: &Idle| idle.sender.is_ready() && idle.since.elapsed() < self.idle_timeout;
        let place = idle.iter().rposition(usable)?;
        Some(Sender::Http1(idle.swap_remove(place).sender))
    }

    fn remove_expired(&self) {
        let expired = |since: Instant| since.elapsed() >= self.idle_timeout;
        // A connection that is still sending the body of a request that was answered early is kept until that ends.
        lock(&self.idle).retain(|idle| !idle.sender.is_closed() && !expired(idle.since));
        lock(&self.shared).retain(|connection| {
            let unused = Arc::strong_count(&connection.streams) == 1;
            !(connection.sender.is_closed() || (unused && expired(connection.used)))
        });
    }
}

/// Whether the origin states that it did not process the request (RFC 9113 section 8.7).
fn is_refused(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
    })
}

/// Runs the tasks that hyper spawns for HTTP/2 in a tracker, so that shutdown can wait for them.
#[derive(Clone)]
pub struct Tasks(pub TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// A poisoned lock is used all the same: a panic cannot leave the lists half changed.
fn lock<T>(list: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
