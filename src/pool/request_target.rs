//! Adapts a request to HTTP/1.1 or HTTP/2.

use http_body::Body as _;
use hyper::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::http::uri::{Authority, Parts, PathAndQuery, Scheme};
use hyper::{Request, Uri, Version};

use super::outgoing::OutgoingBody;

pub(super) fn for_http1(mut request: Request<OutgoingBody>) -> Request<OutgoingBody> {
    *request.version_mut() = Version::HTTP_11;
    join_cookies(request.headers_mut());
    // hyper would drop the body of a GET or HEAD without a length.
    if !request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH) {
        let (name, value) = match request.body().size_hint().exact() {
            Some(length) => (CONTENT_LENGTH, HeaderValue::from(length)),
            None => (TRANSFER_ENCODING, HeaderValue::from_static("chunked")),
        };
        request.headers_mut().insert(name, value);
    }
    if let Some(authority) = request.uri().authority() {
        // The request was prepared for HTTP/2 and is sent again over HTTP/1.1.
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            request.headers_mut().insert(HOST, host);
        }
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
    }
    request
}

/// HTTP/2 may split `Cookie` into several fields; HTTP/1.1 requires a single one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

pub(super) fn for_http2(mut request: Request<OutgoingBody>, scheme: Scheme) -> Request<OutgoingBody> {
    *request.version_mut() = Version::HTTP_2;
    let authority = request.headers().get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if let Some(authority) = authority {
        let mut parts = Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(authority);
        parts.path_and_query =
            Some(request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
            request.headers_mut().remove(HOST);
        }
    }
    request
}
