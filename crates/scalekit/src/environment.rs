//! The URL of a Scalekit environment, which has only a scheme and an authority.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

/// A Scalekit environment, such as `https://acme.scalekit.com`.
///
/// SECURITY: `http://` is only accepted for loopback hosts, as it sends credentials and tokens in clear text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    scheme: Scheme,
    authority: Authority,
}

/// Why a text is not the URL of an environment. The message does not repeat the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidEnvironment(&'static str);

impl Environment {
    /// Whether connections use TLS.
    pub fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// The host: a name or an IP address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        self.authority.host().trim_matches(['[', ']'])
    }

    /// The port, 443 or 80 if the URL has none.
    pub fn port(&self) -> u16 {
        let default = if self.is_https() { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(default)
    }

    /// Host and port as the URL has them, for the `Host` header.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The absolute URI of a path and query.
    pub fn absolute_uri(&self, path_and_query: Option<&PathAndQuery>) -> Uri {
        let path = path_and_query.cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let parts =
            Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(path);
        // Parts that are valid by themselves are valid together.
        parts.build().unwrap_or_default()
    }
}

impl FromStr for Environment {
    type Err = InvalidEnvironment;

    fn from_str(url: &str) -> Result<Self, InvalidEnvironment> {
        let refuse = |reason| Err(InvalidEnvironment(reason));
        let Ok(uri) = url.parse::<Uri>() else { return refuse("this is not a URL") };
        let path_is_empty = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let parts = uri.into_parts();
        let Some(authority) = parts.authority else {
            return refuse("a URL names a host, as in https://acme.scalekit.com");
        };
        if authority.as_str().contains('@') || !path_is_empty {
            return refuse(
                "an environment URL has only a scheme and a host, as in https://acme.scalekit.com",
            );
        }
        if authority.host().is_empty() || (authority.port().is_none() && authority.as_str().ends_with(':')) {
            return refuse("a URL names a host, as in https://acme.scalekit.com");
        }
        let Some(scheme) = parts.scheme else { return refuse("an environment URL begins with https://") };
        let environment = Self { scheme, authority };
        let host = environment.host();
        let is_loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        match environment.scheme.as_str() {
            "https" => Ok(environment),
            "http" if is_loopback => Ok(environment),
            "http" => refuse("http:// sends secrets in clear text, and is only allowed for loopback hosts"),
            _ => refuse("an environment URL begins with https://"),
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_url_is_parsed() {
        for (url, host, port) in [
            ("https://acme.scalekit.com", "acme.scalekit.com", 443),
            ("https://acme.scalekit.com/", "acme.scalekit.com", 443),
            ("https://acme.scalekit.com:8443", "acme.scalekit.com", 8443),
            ("http://127.0.0.1:4482", "127.0.0.1", 4482),
            ("http://[::1]:4482", "::1", 4482),
            ("http://localhost", "localhost", 80),
        ] {
            let environment: Environment = url.parse().unwrap();
            assert_eq!((environment.host(), environment.port()), (host, port), "{url}");
            assert_eq!(environment.to_string(), url.trim_end_matches('/'));
        }
        let environment: Environment = "https://acme.scalekit.com".parse().unwrap();
        let uri = environment.absolute_uri(Some(&PathAndQuery::from_static("/api/v1/tokens:validate")));
        assert_eq!(uri, "https://acme.scalekit.com/api/v1/tokens:validate");
    }

    #[test]
    fn environment_url_beyond_scheme_and_host_is_refused() {
        for (url, reason) in [
            ("", "not a URL"),
            ("https://", "not a URL"),
            ("/path", "names a host"),
            ("acme.scalekit.com", "begins with https://"),
            ("ftp://acme.scalekit.com", "begins with https://"),
            ("http://acme.scalekit.com", "in clear text"),
            ("http://10.0.0.1", "in clear text"),
            ("https://user:pass@acme.scalekit.com", "only a scheme and a host"),
            ("https://acme.scalekit.com/path", "only a scheme and a host"),
            ("https://acme.scalekit.com/?a=b", "only a scheme and a host"),
        ] {
            let error = url.parse::<Environment>().unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
