//! How a client is set up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::access_token::Fetched;
use crate::environment::Environment;
use crate::oauth::Credentials;
use crate::proxy::{InvalidProxy, Proxy};
use crate::transport::Transport;

/// Gives the client's credentials. It is asked each time an access token is fetched, so that a rotated secret is used
/// without a restart; the text of its error is reported as
/// [`Error::CredentialsUnreadable`](crate::error::Error::CredentialsUnreadable), and must hold no secret.
pub type CredentialsProvider = dyn Fn() -> Result<Credentials, String> + Send + Sync;

/// Is told how each fetch of an access token ended, for metrics and logs.
pub type FetchObserver = dyn Fn(Fetched<'_>) + Send + Sync;

/// How to reach an environment, and as whom.
#[non_exhaustive]
pub struct Settings {
    /// Which environment.
    pub environment: Environment,
    /// The client's credentials.
    pub credentials: Box<CredentialsProvider>,
    /// REST or gRPC; REST by default.
    pub transport: Transport,
    /// Which HTTP proxy; by default what the environment variables say.
    pub proxy: Proxy,
    /// How certificates are verified, also the proxy's if it is an https one; by default as the platform does, with ring. Its
    /// ALPN protocols are overwritten.
    pub tls: Option<rustls::ClientConfig>,
    /// From a call to its result, the wait for an access token included; 10 seconds by default.
    pub timeout: Duration,
    /// For TCP, the tunnel and TLS together; 5 seconds by default.
    pub connect_timeout: Duration,
    /// The `User-Agent`; by default the name and version of this crate.
    pub user_agent: HeaderValue,
    /// Is told how each fetch of an access token ended.
    pub observer: Option<Box<FetchObserver>>,
}

impl Settings {
    /// The defaults, with credentials that are asked for anew at each fetch of an access token.
    pub fn new(
        environment: Environment,
        credentials: impl Fn() -> Result<Credentials, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            environment,
            credentials: Box::new(credentials),
            transport: Transport::default(),
            proxy: Proxy::default(),
            tls: None,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            user_agent: HeaderValue::from_static(concat!("scalekit-rust/", env!("CARGO_PKG_VERSION"))),
            observer: None,
        }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The proxy's environment variable is wrong.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// There are no roots to verify certificates with, or rustls does not work.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// reqwest refuses the settings.
    #[error("the HTTP client cannot be set up: {0}")]
    Http(#[from] reqwest::Error),
}

pub(super) fn tls_config(
    config: Option<rustls::ClientConfig>,
    transport: Transport,
) -> Result<rustls::ClientConfig, rustls::Error> {
    let mut config = match config {
        Some(config) => config,
        None => {
            use rustls_platform_verifier::BuilderVerifierExt;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_platform_verifier()?
                .with_no_client_auth()
        }
    };
    config.alpn_protocols = match transport {
        Transport::Rest => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Transport::Grpc => vec![b"h2".to_vec()],
    };
    Ok(config)
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("environment", &self.environment)
            .field("transport", &self.transport)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}
