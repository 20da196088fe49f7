//! CORS preflights (Fetch standard), which carry no key and pass without one where a route allows it.

use http_body::Body as _;
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, HeaderMap,
    HeaderName, HeaderValue, ORIGIN, TRANSFER_ENCODING, USER_AGENT,
};
use hyper::{Method, Request};

use crate::body::Body;
use crate::request_head::single_value;
use crate::upstream::forwarded::REQUEST_ID;

/// The method that a CORS preflight asks about: OPTIONS with one `Origin` and one `Access-Control-Request-Method`, and no body.
pub(super) fn preflight_method(request: &Request<Body>) -> Option<Method> {
    let asks = request.method() == Method::OPTIONS && request.body().is_end_stream();
    // SECURITY: of two values, the service could act on the one that was not checked.
    single_value(request.headers(), ORIGIN).filter(|_| asks)?;
    let method = single_value(request.headers(), ACCESS_CONTROL_REQUEST_METHOD)?;
    Method::from_bytes(method.as_bytes()).ok()
}

/// SECURITY: a preflight carries no key, and a service that takes every method runs its handler for it. It gets the headers that
/// the Fetch standard sends with a preflight, and those of trusted proxies about the client, but no cookie, token or method
/// override.
pub(super) fn keep_preflight_headers(headers: &mut HeaderMap) {
    let kept = |name: &HeaderName| {
        [ORIGIN, HOST, ACCEPT, USER_AGENT, FORWARDED, REQUEST_ID].contains(name)
            || name.as_str().starts_with("access-control-request-")
            || name.as_str().starts_with("x-forwarded-")
    };
    let others: Vec<HeaderName> = headers.keys().filter(|name| !kept(name)).cloned().collect();
    for name in others {
        headers.remove(name);
    }
}

/// Whether a preflight that a gateway forwards as it is has none of the headers with which a service could be made to act. A browser
/// sends none of them; an allowlist would refuse what gateways add.
pub(super) fn is_browser_preflight(headers: &HeaderMap) -> bool {
    let is_forbidden = |(name, value): (&HeaderName, &HeaderValue)| {
        [AUTHORIZATION, COOKIE, TRANSFER_ENCODING].contains(name)
            || (name == CONTENT_LENGTH && value != "0")
            || name == "x-http-method"
            || name.as_str().contains("method-override")
    };
    !headers.iter().any(is_forbidden)
}
