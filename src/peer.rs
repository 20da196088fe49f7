//! The other end of a connection, and the client's address, which only trusted proxies can state for others.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use ipnet::IpNet;

/// Each proxy appends the address that it received the request from.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Each proxy sets or keeps the scheme that the client used.
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The other end of a connection: the client, or a proxy in front of Keyward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `None` on a unix socket.
    pub address: Option<IpAddr>,
    /// The user of its process, on a unix socket whose system reports it.
    pub uid: Option<u32>,
    /// Whether the connection to Keyward is TLS.
    pub tls: bool,
}

/// Proxies whose statements about the client are trusted; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Their addresses.
    pub networks: Vec<IpNet>,
    /// Whether peers of a unix socket are trusted (`"unix:"` in the list).
    pub unix: bool,
}

impl TrustedProxies {
    /// Whether the peer is such a proxy.
    pub fn trusts(&self, peer: Peer) -> bool {
        peer.address.map_or(self.unix, |address| self.has_address(address))
    }

    fn has_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The scheme that the client used, `http` or `https`: the connection's, or what a trusted proxy states.
    pub fn client_scheme(&self, peer: Peer, headers: &HeaderMap) -> &'static str {
        let stated = headers.get(FORWARDED_PROTO).filter(|_| self.trusts(peer)).map(HeaderValue::as_bytes);
        let is_tls = match stated {
            // Traefik names the WebSocket schemes.
            Some(scheme) if [&b"https"[..], b"wss"].iter().any(|tls| scheme.eq_ignore_ascii_case(tls)) => {
                true
            }
            Some(scheme) if [&b"http"[..], b"ws"].iter().any(|clear| scheme.eq_ignore_ascii_case(clear)) => {
                false
            }
            _ => peer.tls,
        };
        if is_tls { "https" } else { "http" }
    }

    /// The client's address: the peer's, or from a trusted proxy the last in `X-Forwarded-For` that is not a trusted
    /// proxy's. `None` on a unix socket that names no client.
    pub fn client_address(&self, peer: Peer, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = peer.address.map(|address| address.to_canonical());
        if !self.trusts(peer) {
            return client;
        }
        // SECURITY: from the right, as anybody may have written what stands to the left of an untrusted address.
        let values: Vec<&HeaderValue> = headers.get_all(FORWARDED_FOR).iter().collect();
        for entry in values.iter().rev().flat_map(|value| value.as_bytes().rsplit(|&byte| byte == b',')) {
            let Some(address) = std::str::from_utf8(entry).ok().and_then(parse_address) else {
                break;
            };
            client = Some(address);
            if !self.has_address(address) {
                break;
            }
        }
        client
    }
}

/// An address, with or without a port or brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = text.parse().ok().or_else(|| text.parse().ok().map(|socket: SocketAddr| socket.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(from: &str, forwarded: &[&str], expected: &str) {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()).into();
        let trusted = TrustedProxies { networks, unix: false };
        let peer = Peer { address: Some(from.parse().unwrap()), uid: None, tls: false };
        let headers = forwarded.iter().map(|value| (FORWARDED_FOR, value.parse().unwrap())).collect();
        assert_eq!(trusted.client_address(peer, &headers), Some(expected.parse().unwrap()));
    }

    #[test]
    fn client_is_last_untrusted_forwarded_address() {
        check("192.0.2.1", &["1.1.1.1"], "192.0.2.1");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1");
        check("10.0.0.1", &["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1");
        check("10.0.0.1", &["6.6.6.6", "1.1.1.1", "10.0.0.2"], "1.1.1.1");
        check("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        check("10.0.0.1", &["1.1.1.1, junk, 10.0.0.2"], "10.0.0.2");
        check("::ffff:10.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1");
    }
}
