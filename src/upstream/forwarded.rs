//! The forwarding headers of a request to the upstream: `X-Forwarded-*` and `X-Request-Id`. Those that a client sends are
//! kept only from trusted proxies.

use std::fmt::Write as _;

use hyper::HeaderMap;
use hyper::header::{CONTENT_LENGTH, FORWARDED, HeaderName, HeaderValue};

use crate::peer::{FORWARDED_FOR, FORWARDED_PROTO, Peer};

const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The same id is in the request to the upstream, in the response and in the log line.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The request's id: a trusted proxy's, if it is at most 128 letters, digits and `._-`, or else a random UUID (RFC 9562,
/// version 4).
pub fn choose_request_id(headers: &HeaderMap, is_trusted: bool) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
    });
    match given {
        Some(value) if is_trusted => value.clone(),
        _ => format_uuid(fastrand::u128(..)),
    }
}

/// A version 4 UUID (RFC 9562 section 5.4). Written by hand, as formatting takes 0.4 µs and two allocations more.
fn format_uuid(random: u128) -> HeaderValue {
    let bits = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let (mut text, mut shift) = ([b'-'; 36], 128);
    for (index, byte) in text.iter_mut().enumerate() {
        if !matches!(index, 8 | 13 | 18 | 23) {
            shift -= 4;
            *byte = b"0123456789abcdef"[(bits >> shift) as usize & 0xf];
        }
    }
    // It consists of digits, letters and hyphens, so that the fallback is never taken.
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// What the upstream is told about the connection of a request.
pub struct Forwarding<'a> {
    /// The other end of the connection.
    pub peer: Peer,
    /// Whether the peer is a trusted proxy.
    pub is_trusted: bool,
    /// Headers that are kept from a trusted proxy, in addition to the standard ones.
    pub pass_headers: &'a [HeaderName],
    /// For `X-Forwarded-Host`.
    pub host: &'a HeaderValue,
    /// For `X-Request-Id`.
    pub request_id: &'a HeaderValue,
}

impl Forwarding<'_> {
    /// Sets the forwarding headers in place of those that the client sent. From a trusted proxy, `TRUSTED_HEADERS` and
    /// `pass_headers` are kept, and its own address is appended to `X-Forwarded-For`.
    pub fn set_headers(&self, headers: &mut HeaderMap) {
        strip_where(headers, |name| {
            let is_kept = TRUSTED_HEADERS.contains(name) || self.pass_headers.contains(name);
            is_removed(name.as_str()) && !(self.is_trusted && is_kept)
        });
        let proto = if self.peer.tls { "https" } else { "http" };
        headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(proto));
        headers.entry(HOST).or_insert_with(|| self.host.clone());
        headers.insert(REQUEST_ID, self.request_id.clone());
        if let Some(address) = self.peer.address {
            let mut list = String::new();
            for value in headers.get_all(FORWARDED_FOR) {
                // Kept only from a trusted proxy; a value that is not text becomes `unknown` (RFC 7239 section 6).
                let _ = write!(list, "{}, ", value.to_str().unwrap_or("unknown"));
            }
            let _ = write!(list, "{}", address.to_canonical());
            if let Ok(value) = HeaderValue::try_from(list) {
                headers.insert(FORWARDED_FOR, value);
            }
        }
    }
}

/// Removes all forwarding headers, also from trailers.
pub(super) fn strip_forwarding(headers: &mut HeaderMap) {
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
const TRUSTED_HEADERS: [HeaderName; 6] = [
    FORWARDED_FOR,
    FORWARDED_PROTO,
    HOST,
    HeaderName::from_static("x-forwarded-port"),
    FORWARDED,
    REQUEST_ID,
];

/// Whether a client's header is removed unless a trusted proxy sent it. Removed are headers that state the origin or the
/// target of a request, those between a proxy and its backend (among them the identity headers of other authenticating
/// proxies), and other spellings of framing headers.
///
/// SECURITY: proxies forward headers that they do not know, so that these may be a client's even from a trusted proxy.
/// Some backends take the target from `X-Original-URL`, so that a public route would open all others; CGI makes `Proxy` the
/// variable `HTTP_PROXY` (CVE-2016-5385). Spellings are folded as in `identity::IdentityHeaders::owns_name`: `X_Forwarded_For` is
/// `X-Forwarded-For` to many backends.
pub fn is_removed(name: &str) -> bool {
    let (names, prefixes): (&[&str], &[&str]) = match name.as_bytes().first() {
        Some(b'c') => {
            // SECURITY: only this spelling was checked against the body; a backend that folds names would see a second value.
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
        // Java code looks these up by the names of CGI variables.
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

/// Whether a backend that takes all characters but letters and digits for the same reads `name` as `own`. Both are in lower
/// case.
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

    #[track_caller]
    fn check_set(is_trusted: bool, before: &[(&str, &str)], after: &[(&str, &str)]) {
        let mut headers = map(before);
        let host = HeaderValue::from_static("api.test");
        let passed = [HeaderName::from_static("x-real-ip")];
        let peer = Peer { address: Some("10.0.0.1".parse().unwrap()), uid: None, tls: false };
        let request_id = &HeaderValue::from_static("id-1");
        let forwarding = Forwarding { peer, is_trusted, pass_headers: &passed, host: &host, request_id };
        forwarding.set_headers(&mut headers);
        assert_eq!(headers, map(after));
    }

    #[test]
    fn request_id_is_a_version_4_uuid() {
        assert_eq!(format_uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(format_uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(format_uuid(0x0123456789abcdef0123456789abcdef), "01234567-89ab-4def-8123-456789abcdef");
    }

    #[test]
    fn untrusted_forwarded_headers_are_replaced_in_every_spelling() {
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
    fn trusted_forwarded_headers_are_kept_and_peer_appended() {
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
    fn misspelled_framing_headers_are_removed() {
        for name in ["content_length", "content.length", "transfer_encoding", "transfer~encoding"] {
            assert!(is_removed(name), "{name}");
        }
    }

    #[test]
    fn plain_request_id_of_trusted_proxy_is_kept() {
        let long = "a".repeat(129);
        assert_eq!(choose_request_id(&map(&[("x-request-id", "a.B-1_2")]), true), "a.B-1_2");
        for (value, is_trusted) in
            [("a.B-1_2", false), ("a b", true), ("", true), (&*long, true), ("a\"b", true)]
        {
            let id = choose_request_id(&map(&[("x-request-id", value)]), is_trusted);
            assert_eq!(id.len(), 36);
            assert_eq!(id.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&id.as_bytes()[19]));
        }
    }
}
