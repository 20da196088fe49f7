//! Connections to one origin server.

use std::path::PathBuf;
use std::time::Duration;

use crate::tls::KeyPair;

/// Where an origin is and how to speak with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to connect.
    pub address: Address,
    /// TLS, for https.
    pub tls: Option<Tls>,
    /// Which HTTP.
    pub protocol: Protocol,
    /// The time for TCP and TLS together.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A DNS name or IP address (an IPv6 address without brackets) and a port.
    Tcp(Box<str>, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// How an https origin is verified, and Keyward towards it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM roots instead of the system's.
    pub roots: Option<PathBuf>,
    /// The name to verify (and for SNI) instead of the host.
    pub server_name: Option<Box<str>>,
    /// A certificate to present.
    pub identity: Option<KeyPair>,
}

/// Which HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 in clear text, by ALPN with TLS.
    Auto,
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}
