//! Nothing accepted is lost at the end, as far as its time allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::timeout;

use crate::support::raw::Client;
use crate::support::{LIMIT, Setup, Stage};

const GET: &str = "GET /public/x HTTP/1.1\r\nhost: a\r\n\r\n";

async fn draining(server: &'static str) -> Stage {
    Stage::with(Setup { server, ..Setup::default() }).await
}

async fn ended(stage: &mut Stage) {
    timeout(LIMIT, &mut stage.running).await.expect("an end in time").unwrap();
}

#[tokio::test]
async fn draining_is_not_ready_at_once_and_still_serves_asking_clients_to_go() {
    let mut stage = draining("drain_delay = \"300ms\"").await;
    let mut old = stage.connect().await;
    old.send(GET).await;
    assert_eq!(old.reply().await.header("connection"), None);
    stage.stop.cancel();
    let wait = async { while stage.ask_admin("/readyz").await.status != 503 {} };
    timeout(LIMIT, wait).await.expect("not ready");
    assert_eq!(stage.ask_admin("/readyz").await.text(), "not ready: draining\n");
    for mut client in [old, stage.connect().await] {
        client.send(GET).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
        assert!(client.rest().await.is_empty());
    }
    ended(&mut stage).await;
    assert!(tokio::net::TcpStream::connect(stage.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_is_under_way_ends_whole_and_with_verdicts_to_the_last() {
    let mut stage = draining("drain_delay = \"0s\"").await;
    let key = stage.key();
    stage.emulator.set_fault("validate:hang".parse().unwrap());
    let begun = stage.emulator.counts().validations;
    let (mut waiting, mut upload) = (stage.connect().await, stage.connect().await);
    waiting.send(format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
    upload.send("POST /public/x HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\n\r\n1234").await;
    stage.emulator.validations_begun(begun + 1).await;
    stage.stop.cancel();
    let wait = async { while tokio::net::TcpStream::connect(stage.address).await.is_ok() {} };
    timeout(LIMIT, wait).await.expect("nothing new is accepted");
    stage.emulator.clear_faults();
    upload.send("5678").await;
    assert_eq!(waiting.reply().await.status, 200);
    let reply = upload.reply().await;
    assert_eq!((reply.status, reply.whole), (200, true));
    ended(&mut stage).await;
}

#[tokio::test]
async fn what_takes_longer_is_cut_so_that_the_client_can_tell() {
    let routes = "[[routes]]\npath = \"/*\"\nupstream = \"echo\"\nauth = \"none\"";
    let server = "drain_delay = \"0s\"\ndrain_timeout = \"100ms\"";
    let mut stage = Stage::with(Setup { server, routes, ..Setup::default() }).await;
    let mut events = stage.connect().await;
    events.send("GET /events?every=10ms HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(events.head().await.status, 200);
    events.bytes(1).await;
    stage.stop.cancel();
    let rest = String::from_utf8(events.rest().await).unwrap();
    assert!(!rest.ends_with("0\r\n\r\n"), "no last chunk: {rest:?}");
    ended(&mut stage).await;
}

#[tokio::test]
async fn a_second_signal_waits_for_nobody() {
    let mut stage = draining("drain_delay = \"1h\"\ndrain_timeout = \"1h\"").await;
    stage.stop.cancel();
    stage.kill.cancel();
    ended(&mut stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_loses_no_request_that_was_sent_on_an_accepted_connection() {
    let (lost, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for _ in 0..5 {
        let mut stage = draining("drain_delay = \"150ms\"").await;
        let gone = Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (address, gone) = (stage.address, Arc::clone(&gone));
            let (lost, answered) = (Arc::clone(&lost), Arc::clone(&answered));
            clients.spawn(async move {
                // As clients of a load balancer: they go elsewhere once a connection is refused or they are told to.
                while let Ok(stream) = tokio::net::TcpStream::connect(address).await {
                    let mut client = Client::over(stream);
                    loop {
                        client.send(GET).await;
                        let reply = client.reply().await;
                        let counter = if reply.status == 200 && reply.whole { &answered } else { &lost };
                        counter.fetch_add(1, Ordering::Relaxed);
                        if reply.status != 200 || reply.header("connection") == Some("close") {
                            break;
                        }
                    }
                    if gone.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let before = answered.load(Ordering::Relaxed);
        let wait = async {
            while answered.load(Ordering::Relaxed) < before + 200 {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, wait).await.expect("load");
        stage.stop.cancel();
        // They come back while it drains, as traffic does until the last balancer has noticed.
        let wait = async { while stage.ask_admin("/readyz").await.status != 503 {} };
        timeout(LIMIT, wait).await.expect("not ready");
        gone.store(true, Ordering::Relaxed);
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        ended(&mut stage).await;
    }
    assert_eq!(lost.load(Ordering::Relaxed), 0, "of {}", answered.load(Ordering::Relaxed));
}
