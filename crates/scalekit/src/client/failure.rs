//! Says what a failure of reqwest means.

use std::error::Error as StdError;
use std::io;

use crate::error::Error;
use crate::response::format_chain;

/// Classifies failures of a client that goes through this proxy, or none.
pub(super) struct Failure {
    /// Host and port.
    proxy: Option<String>,
}

impl Failure {
    pub(super) fn new(proxy: Option<String>) -> Self {
        Self { proxy }
    }

    pub(super) fn classify_error(&self, error: reqwest::Error) -> Error {
        // SECURITY: a URL may have a page token or an organization in its query.
        let error = error.without_url();
        let causes =
            || std::iter::successors(error.source(), |cause: &&(dyn StdError + 'static)| (*cause).source());
        if let Some(proxy) = &self.proxy
            && let Some(refusal) = causes().find_map(|cause| tunnel_error(proxy, cause))
        {
            return refusal;
        }
        if let Some(tls) = causes().find_map(tls_error) {
            return Error::Tls(tls);
        }
        match (error.is_connect(), error.is_timeout(), &self.proxy) {
            (true, true, Some(proxy)) => {
                Error::Unreachable(format!("no connection through the proxy {proxy} in time"))
            }
            (true, true, None) => Error::Unreachable("no connection in time".to_owned()),
            (true, false, _) => Error::Unreachable(format_chain(&error)),
            (false, ..) => Error::ConnectionLost(format_chain(&error)),
        }
    }
}

/// What the tunnel failed with. hyper-util keeps the type of this error private, so that its text is all there is; the tests
/// with a real proxy hold these texts.
fn tunnel_error(proxy: &str, cause: &(dyn StdError + 'static)) -> Option<Error> {
    let proxy = proxy.to_owned();
    let text = cause.to_string();
    let reason = text.strip_prefix("tunnel error: ")?;
    Some(match reason {
        "proxy authorization required" => Error::ProxyRefused { proxy, status: Some(407) },
        "unsuccessful" | "proxy response headers too long" => Error::ProxyRefused { proxy, status: None },
        "unexpected end of file" => {
            Error::ProxyUnreachable { proxy, reason: "it closed the connection".to_owned() }
        }
        _ => Error::ProxyUnreachable {
            proxy,
            reason: cause.source().map_or_else(|| reason.to_owned(), format_chain),
        },
    })
}

/// What TLS failed with. It comes wrapped in one or more `io::Error`s, whose `source` skips what they wrap.
fn tls_error(mut cause: &(dyn StdError + 'static)) -> Option<String> {
    while let Some(wrapped) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        cause = wrapped;
    }
    cause.downcast_ref::<rustls::Error>().map(ToString::to_string)
}
