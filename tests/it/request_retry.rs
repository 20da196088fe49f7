//! An HTTP/2 upstream that sends GOAWAY or REFUSED_STREAM: unprocessed requests are sent again, others are not.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Setup, Stage, bind_loopback};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;

/// What the upstream does with the second stream of its first connection.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// GOAWAY without having processed it.
    GoesAwayBefore,
    /// REFUSED_STREAM.
    Refuses,
    /// GOAWAY after it, and closes the connection.
    GoesAwayAfter,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The bodies of the streams, in the order of their ends.
type Bodies = Arc<Mutex<Vec<String>>>;

async fn upstream(does: Does) -> (String, Bodies) {
    let (listener, address) = bind_loopback().await;
    let bodies = Bodies::default();
    let shared = Arc::clone(&bodies);
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((stream, _)) = listener.accept().await {
            let does = std::mem::take(&mut first).then_some(does);
            tokio::spawn(connection(stream, does, Arc::clone(&shared)));
        }
    });
    (format!("h2c://{address}"), bodies)
}

async fn connection(mut stream: TcpStream, does: Option<Does>, bodies: Bodies) -> Option<()> {
    stream.read_exact(&mut [0; 24]).await.ok()?;
    // INITIAL_WINDOW_SIZE and the connection's window: at least 1 MiB, so that long bodies arrive completely.
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0x10, 0, 0])).await.ok()?;
    stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &[0, 0x10, 0, 0])).await.ok()?;
    let mut body = String::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.ok()?;
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match kind {
            SETTINGS if flags == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.ok()?,
            DATA => body += &String::from_utf8_lossy(&payload),
            _ => {}
        }
        if !matches!(kind, HEADERS | DATA) || flags & END_STREAM == 0 {
            continue;
        }
        bodies.lock().unwrap().push(std::mem::take(&mut body));
        match does.filter(|_| id == 3) {
            // 0x88 is `:status: 200`, 4 its END_HEADERS.
            None => stream.write_all(&frame(HEADERS, END_STREAM | 4, id, &[0x88])).await.ok()?,
            Some(Does::GoesAwayBefore) => {
                stream.write_all(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).await.ok()?;
            }
            Some(Does::Refuses) => stream.write_all(&frame(RST_STREAM, 0, id, &[0, 0, 0, 7])).await.ok()?,
            Some(Does::GoesAwayAfter) => {
                return stream.write_all(&frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0])).await.ok();
            }
        }
    }
}

fn post(body: &str) -> String {
    format!("POST /public/x HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn only_unprocessed_requests_are_sent_again() {
    for (does, status, expected) in [
        (Does::GoesAwayBefore, 200, vec!["one", "two", "two", "three"]),
        (Does::Refuses, 200, vec!["one", "two", "two", "three"]),
        (Does::GoesAwayAfter, 502, vec!["one", "two", "three"]),
    ] {
        let (url, bodies) = upstream(does).await;
        let stage = Stage::with(Setup { upstream_url: Some(url), ..Setup::default() }).await;
        assert_eq!(stage.send(post("one")).await.status, 200, "{does:?}");
        assert_eq!(stage.send(post("two")).await.status, status, "{does:?}");
        assert_eq!(stage.send(post("three")).await.status, 200, "{does:?}");
        assert_eq!(*bodies.lock().unwrap(), expected, "{does:?}");
    }
}

#[tokio::test]
async fn long_body_is_not_buffered_for_retry() {
    let (url, bodies) = upstream(Does::GoesAwayBefore).await;
    let stage = Stage::with(Setup { upstream_url: Some(url), ..Setup::default() }).await;
    assert_eq!(stage.send(post("one")).await.status, 200);
    assert_eq!(stage.send(post(&"x".repeat(300_000))).await.status, 502);
    assert_eq!(bodies.lock().unwrap().len(), 2);
    assert_eq!(stage.send(post(&"x".repeat(300_000))).await.status, 200);
}
