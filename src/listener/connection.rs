//! One connection, from its first byte to its last. hyper speaks the protocol; the time limits are Keyward's, as hyper's
//! own run between requests too and never begin before the first byte.

use std::sync::Arc;
use std::time::Duration;

use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::activity::{Activity, ConnectionIo, InFlight, InFlightBody, ResetGuard, Silence, StallWatch};
use super::admission::admit;
use super::registry::{Entry, Registry};
use super::send_timeout::{self, Streams, TrackedBody};
use super::{Accepted, CROSSING, Handler, Phases, Settings, proxy_header};
use crate::access_log::sampler::Sampler;
use crate::body::{self, Body, BodyError};
use crate::budget::Budget;
use crate::metrics::{Metrics, Outcome};
use crate::pool::Tasks;
use crate::upstream::forwarded::{Peer, Trusted};

/// What waits to be sent on an HTTP/2 stream, in bytes.
const MAX_STREAM_BUFFER: usize = 64 * 1024;

/// What a caller may send over HTTP/2 before it is taken, in bytes: of one body, and of all on the connection, so that some
/// that stall leave room for the others. Nobody knows yet whether there is a good key, so that `budget::CONNECTION` must have
/// room for it, whatever the number of connections.
#[derive(Clone, Copy)]
struct Windows {
    stream: u32,
    connection: u32,
}

/// For one connection in `WIDE_SHARE`: 64 KiB for each of all.
const WIDE: Windows = Windows { stream: 128 * 1024, connection: 1024 * 1024 };
/// For all others. HTTP/2 knows no smaller one of a connection (RFC 9113 section 6.9.2).
const NARROW: Windows = Windows { stream: 16 * 1024, connection: 65_535 };
const WIDE_SHARE: usize = 16;
/// Streams that the peer made Keyward reset, before the connection ends (CVE-2025-8671).
const MAX_RESETS: usize = 64;
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// For a connection that was told to end while nothing was under way on it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// From the end of accepting to the first request of a connection that was accepted before.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// A connection's place among those allowed at once, held as long as its socket is, tunnels included.
pub(super) struct Open {
    metrics: Arc<Metrics>,
    _entry: Entry,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Open {
    pub(super) fn count(slot: Option<OwnedSemaphorePermit>, entry: Entry, metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self { metrics: Arc::clone(metrics), _entry: entry, _slot: slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// How connections are served.
pub(super) struct Server {
    wide: auto::Builder<Streams>,
    narrow: auto::Builder<Streams>,
    /// Connections up to which windows are wide.
    wide_connections: usize,
    max_headers: usize,
    max_per_address: Option<usize>,
    registry: Arc<Registry>,
    budget: Arc<Budget>,
    tls: Option<TlsAcceptor>,
    proxied: Trusted,
    header_timeout: Duration,
    idle_timeout: Duration,
    answer_timeout: Option<Duration>,
    metrics: Arc<Metrics>,
}

impl Server {
    pub(super) fn new(
        settings: &Settings,
        tls: Option<TlsAcceptor>,
        metrics: Arc<Metrics>,
        registry: Arc<Registry>,
        budget: Arc<Budget>,
        tasks: &TaskTracker,
    ) -> Self {
        let mut builder = auto::Builder::new(Streams {
            tasks: Tasks(tasks.clone()),
            limit: settings.answer_timeout,
            metrics: Arc::clone(&metrics),
        });
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .half_close(false)
            .max_buf_size(settings.max_head)
            .max_headers(settings.max_headers);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PONG_WITHIN)
            .max_concurrent_streams(settings.max_streams)
            .max_send_buf_size(MAX_STREAM_BUFFER)
            .max_local_error_reset_streams(MAX_RESETS)
            .max_header_list_size(u32::try_from(settings.max_head).unwrap_or(u32::MAX));
        let with = |windows: Windows| {
            let mut builder = builder.clone();
            builder
                .http2()
                .initial_stream_window_size(windows.stream)
                .initial_connection_window_size(windows.connection);
            builder
        };
        Self {
            wide: with(WIDE),
            narrow: with(NARROW),
            wide_connections: settings.max_connections / WIDE_SHARE,
            max_headers: settings.max_headers,
            max_per_address: settings.max_connections_per_address,
            registry,
            budget,
            tls,
            proxied: settings.proxied.clone(),
            header_timeout: settings.header_timeout,
            idle_timeout: settings.idle_timeout,
            answer_timeout: settings.answer_timeout,
            metrics,
        }
    }

    /// Serves a connection to its end, or until its place is needed.
    pub(super) async fn serve<H: Handler>(
        &self,
        accepted: Accepted,
        open: Open,
        activity: Arc<Activity>,
        handler: Arc<H>,
        phases: Phases,
    ) {
        tokio::select! {
            () = self.accept(accepted, open, Arc::clone(&activity), handler, phases) => {}
            () = activity.evicted() => self.count("evicted"),
        }
    }

    async fn accept<H: Handler>(
        &self,
        accepted: Accepted,
        open: Open,
        activity: Arc<Activity>,
        handler: Arc<H>,
        phases: Phases,
    ) {
        let tls = self.tls.is_some();
        match accepted {
            Accepted::Tcp(stream, address) => {
                if self.answer_timeout.is_some() {
                    show_progress(&stream);
                }
                let peer = Peer { address: Some(address.ip()), uid: None, tls };
                self.receive(stream, open, peer, handler, phases, activity).await;
            }
            Accepted::Unix(stream) => {
                let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
                self.receive(stream, open, Peer { address: None, uid, tls }, handler, phases, activity).await;
            }
        }
    }

    /// Takes a load balancer's word for who the peer is, and its alone.
    async fn receive<H: Handler>(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        open: Open,
        mut peer: Peer,
        handler: Arc<H>,
        phases: Phases,
        activity: Arc<Activity>,
    ) {
        if self.proxied.believes(peer) {
            let told = tokio::select! {
                told = timeout_at(activity.start + self.header_timeout, proxy_header::read(&mut stream)) => told,
                () = last_call(&phases) => return self.count("cut_at_shutdown"),
            };
            match told {
                Ok(Ok(caller)) => peer.address = caller.or(peer.address),
                Ok(Err(_)) => return self.refuse("proxy_header", peer),
                Err(_) => return self.count("proxy_header_timeout"),
            }
        }
        if let (Some(most), Some(address)) = (self.max_per_address, peer.address) {
            let Some(place) = self.registry.take_from(address, most) else {
                return self.count("too_many_of_one_address");
            };
            // Set once.
            let _ = activity.from_address.set(place);
        }
        let stream = StallWatch { io: stream, activity: Arc::clone(&activity) };
        self.secure(stream, open, peer, handler, phases, activity).await;
    }

    async fn secure<H: Handler>(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        open: Open,
        peer: Peer,
        handler: Arc<H>,
        phases: Phases,
        activity: Arc<Activity>,
    ) {
        let Some(tls) = &self.tls else {
            return self.speak(stream, open, peer, handler, phases, activity).await;
        };
        let accepted = tokio::select! {
            accepted = timeout_at(activity.start + self.header_timeout, tls.accept(stream)) => accepted,
            () = phases.closing.cancelled() => return self.count("cut_at_shutdown"),
        };
        match accepted {
            Ok(Ok(stream)) => self.speak(stream, open, peer, handler, phases, activity).await,
            Ok(Err(_)) => self.count("tls"),
            Err(_) => self.count("tls_timeout"),
        }
    }

    async fn speak<H: Handler>(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        open: Open,
        peer: Peer,
        handler: Arc<H>,
        phases: Phases,
        activity: Arc<Activity>,
    ) {
        let io = TokioIo::new(ConnectionIo::new(stream, Arc::clone(&activity), open));
        let service = service_fn({
            let (activity, draining) = (Arc::clone(&activity), phases.draining.clone());
            let max_headers = self.max_headers;
            move |mut request: Request<Incoming>| {
                let (handler, draining) = (Arc::clone(&handler), draining.clone());
                let version = request.version();
                let (activity, account) = (Arc::clone(&activity), Arc::clone(&activity.account));
                let admitted = admit(&mut request, max_headers, &account).map(Arc::new);
                // What comes behind such a head was not looked at, as it may be another protocol's.
                let unread = version < Version::HTTP_2 && asks_for_websocket(request.headers());
                let (busy, reset_guard) = (InFlight::begin(&activity, version), ResetGuard::begin(&activity));
                // An upload may outlast its answer.
                let sending = (!request.body().is_end_stream()).then(|| InFlight::begin(&activity, version));
                let held_by_upload = admitted.as_ref().ok().cloned();
                async move {
                    let request = request.map(|body| {
                        let body = body.map_err(BodyError::from).boxed_unsync();
                        sending.map_or_else(body::empty, |busy| {
                            InFlightBody::wrap(body, busy, held_by_upload, Arc::clone(&account))
                        })
                    });
                    let (mut response, held) = match admitted {
                        // In a box, so that a request that is refused takes no room for what is not begun.
                        Ok(held) => (Box::pin(handler.answer(request, peer, &account)).await, Some(held)),
                        Err(rejection) => (handler.refuse(request, peer, rejection), None),
                    };
                    reset_guard.answered();
                    if is_upgrade(&response) {
                        activity.become_tunnel();
                    }
                    let last = unread || (draining.is_cancelled() && version < Version::HTTP_2);
                    if last && !is_upgrade(&response) {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, std::convert::Infallible>(
                        response.map(|body| TrackedBody::wrap(body, busy, held, account)),
                    )
                }
            }
        });
        let is_crowded = self.budget.connections() > self.wide_connections;
        let builder = if is_crowded { &self.narrow } else { &self.wide };
        let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(io, service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            late = self.overdue(&activity) => {
                if let Some(outcome) = late {
                    return self.count(outcome);
                }
                connection.as_mut().graceful_shutdown();
                // An idle one has little to say.
                let _ = timeout(LAST_WORDS, connection).await;
                return;
            }
            // Not with grace: hyper would take more until the caller has seen that it ends.
            () = activity.rapid_reset() => return self.refuse("requests_taken_back", peer),
            () = self.stopping(&activity, &phases) => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = phases.closing.cancelled() => return self.count("cut_at_shutdown"),
                }
            }
        };
        if let Err(error) = ended {
            match outcome(&*error) {
                outcome if is_refusal(&*error) => self.refuse(outcome, peer),
                outcome => self.count(outcome),
            }
        }
    }

    /// Completes once the connection may be told to end. What its caller sent before it could know is served: a request
    /// that crosses the end, a head that is arriving, and the first request of a new connection.
    async fn stopping(&self, activity: &Activity, phases: &Phases) {
        phases.stopping.cancelled().await;
        let began = Instant::now();
        tokio::select! {
            () = phases.closing.cancelled() => return,
            () = sleep(CROSSING) => {}
        }
        while let Silence::Head(_) = activity.silence() {
            let limit = if activity.has_begun() { self.header_timeout } else { FIRST_REQUEST };
            if began.elapsed() >= limit || phases.closing.is_cancelled() {
                break;
            }
            sleep(CROSSING / 10).await;
        }
    }

    /// Completes when the connection has been silent for too long: with an outcome when a request's head was due, or when
    /// it took nothing of what was there for it, with none when it was idle.
    async fn overdue(&self, activity: &Activity) -> Option<&'static str> {
        // A tick, so that no request pays for setting a timer.
        let shortest = self.header_timeout.min(self.idle_timeout);
        let shortest = self.answer_timeout.map_or(shortest, |limit| shortest.min(limit));
        let tick = (shortest / 4).max(Duration::from_millis(10));
        loop {
            sleep(tick).await;
            let limit = self.answer_timeout.map(|limit| {
                if activity.account.is_over_share() { limit.min(send_timeout::TIGHT_LIMIT) } else { limit }
            });
            if limit.is_some_and(|limit| activity.unread() >= limit) {
                return Some(send_timeout::OUTCOME);
            }
            match activity.silence() {
                Silence::Not => {}
                Silence::Head(time) if time >= self.header_timeout => return Some("head_timeout"),
                Silence::Idle(time) if time >= self.idle_timeout => return None,
                Silence::Head(_) | Silence::Idle(_) => {}
            }
        }
    }

    /// Counts what no request came of and is no accident, and logs it: an attacker who searches for a way past the framing sends
    /// this. SECURITY: nothing of what was sent is in the line, and callers cannot fill the log with it.
    fn refuse(&self, outcome: &'static str, peer: Peer) {
        static SAMPLER: Sampler = Sampler::new();
        self.count(outcome);
        if let Some(suppressed) = SAMPLER.admit() {
            tracing::warn!(
                client.address = peer.address.map(tracing::field::display),
                keyward.connection.outcome = outcome,
                suppressed,
                "refused a connection"
            );
        }
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.connection_errors.get_or_create(&Outcome { outcome }).inc();
    }
}

/// The system takes no more than this ahead of the caller, in bytes, so that one who reads slowly is told from one who does not
/// read: with its usual buffers of megabytes a write may wait for minutes until some of them is free.
#[cfg(target_os = "linux")]
fn show_progress(stream: &TcpStream) {
    const AHEAD: u32 = 128 * 1024;
    // Without it the limit is only less exact.
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(AHEAD);
}

#[cfg(not(target_os = "linux"))]
fn show_progress(_: &TcpStream) {}

/// Completes when a connection that has said nothing yet can wait no longer.
async fn last_call(phases: &Phases) {
    phases.stopping.cancelled().await;
    tokio::select! {
        () = phases.closing.cancelled() => {}
        () = sleep(FIRST_REQUEST) => {}
    }
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(UPGRADE)
        .iter()
        .any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

fn is_upgrade(response: &Response<Body>) -> bool {
    response.status() == hyper::StatusCode::SWITCHING_PROTOCOLS
}

/// Whether Keyward refused what the peer sent, rather than the connection breaking off.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let Some(error) = error.downcast_ref::<hyper::Error>() else { return false };
    let http2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_parse() || http2.is_some_and(h2::Error::is_library)
}

fn outcome(error: &(dyn std::error::Error + 'static)) -> &'static str {
    match error.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_parse_too_large() => "head_too_large",
        Some(error) if error.is_parse() => "malformed",
        Some(error) if error.is_incomplete_message() || error.is_body_write_aborted() => "broke_off",
        Some(error) if error.is_user() => "answer_cut",
        Some(_) | None => "broken",
    }
}
