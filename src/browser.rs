//! Detects requests that a browser makes for a web page. The admin port and key management refuse them, because they are for
//! programs only, and a page in a browser on the same machine or network can reach these ports, too.

use std::net::IpAddr;

use hyper::header::{HOST, HeaderMap, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Uri, header::HeaderName};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a page of another origin makes the request. A browser then sends `Origin` or, for example for an image,
/// `Sec-Fetch-Site` (Fetch Metadata Request Headers, section 2.4).
pub fn is_from_web_page(headers: &HeaderMap) -> bool {
    let by_itself = |site: &[u8]| matches!(site, b"none" | b"same-origin");
    headers.contains_key(ORIGIN) || headers.get_all(FETCH_SITE).iter().any(|site| !by_itself(site.as_bytes()))
}

/// The host that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedHost {
    /// None: HTTP/1.0 without a `Host`, which no browser sends.
    Missing,
    /// An IP address.
    Address(IpAddr),
    /// `localhost`.
    Localhost,
    /// Another name, or a value that is not valid.
    Other,
}

impl NamedHost {
    /// The target's authority, or else the value of `Host`.
    pub fn from_request(uri: &Uri, headers: &HeaderMap) -> Self {
        let mut hosts = headers.get_all(HOST).iter();
        let authority = match (uri.authority(), hosts.next(), hosts.next()) {
            (_, _, Some(_)) => return Self::Other,
            (Some(authority), ..) => Some(authority.clone()),
            (None, None, None) => return Self::Missing,
            (None, host, None) => host.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok()),
        };
        let Some(authority) = authority else { return Self::Other };
        let host = authority.host().trim_matches(['[', ']']);
        match host.parse() {
            Ok(address) => Self::Address(address),
            Err(_) if host.eq_ignore_ascii_case("localhost") => Self::Localhost,
            Err(_) => Self::Other,
        }
    }

    /// Whether it rules out DNS rebinding, in which a web page uses a DNS name of its own that resolves to this address.
    pub fn is_safe(&self) -> bool {
        *self != Self::Other
    }

    /// Whether it is `localhost` or a loopback address.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Localhost => true,
            Self::Address(address) => address.is_loopback(),
            Self::Missing | Self::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[track_caller]
    fn check_host(uri: &'static str, hosts: &[&'static str], expected: NamedHost) {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_static(host));
        }
        assert_eq!(NamedHost::from_request(&Uri::from_static(uri), &headers), expected, "{uri} {hosts:?}");
    }

    #[test]
    fn named_host_recognizes_addresses_and_localhost() {
        let address = |text: &str| NamedHost::Address(text.parse().unwrap());
        check_host("/", &["10.1.2.3:4481"], address("10.1.2.3"));
        check_host("/", &["[::1]"], address("::1"));
        check_host("/", &["LOCALHOST:1"], NamedHost::Localhost);
        check_host("/", &[], NamedHost::Missing);
        check_host("http://evil.example/", &["localhost"], NamedHost::Other);
        check_host("http://127.0.0.1/", &[], address("127.0.0.1"));
        for host in ["evil.example:4481", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b"] {
            check_host("/", &[host], NamedHost::Other);
        }
        check_host("/", &["localhost", "localhost"], NamedHost::Other);
    }

    #[test]
    fn cross_origin_requests_are_recognized() {
        for (name, value, expected) in [
            ("origin", "null", true),
            ("sec-fetch-site", "cross-site", true),
            ("sec-fetch-site", "same-site", true),
            ("sec-fetch-site", "", true),
            ("sec-fetch-site", "same-origin", false),
            ("sec-fetch-site", "none", false),
            // Node's own client sends this.
            ("sec-fetch-mode", "cors", false),
            ("user-agent", "Mozilla/5.0", false),
        ] {
            let pair = (HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(is_from_web_page(&HeaderMap::from_iter([pair])), expected, "{name}: {value}");
        }
    }
}
