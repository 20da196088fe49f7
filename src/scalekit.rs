//! Scalekit's API over REST and gRPC, as far as Keyward needs it, and what its answers mean (contract section 5). Whose fault a failure
//! is decides everything after it, so each has its own name.

pub mod access_token;
mod grpc;
pub mod management;
mod moment;
mod object;
mod probe;
pub(crate) mod proto;
pub mod tokens;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, TE, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::body;
use crate::metrics::Metrics;
use crate::origin::{self, Address, Origin, SendError};
use crate::secret::SecretSource;
use crate::tls::TlsError;

/// How to reach an environment, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `https://…` of the environment, without a slash at the end. For messages.
    pub environment_url: String,
    /// The same, as an origin.
    pub origin: origin::Settings,
    /// `SCALEKIT_CLIENT_ID`.
    pub client_id: SecretSource,
    /// `SCALEKIT_CLIENT_SECRET`.
    pub client_secret: SecretSource,
    /// One validation, retries included.
    pub timeout: Duration,
    /// How it is spoken to.
    pub transport: Transport,
}

impl Settings {
    /// The same, spoken to in this way.
    #[must_use]
    pub fn over(mut self, transport: Transport) -> Self {
        self.origin.protocol = transport.protocol();
        Self { transport, ..self }
    }
}

impl Transport {
    /// gRPC takes HTTP/2.
    fn protocol(self) -> origin::Protocol {
        match self {
            Self::Rest => origin::Protocol::Auto,
            Self::Grpc => origin::Protocol::Http2,
        }
    }
}

/// How Scalekit is spoken to. The own access token is fetched over REST either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// JSON over HTTP/1.1 or HTTP/2.
    #[default]
    Rest,
    /// What Scalekit's own SDKs speak; HTTP/2 alone.
    Grpc,
}

/// Why Scalekit gave no verdict. Nothing here says anything about a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No answer: it cannot be reached.
    #[error("Scalekit cannot be reached: {0}")]
    Unreachable(String),
    /// No answer: the connection broke after something was sent.
    #[error("Scalekit gave no answer: {0}")]
    BrokeOff(String),
    /// Nobody there whose certificate can be trusted, or who speaks TLS at all.
    #[error(
        "no trusted TLS connection to Scalekit: {0}; check SCALEKIT_ENVIRONMENT_URL, and scalekit.ca_file if a private \
         authority signs for it"
    )]
    Tls(String),
    /// No answer in time.
    #[error("Scalekit did not answer in time")]
    Timeout,
    /// A 5xx.
    #[error("Scalekit answered {0}")]
    Down(u16),
    /// A 429: the quota, which the customer's logins share.
    #[error("Scalekit throttles this client")]
    Throttled(Option<Duration>),
    /// Keyward's own access token is refused, or it cannot get one.
    #[error(
        "Scalekit refuses Keyward's own credentials: check SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET"
    )]
    Credentials,
    /// The client may not read API keys.
    #[error("Scalekit's client lacks a permission: grant it api_credentials:read")]
    Permission,
    /// Whatever answered is not Scalekit's token API.
    #[error("no Scalekit token API answers there ({0}): check SCALEKIT_ENVIRONMENT_URL")]
    WrongEndpoint(String),
    /// A 200 that breaks the contract.
    #[error("Scalekit's answer breaks the contract: {0}")]
    Broken(&'static str),
    /// A secret cannot be read.
    #[error("{0}")]
    Secret(String),
}

impl Fault {
    /// The label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::BrokeOff(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::Timeout => "timeout",
            Self::Down(_) => "down",
            Self::Throttled(_) => "throttled",
            Self::Credentials => "credentials",
            Self::Permission => "permission",
            Self::WrongEndpoint(_) => "wrong_endpoint",
            Self::Broken(_) => "broken_answer",
            Self::Secret(_) => "secret",
        }
    }

    /// Whether Scalekit is down or slow, rather than saying something.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::BrokeOff(_) | Self::Tls(_) | Self::Timeout | Self::Down(_)
        )
    }

    /// Whether Scalekit asks for fewer calls.
    pub fn is_throttling(&self) -> bool {
        matches!(self, Self::Throttled(_))
    }

    /// How long Scalekit asks to be left alone: what it says, within reason.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled(wait) => wait.map(|wait| wait.min(LONGEST_HOLD)),
            _ => None,
        }
    }

    /// Whether another try may help at once.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::BrokeOff(_) | Self::Down(502..=504))
    }

    /// Whether it stays so until somebody mends it.
    pub fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Credentials | Self::Permission | Self::WrongEndpoint(_) | Self::Broken(_) | Self::Secret(_)
        )
    }
}

/// An environment of Scalekit's, and the own client's access token for it.
pub struct Scalekit {
    origin: Arc<Origin>,
    host: HeaderValue,
    /// The access token.
    pub access_token: access_token::AccessToken,
    timeout: Duration,
    transport: Transport,
    retries: tokens::RetryBudget,
    metrics: Arc<Metrics>,
}

/// A whole answer.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers, of which two count.
    pub headers: HeaderMap,
    /// All of the body.
    pub body: Bytes,
    /// And what came after it, which gRPC uses.
    pub trailers: HeaderMap,
}

/// What is sent.
#[derive(Clone)]
enum Content {
    Form(Bytes),
    Json(Bytes),
    Grpc(Bytes),
}

/// A `Retry-After` beyond this is passed on, but not waited out: it may be a mistake, and nothing is served meanwhile.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// Twenty claims of 256 characters, escaped to the utmost, and as much again.
const MAX_ANSWER: usize = 256 * 1024;
/// Thirty of these: the largest page of a list.
const MAX_PAGE: usize = 30 * MAX_ANSWER;

impl Scalekit {
    /// A client. Nothing is sent before it is asked something.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(
        settings: &Settings,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, TlsError> {
        let authority = settings.environment_url.split("://").last().unwrap_or_default();
        let host = HeaderValue::from_str(authority).map_err(|_| TlsError::Name(authority.to_owned()))?;
        Ok(Arc::new(Self {
            origin: Origin::new(&settings.origin, tasks)?,
            host,
            access_token: access_token::AccessToken::new(
                settings.client_id.clone(),
                settings.client_secret.clone(),
            ),
            timeout: settings.timeout,
            transport: settings.transport,
            retries: tokens::RetryBudget::default(),
            metrics,
        }))
    }

    /// One call as Keyward's own client: with its access token, and once more with a new one where Scalekit refuses that. A
    /// 401 speaks of the access token, never of a key.
    async fn call_as_client(
        &self,
        method: Method,
        path: &str,
        content: Content,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let bearer = self.access_token.bearer(deadline).await?;
        let call = async |authorization| {
            let began = Instant::now();
            let (method, content) = (method.clone(), content.clone());
            let call = self.call(method, path, Some(authorization), content);
            timeout_at(deadline, call).await.unwrap_or_else(|_| {
                // Whatever was connected may lead nowhere: the next call starts anew.
                self.origin.forget(began);
                Err(Fault::Timeout)
            })
        };
        let answer = call(bearer.value.clone()).await?;
        if answer.status != StatusCode::UNAUTHORIZED && answer.grpc_status() != Some(grpc::UNAUTHENTICATED) {
            return Ok(answer);
        }
        let bearer = self.access_token.renewed(&bearer, deadline).await?;
        call(bearer.value).await
    }

    /// One call, without retries. The caller sets the time limit.
    async fn call(
        &self,
        method: Method,
        path: &str,
        authorization: Option<HeaderValue>,
        content: Content,
    ) -> Result<Answer, Fault> {
        let is_list = method == Method::GET || path.ends_with("/ListTokens");
        let largest = if is_list { MAX_PAGE } else { MAX_ANSWER };
        let (content_type, content) = match content {
            Content::Form(content) => ("application/x-www-form-urlencoded", content),
            Content::Json(content) => ("application/json", content),
            Content::Grpc(content) => ("application/grpc", content),
        };
        let mut request = Request::new(body::full(content));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| Fault::WrongEndpoint("the path is none".into()))?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("keyward/", env!("CARGO_PKG_VERSION"))));
        if content_type == "application/grpc" {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        if let Some(value) = authorization {
            headers.insert(hyper::header::AUTHORIZATION, value);
        }
        let response = self.origin.send(request).await.map_err(|error| unreachable(&error))?;
        let (head, mut frames) = response.into_parts();
        let (mut body, mut trailers) = (BytesMut::new(), HeaderMap::new());
        while let Some(frame) = frames.frame().await {
            let frame = frame.map_err(|error| Fault::BrokeOff(format!("its answer broke off: {error}")))?;
            if let Some(last) = frame.trailers_ref() {
                trailers.clone_from(last);
            }
            body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if body.len() > largest {
                return Err(Fault::Broken("the answer is larger than any that it allows"));
            }
        }
        Ok(Answer { status: head.status, headers: head.headers, body: body.freeze(), trailers })
    }
}

fn unreachable(error: &SendError) -> Fault {
    match error {
        SendError::Connect(io) if io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            Fault::Tls(io.to_string())
        }
        SendError::Connect(_) | SendError::NoUpgrade => Fault::Unreachable(error.chain()),
        SendError::Broken(_) => Fault::BrokeOff(error.chain()),
    }
}

impl Answer {
    /// What an answer means that is a failure whatever was asked.
    fn fault(&self) -> Fault {
        match self.status.as_u16() {
            401 => Fault::Credentials,
            403 => Fault::Permission,
            429 => Fault::Throttled(self.retry_after()),
            500.. => Fault::Down(self.status.as_u16()),
            status => Fault::WrongEndpoint(format!("HTTP {status}")),
        }
    }

    /// Whether it says that it is JSON.
    fn is_json(&self) -> bool {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = value.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    }

    /// `Retry-After` in seconds (RFC 9110 section 10.2.3); a date is not understood.
    fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        value.parse().ok().map(Duration::from_secs)
    }
}

/// The origin of an environment's URL: `https://`, or `http://` for a loopback host.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn origin_settings(
    url: &str,
    roots: Option<std::path::PathBuf>,
) -> Result<origin::Settings, &'static str> {
    let uri: hyper::Uri = url.parse().map_err(|_| "this is not a URL")?;
    let authority = uri.authority().ok_or("a URL names a host, as in https://acme.scalekit.com")?;
    if authority.as_str().contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("an environment URL is a scheme and a host alone, as in https://acme.scalekit.com");
    }
    let host = authority.host().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let (tls, port) = match uri.scheme_str() {
        Some("https") => (Some(origin::Tls { roots, ..origin::Tls::default() }), 443),
        Some("http") if loopback => (None, 80),
        Some("http") => {
            return Err("http:// would send secrets in clear text; only loopback hosts may have it");
        }
        _ => return Err("an environment URL begins with https://"),
    };
    Ok(origin::Settings {
        address: Address::Tcp(host.into(), authority.port_u16().unwrap_or(port)),
        tls,
        protocol: origin::Protocol::Auto,
        connect_timeout: Duration::from_secs(1),
        // Scalekit drops idle connections after five minutes (contract section 4).
        idle_timeout: Duration::from_secs(200),
    })
}
