//! Classifies errors of reqwest.

use std::error::Error as StdError;
use std::io;

use crate::error::Error;
use crate::response::format_chain;

/// Classifies the errors of a client, with or without a proxy.
pub(super) struct Failure {
    /// Host and port of the proxy.
    proxy: Option<String>,
}

impl Failure {
    pub(super) fn new(proxy: Option<String>) -> Self {
        Self { proxy }
    }

    pub(super) fn classify_error(&self, error: reqwest::Error) -> Error {
        // SECURITY: the URL may contain a page token or an organization.
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

/// Recognizes an error of the proxy tunnel by its text, as its type is private to hyper-util. Tests with a real proxy check these
/// texts.
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

/// Finds a TLS error, which is wrapped in one or more `io::Error`s whose `source` skips it.
fn tls_error(mut cause: &(dyn StdError + 'static)) -> Option<String> {
    while let Some(wrapped) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        cause = wrapped;
    }
    cause.downcast_ref::<rustls::Error>().map(ToString::to_string)
}
