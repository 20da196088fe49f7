//! The figures of `docs/wire.md`: drains, reloads, bodies, event streams.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::keyward::body::{self, Body};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::keyward::Keyward;
use crate::load::{self, Counts, Load, share};

const MIB: usize = 1024 * 1024;

impl Keyward {
    pub(super) fn load(&self) -> Load {
        Load { address: self.address, key: self.key.clone(), enough: CancellationToken::new() }
    }
}

/// Drains under load, five at a time; counts the requests that were sent and not answered.
pub(super) async fn drains() -> Result<()> {
    let shorter = "drain_delay = \"1s\"\ndrain_timeout = \"3s\"";
    for (name, server, drains) in [("drain_delay 1 s", shorter, 50), ("the defaults", "", 5)] {
        let (mut counts, mut ends, mut cut, mut whole) = (Counts::default(), Vec::new(), 0, 0);
        for _ in 0..drains / 5 {
            let mut running = JoinSet::new();
            for _ in 0..5 {
                running.spawn(drain(server));
            }
            while let Some(drained) = running.join_next().await {
                let (count, took, events) = drained??;
                counts += count;
                ends.push(took);
                cut += events.iter().filter(|cut| **cut).count();
                whole += events.iter().filter(|cut| !**cut).count();
            }
        }
        println!(
            "{name}: {drains} drains: {} answered, {} turned away by a GOAWAY, {} lost; event streams cut {cut}, \
             ended as if whole {whole}; from the signal to the end, median {:.1} s",
            counts.answered,
            counts.told,
            counts.lost,
            share(&mut ends, 0.5) / 1000.0
        );
    }
    Ok(())
}

async fn drain(server: &str) -> Result<(Counts, Duration, Vec<bool>)> {
    let mut keyward = Keyward::start(server, "").await?;
    let (mut callers, mut events) = (JoinSet::new(), JoinSet::new());
    for number in 0..4 {
        let load = keyward.load();
        // Some connections send the next request at once, others are idle for a while.
        callers.spawn(load.clone().http1(Duration::from_millis(number % 2 * 400), false));
        callers.spawn(load.clone().http1(Duration::ZERO, true));
        if number < 2 {
            callers.spawn(load.clone().http2(8));
        }
        events.spawn(load.events());
    }
    sleep(Duration::from_millis(1000)).await;
    keyward.signal(Signal::TERM)?;
    let began = Instant::now();
    let status = keyward.ended().await?;
    let took = began.elapsed();
    ensure!(status.success(), "it ended with {status}");
    let (mut counts, mut cut) = (Counts::default(), Vec::new());
    while let Some(caller) = callers.join_next().await {
        counts += caller?;
    }
    while let Some(stream) = events.join_next().await {
        cut.push(stream??);
    }
    Ok((counts, took, cut))
}

/// A hundred reloads in ten seconds, every second one with a new connection pool to the upstream.
pub(super) async fn reloads() -> Result<()> {
    let keyward = Keyward::start("", "").await?;
    let (mut callers, load) = (JoinSet::new(), keyward.load());
    for _ in 0..8 {
        callers.spawn(load.clone().http1(Duration::ZERO, false));
        callers.spawn(load.clone().http1(Duration::ZERO, true));
    }
    for _ in 0..2 {
        callers.spawn(load.clone().http2(8));
    }
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for number in 0..100 {
        tick.tick().await;
        let upstream = format!("response_timeout = \"{}s\"", 30 + number / 2 % 2);
        let more = if number % 2 == 0 { "[[routes]]\npath = \"/extra\"\nupstream = \"echo\"" } else { "" };
        keyward.rewrite(&upstream, more)?;
        keyward.signal(Signal::HUP)?;
    }
    sleep(Duration::from_millis(500)).await;
    load.enough.cancel();
    let mut counts = Counts::default();
    while let Some(caller) = callers.join_next().await {
        counts += caller?;
    }
    println!(
        "{} reloads: {} answered, {} lost; memory at most {:.0} MiB",
        keyward.reloads.load(Ordering::Relaxed),
        counts.answered,
        counts.lost,
        keyward.memory("VmHWM")?
    );
    Ok(())
}

fn long(bytes: usize) -> Body {
    static PIECE: [u8; 64 * 1024] = [b'.'; 64 * 1024];
    let pieces = (0..bytes / PIECE.len()).map(|_| Ok(Frame::data(Bytes::from_static(&PIECE))));
    StreamBody::new(stream::iter(pieces)).boxed_unsync()
}

/// 96 MiB in each direction, and the peak memory of Keyward before and after.
pub(super) async fn bodies() -> Result<()> {
    let size = 96 * MIB;
    for (name, upstream) in [("HTTP/1.1", ""), ("HTTP/2", "http = \"2\"")] {
        for way in ["up", "down"] {
            let keyward = Keyward::start("", upstream).await?;
            let load = keyward.load();
            load::steady(&load, 100, 1).await?;
            let (before, began) = (keyward.memory("VmHWM")?, Instant::now());
            let passed = match (name, way) {
                ("HTTP/1.1", "up") => {
                    let request = load::request(Method::POST, "/v1", &load.key, long(size))?;
                    let response = load::http1(load.address).await?.send_request(request).await?;
                    ensure!(response.status() == 200, "an upload");
                    response.into_body().collect().await?;
                    keyward.echo.counts().body_bytes as usize
                }
                ("HTTP/1.1", _) => {
                    let path = format!("/bytes/{size}");
                    let request = load::request(Method::GET, &path, &load.key, body::empty())?;
                    let mut body = load::http1(load.address).await?.send_request(request).await?.into_body();
                    let mut length = 0;
                    while let Some(frame) = body.frame().await {
                        length += frame?.data_ref().map_or(0, Bytes::len);
                    }
                    length
                }
                (_, "up") => {
                    upload(&load, size).await?;
                    keyward.echo.counts().body_bytes as usize
                }
                _ => {
                    let mut sender = load::http2(load.address).await?.ready().await?;
                    let request = load::bare(&format!("/bytes/{size}"), &load.key)?;
                    load::read(sender.send_request(request, true)?.0).await?.1
                }
            };
            let took = began.elapsed().as_secs_f64();
            ensure!(passed == size, "{passed} of {size}");
            println!(
                "{name} {way}: 96 MiB in {took:.2} s; memory at most {before:.1} MiB before, {:.1} MiB after",
                keyward.memory("VmHWM")?
            );
        }
    }
    Ok(())
}

/// One long body over HTTP/2.
async fn upload(load: &Load, size: usize) -> Result<()> {
    let mut sender = load::http2(load.address).await?.ready().await?;
    let mut request = load::bare("/v1", &load.key)?;
    *request.method_mut() = Method::POST;
    let (response, mut body) = sender.send_request(request, false)?;
    let mut left = size;
    while left > 0 {
        body.reserve_capacity(left.min(64 * 1024));
        let capacity =
            std::future::poll_fn(|cx| body.poll_capacity(cx)).await.context("an open stream")??;
        let piece = capacity.min(left);
        left -= piece;
        body.send_data(Bytes::from(vec![b'.'; piece]), left == 0)?;
    }
    ensure!(load::read(response).await?.0 == 200, "an upload");
    Ok(())
}

/// Time from the request to the first byte of the first event, alternating between direct and through Keyward.
pub(super) async fn sse() -> Result<()> {
    let keyward = Keyward::start("", "").await?;
    let load = keyward.load();
    load::steady(&load, 100, 1).await?;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        for (address, times) in [(keyward.echo_address, &mut direct), (load.address, &mut through)] {
            let mut sender = load::http1(address).await?;
            let request = load::request(Method::GET, "/events?every=1h", &load.key, body::empty())?;
            let began = Instant::now();
            let mut body = sender.send_request(request).await?.into_body();
            body.frame().await.context("an event")??;
            times.push(began.elapsed());
        }
    }
    for (name, mut times) in [("direct", direct), ("through Keyward", through)] {
        let (median, last) = (share(&mut times, 0.5), share(&mut times, 0.99));
        println!("{name}: first byte after {median:.2} ms (median), {last:.2} ms (99 %)");
    }
    Ok(())
}
