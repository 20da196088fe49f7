//! HTTP/2 clients during a drain, with the `h2` crate, which distinguishes GOAWAY from other ends.

use std::net::SocketAddr;
use std::ops::AddAssign;

use h2::client::{self, SendRequest};
use hyper::Request;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{ended, stage};
use crate::support::{TEST_TIMEOUT, wait_until};

type Sender = SendRequest<bytes::Bytes>;

const STREAMS: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    answered: u64,
    /// Requests that GOAWAY left unprocessed: to be sent again elsewhere.
    told: u64,
    lost: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.answered += other.answered;
        self.told += other.told;
        self.lost += other.lost;
    }
}

fn request(path: &str, key: &str) -> Request<()> {
    let request = Request::get(format!("http://api.test{path}"));
    request.header("authorization", format!("Bearer {key}")).body(()).unwrap()
}

async fn connect(address: SocketAddr) -> Option<Sender> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (sender, connection) = client::handshake(stream).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// Reads one response to its end.
async fn answer(response: client::ResponseFuture) -> Result<u16, h2::Error> {
    let response = response.await?;
    let (status, mut body) = (response.status().as_u16(), response.into_body());
    while let Some(data) = body.data().await {
        let count = data?.len();
        body.flow_control().release_capacity(count)?;
    }
    Ok(status)
}

/// Sends one request after the other until the connection accepts no more.
async fn stream(sender: Sender, key: String) -> Counts {
    let mut counts = Counts::default();
    // A request that cannot be sent is not lost.
    while let Ok(mut ready) = sender.clone().ready().await
        && let Ok((response, _)) = ready.send_request(request("/v1", &key), true)
    {
        match timeout(TEST_TIMEOUT, answer(response)).await.expect("an answer in time") {
            Ok(200) => counts.answered += 1,
            Err(error) if error.is_go_away() && error.is_remote() => counts.told += 1,
            Ok(_) | Err(_) => counts.lost += 1,
        }
    }
    counts
}

/// Eight concurrent streams on one connection after another, until no connection is accepted.
async fn asking(address: SocketAddr, key: String) -> Counts {
    let mut counts = Counts::default();
    while let Some(sender) = connect(address).await {
        let streams = (0..STREAMS).map(|_| stream(sender.clone(), key.clone()));
        futures_util::future::join_all(streams).await.into_iter().for_each(|stream| counts += stream);
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_under_load_loses_no_http2_request() {
    for _ in 0..5 {
        let (mut stage, key) = stage("drain_delay = \"250ms\"").await;
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            callers.spawn(asking(stage.address, key.clone()));
        }
        wait_until(|| stage.forwarded_count() > 50).await;
        stage.stop.cancel();
        let mut counts = Counts::default();
        while let Some(http_client) = timeout(TEST_TIMEOUT, callers.join_next()).await.unwrap() {
            counts += http_client.unwrap();
        }
        assert_eq!(counts.lost, 0, "{counts:?}");
        // Requests beyond GOAWAY's last stream were not processed.
        assert_eq!(stage.forwarded_count(), counts.answered, "{counts:?}");
        ended(&mut stage).await;
    }
}

#[tokio::test]
async fn goaway_names_last_processed_stream() {
    let (mut stage, key) = stage("").await;
    let mut sender = connect(stage.address).await.unwrap();
    let (slow, _) = sender.send_request(request("/slow/600", &key), true).unwrap();
    let slow = tokio::spawn(answer(slow));
    wait_until(|| stage.forwarded_count() == 1).await;
    stage.stop.cancel();
    // The connection accepts no request after GOAWAY.
    let told = async {
        let mut before = 0;
        loop {
            let sent = match sender.clone().ready().await {
                Ok(mut ready) => ready.send_request(request("/v1", &key), true),
                Err(error) => break (before, error),
            };
            let answered = match sent {
                Ok((response, _)) => answer(response).await,
                Err(error) => break (before, error),
            };
            match answered {
                Ok(status) => assert_eq!(status, 200),
                Err(error) => break (before, error),
            }
            before += 1;
        }
    };
    let (before, error) = timeout(TEST_TIMEOUT, told).await.expect("a GOAWAY in time");
    assert!(error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR), "{error}");
    assert_eq!(stage.forwarded_count(), before + 1);
    assert!(!slow.is_finished());
    assert_eq!(slow.await.unwrap().unwrap(), 200);
    ended(&mut stage).await;
}
