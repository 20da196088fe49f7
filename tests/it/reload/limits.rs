//! Changed limits apply to new connections and requests; open ones keep theirs.

use std::time::Duration;

use keyward_emulator::store::Issue;

use super::{Reloading, text};
use crate::rig::unknown_key;
use crate::support::raw::{Client, Reply};
use crate::support::{TEST_TIMEOUT, wait_until};
use tokio::time::timeout;

impl Reloading {
    /// Reloads with these limits, the route /a, and a new route that shows when the reload is done.
    async fn take(&self, new: &str, change: impl Fn(&str) -> String) {
        self.write_text(&change(&text(self.echo_address, &["/a", new], "[limits]")));
        self.hup.notify_one();
        self.until(new, 200).await;
    }

    async fn limits(&self, new: &str, limits: &str) {
        self.take(new, |text| text.replace("[limits]", &format!("[limits]\n{limits}"))).await;
    }

    async fn open(&self) -> Client {
        let mut client = Client::connect(self.address).await;
        assert_eq!(get(&mut client, "").await.status, 200);
        client
    }
}

async fn get(client: &mut Client, lines: &str) -> Reply {
    client.send(format!("GET /a HTTP/1.1\r\nhost: a\r\n{lines}\r\n")).await;
    client.read_reply().await
}

/// Begins an upload and stalls: an idle connection would be evicted for the next one.
async fn stall(client: &mut Client) {
    client.send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n1").await;
}

/// Whether it is served now; if not, it waits.
async fn waits(client: &mut Client) -> bool {
    client.send("GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
    timeout(Duration::from_millis(200), client.read_bytes(1)).await.is_err()
}

#[tokio::test]
async fn head_limits_apply_to_next_connection() {
    let keyward = Reloading::start("heads").await;
    let (long, many) = (format!("x: {}\r\n", "x".repeat(10_000)), "x: y\r\n".repeat(20));
    let mut before = keyward.open().await;
    keyward.limits("/b", "head = \"8KiB\"\nheaders = 10").await;
    for lines in [&long, &many] {
        assert_eq!(get(&mut keyward.open().await, lines).await.status, 431);
    }
    assert_eq!(get(&mut before, &long).await.status, 200, "a connection from before keeps its own");
    keyward.limits("/c", "head = \"64KiB\"").await;
    for lines in [&long, &many] {
        assert_eq!(get(&mut keyward.open().await, lines).await.status, 200);
    }
}

#[tokio::test]
async fn timeouts_apply_to_next_connection() {
    let keyward = Reloading::start("times").await;
    let mut before = keyward.open().await;
    keyward
        .take("/b", |text| {
            text.replace("[server]", "[server]\nheader_timeout = \"100ms\"\nidle_timeout = \"100ms\"")
        })
        .await;
    let mut silent = Client::connect(keyward.address).await;
    assert_eq!(silent.read_to_end().await, b"");
    let mut idle = keyward.open().await;
    assert_eq!(idle.read_to_end().await, b"");
    assert_eq!(get(&mut before, "").await.status, 200, "a connection from before keeps its own");
}

#[tokio::test]
async fn body_limit_applies_to_next_request() {
    let keyward = Reloading::start("bodies").await;
    let mut before = keyward.open().await;
    keyward.limits("/b", "body = 1").await;
    before.send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nxx").await;
    assert_eq!(before.read_reply().await.status, 413);
}

#[tokio::test]
async fn connection_limit_can_be_raised_and_lowered() {
    let keyward = Reloading::start("connections").await;
    // Each request to /b is a connection that closes.
    keyward.limits("/b", "connections = 2").await;
    let (mut first, mut second) = (keyward.open().await, keyward.open().await);
    stall(&mut first).await;
    stall(&mut second).await;
    let mut third = Client::connect(keyward.address).await;
    assert!(waits(&mut third).await);
    keyward.write_text(&text(keyward.echo_address, &["/a", "/c"], "[limits]\nconnections = 4"));
    keyward.hup.notify_one();
    assert!(!third.read_bytes(1).await.is_empty(), "it is served once more are allowed");
    let mut fourth = keyward.open().await;
    keyward.write_text(&text(keyward.echo_address, &["/a", "/d"], "[limits]\nconnections = 1"));
    keyward.hup.notify_one();
    // No other connection would be served, as three more are busy than the limit allows. This one sees the new routes.
    let lowered = async {
        loop {
            fourth.send("GET /d HTTP/1.1\r\nhost: a\r\n\r\n").await;
            if fourth.read_reply().await.status == 503 {
                break;
            }
        }
    };
    timeout(TEST_TIMEOUT, lowered).await.unwrap();
    drop((first, second, third));
    wait_until(|| keyward.metrics.connections.get() == 1).await;
    stall(&mut fourth).await;
    let mut fifth = Client::connect(keyward.address).await;
    assert!(waits(&mut fifth).await, "one is open, and one is allowed");
    drop(fourth);
    assert!(!fifth.read_bytes(1).await.is_empty());
    stall(&mut fifth).await;
    assert!(waits(&mut Client::connect(keyward.address).await).await);
}

#[tokio::test]
async fn drain_timeout_can_change() {
    let mut keyward = Reloading::start_with("drain", "drain_timeout = \"1h\"", "").await;
    let mut stream = Client::connect(keyward.address).await;
    keyward.write_text(
        &text(keyward.echo_address, &["/events", "/b"], "")
            .replace("[server]", "[server]\ndrain_timeout = \"100ms\""),
    );
    keyward.hup.notify_one();
    keyward.until("/b", 200).await;
    stream.send("GET /events HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(stream.read_head().await.status, 200);
    keyward.stop.cancel();
    timeout(TEST_TIMEOUT, &mut keyward.running).await.expect("the stream is cut").unwrap();
}

#[tokio::test]
async fn validation_limits_change_and_known_keys_stay() {
    let keyward = Reloading::start("validation").await;
    let more = |sections: &str| {
        let text = text(keyward.echo_address, &["/a", "/b"], sections);
        text + "[[routes]]\npath = \"/keys\"\nupstream = \"echo\"\n"
    };
    let ask = async |key: &str| {
        let mut client = Client::connect(keyward.address).await;
        client.send(format!("GET /keys HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
        client.read_reply().await.status
    };
    keyward.write_text(&more(""));
    keyward.hup.notify_one();
    keyward.until("/b", 200).await;
    let good = keyward.emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key;
    assert_eq!((ask(&good).await, ask(&unknown_key(1)).await), (200, 401));
    let calls = keyward.emulator.counts().validations;

    keyward.write_text(&more("[throttle]\nbad_keys_per_minute = 1").replace("/b", "/c"));
    keyward.hup.notify_one();
    keyward.until("/c", 200).await;
    assert_eq!(ask(&unknown_key(1)).await, 401);
    assert_eq!(keyward.emulator.counts().validations, calls, "it is remembered as bad");
    assert_eq!(ask(&good).await, 200);
    assert_eq!((ask(&unknown_key(2)).await, ask(&unknown_key(3)).await), (401, 429));

    keyward.write_text(
        &more("[throttle]\nbad_keys_per_minute = 2\n[negative_cache]\nttl = \"0s\"").replace("/b", "/d"),
    );
    keyward.hup.notify_one();
    keyward.until("/d", 200).await;
    assert_eq!(ask(&unknown_key(4)).await, 429, "what an address has used up stays used up");
    assert_eq!(ask(&good).await, 200, "and who came with a good key still gets through");

    keyward.write_text(
        &more("[negative_cache]\nttl = \"0s\"\n[scalekit]\nvalidations_per_minute = 1").replace("/b", "/e"),
    );
    keyward.hup.notify_one();
    keyward.until("/e", 200).await;
    assert_eq!(
        (ask(&unknown_key(1)).await, ask(&unknown_key(1)).await),
        (401, 503),
        "no longer remembered; and one call"
    );
}
