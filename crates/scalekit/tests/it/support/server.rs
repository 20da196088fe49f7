//! A server that replaces Scalekit, made of the crate's server half, and a proxy in front of it, both on loopback.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use scalekit::call::{Call, Reply};
use scalekit::client::{Client, Settings};
use scalekit::oauth::{self, Credentials, Grant};
use scalekit::proxy::Proxy;
use scalekit::response::HttpResponse;
use scalekit::status::{Code, Status};
use scalekit::token::{Created, Page};
use scalekit::transport::Transport;
use scalekit::{ExposeSecret, rest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::{TOKEN, token};

/// What the server does instead of responding.
#[derive(Clone)]
pub(crate) enum Effect {
    Respond(HttpResponse),
    /// The content is truncated.
    Truncate(HttpResponse),
    /// The connection is closed without a response.
    Close,
    Hang,
}

pub(crate) struct Scalekit {
    pub(crate) address: SocketAddr,
    secret: Mutex<String>,
    effects: Mutex<[Option<Effect>; 2]>,
    /// Bearer tokens below this number are refused.
    valid_from: Mutex<usize>,
    fetches: Mutex<usize>,
    /// The heads of all requests.
    pub(crate) requests: Mutex<Vec<Parts>>,
    certificate: Option<rcgen::CertifiedKey<rcgen::KeyPair>>,
}

type Body =
    StreamBody<Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>>>;

impl Scalekit {
    pub(crate) async fn start() -> Arc<Self> {
        Self::start_with(None).await
    }

    pub(crate) async fn start_tls() -> Arc<Self> {
        Self::start_with(Some(rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap())).await
    }

    async fn start_with(certificate: Option<rcgen::CertifiedKey<rcgen::KeyPair>>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = certificate.as_ref().map(acceptor);
        let scalekit = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            secret: Mutex::new("secret".into()),
            effects: Mutex::default(),
            valid_from: Mutex::default(),
            fetches: Mutex::default(),
            requests: Mutex::default(),
            certificate,
        });
        let own = Arc::clone(&scalekit);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (own, acceptor) = (Arc::clone(&own), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => own.serve(stream).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                own.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        scalekit
    }

    async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request| Arc::clone(&self).respond(request));
        let builder = auto::Builder::new(TokioExecutor::new());
        // The client checks how its connection ends.
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn respond(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        self.requests.lock().unwrap().push(head.clone());
        let is_fetch = head.uri.path() == oauth::PATH;
        if is_fetch {
            *self.fetches.lock().unwrap() += 1;
        }
        let effect = self.effects.lock().unwrap()[usize::from(is_fetch)].clone();
        let (response, whole) = match effect {
            None if is_fetch => (self.grant(&body), true),
            None => (self.answer(&head, &body), true),
            Some(Effect::Respond(response)) => (response, true),
            Some(Effect::Truncate(response)) => (response, false),
            Some(Effect::Close) => return Err(std::io::Error::other("closed")),
            Some(Effect::Hang) => std::future::pending().await,
        };
        Ok(stream(response, whole))
    }

    fn grant(&self, body: &[u8]) -> HttpResponse {
        let request = oauth::decode_request(body);
        let is_known = request.client_id == "skc_1"
            && request.client_secret.expose_secret() == self.secret.lock().unwrap().as_str();
        if request.grant_type != "client_credentials" || !is_known {
            return oauth::encode_error("invalid_client", "unknown");
        }
        let access_token = format!("access{}", self.fetches()).into();
        oauth::encode_grant(&Grant { access_token, lifetime: Duration::from_secs(3600) })
    }

    fn answer(&self, head: &Parts, body: &[u8]) -> HttpResponse {
        let transport = Transport::of_request(&head.headers);
        let outcome = self.perform(transport, head, body);
        transport.encode_response(outcome.as_ref())
    }

    fn perform(&self, transport: Transport, head: &Parts, body: &[u8]) -> Result<Reply, Status> {
        let operation = transport.route_request(head)?;
        let number = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let number = number.and_then(|value| std::str::from_utf8(value.strip_prefix(b"Bearer access")?).ok());
        let number: Option<usize> = number.and_then(|number| number.parse().ok());
        if number.is_none_or(|number| number < *self.valid_from.lock().unwrap()) {
            return Err(Status::new(Code::Unauthenticated, "Token empty"));
        }
        let known = |name: &str| {
            let unknown = || Status::new(Code::NotFound, "Invalid or expired token");
            if [TOKEN, "apit_1"].contains(&name) { Ok(token()) } else { Err(unknown()) }
        };
        Ok(match transport.decode_request(operation, head, body)? {
            Call::Create(_) => Reply::Created(Created { token: TOKEN.into(), info: token() }),
            Call::Validate(name) => Reply::Token(known(name.expose_secret())?),
            Call::Update(name, _) => Reply::Token(known(name.expose_secret())?),
            Call::Invalidate(name) => known(name.expose_secret()).map(|_| Reply::Invalidated)?,
            Call::List(_) => {
                Reply::Page(Page { tokens: vec![token(); 30], total_count: 31, ..Page::default() })
            }
        })
    }

    /// Sets the fault for requests for access tokens.
    pub(crate) fn affect_fetches(&self, effect: impl Into<Option<Effect>>) {
        self.effects.lock().unwrap()[1] = effect.into();
    }

    /// Sets the fault for calls.
    pub(crate) fn affect_calls(&self, effect: impl Into<Option<Effect>>) {
        self.effects.lock().unwrap()[0] = effect.into();
    }

    pub(crate) fn expire_access_tokens(&self) {
        *self.valid_from.lock().unwrap() = self.fetches() + 1;
    }

    pub(crate) fn refuse_all_access_tokens(&self) {
        *self.valid_from.lock().unwrap() = usize::MAX;
    }

    pub(crate) fn set_secret(&self, secret: &str) {
        *self.secret.lock().unwrap() = secret.to_owned();
    }

    pub(crate) fn fetches(&self) -> usize {
        *self.fetches.lock().unwrap()
    }

    pub(crate) fn calls(&self) -> usize {
        self.requests.lock().unwrap().len() - self.fetches()
    }

    /// `localhost`, which its certificate is for.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    /// Settings for this server, without a proxy.
    pub(crate) fn settings(&self, transport: Transport) -> Settings {
        let mut settings = Settings::new(self.url().parse().unwrap(), || Ok(credentials("secret")));
        settings.transport = transport;
        settings.proxy = Proxy::None;
        settings.tls = self.certificate.as_ref().map(trust);
        settings.timeout = Duration::from_secs(5);
        settings
    }

    pub(crate) fn client(&self, transport: Transport) -> Client {
        Client::new(self.settings(transport)).unwrap()
    }
}

pub(crate) fn credentials(secret: &str) -> Credentials {
    Credentials { client_id: "skc_1".into(), client_secret: secret.into() }
}

/// A REST refusal, as a gateway sends it for gRPC as well.
pub(crate) fn refusal(http_status: u16) -> Effect {
    Effect::Respond(rest::encode_refusal(
        http_status,
        &Status::new(Code::from_http_status(http_status), "no"),
    ))
}

fn acceptor(certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> tokio_rustls::TlsAcceptor {
    let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config =
        config.with_no_client_auth().with_single_cert(vec![certificate.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config).into()
}

pub(crate) fn trust(certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config.with_root_certificates(roots).with_no_client_auth()
}

fn stream(response: HttpResponse, whole: bool) -> Response<Body> {
    let mut frames = vec![Ok(Frame::data(response.body))];
    if !whole {
        frames.push(Err(std::io::Error::other("cut off")));
    } else if !response.trailers.is_empty() {
        frames.push(Ok(Frame::trailers(response.trailers)));
    }
    // A pause, so that the head and the first frame are sent before the end.
    let frames = futures_util::stream::unfold(frames.into_iter(), |mut frames| async {
        tokio::task::yield_now().await;
        Some((frames.next()?, frames))
    });
    let mut sent = Response::new(StreamBody::new(Box::pin(frames) as _));
    (*sent.status_mut(), *sent.headers_mut()) = (response.status, response.headers);
    sent
}

/// How a proxy responds to CONNECT.
#[derive(Clone)]
pub(crate) enum Connect {
    /// Opens the tunnel.
    Open,
    /// Sends this text, and then nothing.
    Say(String),
}

/// A proxy that opens tunnels.
pub(crate) struct ConnectProxy {
    pub(crate) address: SocketAddr,
    pub(crate) connect: Mutex<Connect>,
    /// The heads of all requests, as text.
    pub(crate) heads: Mutex<Vec<String>>,
}

impl ConnectProxy {
    pub(crate) async fn start(connect: Connect) -> Arc<Self> {
        Self::start_with(connect, None).await
    }

    /// A proxy with TLS to the client, with the certificate of this server.
    pub(crate) async fn start_tls(scalekit: &Scalekit) -> Arc<Self> {
        Self::start_with(Connect::Open, scalekit.certificate.as_ref().map(acceptor)).await
    }

    async fn start_with(connect: Connect, acceptor: Option<tokio_rustls::TlsAcceptor>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Arc::new(Self { address, connect: Mutex::new(connect), heads: Mutex::default() });
        let own = Arc::clone(&proxy);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (own, acceptor) = (Arc::clone(&own), acceptor.clone());
                // The two ends of a tunnel check how it ends.
                tokio::spawn(async move {
                    match acceptor {
                        None => own.tunnel(stream).await,
                        Some(acceptor) => own.tunnel(acceptor.accept(stream).await?).await,
                    }
                });
            }
        });
        proxy
    }

    async fn tunnel(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        self.heads.lock().unwrap().push(head.clone());
        let connect = self.connect.lock().unwrap().clone();
        match connect {
            Connect::Say(text) => {
                stream.write_all(text.as_bytes()).await?;
                // Open until the client closes it, unless nothing was sent.
                if !text.is_empty() {
                    while stream.read(&mut [0; 64]).await? > 0 {}
                }
            }
            Connect::Open => {
                let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let mut server = TcpStream::connect(target).await?;
                stream.write_all(b"HTTP/1.1 200 Connection established\r\nX-Proxy: yes\r\n\r\n").await?;
                copy_bidirectional(&mut stream, &mut server).await?;
            }
        }
        Ok(())
    }
}
