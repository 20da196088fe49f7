//! Opens a connection: name resolution, TCP or unix socket, TLS and HTTP handshake, all within one time limit.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper::http::uri::Scheme;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use super::outgoing::OutgoingBody;
use super::{Address, Protocol, ProxyTunnel, SendError, Settings, Tasks};
use crate::tls::{self, TlsError};

/// More frequent pings would make Scalekit's load balancer close the connection (contract section 4).
const PING_EVERY: Duration = Duration::from_secs(60);
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// Flow-control window of one response, in bytes: how much the origin may send before it is read.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Flow-control window of all responses on a connection. Enough for a full window each, so that responses which are not read
/// do not block the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * super::STREAMS as u32;

pub(super) struct Dialer {
    tunnel: Option<ProxyTunnel>,
    address: Address,
    protocol: Protocol,
    timeout: Duration,
    tls: Option<TlsConnectors>,
}

struct TlsConnectors {
    any: TlsConnector,
    http1: TlsConnector,
    name: ServerName<'static>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Any,
    Upgrade,
}

pub(super) enum Dialed {
    Http1(http1::SendRequest<OutgoingBody>),
    /// With the number of concurrent streams that the origin allows.
    Http2(http2::SendRequest<OutgoingBody>, Arc<AtomicUsize>),
}

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Size of the read buffer, in bytes, which also limits the head of a response; hyper's default is some 400 KiB.
const MAX_BUFFER: usize = 64 * 1024;

impl Dialer {
    pub(super) fn new(tunnel: Option<ProxyTunnel>, settings: &Settings) -> Result<Self, TlsError> {
        let tls = match (&settings.tls, &settings.address) {
            (Some(tls), Address::Tcp(host, _)) => Some(TlsConnectors::new(tls, host, settings.protocol)?),
            (Some(tls), Address::Unix(_)) => Some(TlsConnectors::new(tls, "localhost", settings.protocol)?),
            (None, _) => None,
        };
        Ok(Self {
            tunnel,
            address: settings.address.clone(),
            protocol: settings.protocol,
            timeout: settings.connect_timeout,
            tls,
        })
    }

    pub(super) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    pub(super) async fn dial(&self, wanted: Wanted, tasks: &TaskTracker) -> Result<Dialed, SendError> {
        let deadline = Instant::now() + self.timeout;
        let connect = async {
            let stream = self.connect_stream(deadline).await?;
            self.start_tls(stream, wanted).await
        };
        let (stream, alpn) = match tokio::time::timeout_at(deadline, connect).await {
            Ok(connected) => connected.map_err(SendError::Connect)?,
            Err(_) => return Err(SendError::Connect(io::ErrorKind::TimedOut.into())),
        };
        let http2 = match self.protocol {
            Protocol::Auto => alpn,
            Protocol::Http1 => false,
            Protocol::Http2 if wanted == Wanted::Upgrade => return Err(SendError::NoUpgrade),
            Protocol::Http2 => true,
        };
        let io = TokioIo::new(stream);
        if http2 {
            let (sender, connection) = http2::Builder::new(Tasks(tasks.clone()))
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(MAX_BUFFER)
                .keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PONG_WITHIN)
                .handshake(io)
                .await
                .map_err(SendError::Broken)?;
            let allowed = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
            tasks.spawn(run_http2(connection, Arc::clone(&allowed)));
            Ok(Dialed::Http2(sender, allowed))
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(MAX_BUFFER)
                .handshake(io)
                .await
                .map_err(SendError::Broken)?;
            // An error of the connection is returned to the request that waits for a response on it.
            tasks.spawn(connection.with_upgrades());
            Ok(Dialed::Http1(sender))
        }
    }

    async fn connect_stream(&self, deadline: Instant) -> io::Result<Box<dyn Io>> {
        match (&self.tunnel, &self.address) {
            (Some(tunnel), _) => tunnel.open(deadline).await,
            (None, Address::Unix(path)) => Ok(Box::new(UnixStream::connect(path).await?)),
            (None, Address::Tcp(host, port)) => Ok(Box::new(connect_tcp(host, *port, deadline).await?)),
        }
    }

    /// Starts TLS if it is configured, and tells whether ALPN selected HTTP/2.
    async fn start_tls(&self, stream: Box<dyn Io>, wanted: Wanted) -> io::Result<(Box<dyn Io>, bool)> {
        let Some(connectors) = &self.tls else {
            return Ok((stream, false));
        };
        let connector = if wanted == Wanted::Upgrade { &connectors.http1 } else { &connectors.any };
        let stream = connector.connect(connectors.name.clone(), stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Box::new(stream), http2))
    }
}

pub(super) async fn connect_tcp(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (index, address) in addresses.iter().enumerate() {
        // Each address gets a share of the time, so that an unreachable one leaves time for the next.
        let share = deadline.saturating_duration_since(Instant::now()) / (addresses.len() - index) as u32;
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

/// Runs the connection and records how many streams the origin allows.
async fn run_http2<T>(mut connection: http2::Connection<T, OutgoingBody, Tasks>, allowed: Arc<AtomicUsize>)
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        if polled.is_pending() {
            allowed.store(connection.current_max_send_streams(), Ordering::Relaxed);
        }
        // An error of the connection is returned to the requests that wait for responses on it.
        polled.map(drop)
    })
    .await;
}

impl TlsConnectors {
    fn new(settings: &super::Tls, host: &str, protocol: Protocol) -> Result<Self, TlsError> {
        let alpn: &[&[u8]] = match protocol {
            Protocol::Auto => &[b"h2", b"http/1.1"],
            Protocol::Http1 => &[b"http/1.1"],
            Protocol::Http2 => &[b"h2"],
        };
        let any = tls::client_config(settings.roots.as_deref(), settings.identity.as_ref(), alpn)?;
        let mut http1 = any.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = settings.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        Ok(Self { any: Arc::new(any).into(), http1: Arc::new(http1).into(), name })
    }
}
