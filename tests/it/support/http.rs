//! Clients and upstreams with hyper, for HTTP/2, TLS and bodies that the test controls.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use keyward::body::{Body, BodyError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{TEST_TIMEOUT, bind_loopback};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    Http1,
    Http2,
}

/// Every pair of the client's version and a line for `[upstreams.echo]` that sets the upstream's.
pub const VERSION_PAIRS: [(HttpVersion, &str); 4] = [
    (HttpVersion::Http1, ""),
    (HttpVersion::Http1, "http = \"2\""),
    (HttpVersion::Http2, ""),
    (HttpVersion::Http2, "http = \"2\""),
];

/// A client with one connection.
pub enum HttpClient {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl HttpClient {
    pub async fn connect(address: SocketAddr, http_version: HttpVersion) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), http_version).await
    }

    pub async fn over(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        http_version: HttpVersion,
    ) -> Self {
        match http_version {
            HttpVersion::Http1 => {
                let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
                tokio::spawn(connection);
                Self::Http1(sender)
            }
            HttpVersion::Http2 => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        }
    }

    /// Over HTTP/2, with a window of this size for each stream and the minimum for the connection.
    pub async fn windowed(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, window: u32) -> Self {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(window).initial_connection_window_size(65_535);
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    /// The same connection, for another stream.
    pub fn again(&self) -> Self {
        match self {
            Self::Http1(_) => panic!("HTTP/1.1 sends one request at a time"),
            Self::Http2(sender) => Self::Http2(sender.clone()),
        }
    }

    /// A request to `api.test`, with a key unless that is empty.
    pub fn request(&self, method: Method, path: &str, key: &str, body: Body) -> Request<Body> {
        let mut request = Request::builder().method(method);
        request = match self {
            Self::Http1(_) => request.uri(path).header("host", "api.test"),
            Self::Http2(_) => request.uri(format!("http://api.test{path}")),
        };
        if !key.is_empty() {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.body(body).unwrap()
    }

    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        let sent = async {
            match self {
                Self::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Self::Http2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        timeout(TEST_TIMEOUT, sent).await.expect("an answer in time")
    }

    pub async fn get(&mut self, path: &str, key: &str) -> hyper::Result<Response<Incoming>> {
        let request = self.request(Method::GET, path, key, keyward::body::empty());
        self.send(request).await
    }
}

/// Sends frames of a body. The body ends when this is dropped.
pub type BodySender = mpsc::Sender<Result<Frame<Bytes>, BodyError>>;

/// A body with the frames that are sent to it.
pub fn channel_body() -> (BodySender, Body) {
    let (feed, frames) = mpsc::channel(1);
    let frames = stream::unfold(frames, |mut frames: mpsc::Receiver<_>| async {
        frames.recv().await.map(|frame| (frame, frames))
    });
    (feed, StreamBody::new(frames).boxed_unsync())
}

pub fn data_frame(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(bytes.into()))
}

/// A body of this size, in pieces.
pub fn body_of_size(bytes: usize) -> Body {
    const PIECE: usize = 64 * 1024;
    let frames = stream::iter((0..bytes.div_ceil(PIECE)).map(move |piece| {
        let size = PIECE.min(bytes - piece * PIECE);
        data_frame(Bytes::from_static(&[b'.'; PIECE]).slice(..size))
    }));
    StreamBody::new(frames).boxed_unsync()
}

/// Reads to the end; returns the number of bytes, and the trailers.
pub async fn read_body(response: Response<Incoming>) -> Result<(usize, HeaderMap), hyper::Error> {
    let (mut body, mut bytes, mut trailers) = (response.into_body(), 0, HeaderMap::new());
    while let Some(frame) = timeout(TEST_TIMEOUT, body.frame()).await.expect("the body in time") {
        match frame?.into_data() {
            Ok(data) => bytes += data.len(),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok((bytes, trailers))
}

/// An upstream that responds with `answer`, over HTTP/1.1 and h2c.
pub async fn start_upstream<F, R>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Response<Body>, BodyError>> + Send + 'static,
{
    let (listener, address) = bind_loopback().await;
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&answer)));
        }
    });
    address
}

/// Serves one connection. Boxed, as the compiler cannot see through the future.
pub fn serve<F, R>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    answer: Arc<F>,
) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Response<Body>, BodyError>> + Send + 'static,
{
    Box::pin(async move {
        let service = service_fn(move |request| answer(request));
        // The client checks how its connection ends.
        let _ =
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    })
}
