//! Hop-by-hop headers (RFC 9110 section 7.6.1), which concern a single connection and are never forwarded.

use hyper::header::{
    ACCESS_CONTROL_REQUEST_METHOD, CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, HeaderName, HeaderValue,
    ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{HeaderMap, Method, Version};

/// A request to upgrade to a WebSocket, the only upgrade that is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WebSocket;

const FIXED: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// End-to-end headers, which are kept even if `Connection` names them.
const END_TO_END: [HeaderName; 10] = [
    ACCESS_CONTROL_REQUEST_METHOD,
    CONTENT_LENGTH,
    FORWARDED,
    HOST,
    ORIGIN,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-request-id"),
];

/// Finds a request for a WebSocket (RFC 6455 section 4.2.1). Any other upgrade, in particular `h2c`, is ignored and so not
/// forwarded.
pub fn find_upgrade(method: &Method, version: Version, headers: &HeaderMap) -> Option<WebSocket> {
    let mut wanted = headers.get_all(UPGRADE).iter();
    let only_websocket = matches!((wanted.next(), wanted.next()), (Some(value), None)
        if value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let named = connection_options(headers).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    (only_websocket && named && method == Method::GET && version == Version::HTTP_11).then_some(WebSocket)
}

/// Removes every hop-by-hop header, including those that `Connection` names. `TE: trailers` is kept, as gRPC requires it.
pub fn strip_headers(headers: &mut HeaderMap) {
    let trailers = headers.get_all(TE).iter().any(|value| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> =
            connection_options(headers).filter_map(|option| HeaderName::from_bytes(option).ok()).collect();
        for name in named {
            // SECURITY: otherwise a client could remove the headers that frame and address the message, that a proxy in front
            // has set, or that mark a CORS preflight.
            if !END_TO_END.contains(&name) {
                headers.remove(name);
            }
        }
    }
    for name in FIXED {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[track_caller]
    fn check(before: &[(&'static str, &'static str)], after: &[(&'static str, &'static str)]) {
        let mut map = headers(before);
        strip_headers(&mut map);
        assert_eq!(map, headers(after));
    }

    #[test]
    fn hop_by_hop_and_connection_listed_headers_are_removed() {
        check(
            &[
                ("connection", "close, X-Private"),
                ("x-private", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-authorization", "Basic x"),
                ("proxy-connection", "keep-alive"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("te", "gzip"),
                ("accept", "*/*"),
            ],
            &[("accept", "*/*")],
        );
    }

    #[test]
    fn connection_header_cannot_remove_framing_or_host() {
        let kept = [("content-length", "3"), ("host", "a")];
        check(&[("connection", "content-length, host"), kept[0], kept[1]], &kept);
    }

    #[test]
    fn only_te_trailers_is_kept() {
        check(&[("te", "gzip, Trailers;q=1, trailers")], &[("te", "trailers")]);
    }

    #[test]
    fn only_websocket_upgrade_is_recognized() {
        let seen = |pairs: &[(&'static str, &'static str)], method: &Method, version| {
            find_upgrade(method, version, &headers(pairs)).is_some()
        };
        let good = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        assert!(seen(&good, &Method::GET, Version::HTTP_11));
        assert!(!seen(&good, &Method::POST, Version::HTTP_11));
        assert!(!seen(&good, &Method::GET, Version::HTTP_10));
        assert!(!seen(&good[1..], &Method::GET, Version::HTTP_11));
        for other in ["h2c", "websocket, h2c", "TLS/1.0", ""] {
            assert!(!seen(&[good[0], ("upgrade", other)], &Method::GET, Version::HTTP_11));
        }
    }
}
