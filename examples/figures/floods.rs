//! Floods during the requests of a well-behaved client: 2,000 streams that are reset at once or soon, and 500 endless heads.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::keyward::Keyward;
use crate::load::{self, Load, share};

const RESETS: usize = 2000;
const SLOW: usize = 500;

pub(super) async fn floods() -> Result<()> {
    let keyward = Keyward::start("", "").await?;
    let load = keyward.load();
    load::steady(&load, 100, 2).await?;
    let report = async |name: &str, seconds| {
        let (mut times, failed) = load::steady(&load, 100, seconds).await?;
        let (median, last) = (share(&mut times, 0.5), share(&mut times, 0.99));
        println!(
            "{name}: p50 {median:.2} ms, p99 {last:.2} ms, errors {failed}; memory {:.1} MiB, at most {:.1} MiB",
            keyward.memory("VmRSS")?,
            keyward.memory("VmHWM")?
        );
        anyhow::Ok(())
    };
    report("before", 5).await?;
    let forwarded = keyward.echo.counts().requests;
    let (mut ended, ()) = tokio::try_join!(bursts(&load), report("2000 resets, 100 each 200 ms", 5))?;
    let connections = ended.len();
    ended.dedup();
    println!(
        "  {connections} connections were ended with {ended:?}; {} of the streams came to the upstream",
        keyward.echo.counts().requests - forwarded - 500
    );
    let forwarded = keyward.echo.counts().requests;
    let (used, ()) = tokio::try_join!(paced(&load), report("2000 resets, each 2 ms after its head", 5))?;
    println!(
        "  on {used} connections; {} of the streams came to the upstream",
        keyward.echo.counts().requests - forwarded - 500
    );
    let (open, ()) = tokio::try_join!(slow_heads(&load), report("500 slow heads", 13))?;
    println!("  {} were open after 5 s, {} after 12.5 s", open.0, open.1);
    report("after", 5).await
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<Vec<u8>> {
    let mut frame = u32::try_from(payload.len())?.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    Ok(frame)
}

/// The head of a GET with a valid key, in HPACK without Huffman coding and without the dynamic table.
fn head(key: &str) -> Result<Vec<u8>> {
    // Indexed `:method: GET` and `:scheme: http`; then the static names 4, 1 and 23: `:path`, `:authority`, `authorization`.
    let mut head = vec![0x82, 0x86];
    let fields = [(&[4][..], "/v1"), (&[1], "api.test"), (&[15, 8], &format!("Bearer {key}"))];
    for (name, value) in fields {
        head.extend(name);
        // One byte encodes a length of up to 126.
        head.push(u8::try_from(value.len()).ok().filter(|length| *length < 127).context("a short key")?);
        head.extend(value.as_bytes());
    }
    Ok(head)
}

/// Sends heads, each directly followed by its reset, and reconnects when the connection was closed. Returns the GOAWAY codes.
async fn bursts(load: &Load) -> Result<Vec<h2::Reason>> {
    let (head, mut ended, mut current) = (head(&load.key)?, Vec::new(), None);
    for _ in 0..RESETS / 100 {
        let (mut stream, mut id) = match current.take() {
            Some(open) => open,
            None => {
                let mut stream = TcpStream::connect(load.address).await?;
                stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
                stream.write_all(&frame(4, 0, 0, &[])?).await?;
                (stream, 1)
            }
        };
        let mut burst = Vec::new();
        for _ in 0..100 {
            // HEADERS with END_HEADERS and END_STREAM, and RST_STREAM with CANCEL.
            burst.extend(frame(1, 0x5, id, &head)?);
            burst.extend(frame(3, 0, id, &[0, 0, 0, 8])?);
            id += 2;
        }
        let sent = stream.write_all(&burst).await.is_ok();
        sleep(Duration::from_millis(200)).await;
        let mut answers = vec![0; 64 * 1024];
        let count = stream.try_read(&mut answers).unwrap_or(0);
        match goaway(&answers[..count]) {
            Some(reason) => ended.push(reason),
            None if sent => current = Some((stream, id)),
            None => {}
        }
    }
    if let Some((mut stream, _)) = current {
        stream.shutdown().await?;
        // Further data is ignored.
        let _ = stream.read(&mut [0; 1024]).await;
    }
    Ok(ended)
}

/// The error code of a GOAWAY among these frames.
fn goaway(mut frames: &[u8]) -> Option<h2::Reason> {
    while let [first, second, third, kind, ..] = *frames {
        let length = u32::from_be_bytes([0, first, second, third]) as usize;
        if kind == 7 {
            return Some(u32::from_be_bytes(frames.get(13..17)?.try_into().ok()?).into());
        }
        frames = frames.get(9 + length..)?;
    }
    None
}

/// Streams that are reset when they may already be in progress.
async fn paced(load: &Load) -> Result<usize> {
    let (mut sent, mut connections) = (0, 0);
    while sent < RESETS {
        let sender = load::http2(load.address).await?;
        connections += 1;
        while sent < RESETS
            && let Ok(mut ready) = sender.clone().ready().await
            && let Ok((_response, mut body)) = ready.send_request(load::bare("/v1", &load.key)?, false)
        {
            sleep(Duration::from_millis(2)).await;
            body.send_reset(h2::Reason::CANCEL);
            sent += 1;
        }
    }
    Ok(connections)
}

/// Sends heads one byte at a time; returns the number of connections open after 5 s, and after `header_timeout`.
async fn slow_heads(load: &Load) -> Result<(usize, usize)> {
    let mut clients = Vec::new();
    for _ in 0..SLOW {
        let mut client = TcpStream::connect(load.address).await?;
        client.write_all(b"GET /v1 HTTP/1.1\r\nhost: a\r\nx-slow: ").await?;
        clients.push(client);
    }
    let is_open = |client: &TcpStream| {
        client.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let mut open = (0, 0);
    for half in 1..=25 {
        sleep(Duration::from_millis(500)).await;
        for client in &mut clients {
            // Those that were closed are counted.
            let _ = client.write_all(b".").await;
        }
        open.1 = clients.iter().filter(|client| is_open(client)).count();
        if half == 10 {
            open.0 = open.1;
        }
    }
    Ok(open)
}
