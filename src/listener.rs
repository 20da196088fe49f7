//! Accepts connections and serves them: TCP, unix socket, TLS; HTTP/1.1 and HTTP/2 on one port; within limits of time,
//! size and number.

mod activity;
mod address_limit;
mod admission;
mod connection;
mod connection_io;
mod connection_limit;
mod connection_place;
mod http;
mod inbound_body;
mod lingering_close;
mod max_age;
mod proxy_header;
mod rapid_reset;
mod registry;
mod send_timeout;
mod service;
mod socket;
mod strict_http1;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::{Request, Response};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::activity::Activity;
use self::address_limit::AddressLimit;
use self::connection::{Connection, Shared};
use self::connection_limit::ConnectionLimit;
use self::connection_place::ConnectionPlace;
use self::http::HttpServers;
use self::registry::Registry;
use self::socket::Socket;
use crate::body::Body;
use crate::budget::{Account, MemoryBudget};
use crate::metrics::Metrics;
use crate::peer::{Peer, TrustedProxies};
use crate::rejection::{ErrorFormat, Rejection};
use crate::tls::{self, KeyPair, ServerCertificate, TlsError};

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The address.
    pub listen: Listen,
    /// The certificate and its key, if it speaks TLS.
    pub tls: Option<KeyPair>,
    /// Load balancers whose connections begin with a PROXY header, before TLS.
    pub proxied: TrustedProxies,
    /// Limit on receiving a request's head. For the first one it runs from the accept, and includes TLS and a PROXY header.
    pub header_timeout: Duration,
    /// Limit on silence between requests.
    pub idle_timeout: Duration,
    /// The age after which a connection is asked to end, give or take a tenth; requests under way on it finish. `None`: no limit.
    pub max_connection_age: Option<Duration>,
    /// How long a client may read nothing of a response that is ready for it.
    pub answer_timeout: Option<Duration>,
    /// Limit on a request's head in bytes, at least 8 KiB.
    pub max_head: usize,
    /// Limit on the number of a request's headers.
    pub max_headers: usize,
    /// Limit on concurrent requests on one HTTP/2 connection.
    pub max_streams: u32,
    /// Limit on open connections; more wait in the kernel's queue.
    pub max_connections: usize,
    /// The same for each client address (IPv6: each /64); more are closed.
    pub max_connections_per_address: Option<usize>,
    /// What requests and bodies on all connections may hold, in bytes.
    pub memory: usize,
    /// The mode of a unix socket's file; without one it follows from the process's umask.
    pub socket_mode: Option<u32>,
}

impl Settings {
    /// For an internal listener of the same process: in clear text, without a load balancer, and with a few connections of its
    /// own, so that it answers whatever happens to the public one.
    #[must_use]
    pub fn internal(&self, listen: Listen) -> Self {
        Self {
            listen,
            tls: None,
            proxied: TrustedProxies::default(),
            max_connection_age: None,
            max_connections: INTERNAL_CONNECTIONS,
            max_connections_per_address: None,
            memory: INTERNAL_MEMORY,
            ..self.clone()
        }
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address and port; for port 0 the kernel chooses a free one.
    Tcp(SocketAddr),
    /// A unix socket, `unix:/path`.
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is in use, not of this host, or not permitted.
    #[error("cannot listen on {listen}: {error}")]
    Bind {
        /// The address.
        listen: Listen,
        /// The error of the system.
        error: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// How far shutdown has come. Each phase is cancelled when it begins.
#[derive(Clone, Debug, Default)]
pub struct Phases {
    /// Clients are asked to go elsewhere; everything is still served.
    pub draining: CancellationToken,
    /// Nothing new is accepted; what is open may end.
    pub stopping: CancellationToken,
    /// Everything ends.
    pub closing: CancellationToken,
}

/// Answers the requests of a listener.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request.
    fn handle(
        self: Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        account: &Arc<Account>,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// Answers a request for which the listener has no room. It has no headers any more but its content type.
    fn refuse(&self, request: Request<Body>, _peer: Peer, rejection: Rejection) -> Response<Body> {
        rejection.to_response(&ErrorFormat::from_request(&request), "", "")
    }
}

/// A bound socket.
pub struct Listener {
    socket: Socket,
    settings: watch::Sender<Settings>,
    certificate: Option<Arc<ServerCertificate>>,
    tls: Option<TlsAcceptor>,
    metrics: Arc<Metrics>,
}

/// How long connections are still accepted after shutdown was decided: clients that could not know of it have sent requests.
const CROSSING: Duration = Duration::from_millis(100);
/// After an accept that failed, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two attempts to end a connection for one that waits.
const EVICT_INTERVAL: Duration = Duration::from_millis(20);
/// Connections of an internal listener.
pub const INTERNAL_CONNECTIONS: usize = 64;
/// Memory for the requests of an internal listener, in bytes.
const INTERNAL_MEMORY: usize = 16 * 1024 * 1024;

impl Listener {
    /// Binds the socket. Connections wait in the kernel's queue until `serve`.
    ///
    /// # Errors
    /// When the socket cannot be bound or the certificate cannot be read.
    pub fn bind(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, ListenError> {
        let certificate = settings.tls.as_ref().map(ServerCertificate::read).transpose()?;
        let tls = match &certificate {
            Some(certificate) => {
                Some(TlsAcceptor::from(Arc::new(tls::server_config(Arc::clone(certificate))?)))
            }
            None => None,
        };
        let socket = Socket::bind(&settings.listen, settings.socket_mode)
            .map_err(|error| ListenError::Bind { listen: settings.listen.clone(), error })?;
        Ok(Self { socket, settings: watch::Sender::new(settings), certificate, tls, metrics })
    }

    /// The address in use, which has the port that the kernel chose for port 0.
    pub fn address(&self) -> Listen {
        self.socket.local_address().unwrap_or_else(|_| self.settings.borrow().listen.clone())
    }

    /// The certificate, if it speaks TLS.
    pub fn certificate(&self) -> Option<Arc<ServerCertificate>> {
        self.certificate.clone()
    }

    /// For other settings, which are in force for connections accepted from then on. The address, and whether TLS is spoken,
    /// stay as they are.
    pub fn settings(&self) -> watch::Sender<Settings> {
        self.settings.clone()
    }

    /// Serves connections, each a task in `tasks`, until `phases.stopping`.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, phases: Phases, tasks: TaskTracker) {
        let mut changes = self.settings.subscribe();
        let (registry, budget) = (Arc::<Registry>::default(), MemoryBudget::new(changes.borrow().memory));
        let addresses = Arc::<AddressLimit>::default();
        let apply = |settings: &Settings| {
            budget.resize(settings.memory);
            budget.set_max_connections(settings.max_connections);
            Arc::new(Shared {
                http: HttpServers::new(settings, &self.metrics, &tasks),
                settings: settings.clone(),
                tls: self.tls.clone(),
                addresses: Arc::clone(&addresses),
                budget: Arc::clone(&budget),
                metrics: Arc::clone(&self.metrics),
            })
        };
        let mut places = ConnectionLimit::new(changes.borrow().max_connections);
        let mut shared = apply(&changes.borrow_and_update());
        let stopped = async {
            phases.stopping.cancelled().await;
            tokio::select! {
                () = phases.closing.cancelled() => {}
                () = sleep(CROSSING) => {}
            }
        };
        let mut stopped = std::pin::pin!(stopped);
        let spawn = |shared: &Arc<Shared>, permit, accepted| {
            let activity = Arc::new(Activity::start(Account::open(&budget)));
            let place = ConnectionPlace::new(permit, registry.register(&activity), &self.metrics);
            let connection =
                Connection::new(Arc::clone(shared), Arc::clone(&handler), phases.clone(), activity);
            tasks.spawn(connection.serve(accepted, place));
        };
        // Accepted, and without a place yet.
        let mut waiting = None;
        loop {
            let next = async {
                if waiting.is_none() {
                    waiting = Some(self.socket.accept().await);
                }
                take_place(&mut places, &registry).await
            };
            let next = tokio::select! {
                () = &mut stopped => break,
                _ = changes.changed() => None,
                next = next => Some(next),
            };
            // What is accepted after a change has its settings, whichever was seen first.
            if next.is_none() || changes.has_changed().unwrap_or_default() {
                let settings = changes.borrow_and_update();
                places.resize(settings.max_connections);
                shared = apply(&settings);
            }
            let Some(permit) = next else { continue };
            match waiting.take() {
                Some(Ok(accepted)) => spawn(&shared, permit, accepted),
                Some(Err(error)) => {
                    tracing::error!("cannot accept a connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
                None => {}
            }
        }
        for accepted in waiting.and_then(Result::ok).into_iter().chain(self.socket.close()) {
            if let Some(permit) = places.try_take() {
                spawn(&shared, Some(permit), accepted);
            }
        }
    }
}

/// Waits for a place. If none is free, a connection on which no good key is in use ends for it.
async fn take_place(places: &mut ConnectionLimit, registry: &Registry) -> Option<OwnedSemaphorePermit> {
    loop {
        if places.is_full() {
            registry.evict_one();
        }
        if let Ok(place) = timeout(EVICT_INTERVAL, places.take()).await {
            return place;
        }
    }
}
