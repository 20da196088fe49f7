//! Checks of a request's head that HTTP requires and hyper leaves out, each with its reason.

use hyper::header::{AsHeaderName, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Request, Uri, Version};

use crate::rejection::Rejection;

/// The host that a request is addressed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The authority as the client sent it, for `Host` and `X-Forwarded-Host`.
    pub value: HeaderValue,
    /// Without port and final dot, for matching.
    pub name: Box<str>,
}

/// Limits of a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum length of the request's target, in bytes. hyper's own limit is 64 KiB, and its response has no body.
    pub max_uri: usize,
    /// Maximum number of header fields. hyper has no such limit over HTTP/2.
    pub max_headers: usize,
}

/// Maximum length of a method, in bytes: far longer than all registered methods. hyper has no limit.
const LONGEST_METHOD: usize = 64;

/// Checks the head and returns the host.
///
/// # Errors
/// `MalformedRequest`, `UriTooLong` or `HeadTooLarge`.
pub fn check_head<B>(request: &Request<B>, limits: Limits) -> Result<Host, Rejection> {
    let uri = request.uri();
    let length = uri.authority().map_or(0, |authority| authority.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len());
    if length > limits.max_uri {
        return Err(Rejection::UriTooLong);
    }
    if request.headers().len() > limits.max_headers {
        return Err(Rejection::HeadTooLarge);
    }
    if uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(Rejection::MalformedRequest("The target's scheme is neither http nor https."));
    }
    if request.method().as_str().len() > LONGEST_METHOD {
        return Err(Rejection::MalformedRequest("The method is too long."));
    }
    // RFC 3986 section 2: characters outside ASCII must be percent-encoded.
    if uri.path_and_query().is_some_and(|path| !path.as_str().is_ascii()) {
        return Err(Rejection::MalformedRequest("The target has a byte that is not ASCII."));
    }
    // For `?x`, which HTTP/2 and the absolute form permit, `path()` would return `/`.
    if uri.path_and_query().is_some_and(|path| !path.as_str().starts_with(['/', '*'])) {
        return Err(Rejection::MalformedRequest("The target's path does not begin with '/'."));
    }
    if !request.headers().keys().all(is_valid_name) {
        return Err(Rejection::MalformedRequest("A header name is not valid."));
    }
    if !has_single_framing(request.headers()) {
        return Err(Rejection::MalformedRequest(
            "The length of the body is stated more than once, or by a Transfer-Encoding other than 'chunked'.",
        ));
    }
    read_host(uri, request.headers(), request.version())
}

/// The value of a field that must occur exactly once; `None` if it is missing or repeated.
pub fn single_value(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// RFC 9110 section 5.1. The http crate allows a quotation mark in a header name, and so does hyper over HTTP/2.
fn is_valid_name(name: &HeaderName) -> bool {
    !name.as_str().contains('"')
}

/// Removes fields with invalid names from trailers and responses, which can no longer be refused.
pub fn remove_invalid_names(headers: &mut HeaderMap) {
    let invalid: Vec<HeaderName> = headers.keys().filter(|name| !is_valid_name(name)).cloned().collect();
    for name in invalid {
        headers.remove(name);
    }
}

/// Whether a head frames its body unambiguously: by `Transfer-Encoding: chunked`, by one `Content-Length`, or not at all.
///
/// SECURITY: ambiguous framing lets Keyward and its neighbours disagree on where the body ends (request smuggling). hyper only
/// looks at the last transfer coding, so it accepts `gzip, chunked`, and the other codings would be lost. If there is a
/// transfer coding, it removes the `Content-Length` of a request, but keeps that of a response, which the client would then
/// see. Over HTTP/2 it forwards a `Content-Length` that is empty or repeated.
pub fn has_single_framing(headers: &HeaderMap) -> bool {
    let (mut codings, mut lengths) =
        (headers.get_all(TRANSFER_ENCODING).iter(), headers.get_all(CONTENT_LENGTH).iter());
    match (codings.next(), lengths.next()) {
        (None, None) => true,
        (Some(coding), None) => {
            coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none()
        }
        (None, Some(length)) => {
            let digits = length.as_bytes();
            !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) && lengths.next().is_none()
        }
        (Some(_), Some(_)) => false,
    }
}

/// RFC 9112 section 3.2 requires exactly one valid `Host`, and the target's authority takes precedence over it. hyper accepts
/// none, several (hyper#3777) and any value. By RFC 9113 section 8.3.1, `:authority` and `Host` must not differ.
fn read_host(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<Host, Rejection> {
    let mut values = headers.get_all(HOST).iter();
    let (header, more) = (values.next(), values.next());
    if more.is_some() {
        return Err(Rejection::MalformedRequest("The request has more than one Host."));
    }
    if header.is_none() && version == Version::HTTP_11 {
        return Err(Rejection::MalformedRequest("The request has no Host."));
    }
    let value = match (uri.authority(), header) {
        (None, None) => return Err(Rejection::MalformedRequest("The request has no Host.")),
        (None, Some(header)) => header.clone(),
        (Some(authority), header) => {
            let differs = header
                .is_some_and(|header| !header.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()));
            if differs && version >= Version::HTTP_2 {
                return Err(Rejection::MalformedRequest("Host and :authority differ."));
            }
            if header.is_some_and(|header| parse_host(header).is_none()) {
                return Err(Rejection::MalformedRequest("Host is not a valid host."));
            }
            HeaderValue::from_str(authority.as_str())
                .map_err(|_| Rejection::MalformedRequest("The target's authority is not a valid host."))?
        }
    };
    let name = parse_host(&value).ok_or(Rejection::MalformedRequest("Host is not a valid host."))?;
    Ok(Host { value, name })
}

/// The name in `host [":" port]` (RFC 3986 section 3.2.2). User information is not allowed in HTTP, and so is refused.
fn parse_host(value: &HeaderValue) -> Option<Box<str>> {
    let authority = Authority::try_from(value.as_bytes()).ok()?;
    let (host, text) = (authority.host(), authority.as_str());
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_valid_host = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        }
    };
    let port = text.strip_prefix(host)?;
    let is_valid_port = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => {
            digits.is_empty()
                || (digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok())
        }
    };
    (is_valid_host && is_valid_port).then(|| host.strip_suffix('.').unwrap_or(host).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_uri: 64, max_headers: 4 };

    #[track_caller]
    fn check_host(version: Version, target: &str, hosts: &[&str], expected: Option<(&str, &str)>) {
        let mut request = Request::new(());
        *request.version_mut() = version;
        *request.uri_mut() = target.parse().unwrap();
        for host in hosts {
            request.headers_mut().append(HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        let host = check_head(&request, LIMITS);
        let found = host.as_ref().ok().map(|host| (host.value.to_str().unwrap(), &*host.name));
        assert_eq!(found, expected, "{target} {hosts:?}");
    }

    #[test]
    fn single_valid_host_is_accepted() {
        for (value, name) in
            [("a.test", "a.test"), ("A.test:80", "A.test"), ("[::1]:8080", "[::1]"), ("a.", "a"), ("a:", "a")]
        {
            check_host(Version::HTTP_11, "/", &[value], Some((value, name)));
        }
    }

    #[test]
    fn target_authority_overrides_host_header() {
        check_host(Version::HTTP_11, "http://a.test/x", &["b.test"], Some(("a.test", "a.test")));
        check_host(Version::HTTP_2, "http://a.test/x", &[], Some(("a.test", "a.test")));
        check_host(Version::HTTP_2, "http://a.test/x", &["a.test"], Some(("a.test", "a.test")));
    }

    #[test]
    fn missing_duplicate_or_malformed_host_is_refused() {
        check_host(Version::HTTP_11, "/", &[], None);
        check_host(Version::HTTP_10, "/", &[], None);
        check_host(Version::HTTP_11, "/", &["a", "a"], None);
        check_host(Version::HTTP_11, "http://a/x", &[], None);
        check_host(Version::HTTP_11, "http://a/x", &["a", "b"], None);
        check_host(Version::HTTP_11, "http://a/x", &["u@b"], None);
        check_host(Version::HTTP_11, "http://u@a/x", &["a"], None);
        check_host(Version::HTTP_2, "http://a.test/x", &["b.test"], None);
        check_host(Version::HTTP_11, "ftp://a/x", &["a"], None);
        for bad in [
            "", "a b", "u@a", "a#b", "a/b", "a\\b", "a,b", "a:x", "a:99999", "a:80:80", "[::1", "::1", "[a]",
            ":80", "a?b", "ä", "a%41",
        ] {
            check_host(Version::HTTP_11, "/", &[bad], None);
        }
    }

    #[test]
    fn body_framing_is_chunked_or_one_length() {
        for (codings, lengths, good) in [
            (&[][..], &[][..], true),
            (&["chunked"], &[], true),
            (&["Chunked"], &[], true),
            (&[], &["3"], true),
            (&["gzip, chunked"], &[], false),
            (&["chunked, chunked"], &[], false),
            (&["chunked", "chunked"], &[], false),
            (&["x", "chunked"], &[], false),
            (&[""], &[], false),
            (&["chunked"], &["3"], false),
            (&[], &["3", "3"], false),
            (&[], &["3, 3"], false),
            (&[], &["+3"], false),
            (&[], &[""], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, values) in [(TRANSFER_ENCODING, codings), (CONTENT_LENGTH, lengths)] {
                for value in values {
                    headers.append(&name, HeaderValue::from_static(value));
                }
            }
            assert_eq!(has_single_framing(&headers), good, "{codings:?} {lengths:?}");
        }
    }

    #[test]
    fn target_must_be_ascii_and_method_short() {
        for (method, target, good) in [
            ("GET", "/%C3%A4", true),
            ("GET", "/\u{e4}", false),
            ("GET", "/?\u{e4}", false),
            ("GET", "http://a?x", false),
            ("GET", "http://a#x", true),
            ("GET", "http://a", true),
            ("OPTIONS", "*", true),
            (&*"M".repeat(64), "/", true),
            (&*"M".repeat(65), "/", false),
        ] {
            let mut request = Request::new(());
            *request.method_mut() = method.parse().unwrap();
            *request.uri_mut() = target.parse().unwrap();
            request.headers_mut().insert(HOST, HeaderValue::from_static("a"));
            assert_eq!(check_head(&request, LIMITS).is_ok(), good, "{method} {target}");
        }
    }

    #[test]
    fn target_length_and_header_count_are_limited() {
        let mut request = Request::new(());
        *request.uri_mut() = format!("/{}", "a".repeat(64)).parse().unwrap();
        request.headers_mut().insert(HOST, HeaderValue::from_static("a"));
        assert_eq!(check_head(&request, LIMITS), Err(Rejection::UriTooLong));
        *request.uri_mut() = "/".parse().unwrap();
        for _ in 0..4 {
            request.headers_mut().append("x", HeaderValue::from_static("y"));
        }
        assert_eq!(check_head(&request, LIMITS), Err(Rejection::HeadTooLarge));
    }
}
