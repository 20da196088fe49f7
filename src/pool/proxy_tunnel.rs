//! Tunnels through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6), for connections to Scalekit. Upstreams are never reached
//! through a proxy.

use std::io;
use std::path::Path;
use std::sync::Arc;

use ::scalekit::environment::Environment;
use ::scalekit::error::Error;
use ::scalekit::proxy::ProxyServer;
use ::scalekit::tunnel::open_tunnel;
use rustls::pki_types::ServerName;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::dial::{Io, connect_tcp};
use crate::tls::{self, TlsError};

/// The `User-Agent` that Scalekit and the proxy see.
pub const USER_AGENT_PRODUCT: &str = concat!("keyward/", env!("CARGO_PKG_VERSION"));

/// A proxy and the environment that it connects to.
pub struct ProxyTunnel {
    proxy: ProxyServer,
    environment: Environment,
    /// For an https:// proxy.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl ProxyTunnel {
    /// The certificate of an https:// proxy is verified with `roots`, or else with the system's.
    ///
    /// # Errors
    /// When a certificate cannot be used, or no certificate can be verified for the proxy's name.
    pub fn new(
        proxy: ProxyServer,
        environment: &Environment,
        roots: Option<&Path>,
    ) -> Result<Self, TlsError> {
        let tls = if proxy.is_https() {
            let name = proxy.host().to_owned();
            let name = ServerName::try_from(name).map_err(|_| TlsError::Name(proxy.host().to_owned()))?;
            Some((Arc::new(tls::client_config(roots, None, &[b"http/1.1"])?).into(), name))
        } else {
            None
        };
        Ok(Self { proxy, environment: environment.clone(), tls })
    }

    /// Opens a connection through the proxy. The `io::Error` wraps an [`Error`].
    pub(super) async fn open(&self, deadline: Instant) -> io::Result<Box<dyn Io>> {
        let mut stream = self.connect_proxy(deadline).await.map_err(|error| {
            let (proxy, reason) = (self.proxy.address(), error.to_string());
            io::Error::other(Error::ProxyUnreachable { proxy, reason })
        })?;
        let opened = open_tunnel(&mut stream, &self.proxy, &self.environment, USER_AGENT_PRODUCT).await;
        opened.map_err(io::Error::other)?;
        Ok(stream)
    }

    async fn connect_proxy(&self, deadline: Instant) -> io::Result<Box<dyn Io>> {
        let stream = connect_tcp(self.proxy.host(), self.proxy.port(), deadline).await?;
        match &self.tls {
            Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), stream).await?)),
            None => Ok(Box::new(stream)),
        }
    }
}
