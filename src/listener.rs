//! Accepts connections and serves them: TCP, unix socket, TLS; HTTP/1.1 and HTTP/2 on one port; within limits of time,
//! size and number.

mod admission;
mod activity;
mod connection;
mod strict_http1;
mod lingering;
mod proxy_header;
mod registry;
mod connection_limit;
mod send_timeout;

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::{Request, Response};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::activity::Activity;
use self::connection_limit::ConnectionLimit;
use self::registry::Registry;
use crate::body::Body;
use crate::budget::{Account, Budget};
use crate::metrics::Metrics;
use crate::rejection::{ErrorFormat, Rejection};
use crate::tls::{self, KeyPair, ServerCertificate, TlsError};
use crate::upstream::forwarded::{Peer, Trusted};

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub listen: Listen,
    /// TLS, with ALPN.
    pub tls: Option<KeyPair>,
    /// Whose connections begin with a PROXY header, before TLS.
    pub proxied: Trusted,
    /// To receive a request's head; for the first one since the connection was accepted, TLS and a PROXY header included.
    pub header_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// How long a caller may take nothing of an answer that is there for it.
    pub answer_timeout: Option<Duration>,
    /// The most bytes of a request's head, from 8 KiB.
    pub max_head: usize,
    /// The most headers of a request.
    pub max_headers: usize,
    /// Requests at once on one HTTP/2 connection.
    pub max_streams: u32,
    /// Connections at once; more wait in the system's queue.
    pub max_connections: usize,
    /// And from one client address (IPv6: one /64); more are closed.
    pub max_connections_per_address: Option<usize>,
    /// What requests and bodies on all connections may hold, in bytes.
    pub memory: usize,
    /// Who may connect to a unix socket, as in `chmod`; none: as the process's mask has it.
    pub socket_mode: Option<u32>,
}

impl Settings {
    /// For another listener of the same process: in clear text, without a load balancer, and with few connections of its own,
    /// so that it answers whatever the public one suffers.
    #[must_use]
    pub fn beside(&self, listen: Listen) -> Self {
        Self {
            listen,
            tls: None,
            proxied: Trusted::default(),
            max_connections: BESIDE_CONNECTIONS,
            max_connections_per_address: None,
            memory: BESIDE_MEMORY,
            ..self.clone()
        }
    }
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address and port; port 0 takes a free one.
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
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {listen}: {error}")]
    Bind {
        /// Where.
        listen: Listen,
        /// What the system says.
        error: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// How far the end has come.
#[derive(Clone, Debug, Default)]
pub struct Phases {
    /// Clients are asked to go elsewhere; everything is still served.
    pub draining: CancellationToken,
    /// Nothing new is accepted; what is open may end.
    pub stopping: CancellationToken,
    /// Everything ends.
    pub closing: CancellationToken,
}

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// The answer.
    fn answer(
        self: Arc<Self>,
        request: Request<Body>,
        peer: Peer,
        account: &Arc<Account>,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// The answer to a request that the listener has no room for; its headers are gone but for the content type.
    fn refuse(&self, request: Request<Body>, _peer: Peer, rejection: Rejection) -> Response<Body> {
        rejection.response(&ErrorFormat::of(&request), "", "")
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

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// After the end was decided: what callers sent before they could know is on its way, and still taken.
const CROSSING: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;
/// After an accept that failed, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// From one look for a connection that makes room to the next.
const EVICT_EVERY: Duration = Duration::from_millis(20);
/// Of a listener beside the public one.
pub const BESIDE_CONNECTIONS: usize = 64;
/// For the requests of such a listener, in bytes.
const BESIDE_MEMORY: usize = 16 * 1024 * 1024;

impl Listener {
    /// Binds the socket. Connections wait in the system's queue until `serve`.
    ///
    /// # Errors
    /// When the address or the certificate cannot be had.
    pub fn bind(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, ListenError> {
        let certificate = settings.tls.as_ref().map(ServerCertificate::read).transpose()?;
        let tls = match &certificate {
            Some(certificate) => Some(TlsAcceptor::from(Arc::new(tls::server(Arc::clone(certificate))?))),
            None => None,
        };
        let socket = bind(&settings.listen, settings.socket_mode)
            .map_err(|error| ListenError::Bind { listen: settings.listen.clone(), error })?;
        Ok(Self { socket, settings: watch::Sender::new(settings), certificate, tls, metrics })
    }

    /// Where it listens, with the port that was taken.
    pub fn address(&self) -> Listen {
        match &self.socket {
            Socket::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| self.settings.borrow().listen.clone(), Listen::Tcp)
            }
            Socket::Unix(_, path) => Listen::Unix(path.clone()),
        }
    }

    /// The certificate, if it speaks TLS.
    pub fn certificate(&self) -> Option<Arc<ServerCertificate>> {
        self.certificate.clone()
    }

    /// Takes other settings into force, for connections that are accepted from then on. Where it listens and whether it speaks
    /// TLS stays as it is.
    pub fn settings(&self) -> watch::Sender<Settings> {
        self.settings.clone()
    }

    /// Serves connections, each a task in `tasks`, until `phases.stopping`.
    pub async fn serve<H: Handler>(self, handler: Arc<H>, phases: Phases, tasks: TaskTracker) {
        let mut changes = self.settings.subscribe();
        let (registry, budget) = (Arc::<Registry>::default(), Budget::new(changes.borrow().memory));
        let server = |settings: &Settings| {
            budget.resize(settings.memory);
            budget.set_max_connections(settings.max_connections);
            Arc::new(connection::Server::new(
                settings,
                self.tls.clone(),
                Arc::clone(&self.metrics),
                Arc::clone(&registry),
                Arc::clone(&budget),
                &tasks,
            ))
        };
        let mut slots = ConnectionLimit::new(changes.borrow().max_connections);
        let mut current = server(&changes.borrow_and_update());
        let stopped = async {
            phases.stopping.cancelled().await;
            tokio::select! {
                () = phases.closing.cancelled() => {}
                () = sleep(CROSSING) => {}
            }
        };
        let mut stopped = std::pin::pin!(stopped);
        let spawn = |server: &Arc<connection::Server>, slot, accepted| {
            let activity = Arc::new(Activity::start(Account::open(&budget)));
            let open = connection::Open::count(slot, registry.enter(&activity), &self.metrics);
            let (server, handler, phases) = (Arc::clone(server), Arc::clone(&handler), phases.clone());
            tasks.spawn(async move { server.serve(accepted, open, activity, handler, phases).await });
        };
        // Accepted, and without a place yet.
        let mut waiting = None;
        loop {
            let next = async {
                if waiting.is_none() {
                    waiting = Some(self.socket.accept().await);
                }
                take_place(&mut slots, &registry).await
            };
            let next = tokio::select! {
                () = &mut stopped => break,
                _ = changes.changed() => None,
                next = next => Some(next),
            };
            // What is accepted after a change has its settings, whichever was seen first.
            if next.is_none() || changes.has_changed().unwrap_or_default() {
                let settings = changes.borrow_and_update();
                slots.resize(settings.max_connections);
                current = server(&settings);
            }
            match next {
                None => {}
                Some(slot) => match waiting.take() {
                    Some(Ok(accepted)) => spawn(&current, slot, accepted),
                    Some(Err(error)) => {
                        tracing::error!("cannot accept a connection: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                    None => {}
                },
            }
        }
        for accepted in waiting.and_then(Result::ok).into_iter().chain(self.socket.close()) {
            if let Some(slot) = slots.take_now() {
                spawn(&current, Some(slot), accepted);
            }
        }
    }
}

/// Waits for a place. Who has shown no good key leaves for it, if somebody must.
async fn take_place(
    slots: &mut ConnectionLimit,
    registry: &Registry,
) -> Option<tokio::sync::OwnedSemaphorePermit> {
    loop {
        if slots.is_full() {
            registry.evict_one();
        }
        if let Ok(place) = timeout(EVICT_EVERY, slots.take()).await {
            return place;
        }
    }
}

impl Socket {
    /// Stops listening, and gives what the system had taken for it by then.
    fn close(self) -> Vec<Accepted> {
        let mut queued = Vec::new();
        let limit = BACKLOG as usize;
        match self {
            Self::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return queued };
                queued.extend((0..limit).map_while(|_| queued_tcp(&listener).ok()));
            }
            Self::Unix(listener, path) => {
                // Gone already is as good; nobody finds it any more.
                let _ = std::fs::remove_file(path);
                let Ok(listener) = listener.into_std() else { return queued };
                queued.extend((0..limit).map_while(|_| queued_unix(&listener).ok()));
            }
        }
        queued
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, address))
            }
            Self::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

fn queued_tcp(listener: &std::net::TcpListener) -> io::Result<Accepted> {
    let (stream, address) = listener.accept()?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(Accepted::Tcp(TcpStream::from_std(stream)?, address))
}

fn queued_unix(listener: &std::os::unix::net::UnixListener) -> io::Result<Accepted> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    Ok(Accepted::Unix(UnixStream::from_std(stream)?))
}

fn bind(listen: &Listen, mode: Option<u32>) -> io::Result<Socket> {
    match listen {
        Listen::Tcp(address) => {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(*address)?;
            Ok(Socket::Tcp(socket.listen(BACKLOG)?))
        }
        Listen::Unix(path) => {
            remove_dead_socket(path);
            let socket = UnixSocket::new_stream()?;
            socket.bind(path)?;
            // SECURITY: before it listens, so that nobody else can have connected.
            if let Some(mode) = mode {
                std::fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
            Ok(Socket::Unix(socket.listen(BACKLOG)?, path.clone()))
        }
    }
}

/// A socket that nobody listens on any more, left by a process that was killed.
fn remove_dead_socket(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refused) {
        // If it cannot be removed, binding says why.
        let _ = std::fs::remove_file(path);
    }
}
