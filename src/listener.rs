//! Accepts connections.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::KeyPair;

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub listen: Listen,
    /// TLS, with ALPN.
    pub tls: Option<KeyPair>,
    /// To receive a request's head, TLS included for the first one.
    pub header_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// The most bytes of a request's head.
    pub max_head: usize,
    /// The most headers of a request.
    pub max_headers: usize,
    /// Connections at once.
    pub max_connections: usize,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address and port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A unix socket, `unix:/path`.
    Unix(PathBuf),
}
