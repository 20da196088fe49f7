//! Load that counts the outcome of each request. A request counts as lost if it was sent on an accepted connection and did not get
//! a complete 200, unless a GOAWAY stated that it was not processed.

use std::net::SocketAddr;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use ::keyward::body::{self, Body};
use anyhow::Result;
use bytes::Bytes;
use futures_util::stream;
use h2::client::{self, ResponseFuture, SendRequest};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) answered: u64,
    /// Refused by a GOAWAY, not processed.
    pub(super) told: u64,
    pub(super) lost: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.answered += other.answered;
        self.told += other.told;
        self.lost += other.lost;
    }
}

/// Target, key and end of the load: it stops when no connection is accepted any more, or `enough` is cancelled.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) address: SocketAddr,
    pub(super) key: String,
    pub(super) enough: CancellationToken,
}

pub(super) fn request(method: Method, path: &str, key: &str, body: Body) -> Result<Request<Body>> {
    let request = Request::builder().method(method).uri(path).header("host", "api.test");
    Ok(request.header("authorization", format!("Bearer {key}")).body(body)?)
}

pub(super) async fn http1(address: SocketAddr) -> Result<http1::SendRequest<Body>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

pub(super) async fn http2(address: SocketAddr) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut builder = client::Builder::new();
    builder.initial_window_size(1024 * 1024).initial_connection_window_size(4 * 1024 * 1024);
    let (sender, connection) = builder.handshake(stream).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A body of six pieces, one every 100 ms.
fn slow() -> Body {
    let pieces = stream::unfold(0, |sent| async move {
        if sent == 6 {
            return None;
        }
        sleep(Duration::from_millis(100)).await;
        Some((Ok(Frame::data(Bytes::from_static(b"piece."))), sent + 1))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Whether the response is a complete 200; `None` if the connection was closed before the request was sent.
async fn whole(sent: hyper::Result<Response<Incoming>>) -> Option<bool> {
    match sent {
        Ok(response) => Some(response.status() == 200 && response.into_body().collect().await.is_ok()),
        Err(error) => (!error.is_canceled()).then_some(false),
    }
}

impl Load {
    /// Sends one request after another on keep-alive connections, with a random pause of up to `pause` before each.
    pub(super) async fn http1(self, pause: Duration, uploads: bool) -> Counts {
        let mut counts = Counts::default();
        while !self.enough.is_cancelled()
            && let Ok(mut sender) = http1(self.address).await
        {
            // A request that cannot be sent does not count as lost.
            while !self.enough.is_cancelled() && sender.ready().await.is_ok() {
                sleep(pause.mul_f64(fastrand::f64())).await;
                let (method, body) =
                    if uploads { (Method::POST, slow()) } else { (Method::GET, body::empty()) };
                let Ok(request) = request(method, "/v1", &self.key, body) else { return counts };
                match whole(sender.send_request(request).await).await {
                    Some(true) => counts.answered += 1,
                    Some(false) => counts.lost += 1,
                    None => {}
                }
            }
        }
        counts
    }

    /// Keeps `streams` streams open on one connection after another.
    pub(super) async fn http2(self, streams: usize) -> Counts {
        let mut counts = Counts::default();
        while !self.enough.is_cancelled()
            && let Ok(sender) = http2(self.address).await
        {
            let streams = (0..streams).map(|_| self.stream(sender.clone()));
            futures_util::future::join_all(streams).await.into_iter().for_each(|stream| counts += stream);
        }
        counts
    }

    async fn stream(&self, sender: SendRequest<Bytes>) -> Counts {
        let mut counts = Counts::default();
        while !self.enough.is_cancelled()
            && let Ok(mut ready) = sender.clone().ready().await
            && let Ok(request) = bare("/v1", &self.key)
            && let Ok((response, _)) = ready.send_request(request, true)
        {
            match read(response).await {
                Ok((200, _)) => counts.answered += 1,
                Err(error) if error.is_go_away() && error.is_remote() => counts.told += 1,
                Ok(_) | Err(_) => counts.lost += 1,
            }
        }
        counts
    }

    /// Reads one event stream to its end; returns whether the end is recognisable as an error.
    pub(super) async fn events(self) -> Result<bool> {
        let mut sender = http1(self.address).await?;
        let request = request(Method::GET, "/events?every=100ms", &self.key, body::empty())?;
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status() == 200, "an event stream");
        Ok(response.into_body().collect().await.is_err())
    }
}

/// A GET request for the `h2` crate.
pub(super) fn bare(path: &str, key: &str) -> Result<Request<()>> {
    let request = Request::get(format!("http://api.test{path}"));
    Ok(request.header("authorization", format!("Bearer {key}")).body(())?)
}

/// Reads a response to its end; returns its status and the length of its body.
pub(super) async fn read(response: ResponseFuture) -> Result<(u16, usize), h2::Error> {
    let response = response.await?;
    let (status, mut body, mut length) = (response.status().as_u16(), response.into_body(), 0);
    while let Some(data) = body.data().await {
        let count = data?.len();
        body.flow_control().release_capacity(count)?;
        length += count;
    }
    Ok((status, length))
}

/// A quantile of these times, in milliseconds; `share` is from 0 to 1.
pub(super) fn share(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let at = (times.len().saturating_sub(1) as f64 * share) as usize;
    times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// A well-behaved client on one connection; returns the duration of each request, and the number of failed ones.
pub(super) async fn steady(load: &Load, per_second: u32, seconds: u32) -> Result<(Vec<Duration>, u64)> {
    let (mut times, mut failed) = (Vec::new(), 0);
    let mut sender = http1(load.address).await?;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
    for _ in 0..per_second * seconds {
        tick.tick().await;
        let began = Instant::now();
        if sender.ready().await.is_err() {
            sender = http1(load.address).await?;
        }
        let request = request(Method::GET, "/v1", &load.key, body::empty())?;
        match whole(sender.send_request(request).await).await {
            Some(true) => times.push(began.elapsed()),
            Some(false) | None => failed += 1,
        }
    }
    Ok((times, failed))
}
