//! A drain that the admin port begins, and who may begin it.

use std::net::SocketAddr;

use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::{closed, ended, get, stage};
use crate::support::raw::{Client, Reply};
use crate::support::{Stage, TEST_TIMEOUT, wait_until};

const POST: &str = "POST /drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";

async fn send(admin: SocketAddr, request: &str) -> Reply {
    let mut client = Client::connect(admin).await;
    client.send(request).await;
    client.read_reply().await
}

/// The status, and the state in the body.
async fn post(stage: &Stage) -> (u16, String) {
    let reply = send(stage.admin, POST).await;
    (reply.status, reply.json()["state"].as_str().unwrap().to_owned())
}

/// Waits until the admin port says that the drain has ended.
async fn drained(stage: &Stage) {
    let wait = async { while post(stage).await != (200, "drained".to_owned()) {} };
    timeout(TEST_TIMEOUT, wait).await.expect("the drain ends in time");
}

#[tokio::test]
async fn requested_drain_ends_and_process_stays() {
    let (mut stage, key) = stage("drain_delay = \"300ms\"\ndrain_timeout = \"8s\"").await;
    let mut slow = stage.connect().await;
    slow.send(get("/slow/900", &key)).await;
    wait_until(|| stage.forwarded_count() == 1).await;
    assert!(!stage.metrics.encode().contains("keyward_drain_begin_timestamp_seconds "));
    let reply = send(stage.admin, POST).await;
    assert_eq!((reply.status, &reply.json()["state"]), (202, &"draining".into()));
    let left = reply.json()["seconds_left"].as_f64().unwrap();
    assert!((7.0..=8.3).contains(&left), "{left}");
    assert_eq!(stage.get_admin("/readyz").await.text(), "not ready: draining\n");
    let fresh = stage.get("/v1", &key).await;
    assert_eq!((fresh.status, fresh.header("connection")), (200, Some("close")), "still accepting");
    closed(&stage).await;
    assert_eq!(post(&stage).await, (202, "draining".to_owned()), "it is under way");
    let reply = slow.read_reply().await;
    assert_eq!((reply.status, reply.whole), (200, true));
    drained(&stage).await;
    assert_eq!(stage.get_admin("/livez").await.status, 200);
    let text = stage.get_admin("/metrics").await.text();
    for name in ["begin", "end"] {
        assert!(text.contains(&format!("\nkeyward_drain_{name}_timestamp_seconds ")), "{text}");
    }
    assert!(!stage.running.is_finished(), "it stays until SIGTERM");
    stage.stop.cancel();
    ended(&mut stage).await;
}

#[tokio::test]
async fn sigterm_continues_requested_drain() {
    let (mut stage, key) = stage("drain_delay = \"0s\"\ndrain_timeout = \"8s\"").await;
    let mut slow = stage.connect().await;
    slow.send(get("/slow/600", &key)).await;
    wait_until(|| stage.forwarded_count() == 1).await;
    assert_eq!(post(&stage).await.0, 202);
    closed(&stage).await;
    let begun = stage.metrics.encode();
    stage.stop.cancel();
    let reply = slow.read_reply().await;
    assert_eq!((reply.status, reply.whole), (200, true));
    ended(&mut stage).await;
    let line =
        |text: &str| text.lines().find(|line| line.starts_with("keyward_drain_begin")).map(str::to_owned);
    assert!(line(&begun).is_some());
    assert_eq!(line(&stage.metrics.encode()), line(&begun), "it has not begun anew");
}

#[tokio::test]
async fn second_signal_ends_requested_drain() {
    let (mut stage, key) = stage("drain_delay = \"1h\"").await;
    assert_eq!(post(&stage).await.0, 202);
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    stage.stop.cancel();
    stage.kill.cancel();
    ended(&mut stage).await;
}

#[tokio::test]
async fn drain_is_refused_to_web_pages_and_other_methods() {
    let (stage, _) = stage("drain_delay = \"1h\"").await;
    for headers in [
        "host: evil.example:4481\r\n",
        "host: localhost.evil.example\r\n",
        "host: localhost\r\nhost: localhost\r\n",
        "host: localhost\r\norigin: http://evil.example\r\n",
        "host: 127.0.0.1\r\norigin: null\r\n",
        "host: 127.0.0.1\r\nsec-fetch-site: cross-site\r\n",
        "host: 127.0.0.1\r\nsec-fetch-site: same-site\r\n",
        // A proxy in front of the admin port hides where a request comes from.
        "host: localhost\r\nx-forwarded-for: 10.1.2.3\r\n",
        "host: localhost\r\nforwarded: for=10.1.2.3\r\n",
        "host: localhost\r\nx-forwarded-proto: http\r\n",
        "host: localhost\r\nvia: 1.1 proxy\r\n",
    ] {
        let request = format!("POST /drain HTTP/1.1\r\n{headers}content-length: 0\r\n\r\n");
        let reply = send(stage.admin, &request).await;
        assert!([400, 403].contains(&reply.status), "{headers} {reply:?}");
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        let request = format!("{method} /drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
        let reply = send(stage.admin, &request).await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")), "{method}");
    }
    for path in ["/drain/", "//drain", "/Drain"] {
        let request = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(send(stage.admin, &request).await.status, 405, "{path}");
    }
    assert_eq!(stage.get_admin("/readyz").await.status, 200, "nothing began the drain");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn drain_is_refused_to_other_machines() {
    let (stage, _) = stage("drain_delay = \"1h\"").await;
    // Istio hands over requests of other pods from 127.0.0.6.
    for source in [[127, 0, 0, 6], [127, 1, 2, 3]] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        let mut client = Client::over(socket.connect(stage.admin).await.unwrap());
        client.send(POST).await;
        let reply = client.read_reply().await;
        assert_eq!(reply.status, 403, "{source:?}");
        assert!(reply.text().contains("127.0.0.1"), "{}", reply.text());
    }
    assert_eq!(stage.get_admin("/readyz").await.status, 200);
}
