//! One connection, from its first byte to its last. hyper speaks the protocol; the time limits are Keyward's, as hyper's own
//! run between requests too and never begin before the first byte.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::activity::{Activity, Silence};
use super::address_limit::AddressLimit;
use super::connection_io::{ConnectionIo, StallWatch};
use super::connection_place::ConnectionPlace;
use super::http::HttpServers;
use super::max_age;
use super::rapid_reset::ResetCounter;
use super::send_timeout;
use super::service::Service;
use super::socket::Accepted;
use super::{CROSSING, Handler, Phases, Settings, proxy_header};
use crate::budget::MemoryBudget;
use crate::logging::line_limit::LineLimit;
use crate::metrics::{Metrics, Outcome};
use crate::peer::Peer;

/// For a connection to take its last response or GOAWAY when it is told to end while nothing is under way on it.
const GOODBYE: Duration = Duration::from_secs(1);

/// From the end of accepting to the first request of a connection that was accepted before.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// What the connections of a listener have in common.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) http: HttpServers,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) addresses: Arc<AddressLimit>,
    pub(super) budget: Arc<MemoryBudget>,
    pub(super) metrics: Arc<Metrics>,
}

pub(super) struct Connection<H> {
    shared: Arc<Shared>,
    handler: Arc<H>,
    phases: Phases,
    activity: Arc<Activity>,
    peer: Peer,
}

/// Why a connection is asked to end.
enum Interruption {
    Idle,
    MaxAge,
    Shutdown,
}

/// Polls a future only when that future was woken, which is rare, and not at each wake of the connection's task: at four wakes
/// for a request these polls took 0.8 of 30 µs.
fn poll_when_woken<F: Future>(future: F) -> FuturesUnordered<F> {
    FuturesUnordered::from_iter([future])
}

/// Why a connection ended early. The text is the label `outcome` of its metric.
enum Failure {
    /// What was sent was refused. It is logged too: an attacker who searches for a way past the framing sends this.
    Refused(&'static str),
    /// Ended by a limit, the client, the network or shutdown.
    Ended(&'static str),
}

impl<H: Handler> Connection<H> {
    pub(super) fn new(shared: Arc<Shared>, handler: Arc<H>, phases: Phases, activity: Arc<Activity>) -> Self {
        let peer = Peer { address: None, uid: None, tls: shared.tls.is_some() };
        Self { shared, handler, phases, activity, peer }
    }

    /// Serves the connection to its end, or until its place is needed for another.
    pub(super) async fn serve(mut self, accepted: Accepted, place: ConnectionPlace) {
        let activity = Arc::clone(&self.activity);
        let mut evicted = poll_when_woken(activity.evicted());
        let ended = tokio::select! {
            biased;
            Some(()) = evicted.next() => Err(Failure::Ended("evicted")),
            ended = self.serve_socket(accepted, place) => ended,
        };
        match ended {
            Ok(()) => {}
            Err(Failure::Ended(outcome)) => self.count(outcome),
            Err(Failure::Refused(outcome)) => {
                self.count(outcome);
                self.log_refusal(outcome);
            }
        }
    }

    async fn serve_socket(&mut self, accepted: Accepted, place: ConnectionPlace) -> Result<(), Failure> {
        match accepted {
            Accepted::Tcp(stream, address) => {
                if let Some(limit) = self.shared.settings.answer_timeout {
                    limit_unsent(&stream, limit);
                }
                self.peer.address = Some(address.ip());
                self.serve_stream(stream, place).await
            }
            Accepted::Unix(stream) => {
                self.peer.uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
                self.serve_stream(stream, place).await
            }
        }
    }

    async fn serve_stream(
        &mut self,
        mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        mut place: ConnectionPlace,
    ) -> Result<(), Failure> {
        self.read_proxy_header(&mut stream).await?;
        if let (Some(max), Some(address)) =
            (self.shared.settings.max_connections_per_address, self.peer.address)
        {
            let address = self.shared.addresses.take_place(address, max);
            place.address = Some(address.ok_or(Failure::Ended("too_many_of_one_address"))?);
        }
        let stream = StallWatch::new(stream, &self.activity);
        match &self.shared.tls {
            Some(tls) => self.serve_http(self.accept_tls(tls, stream).await?, place).await,
            None => self.serve_http(stream, place).await,
        }
    }

    /// Takes the client's address from the PROXY header of a trusted load balancer.
    async fn read_proxy_header(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<(), Failure> {
        if !self.shared.settings.proxied.trusts(self.peer) {
            return Ok(());
        }
        let read = tokio::select! {
            read = timeout_at(self.head_deadline(), proxy_header::read(stream)) => read,
            () = end_of_waiting(&self.phases) => return Err(Failure::Ended("cut_at_shutdown")),
        };
        match read {
            Ok(Ok(client)) => self.peer.address = client.or(self.peer.address),
            Ok(Err(_)) => return Err(Failure::Refused("proxy_header")),
            Err(_) => return Err(Failure::Ended("proxy_header_timeout")),
        }
        Ok(())
    }

    async fn accept_tls<S>(&self, tls: &TlsAcceptor, stream: S) -> Result<TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = tokio::select! {
            accepted = timeout_at(self.head_deadline(), tls.accept(stream)) => accepted,
            () = self.phases.closing.cancelled() => return Err(Failure::Ended("cut_at_shutdown")),
        };
        match accepted {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(_)) => Err(Failure::Ended("tls")),
            Err(_) => Err(Failure::Ended("tls_timeout")),
        }
    }

    /// When the first request's head must be there, TLS handshake and PROXY header included.
    fn head_deadline(&self) -> Instant {
        self.activity.accepted_at + self.shared.settings.header_timeout
    }

    async fn serve_http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        place: ConnectionPlace,
    ) -> Result<(), Failure> {
        let resets = Arc::<ResetCounter>::default();
        let service = Arc::new(Service {
            handler: Arc::clone(&self.handler),
            peer: self.peer,
            max_headers: self.shared.settings.max_headers,
            activity: Arc::clone(&self.activity),
            resets: Arc::clone(&resets),
            draining: self.phases.draining.clone(),
        });
        let service = service_fn(move |request| {
            let response = Arc::clone(&service).respond(request);
            async { Ok::<_, Infallible>(response.await) }
        });
        let max_head = self.shared.settings.max_head;
        let io = TokioIo::new(ConnectionIo::new(stream, Arc::clone(&self.activity), place, max_head));
        let server = self.shared.http.select(self.shared.budget.connections());
        let mut connection = std::pin::pin!(server.serve_connection_with_upgrades(io, service));
        let mut max_age = self.shared.settings.max_connection_age.map(max_age::with_jitter);
        loop {
            let mut interrupted = poll_when_woken(self.wait_for_interruption(&resets, max_age));
            let interruption = tokio::select! {
                biased;
                Some(interruption) = interrupted.next() => interruption?,
                ended = connection.as_mut() => return ended.map_err(|error| Failure::of(&*error)),
            };
            connection.as_mut().graceful_shutdown();
            match interruption {
                Interruption::Idle => {
                    // If it does not end by itself, nothing is lost.
                    let _ = timeout(GOODBYE, connection).await;
                    return Ok(());
                }
                // SECURITY: requests under way may take as long as they need, and the other limits still apply to them.
                Interruption::MaxAge => max_age = None,
                Interruption::Shutdown => {
                    return tokio::select! {
                        ended = connection => ended.map_err(|error| Failure::of(&*error)),
                        () = self.phases.closing.cancelled() => Err(Failure::Ended("cut_at_shutdown")),
                    };
                }
            }
        }
    }

    /// Completes when the connection must end though its client goes on: gracefully, or at once with a failure.
    async fn wait_for_interruption(
        &self,
        resets: &ResetCounter,
        max_age: Option<Duration>,
    ) -> Result<Interruption, Failure> {
        tokio::select! {
            exceeded = self.wait_for_timeout() => exceeded.map(|()| Interruption::Idle),
            // Not gracefully: hyper would accept requests until the client has seen that the connection ends.
            () = resets.exceeded() => Err(Failure::Refused("requests_taken_back")),
            () = self.wait_for_shutdown() => Ok(Interruption::Shutdown),
            () = max_age::reached(&self.activity, max_age) => Ok(Interruption::MaxAge),
        }
    }

    /// Completes once the connection may be told to end. What the client sent before it could know is served: a request that
    /// crosses the announcement, a head that is arriving, and the first request of a new connection.
    async fn wait_for_shutdown(&self) {
        self.phases.stopping.cancelled().await;
        let stopped_at = Instant::now();
        tokio::select! {
            () = self.phases.closing.cancelled() => return,
            () = sleep(CROSSING) => {}
        }
        while let Silence::HeadDue(_) = self.activity.silence() {
            let has_begun = self.activity.has_begun();
            let limit = if has_begun { self.shared.settings.header_timeout } else { FIRST_REQUEST };
            if stopped_at.elapsed() >= limit || self.phases.closing.is_cancelled() {
                break;
            }
            sleep(CROSSING / 10).await;
        }
    }

    /// Completes when a time limit is exceeded: with a failure when a request's head was due or the client did not read its
    /// response, without one when the connection was idle.
    async fn wait_for_timeout(&self) -> Result<(), Failure> {
        let Settings { header_timeout, idle_timeout, answer_timeout, .. } = self.shared.settings;
        // One tick for all limits, so that no request pays for setting a timer.
        let shortest = header_timeout.min(idle_timeout);
        let shortest = answer_timeout.map_or(shortest, |limit| shortest.min(limit));
        let tick = (shortest / 4).max(Duration::from_millis(10));
        loop {
            sleep(tick).await;
            let answer_timeout =
                answer_timeout.map(|limit| send_timeout::limit_for(&self.activity.account, limit));
            if answer_timeout.is_some_and(|limit| self.activity.stalled_for() >= limit) {
                return Err(Failure::Ended(send_timeout::UNREAD_OUTCOME));
            }
            match self.activity.silence() {
                Silence::Busy => {}
                Silence::HeadDue(time) if time >= header_timeout => {
                    return Err(Failure::Ended("head_timeout"));
                }
                Silence::Idle(time) if time >= idle_timeout => return Ok(()),
                Silence::HeadDue(_) | Silence::Idle(_) => {}
            }
        }
    }

    /// SECURITY: nothing of what was sent is in the line, and clients cannot fill the log with it.
    fn log_refusal(&self, outcome: &'static str) {
        static LIMIT: LineLimit = LineLimit::new(Duration::from_secs(1));
        if let Some(suppressed) = LIMIT.admit() {
            tracing::warn!(
                client.address = self.peer.address.map(tracing::field::display),
                keyward.connection.outcome = outcome,
                suppressed,
                "refused a connection"
            );
        }
    }

    fn count(&self, outcome: &'static str) {
        self.shared.metrics.connection_errors.get_or_create(&Outcome { outcome }).inc();
    }
}

impl Failure {
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let Some(error) = error.downcast_ref::<hyper::Error>() else { return Self::Ended("broken") };
        let http2 = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
        let outcome = if error.is_parse_too_large() {
            "head_too_large"
        } else if error.is_parse() {
            "malformed"
        } else if error.is_incomplete_message() || error.is_body_write_aborted() {
            "broke_off"
        } else if error.is_user() {
            "answer_cut"
        } else {
            "broken"
        };
        // Whether Keyward refused what the client sent, rather than the connection breaking off.
        let is_refusal = error.is_parse() || http2.is_some_and(h2::Error::is_library);
        if is_refusal { Self::Refused(outcome) } else { Self::Ended(outcome) }
    }
}

/// Limits what the kernel buffers ahead of the client, so that one who reads slowly is told from one who does not read: with
/// the usual buffers of megabytes a write may wait for minutes until some of them is free.
///
/// The kernel's own limit (`TCP_USER_TIMEOUT`, tcp(7)) is for what Keyward does not time: WebSocket tunnels, and a client that
/// vanished. It is longer, so that a response that is not read ends by the limit that is counted.
#[cfg(target_os = "linux")]
fn limit_unsent(stream: &TcpStream, limit: Duration) {
    /// In bytes.
    const MAX_UNSENT: u32 = 128 * 1024;
    let socket = socket2::SockRef::from(stream);
    // Without them the limit is only less exact.
    let _ = socket.set_tcp_notsent_lowat(MAX_UNSENT);
    let _ = socket.set_tcp_user_timeout(Some(limit * 2));
}

#[cfg(not(target_os = "linux"))]
fn limit_unsent(_: &TcpStream, _: Duration) {}

/// Completes when a connection on which nothing has arrived yet can wait no longer.
async fn end_of_waiting(phases: &Phases) {
    phases.stopping.cancelled().await;
    tokio::select! {
        () = phases.closing.cancelled() => {}
        () = sleep(FIRST_REQUEST) => {}
    }
}
