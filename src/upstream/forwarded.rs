//! What Keyward says of the caller's connection: `X-Forwarded-*` and `X-Request-Id`. What a caller says of itself is
//! believed only of trusted proxies.

use std::fmt::Write as _;
use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{CONTENT_LENGTH, FORWARDED, HeaderName, HeaderValue};
use ipnet::IpNet;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The name that ties a request, its answer and its log line together.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Whose word about the caller is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// The addresses of proxies in front.
    pub networks: Vec<IpNet>,
    /// Peers of a unix socket (`"unix:"` in the list).
    pub unix: bool,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address; `None` on a unix socket.
    pub address: Option<IpAddr>,
    /// The user that it runs as, where it came by a unix socket and the system says so.
    pub uid: Option<u32>,
    /// Whether it speaks TLS with Keyward.
    pub tls: bool,
}

impl Trusted {
    /// Whether the peer's word is believed.
    pub fn believes(&self, peer: Peer) -> bool {
        peer.address.map_or(self.unix, |address| self.has(address))
    }

    fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The client's address: the peer's, or the last one in `X-Forwarded-For` that no trusted proxy has.
    pub fn client(&self, peer: Peer, headers: &HeaderMap) -> Option<IpAddr> {
        let mut client = peer.address.map(|address| address.to_canonical());
        if !self.believes(peer) {
            return client;
        }
        // Every value from the right, each entry from the right: what is left of a stranger is the stranger's word.
        let values: Vec<&HeaderValue> = headers.get_all(FOR).iter().collect();
        for entry in values.iter().rev().flat_map(|value| value.as_bytes().rsplit(|&byte| byte == b',')) {
            let Some(address) = std::str::from_utf8(entry).ok().and_then(parse_address) else {
                break;
            };
            client = Some(address);
            if !self.has(address) {
                break;
            }
        }
        client
    }
}

/// An address, with or without a port or brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address =
        text.parse().ok().or_else(|| text.parse().ok().map(|socket: std::net::SocketAddr| socket.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

/// The id that a trusted proxy gave the request, or a new one: a random UUID (RFC 9562, version 4).
pub fn request_id(headers: &HeaderMap, believed: bool) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
    });
    match given {
        Some(value) if believed => value.clone(),
        _ => uuid(fastrand::u128(..)),
    }
}

fn uuid(random: u128) -> HeaderValue {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    // Digits, letters and hyphens.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// Replaces what callers say of the connection by what is so. Of a trusted proxy (`believed`) the headers in `BELIEVED` and in
/// `passed` are kept, and the proxy's own address is appended to `X-Forwarded-For`.
pub fn set(
    headers: &mut HeaderMap,
    peer: Peer,
    believed: bool,
    passed: &[HeaderName],
    host: &HeaderValue,
    request_id: &HeaderValue,
) {
    strip_where(headers, |name| {
        is_removed(name.as_str()) && !(believed && (BELIEVED.contains(name) || passed.contains(name)))
    });
    let proto = if peer.tls { "https" } else { "http" };
    headers.entry(PROTO).or_insert(HeaderValue::from_static(proto));
    headers.entry(HOST).or_insert_with(|| host.clone());
    headers.insert(REQUEST_ID, request_id.clone());
    if let Some(address) = peer.address {
        let mut list = String::new();
        for value in headers.get_all(FOR) {
            // Kept only from a trusted proxy; what is no text there stands as `unknown` (RFC 7239 section 6).
            let _ = write!(list, "{}, ", value.to_str().unwrap_or("unknown"));
        }
        let _ = write!(list, "{}", address.to_canonical());
        if let Ok(value) = HeaderValue::try_from(list) {
            headers.insert(FOR, value);
        }
    }
}

/// Removes every header, or trailer, about forwarding.
pub(super) fn strip(headers: &mut HeaderMap) {
    strip_where(headers, |name| is_removed(name.as_str()));
}

fn strip_where(headers: &mut HeaderMap, condition: impl Fn(&HeaderName) -> bool) {
    // Nothing is allocated where nothing is removed.
    let names: Vec<HeaderName> = headers.keys().filter(|name| condition(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The headers about forwarding that are kept from a trusted proxy, in exactly this spelling.
const BELIEVED: [HeaderName; 6] =
    [FOR, PROTO, HOST, HeaderName::from_static("x-forwarded-port"), FORWARDED, REQUEST_ID];

/// Whether a caller's header is removed unless a trusted proxy sent it: one that says where the request came from or what its
/// target was, one that a proxy and a backend use between themselves,
/// among them those in which other authenticating proxies say who calls, or a second spelling of a framing header.
///
/// SECURITY: proxies in front pass on what they do not know, so that these are a stranger's word from a trusted proxy, too.
/// Some backends take the target from `X-Original-URL`, so that a public route would open all others; CGI makes `Proxy` the
/// variable `HTTP_PROXY` (CVE-2016-5385). Spellings are folded as in `identity::IdentityHeaders::owns_name`: `X_Forwarded_For` is
/// `X-Forwarded-For` to many backends.
pub fn is_removed(name: &str) -> bool {
    let (names, prefixes): (&[&str], &[&str]) = match name.as_bytes().first() {
        Some(b'c') => {
            // SECURITY: the real one was checked against the body; a backend that folds names would see a second.
            if name != CONTENT_LENGTH.as_str() && folds_to(name, CONTENT_LENGTH.as_str()) {
                return true;
            }
            (&["cdn-src-ip", "cf-pseudo-ipv4", "cf-visitor", "client-ip"], &["cf-connecting-"])
        }
        Some(b'd') => (&["do-connecting-ip"], &[]),
        Some(b'f') => (
            &["fastly-client-ip", "fastly-ssl", "fly-client-ip", "forwarded", "front-end-https"],
            &["fly-forwarded-", "forwarded-"],
        ),
        // Java code asks for the names of CGI variables, as they are.
        Some(b'h') => (&["http-client-ip", "http-forwarded"], &["http-forwarded-", "http-x-forwarded-"]),
        Some(b'i') => (&["incap-client-ip"], &[]),
        Some(b'p') => (&["proxy", "proxy-client-ip"], &[]),
        Some(b'a') => (&["ali-cdn-real-ip"], &[]),
        Some(b'r') => (&["remote-addr", "remote-host", "remote-ip", "remote-user"], &["remote-user-"]),
        Some(b's') => (&[], &["ssl-client-"]),
        Some(b't') => (&["transfer-encoding", "true-client-ip"], &[]),
        Some(b'w') => (&[], &["wl-proxy-"]),
        Some(b'x') => (&X_NAMES, &X_PREFIXES),
        _ => return false,
    };
    names.iter().any(|own| folds_to(name, own))
        || prefixes.iter().any(|prefix| name.get(..prefix.len()).is_some_and(|start| folds_to(start, prefix)))
}

const X_NAMES: [&str; 40] = [
    "x-authenticated-user",
    "x-authenticated-userid",
    "x-client-verify",
    "x-coming-from",
    "x-invoke-path",
    "x-matched-path",
    "x-real-host",
    "x-remote-user",
    "x-sendfile",
    "x-webauth-user",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forward-for",
    "x-forwarded",
    "x-google-real-ip",
    "x-host",
    "x-http-destinationurl",
    "x-http-host-override",
    "x-https",
    "x-middleware-subrequest",
    "x-middleware-subrequest-id",
    "x-nf-client-connection-ip",
    "x-originating-ip",
    "x-originating-url",
    "x-override-url",
    "x-proto",
    "x-proxy-url",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-real-port",
    "x-remote-addr",
    "x-remote-ip",
    "x-request-id",
    "x-scheme",
    "x-sucuri-clientip",
    "x-true-client-ip",
    "x-url-scheme",
    "x-vercel-proxied-for",
];

const X_PREFIXES: [&str; 16] = [
    "x-amzn-oidc-",
    "x-auth-request-",
    "x-client-cert-",
    "x-goog-authenticated-user-",
    "x-goog-iap-",
    "x-ms-client-principal",
    "x-ssl-client-",
    "x-accel-",
    "x-appengine-",
    "x-arr-",
    "x-envoy-",
    "x-forwarded-",
    "x-original-",
    "x-rewrite-",
    "x-sendfile-",
    "x-vercel-forwarded-",
];

/// Whether the name is `own` to a backend that reads every character but letters and digits as one. Both are in lower case.
fn folds_to(name: &str, own: &str) -> bool {
    name.len() == own.len()
        && name
            .bytes()
            .zip(own.bytes())
            .all(|(byte, own)| byte == own || (own == b'-' && !byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn trusted() -> Trusted {
        Trusted { networks: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], unix: false }
    }

    fn peer(address: &str) -> Peer {
        Peer { address: Some(address.parse().unwrap()), uid: None, tls: false }
    }

    #[track_caller]
    fn check_client(from: &str, forwarded: &[&str], expected: &str) {
        let headers = map(&forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect::<Vec<_>>());
        assert_eq!(trusted().client(peer(from), &headers), Some(expected.parse().unwrap()));
    }

    #[test]
    fn the_client_is_the_last_address_that_no_trusted_proxy_has() {
        check_client("192.0.2.1", &["1.1.1.1"], "192.0.2.1");
        check_client("10.0.0.1", &[], "10.0.0.1");
        check_client("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1");
        check_client("10.0.0.1", &["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1");
        check_client("10.0.0.1", &["6.6.6.6", "1.1.1.1", "10.0.0.2"], "1.1.1.1");
        check_client("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        check_client("10.0.0.1", &["1.1.1.1, junk, 10.0.0.2"], "10.0.0.2");
        check_client("::ffff:10.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1");
    }

    #[track_caller]
    fn check_set(believed: bool, before: &[(&str, &str)], after: &[(&str, &str)]) {
        let mut headers = map(before);
        let host = HeaderValue::from_static("api.test");
        let passed = [HeaderName::from_static("x-real-ip")];
        set(&mut headers, peer("10.0.0.1"), believed, &passed, &host, &HeaderValue::from_static("id-1"));
        assert_eq!(headers, map(after));
    }

    #[test]
    fn a_strangers_word_is_replaced_in_every_spelling() {
        check_set(
            false,
            &[
                ("x-forwarded-for", "6.6.6.6"),
                ("x_forwarded_for", "6.6.6.6"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-prefix", "/admin"),
                ("x.forwarded.host", "evil"),
                ("x_request_id", "forged"),
                ("x-request-id", "forged"),
                ("x-original-url", "/v1/admin"),
                ("x_original_uri", "/v1/admin"),
                ("x-real-ip", "127.0.0.1"),
                ("X_Real_IP", "127.0.0.1"),
                ("true-client-ip", "127.0.0.1"),
                ("cf-connecting-ip", "127.0.0.1"),
                ("proxy", "http://127.0.0.1"),
                ("x-rewrite.url", "/v1/admin"),
                ("forwarded", "for=6.6.6.6"),
                ("x-forwarder", "kept"),
            ],
            &[
                ("x-forwarder", "kept"),
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "api.test"),
                ("x-request-id", "id-1"),
            ],
        );
    }

    #[test]
    fn a_trusted_proxys_word_is_kept_and_the_peer_appended() {
        check_set(
            true,
            &[
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "8443"),
                ("x_forwarded_for", "6.6.6.6"),
                ("forwarded", "for=1"),
                ("x-real-ip", "1.1.1.1"),
                ("x_real_ip", "6.6.6.6"),
                ("x-client-ip", "6.6.6.6"),
                ("x-forwarded-prefix", "/admin"),
                ("x-original-url", "/admin"),
                ("traceparent", "00-1"),
            ],
            &[
                ("forwarded", "for=1"),
                ("traceparent", "00-1"),
                ("x-forwarded-port", "8443"),
                ("x-real-ip", "1.1.1.1"),
                ("x-forwarded-for", "1.1.1.1, 10.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "api.test"),
                ("x-request-id", "id-1"),
            ],
        );
    }

    #[test]
    fn ordinary_headers_are_not_removed() {
        for name in [
            "accept",
            "content-length",
            "content-type",
            "content-encoding",
            "cookie",
            "host",
            "user-agent",
            "x-api-version",
            "x-http-method-override",
            "x-requested-with",
            "x-forwarder",
            "x-b3-traceid",
            "traceparent",
            "tracestate",
            "x-csrf-token",
            "forwarder",
            "prefer",
            "referer",
            "te",
            "x-hostname",
            "x-originator",
            "x-correlation-id",
            "",
        ] {
            assert!(!is_removed(name), "{name}");
        }
    }

    #[test]
    fn other_spellings_of_framing_headers_are_removed() {
        for name in ["content_length", "content.length", "transfer_encoding", "transfer~encoding"] {
            assert!(is_removed(name), "{name}");
        }
    }

    #[test]
    fn a_request_id_is_kept_from_a_trusted_proxy_if_it_is_plain() {
        let long = "a".repeat(129);
        assert_eq!(request_id(&map(&[("x-request-id", "a.B-1_2")]), true), "a.B-1_2");
        for (value, believed) in
            [("a.B-1_2", false), ("a b", true), ("", true), (&*long, true), ("a\"b", true)]
        {
            let id = request_id(&map(&[("x-request-id", value)]), believed);
            assert_eq!(id.len(), 36);
            assert_eq!(id.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&id.as_bytes()[19]));
        }
    }
}
