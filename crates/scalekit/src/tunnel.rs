//! Opens a tunnel on a connection to an HTTP proxy (CONNECT, RFC 9110 section 9.3.6).

use httparse::{EMPTY_HEADER, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::environment::Environment;
use crate::error::Error;
use crate::proxy::{ProxyServer, join_host_port};

/// Maximum length of the head of a response to CONNECT, in bytes.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 100;

/// Requests a tunnel to the environment from the proxy that `stream` is connected to, without a time limit. Afterwards, TLS with
/// the environment begins on the stream.
///
/// # Errors
/// `ProxyRefused` with the status of the proxy's response, `ProxyUnreachable` without a response.
pub async fn open_tunnel<S>(
    stream: &mut S,
    proxy: &ProxyServer,
    environment: &Environment,
    user_agent: &str,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |error: std::io::Error| unreachable_error(proxy, &error.to_string());
    stream.write_all(&encode_connect(proxy, environment, user_agent)).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut head = Vec::with_capacity(512);
    loop {
        if head.len() >= MAX_HEAD_BYTES {
            return Err(refused_error(proxy, None));
        }
        if stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            return Err(unreachable_error(proxy, "it closed the connection"));
        }
        if let Some(length) = decode_connect(proxy, &head)? {
            // SECURITY: the client sends first in TLS. Bytes after the head are from the proxy and must not be taken for the server's.
            return if length == head.len() { Ok(()) } else { Err(refused_error(proxy, None)) };
        }
    }
}

/// Encodes a CONNECT request.
pub fn encode_connect(proxy: &ProxyServer, environment: &Environment, user_agent: &str) -> Vec<u8> {
    let target = join_host_port(environment.host(), environment.port());
    let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if !user_agent.is_empty() && user_agent.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        head.extend_from_slice(format!("User-Agent: {user_agent}\r\n").as_bytes());
    }
    if let Some(authorization) = proxy.authorization() {
        head.extend_from_slice(b"Proxy-Authorization: ");
        head.extend_from_slice(authorization.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Decodes the head of the response to CONNECT. Returns its length, or `None` if it is incomplete.
///
/// # Errors
/// `ProxyRefused` if the status is not 2xx, or the response is not HTTP.
pub fn decode_connect(proxy: &ProxyServer, head: &[u8]) -> Result<Option<usize>, Error> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(head) {
        Ok(Status::Partial) => Ok(None),
        Ok(Status::Complete(length)) if matches!(response.code, Some(200..=299)) => Ok(Some(length)),
        Ok(Status::Complete(_)) => Err(refused_error(proxy, response.code)),
        Err(_) => Err(refused_error(proxy, None)),
    }
}

fn refused_error(proxy: &ProxyServer, status: Option<u16>) -> Error {
    Error::ProxyRefused { proxy: proxy.address(), status }
}

fn unreachable_error(proxy: &ProxyServer, reason: &str) -> Error {
    Error::ProxyUnreachable { proxy: proxy.address(), reason: reason.to_owned() }
}
