//! Calls to Scalekit: connections, the access token, and retries of validations. The crate `scalekit` encodes the messages and
//! interprets them.
//!
//! Validations, one for each request, use Keyward's own connection pool, because reqwest would add 7.8 µs of CPU to the 46 µs
//! of a request. Access tokens and key management use the crate's client, which is built on reqwest. The probe uses the same
//! connections as validations, so that readiness covers both.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::scalekit::SecretString;
use ::scalekit::access_token::{Bearer, Fetched};
use ::scalekit::call::{Call, Operation, Reply};
use ::scalekit::client::{self, Client};
use ::scalekit::environment::Environment;
use ::scalekit::error::Error;
use ::scalekit::oauth::Credentials;
use ::scalekit::proxy::{Proxy, ProxyServer};
use ::scalekit::response::HttpResponse;
use ::scalekit::token::Token;
use ::scalekit::transport::Transport;
use ::scalekit::validate::{self, Presented, Validation};
use hyper::Request;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;

use crate::body::{self, Body};
use crate::credential::ApiKey;
use crate::identity::{self, Identity};
use crate::metrics::{Metrics, Outcome};
use crate::pool::{self, Address, Origin, ProxyTunnel, SendError, USER_AGENT_PRODUCT};
use crate::secret::SecretSource;
use crate::tls::{self, TlsError};

/// How to connect to an environment, and as which client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The environment.
    pub environment: Environment,
    /// How the pool for validations connects to it. Its roots and its connect timeout apply to the client, too.
    pub origin: pool::Settings,
    /// The HTTP proxy; `None` for a direct connection.
    pub proxy: Option<ProxyServer>,
    /// `SCALEKIT_CLIENT_ID`.
    pub client_id: SecretSource,
    /// `SCALEKIT_CLIENT_SECRET`.
    pub client_secret: SecretSource,
    /// Time limit of one validation, retries included.
    pub timeout: Duration,
    /// REST or gRPC.
    pub transport: Transport,
}

impl Settings {
    /// Changes the transport, and with it the HTTP version of the pool.
    #[must_use]
    pub fn with_transport(mut self, transport: Transport) -> Self {
        self.origin.protocol = match transport {
            Transport::Rest => pool::Protocol::Auto,
            Transport::Grpc => pool::Protocol::Http2,
        };
        Self { transport, ..self }
    }
}

/// How a pool connects to an environment. `roots` replaces the system's root certificates.
pub fn origin_settings(environment: &Environment, roots: Option<PathBuf>) -> pool::Settings {
    pool::Settings {
        address: Address::Tcp(environment.host().into(), environment.port()),
        tls: environment.is_https().then(|| pool::Tls { roots, ..pool::Tls::default() }),
        protocol: pool::Protocol::Auto,
        connect_timeout: Duration::from_secs(1),
        // Scalekit closes idle connections after five minutes.
        idle_timeout: Duration::from_secs(200),
    }
}

/// Why connections to Scalekit cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A certificate or a host name is wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The client cannot be built.
    #[error(transparent)]
    Client(#[from] client::SetupError),
}

/// What Scalekit states about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is valid, with this identity.
    Valid(Arc<Identity>),
    /// It is definitely invalid: unknown, expired, revoked or malformed.
    Invalid,
}

/// The connections to an environment.
pub struct Scalekit {
    /// Used for everything but validations; it also keeps the access token.
    pub client: Client,
    origin: Arc<Origin>,
    host: HeaderValue,
    /// Host and port of the proxy, for error messages.
    proxy: Option<String>,
    timeout: Duration,
    transport: Transport,
    retries: RetryBudget,
    metrics: Arc<Metrics>,
}

/// Limits retries to a tenth of the validations, and to bursts of ten, so that an outage does not multiply the load. Counts in
/// tenths of a retry.
struct RetryBudget(AtomicU32);

const MAX_TENTHS: u32 = 100;
const TRIES: u32 = 3;

/// Builds the crate's client for an environment. Nothing is sent before its first call.
///
/// # Errors
/// When TLS cannot be set up.
pub fn build_client(settings: &Settings, metrics: Arc<Metrics>) -> Result<Client, SetupError> {
    let (id, secret) = (settings.client_id.clone(), settings.client_secret.clone());
    let credentials = move || {
        let read = |source: &SecretSource| source.read().map_err(|error| error.to_string());
        let (id, secret) = (read(&id)?, read(&secret)?);
        let client_secret = SecretString::from(secret.expose());
        Ok(Credentials { client_id: id.expose().to_owned(), client_secret })
    };
    let tls = match &settings.origin.tls {
        Some(tls) => tls::client_config(tls.roots.as_deref(), None, &[])?,
        // Without TLS the system's root certificates are not needed, and loading them could fail.
        None => tls::client_config_without_roots()?,
    };
    let mut client = client::Settings::new(settings.environment.clone(), credentials);
    client.transport = settings.transport;
    client.proxy = settings.proxy.clone().map_or(Proxy::None, Proxy::Server);
    client.tls = Some(tls);
    client.connect_timeout = settings.origin.connect_timeout;
    client.user_agent = HeaderValue::from_static(USER_AGENT_PRODUCT);
    client.observer = Some(Box::new(move |fetched| record_token_fetch(&metrics, fetched)));
    Ok(Client::new(client)?)
}

/// Counts and logs how a fetch of an access token ended.
fn record_token_fetch(metrics: &Metrics, fetched: Fetched<'_>) {
    let outcome = match fetched {
        Fetched::Renewed(lifetime) => {
            let expiry = SystemTime::now() + lifetime;
            metrics.token_expiry.set(expiry.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
            "fetched"
        }
        Fetched::Failed { error, failures } => {
            if failures.is_power_of_two() {
                let kind = error.kind();
                tracing::error!(error.type = kind, "cannot get an access token: {}", Explained(error));
            }
            error.kind()
        }
    };
    metrics.token_fetches.get_or_create(&Outcome { outcome }).inc();
}

impl Scalekit {
    /// Nothing is sent before the first call. Connections run as `tasks`.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        settings: &Settings,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, SetupError> {
        let authority = settings.environment.authority().as_str();
        let roots = settings.origin.tls.as_ref().and_then(|tls| tls.roots.as_deref());
        let tunnel =
            settings.proxy.clone().map(|proxy| ProxyTunnel::new(proxy, &settings.environment, roots));
        Ok(Arc::new(Self {
            client: build_client(settings, Arc::clone(&metrics))?,
            origin: Origin::with_tunnel(tunnel.transpose()?, &settings.origin, tasks)?,
            host: HeaderValue::from_str(authority).map_err(|_| TlsError::Name(authority.to_owned()))?,
            proxy: settings.proxy.as_ref().map(ProxyServer::address),
            timeout: settings.timeout,
            transport: settings.transport,
            retries: RetryBudget::default(),
            metrics,
        }))
    }

    /// Validates a key, within `scalekit.timeout` including retries.
    ///
    /// # Errors
    /// When there is no verdict; see [`Error::class`].
    pub async fn validate(&self, key: &ApiKey) -> Result<Verdict, Error> {
        self.retries.deposit();
        self.validate_within(key.expose(), Instant::now() + self.timeout).await
    }

    /// Validates a random key. Only the verdict "invalid" is success, which proves that address, proxy, credentials, permission
    /// and token API are right.
    ///
    /// # Errors
    /// Why the verdict was another one, or there was none.
    pub async fn probe(&self) -> Result<(), Error> {
        let key = validate::random_token();
        match self.validate_within(&key, Instant::now() + self.timeout).await? {
            Verdict::Invalid => Ok(()),
            Verdict::Valid(_) => Err(Error::WrongEndpoint("it accepts a random key as valid".into())),
        }
    }

    async fn validate_within(&self, key: &str, deadline: Instant) -> Result<Verdict, Error> {
        let call = Call::Validate(SecretString::from(key));
        let mut tried = 1;
        loop {
            match interpret_outcome(key, self.call_api(&call, deadline).await, Timestamp::now()) {
                Err(error) if error.is_transient() && tried < TRIES => {
                    let pause = Duration::from_millis(10 << tried).mul_f64(0.5 + fastrand::f64());
                    if Instant::now() + pause >= deadline || !self.retries.withdraw() {
                        return Err(error);
                    }
                    self.metrics.validation_retries.inc();
                    sleep(pause).await;
                    tried += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Makes a call, and repeats it once with a new access token if the first one is refused.
    async fn call_api(&self, call: &Call, deadline: Instant) -> Result<Reply, Error> {
        let access_token = self.client.access_token();
        let bearer = access_token.wait_for_bearer(deadline).await?;
        match self.call_with_token(call, &bearer, deadline).await {
            Err(Error::Credentials) => {
                let bearer = access_token.wait_for_renewed(&bearer, deadline).await?;
                self.call_with_token(call, &bearer, deadline).await
            }
            outcome => outcome,
        }
    }

    async fn call_with_token(&self, call: &Call, bearer: &Bearer, deadline: Instant) -> Result<Reply, Error> {
        let (began, operation) = (Instant::now(), call.operation());
        let mut request = self.transport.encode_request(call).map(body::full);
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_PRODUCT));
        headers.insert(AUTHORIZATION, bearer.authorization().clone());
        let response =
            timeout_at(deadline, self.send_request(request, operation)).await.unwrap_or_else(|_| {
                // The connections may be dead without notice, so that the next call must open a new one.
                self.origin.forget_connections(began);
                Err(Error::Timeout)
            })?;
        self.transport.decode_response(operation, &response)
    }

    async fn send_request(
        &self,
        request: Request<Body>,
        operation: Operation,
    ) -> Result<HttpResponse, Error> {
        let response =
            self.origin.send_request(request).await.map_err(|error| self.classify_error(&error))?;
        HttpResponse::read(response, operation.max_response_bytes()).await
    }

    fn classify_error(&self, error: &SendError) -> Error {
        let SendError::Connect(io) = error else {
            return Error::ConnectionLost(error.format_chain());
        };
        match (io.get_ref(), &self.proxy) {
            (Some(cause), _) if cause.is::<rustls::Error>() => Error::Tls(io.to_string()),
            (None, Some(proxy)) if io.kind() == std::io::ErrorKind::TimedOut => {
                Error::Unreachable(format!("no connection through the proxy {proxy} in time"))
            }
            (cause, _) => {
                // The error of the proxy tunnel, if there is one.
                let failed = cause.and_then(|cause| cause.downcast_ref::<Error>());
                failed.cloned().unwrap_or_else(|| Error::Unreachable(error.format_chain()))
            }
        }
    }
}

/// Interprets the outcome of a ValidateToken call at the time `now`.
///
/// # Errors
/// When there is no verdict.
pub fn interpret_outcome(key: &str, outcome: Result<Reply, Error>, now: Timestamp) -> Result<Verdict, Error> {
    match validate::interpret_outcome(Presented::Token(key), outcome, now)? {
        Validation::Valid(token) => Ok(Verdict::Valid(Arc::new(identity_from_token(token)?))),
        Validation::Invalid => Ok(Verdict::Invalid),
    }
}

const NO_TIMESTAMP: Error = Error::BrokenContract("expiry is not a timestamp");

/// SECURITY: ids become header values without encoding, so they must be visible ASCII.
fn identity_from_token(token: Token) -> Result<Identity, Error> {
    let id = |text: &str, what| identity::parse_id(text).ok_or(Error::BrokenContract(what));
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Identity {
        org_id: id(&token.organization_id, "organization_id is not visible ASCII")?,
        org_external_id: token.organization_external_id,
        user_id: token.user_id.map(|user| id(&user, "user_id is not visible ASCII")).transpose()?,
        user_external_id: token.user_external_id,
        roles: token.roles.into_iter().filter(|role| !role.is_empty()).collect(),
        token_id: some(token.token_id).map(|it| id(&it, "token_id is not visible ASCII")).transpose()?,
        claims: token.custom_claims,
        expiry: token.expiry.map(SystemTime::try_from).transpose().map_err(|_| NO_TIMESTAMP)?,
    })
}

/// An error for operators: the crate's text, and which of Keyward's settings to check.
#[derive(Clone, Copy, Debug)]
pub struct Explained<'a>(pub &'a Error);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // Only the reason for the missing access token matters to operators.
            Error::AccessToken(error) => Explained(error).fmt(f),
            Error::Credentials => f.write_str(
                "Scalekit refuses Keyward's own credentials: check SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET",
            ),
            Error::WrongEndpoint(what) => {
                write!(f, "no Scalekit token API at this URL ({what}): check SCALEKIT_ENVIRONMENT_URL")
            }
            error @ Error::Tls(_) => write!(
                f,
                "{error}; check SCALEKIT_ENVIRONMENT_URL, and scalekit.ca_file if a private CA issued the certificate"
            ),
            error @ (Error::ProxyUnreachable { .. } | Error::ProxyRefused { .. }) => {
                write!(f, "{error}; check HTTPS_PROXY and NO_PROXY, or scalekit.proxy")
            }
            error => error.fmt(f),
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(MAX_TENTHS))
    }
}

impl RetryBudget {
    fn deposit(&self) {
        let add = |tenths: u32| (tenths < MAX_TENTHS).then_some(tenths + 1);
        // A full budget stays full.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn withdraw(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tenths| tenths.checked_sub(10)).is_ok()
    }
}

#[cfg(test)]
mod tests;
