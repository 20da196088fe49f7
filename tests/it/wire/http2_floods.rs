//! HTTP/2 floods: the connection closes or is harmless, memory stays bounded, and other clients are served.

use keyward::metrics::Outcome;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use super::Wire;
use super::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, GET, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, fate, frame, preface,
};
use crate::support::raw::ScriptedUpstream;
use crate::support::{Setup, Stage, TEST_TIMEOUT, wait_until};

/// The memory that a flood may cost, in bytes: much less than it offers. Other tests run in the same process.
const BOUND: u64 = 256 * 1024 * 1024;

/// The process's memory, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Floods one connection while another sends requests; returns whether the flooded one has closed.
async fn flood(wire: &Wire, name: &str, begin: Vec<u8>, each: Vec<u8>, times: usize) -> bool {
    let before = resident();
    let mut client = wire.stage.connect().await;
    client.send([preface(), begin].concat()).await;
    let batch = each.repeat((16 * 1024 / each.len()).clamp(1, times));
    let batches = (times * each.len()).div_ceil(batch.len());
    let flooding = async {
        for _ in 0..batches {
            if client.stream.write_all(&batch).await.is_err() {
                return;
            }
        }
    };
    let neighbour = async {
        for _ in 0..10 {
            let began = Instant::now();
            let reply = wire.stage.get("/v1/beside", &wire.key).await;
            assert_eq!(reply.status, 200, "{name}");
            assert!(began.elapsed().as_secs() < 3, "{name}: {:?}", began.elapsed());
        }
    };
    // A flood that is not read blocks, which is allowed.
    tokio::join!(timeout(TEST_TIMEOUT / 4, flooding), neighbour).0.unwrap_or_default();
    let grown = resident().saturating_sub(before);
    assert!(grown < BOUND, "{name}: {} MiB", grown >> 20);
    // One more request shows whether the connection is served.
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 0x7fff_ffff, &block(&GET))).await;
    let found = timeout(TEST_TIMEOUT / 4, fate(&mut client, Some(0x7fff_ffff))).await.unwrap_or(Fate::Reset);
    assert!(matches!(found, Fate::Ended | Fate::Answered(200)), "{name}: {found:?}");
    assert_eq!(wire.stage.get("/v1/after", &wire.key).await.status, 200, "{name}");
    found == Fate::Ended
}

fn head(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    let fields = [GET[0], GET[1], GET[2], (":path", path)];
    frame(HEADERS, flags | END_HEADERS, stream, &block(&fields))
}

/// The frames of this number of streams.
fn streams(count: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|number| each(2 * number + 1)).collect()
}

#[tokio::test]
async fn rapid_resets_close_connection() {
    let wire = Wire::start().await;
    let cancel = |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    #[rustfmt::skip]
    let bad = [
        GET[0], GET[1], GET[2], (":path", "/v1"), ("authorization", "Bearer 0123456789ABCDEFGHIJabcdefghij"),
    ];
    for (name, head) in [
        ("public", head(1, "/public/reset", END_STREAM)),
        ("bad key", frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&bad))),
        ("no route", head(1, "/v1/../x", END_STREAM)),
    ] {
        let before = wire.stage.emulator.counts().validations;
        let all = streams(2000, |stream| {
            let mut head = head.clone();
            head[5..9].copy_from_slice(&stream.to_be_bytes());
            [head, cancel(stream)].concat()
        });
        assert!(flood(&wire, name, Vec::new(), all, 1).await, "{name}");
        // The other connection sent 11.
        let asked = wire.stage.emulator.counts().validations - before;
        assert!(asked < 150, "{name}: {asked}");
    }
    let reached = wire.upstream.text().matches("/public/reset").count();
    assert!(reached < 150, "{reached}");
}

#[tokio::test]
async fn sequential_resets_with_good_key_close_connection() {
    // The upstream never responds, so that each stream is open when it is reset.
    let upstream = ScriptedUpstream::answering("").await;
    let wire = Wire::with(upstream, Setup::default()).await;
    let mut client = wire.stage.connect().await;
    // Each frame in its own packet: two together would be the burst of the test above.
    client.stream.set_nodelay(true).unwrap();
    client.send(preface()).await;
    let authorization = format!("Bearer {}", wire.key);
    let fields = [GET[0], GET[1], GET[2], (":path", "/v1/taken-back"), ("authorization", &*authorization)];
    let mut sent = 0;
    for number in 0..2000 {
        let stream = 2 * number + 1;
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(&fields))).await;
        // The head is processed before the reset.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let reset = frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        if client.stream.write_all(&reset).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 2000, "{sent} were taken");
    client.read_to_end().await;
    let outcome = Outcome { outcome: "requests_taken_back" };
    assert_eq!(wire.stage.metrics.connection_errors.get_or_create(&outcome).get(), 1, "{sent}");
    let reached = wire.upstream.text().matches("/v1/taken-back").count();
    assert!(reached <= 300, "{reached}");
}

#[tokio::test]
async fn made_you_reset_closes_connection() {
    let wire = Wire::with(ScriptedUpstream::answering("").await, Setup::default()).await;
    let mut client = wire.stage.connect().await;
    client.send(preface()).await;
    // RFC 9113 section 6.9: a window's increment of 0 is a stream error.
    let all = streams(1000, |stream| {
        [head(stream, "/public/made", END_STREAM), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
    });
    client.send(all).await;
    assert_eq!(fate(&mut client, None).await, Fate::Ended);
    let reached = wire.upstream.text().matches("/public/made").count();
    assert!(reached <= 200, "{reached}");
}

#[tokio::test]
async fn continuation_flood_closes_connection() {
    let wire = Wire::start().await;
    let open = frame(HEADERS, END_STREAM, 1, &block(&GET));
    let field = block(&[("x", &"y".repeat(1000))]);
    for (name, payload) in [("full", field.repeat(8)), ("small", field), ("empty", Vec::new())] {
        let each = frame(CONTINUATION, 0, 1, &payload);
        assert!(flood(&wire, name, open.clone(), each, 10_000).await, "{name}");
    }
    assert!(!wire.upstream.text().contains("/public/x"));
}

#[tokio::test]
async fn hpack_bomb_is_refused() {
    let wire = Wire::start().await;
    // Adds a field of 4 KB to the table (RFC 7541 section 6.2.1), and then repeats its index.
    let mut bomb = block(&GET);
    let mut field = block(&[("x", &"y".repeat(3900))]);
    field[0] = 0x40;
    bomb.extend(field);
    let before = resident();
    for (name, indices) in [("one frame", 12_000), ("more than fit", 200)] {
        let mut block = bomb.clone();
        block.extend(vec![0xbe; indices]);
        for _ in 0..20 {
            let mut client = wire.stage.connect().await;
            client.send([preface(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)].concat()).await;
            let found = fate(&mut client, Some(1)).await;
            assert!(matches!(found, Fate::Answered(431) | Fate::Reset | Fate::Ended), "{name}: {found:?}");
        }
    }
    assert!(resident().saturating_sub(before) < BOUND);
    assert_eq!(wire.upstream.text(), "");
    // One field more than HTTP/1.1 may have.
    for (fields, expected) in [(90, 200), (101, 431)] {
        let fields = [&GET[..], &vec![("x", "y"); fields]].concat();
        let mut client = wire.stage.connect().await;
        client.send([preface(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields))].concat()).await;
        assert_eq!(fate(&mut client, Some(1)).await, Fate::Answered(expected));
    }
}

#[tokio::test]
async fn control_frame_floods_do_not_delay_others() {
    let wire = Wire::start().await;
    let fields = [(":method", "POST"), GET[1], GET[2], GET[3]];
    let open = frame(HEADERS, END_HEADERS, 1, &block(&fields));
    for (name, begin, each) in [
        ("settings", vec![], frame(SETTINGS, 0, 0, b"")),
        ("settings that change", vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255].repeat(100))),
        ("ping", vec![], frame(PING, 0, 0, &[0; 8])),
        ("priority", vec![], frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        ("empty data", open.clone(), frame(DATA, 0, 1, b"")),
        ("padded data", open.clone(), frame(DATA, 8, 1, &[9; 10])),
        ("window updates", vec![], frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown frames", vec![], frame(0xfe, 0, 0, b"x")),
    ] {
        flood(&wire, name, begin, each, 10_000).await;
    }
}

#[tokio::test]
async fn responses_without_window_use_bounded_memory() {
    let routes = "[[routes]]\npath = \"/*\"\nupstream = \"echo\"\nauth = \"none\"";
    let stage = Stage::with(Setup { routes, sections: "[limits]\nstreams = 128", ..Setup::default() }).await;
    let before = resident();
    let mut client = stage.connect().await;
    client.send([preface(), frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat()).await;
    client.send(streams(120, |stream| head(stream, "/bytes/67108864", END_STREAM))).await;
    wait_until(|| stage.forwarded_count() == 120).await;
    assert_eq!(stage.get("/beside", "").await.status, 200);
    let grown = resident().saturating_sub(before);
    assert!(grown < BOUND, "{} MiB", grown >> 20);
}

#[tokio::test]
async fn too_many_concurrent_streams_close_connection() {
    let wire = Wire::with(ScriptedUpstream::answering("").await, Setup::default()).await;
    let mut client = wire.stage.connect().await;
    client.send([preface(), streams(1000, |stream| head(stream, "/public/many", END_STREAM))].concat()).await;
    assert_eq!(fate(&mut client, None).await, Fate::Ended);
    assert!(wire.upstream.text().matches("/public/many").count() <= 100);
}
