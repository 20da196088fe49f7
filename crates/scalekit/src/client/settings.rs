//! The settings of a client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::access_token::Fetched;
use crate::environment::Environment;
use crate::oauth::Credentials;
use crate::proxy::{InvalidProxy, Proxy};
use crate::transport::Transport;

/// Returns the client's credentials. It is called each time an access token is fetched, so that a rotated secret is used
/// without a restart. The text of its error is reported as
/// [`Error::CredentialsUnreadable`](crate::error::Error::CredentialsUnreadable), and must not contain a secret.
pub type CredentialsProvider = dyn Fn() -> Result<Credentials, String> + Send + Sync;

/// Called with the outcome of each fetch of an access token, for metrics and logs.
pub type FetchObserver = dyn Fn(Fetched<'_>) + Send + Sync;

/// How to connect to an environment, and as which client.
#[non_exhaustive]
pub struct Settings {
    /// The environment.
    pub environment: Environment,
    /// The client's credentials.
    pub credentials: Box<CredentialsProvider>,
    /// REST or gRPC; REST by default.
    pub transport: Transport,
    /// The HTTP proxy; by default that of the environment variables.
    pub proxy: Proxy,
    /// How certificates are verified, including that of an https:// proxy; by default by the platform's verifier, with ring. The
    /// ALPN protocols are overwritten.
    pub tls: Option<rustls::ClientConfig>,
    /// Time limit of a call, including the wait for an access token; 10 seconds by default.
    pub timeout: Duration,
    /// Time limit of TCP connect, proxy tunnel and TLS handshake together; 5 seconds by default.
    pub connect_timeout: Duration,
    /// The `User-Agent`; by default the name and version of this crate.
    pub user_agent: HeaderValue,
    /// Called with the outcome of each fetch of an access token.
    pub observer: Option<Box<FetchObserver>>,
}

impl Settings {
    /// The defaults. `credentials` is called for each fetch of an access token.
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

/// Why a client cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The proxy's environment variable is wrong.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// There are no root certificates, or rustls refuses the configuration.
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
