//! The client on reqwest: connections, the access token and its renewal, deadlines, proxies.

mod failure;
mod settings;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Request};
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use self::failure::Failure;
pub use self::settings::{CredentialsProvider, FetchObserver, Settings, SetupError};
use crate::access_token::{AccessToken, Bearer, Fetched};
use crate::call::{Call, Reply};
use crate::environment::Environment;
use crate::error::Error;
use crate::oauth::{self, Grant};
use crate::proxy::ProxyServer;
use crate::response::HttpResponse;
use crate::token::{Created, NewToken, Page, PageRequest, Token, TokenUpdate};
use crate::transport::Transport;
use crate::validate::{self, Presented, Validation};

/// A client of one environment. Create it once and share it, as it holds connections and the access token. Cloning is cheap.
///
/// Calls need a tokio runtime with I/O and time. The first call starts a task that keeps the access token, and that ends when the
/// last clone of the client is dropped.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    endpoint: Arc<Endpoint>,
    transport: Transport,
    timeout: Duration,
    access_token: Arc<AccessToken>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// Sends requests and fetches access tokens; shared with the task that keeps the access token.
struct Endpoint {
    http: reqwest::Client,
    environment: Environment,
    credentials: Box<CredentialsProvider>,
    user_agent: HeaderValue,
    observer: Option<Box<FetchObserver>>,
    failure: Failure,
}

/// Shorter than the 5 minutes after which Scalekit closes idle connections, and the 4 minutes of its SDKs.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(200);
/// Scalekit closes connections with pings more frequent than every 30 seconds.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long sent bytes may stay unacknowledged. It closes dead connections, which HTTP/2 would otherwise continue to use.
#[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

impl Client {
    /// Nothing is sent before the first call.
    ///
    /// # Errors
    /// When the proxy's environment variable is wrong, or TLS or reqwest cannot be set up.
    pub fn new(settings: Settings) -> Result<Self, SetupError> {
        let proxy = settings.proxy.resolve(&settings.environment)?;
        let failure = Failure::new(proxy.as_ref().map(ProxyServer::address));
        let mut builder = reqwest::Client::builder()
            // SECURITY: the token must not be sent anywhere else, so there are no redirects and no proxies of the environment.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .tls_backend_preconfigured(settings::tls_config(settings.tls, settings.transport)?);
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        {
            builder = builder.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        if settings.transport == Transport::Grpc {
            builder = builder.http2_prior_knowledge();
        }
        if let Some(server) = proxy {
            let mut proxy = reqwest::Proxy::https(server.url())?;
            if let Some(authorization) = server.authorization() {
                proxy = proxy.custom_http_auth(authorization.clone());
            }
            builder = builder.proxy(proxy);
        }
        Ok(Self(Arc::new(Shared {
            endpoint: Arc::new(Endpoint {
                http: builder.build()?,
                environment: settings.environment,
                credentials: settings.credentials,
                user_agent: settings.user_agent,
                observer: settings.observer,
                failure,
            }),
            transport: settings.transport,
            timeout: settings.timeout,
            access_token: Arc::default(),
            keeper: Mutex::default(),
        })))
    }

    /// The access token, for calls over other connections. Starts the task that keeps it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn access_token(&self) -> &Arc<AccessToken> {
        let mut keeper = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        // The task ends with the runtime that it was started on, but the client may be used on another one.
        if keeper.as_ref().is_none_or(JoinHandle::is_finished) {
            let (access_token, endpoint) = (Arc::clone(&self.0.access_token), Arc::clone(&self.0.endpoint));
            *keeper = Some(tokio::spawn(async move {
                let observe = |fetched: Fetched<'_>| {
                    if let Some(observer) = &endpoint.observer {
                        observer(fetched);
                    }
                };
                access_token.run_renewal(|| endpoint.fetch_access_token(), observe).await;
            }));
        }
        &self.0.access_token
    }

    /// Waits for the first access token, or for the first failure to fetch one. Programs that should fail immediately call this
    /// before anything else.
    ///
    /// # Errors
    /// [`Error::AccessToken`] with the reason.
    pub async fn authenticate(&self) -> Result<(), Error> {
        self.access_token().wait_for_first(Instant::now() + self.0.timeout).await
    }

    /// Validates a random token. Only the verdict "invalid" is success, which proves that URL, proxy, credentials, permission and
    /// token API are right.
    ///
    /// # Errors
    /// Why the verdict was another one, or there was none.
    pub async fn probe(&self) -> Result<(), Error> {
        match self.validate_token(&validate::random_token()).await? {
            Validation::Invalid => Ok(()),
            Validation::Valid(_) => Err(Error::WrongEndpoint("it accepts a random token as valid".into())),
        }
    }

    /// Validates a token. A value that cannot be a token ([`validate::is_token`]), such as the id of one, is invalid without a
    /// call.
    ///
    /// # Errors
    /// When there is no verdict. An error must not be taken for one.
    pub async fn validate_token(&self, token: &str) -> Result<Validation, Error> {
        if !validate::is_token(token) {
            return Ok(Validation::Invalid);
        }
        let outcome = self.call(&Call::Validate(SecretString::from(token))).await;
        validate::interpret_outcome(Presented::Token(token), outcome, Timestamp::now())
    }

    /// Finds a live token by its id (`apit_…`); `None` if it is unknown, expired or revoked.
    ///
    /// # Errors
    /// When there is no verdict.
    pub async fn find_token(&self, token_id: &str) -> Result<Option<Token>, Error> {
        let outcome = self.call(&Call::Validate(SecretString::from(token_id))).await;
        match validate::interpret_outcome(Presented::TokenId(token_id), outcome, Timestamp::now())? {
            Validation::Valid(token) => Ok(Some(token)),
            Validation::Invalid => Ok(None),
        }
    }

    /// Creates a token.
    ///
    /// # Errors
    /// With [`Error::is_outcome_unknown`], a token may have been created whose response was lost. Find it in the list and
    /// invalidate it.
    pub async fn create_token(&self, new: &NewToken) -> Result<Created, Error> {
        new.check(Timestamp::now())?;
        match self.call(&Call::Create(new.clone())).await? {
            Reply::Created(created) => Ok(created),
            _ => Err(OTHER_REPLY),
        }
    }

    /// Lists a page of an organization's live tokens.
    ///
    /// # Errors
    /// When the request exceeds a limit, or the call fails.
    pub async fn list_tokens(&self, page: &PageRequest) -> Result<Page, Error> {
        page.check()?;
        match self.call(&Call::List(page.clone())).await? {
            Reply::Page(page) => Ok(page),
            _ => Err(OTHER_REPLY),
        }
    }

    /// Changes a live token, given as itself or by its id.
    ///
    /// # Errors
    /// [`Error::is_not_found`] if it is not live. With [`Error::is_outcome_unknown`], it may have been changed.
    pub async fn update_token(&self, token: &str, update: &TokenUpdate) -> Result<Token, Error> {
        update.check()?;
        match self.call(&Call::Update(SecretString::from(token), update.clone())).await? {
            Reply::Token(token) => Ok(token),
            _ => Err(OTHER_REPLY),
        }
    }

    /// Revokes a token, given as itself or by its id, with immediate effect. Revoking it again succeeds.
    ///
    /// # Errors
    /// [`Error::is_not_found`] if it never existed. With [`Error::is_outcome_unknown`], it may have been revoked.
    pub async fn invalidate_token(&self, token: &str) -> Result<(), Error> {
        match self.call(&Call::Invalidate(SecretString::from(token))).await? {
            Reply::Invalidated => Ok(()),
            _ => Err(OTHER_REPLY),
        }
    }

    /// Makes a call, and repeats it once with a new access token if the first one is refused. Limits are not checked, and the
    /// reply to a validation must be interpreted with [`validate::interpret_outcome`].
    ///
    /// # Errors
    /// When there is no reply.
    pub async fn call(&self, call: &Call) -> Result<Reply, Error> {
        let deadline = Instant::now() + self.0.timeout;
        let access_token = self.access_token();
        let bearer = access_token.wait_for_bearer(deadline).await?;
        match self.call_with(call, &bearer, deadline).await {
            Err(Error::Credentials) => {
                let bearer = access_token.wait_for_renewed(&bearer, deadline).await?;
                self.call_with(call, &bearer, deadline).await
            }
            outcome => outcome,
        }
    }

    async fn call_with(&self, call: &Call, bearer: &Bearer, deadline: Instant) -> Result<Reply, Error> {
        let mut request = self.0.transport.encode_request(call);
        request.headers_mut().insert(AUTHORIZATION, bearer.authorization().clone());
        let operation = call.operation();
        let response = self.0.endpoint.send_request(request, operation.max_response_bytes());
        let response = timeout_at(deadline, response).await.unwrap_or(Err(Error::Timeout))?;
        self.0.transport.decode_response(operation, &response)
    }
}

const OTHER_REPLY: Error = Error::BrokenContract("the reply is to another call");

impl Endpoint {
    /// Sends a request and reads the whole response, up to `max_bytes`. Only connecting has a time limit.
    async fn send_request(
        &self,
        mut request: Request<Bytes>,
        max_bytes: usize,
    ) -> Result<HttpResponse, Error> {
        *request.uri_mut() = self.environment.absolute_uri(request.uri().path_and_query());
        request.headers_mut().insert(USER_AGENT, self.user_agent.clone());
        let request = request.try_into().map_err(|error| self.failure.classify_error(error))?;
        let response =
            self.http.execute(request).await.map_err(|error| self.failure.classify_error(error))?;
        HttpResponse::read(response.into(), max_bytes).await
    }

    async fn fetch_access_token(&self) -> Result<Grant, Error> {
        let credentials = (self.credentials)().map_err(Error::CredentialsUnreadable)?;
        let response =
            self.send_request(oauth::encode_request(&credentials), oauth::MAX_RESPONSE_BYTES).await?;
        oauth::decode_response(&response)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = keeper.take() {
            keeper.abort();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let environment = self.0.endpoint.environment.to_string();
        f.debug_struct("Client").field("environment", &environment).finish_non_exhaustive()
    }
}
