//! A WebSocket (RFC 6455) that echoes messages, answers pings and completes the close handshake. Frames pass through a buffer
//! of fixed size, so that tests can send frames of any length; WebSocket libraries hold a whole frame in memory.

use std::io;

use base64::prelude::{BASE64_STANDARD, Engine};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{OpenResponse, Tasks};
use crate::body::{Body, empty, full};

/// The constant that RFC 6455 appends to the client's key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const BUFFER: usize = 16 * 1024;

const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// Answers the opening handshake and echoes frames after it.
pub(super) fn accept_upgrade(
    request: &mut Request<Incoming>,
    open: OpenResponse,
    tasks: &Tasks,
) -> Response<Body> {
    let Some(key) = client_key(request.headers()) else {
        let mut response = Response::new(full("this is a WebSocket: upgrade, version 13\n"));
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return response;
    };
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&accept_key(key)) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    let upgrade = hyper::upgrade::on(request);
    tasks.spawn(async move {
        let _open = open;
        if let Ok(upgraded) = upgrade.await {
            // An error here is the client's and ends its WebSocket.
            let _ = echo_frames(TokioIo::new(upgraded)).await;
        }
    });
    response
}

/// The client's key, when its head is a good handshake.
fn client_key(headers: &HeaderMap) -> Option<&str> {
    let has = |name: HeaderName, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    let key = headers.get(SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    let good = has(UPGRADE, "websocket")
        && has(CONNECTION, "upgrade")
        && has(SEC_WEBSOCKET_VERSION, "13")
        && BASE64_STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16);
    good.then_some(key)
}

fn accept_key(key: &str) -> String {
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()))
}

/// Echoes frames, unmasked, until the client closes.
async fn echo_frames(mut socket: TokioIo<Upgraded>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut head = [0; 2];
        socket.read_exact(&mut head).await?;
        let opcode = head[0] & 0x0f;
        let length = match head[1] & 0x7f {
            126 => u64::from(socket.read_u16().await?),
            127 => socket.read_u64().await?,
            short => u64::from(short),
        };
        let control = opcode >= CLOSE;
        // Frames of a client must be masked, and control frames at most 125 bytes long.
        if head[1] & 0x80 == 0 || (control && length > 125) {
            return socket.write_all(&[0x80 | CLOSE, 2, 0x03, 0xEA]).await; // 1002
        }
        let mut mask = [0; 4];
        socket.read_exact(&mut mask).await?;
        let answered = opcode != PONG;
        if answered {
            let first = if opcode == PING { head[0] & 0xf0 | PONG } else { head[0] };
            socket.write_all(&encode_frame_head(first, length)).await?;
        }
        let mut left = length;
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let part = &mut buffer[..size];
            socket.read_exact(part).await?;
            for (at, byte) in part.iter_mut().enumerate() {
                *byte ^= mask[at % 4];
            }
            // BUFFER is a multiple of the mask's length: each part starts at the first byte of the mask.
            left -= size as u64;
            if answered {
                socket.write_all(part).await?;
            }
        }
        socket.flush().await?;
        if opcode == CLOSE {
            return socket.shutdown().await;
        }
    }
}

fn encode_frame_head(first: u8, length: u64) -> Vec<u8> {
    let mut head = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => head.push(short),
        (_, Ok(medium)) => {
            head.push(126);
            head.extend(medium.to_be_bytes());
        }
        _ => {
            head.push(127);
            head.extend(length.to_be_bytes());
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_key_matches_rfc_example() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frame_length_takes_shortest_form() {
        for (length, expected) in [
            (0, vec![0x81, 0]),
            (125, vec![0x81, 125]),
            (126, vec![0x81, 126, 0, 126]),
            (65_535, vec![0x81, 126, 255, 255]),
            (65_536, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(encode_frame_head(0x81, length), expected);
        }
    }

    #[test]
    fn handshake_needs_all_its_headers() {
        let good = [
            (UPGRADE, "WebSocket"),
            (CONNECTION, "keep-alive, Upgrade"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let headers = |without: Option<usize>| {
            let kept = good.iter().enumerate().filter(|(at, _)| Some(*at) != without);
            kept.map(|(_, (name, value))| (name.clone(), HeaderValue::from_static(value)))
                .collect::<HeaderMap>()
        };
        assert!(client_key(&headers(None)).is_some());
        for without in 0..good.len() {
            assert!(client_key(&headers(Some(without))).is_none(), "{without}");
        }
    }
}
