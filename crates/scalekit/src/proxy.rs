//! The HTTP proxy for connections to Scalekit. Programs that manage connections themselves open them with
//! [`tunnel`](crate::tunnel).

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine};
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use percent_encoding::percent_decode_str;

use crate::environment::Environment;

/// The proxy setting. `http://` environments, which are on loopback, are never reached through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxy {
    /// The environment variables `HTTPS_PROXY` and `NO_PROXY`, or `https_proxy` and `no_proxy` if those are not set. `NO_PROXY` is
    /// a comma-separated list of hosts and domains (with their subdomains), IP addresses and networks, or `*`. `ALL_PROXY` and
    /// the settings of the system are not used.
    #[default]
    FromEnvironment,
    /// This proxy; the environment variables are ignored.
    Server(ProxyServer),
    /// No proxy; the environment variables are ignored.
    None,
}

/// A proxy that opens tunnels (CONNECT, RFC 9110 section 9.3.6).
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyServer {
    is_https: bool,
    /// Without brackets.
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
}

/// Why a text is not the URL of a proxy. The message does not repeat the text, which may contain a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}{reason}")]
pub struct InvalidProxy {
    place: String,
    reason: &'static str,
}

impl Proxy {
    /// The proxy for connections to an environment; `None` for direct connections.
    ///
    /// # Errors
    /// When the environment variable is not the URL of a proxy. The message names the variable.
    pub fn resolve(&self, environment: &Environment) -> Result<Option<ProxyServer>, InvalidProxy> {
        self.resolve_with(environment, |name| std::env::var(name).ok())
    }

    /// Like [`resolve`](Self::resolve), with other variables than those of the process.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn resolve_with(
        &self,
        environment: &Environment,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<ProxyServer>, InvalidProxy> {
        if !environment.is_https() {
            return Ok(None);
        }
        let first_set = |names: [&'static str; 2]| {
            let set = names.into_iter().filter_map(|name| Some((name, variable(name)?)));
            set.map(|(name, value)| (name, value.trim().to_owned())).find(|(_, value)| !value.is_empty())
        };
        match self {
            Self::None => Ok(None),
            Self::Server(server) => Ok(Some(server.clone())),
            Self::FromEnvironment => {
                let Some((name, url)) = first_set(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
                let no_proxy = first_set(["NO_PROXY", "no_proxy"]).map(|(_, list)| list).unwrap_or_default();
                // The matcher is only used for NO_PROXY, because it ignores a proxy URL that it cannot parse.
                let matcher = Matcher::builder().https("http://any").no(no_proxy).build();
                if matcher.intercept(&environment.absolute_uri(None)).is_none() {
                    return Ok(None);
                }
                let server = url.parse();
                server
                    .map(Some)
                    .map_err(|error: InvalidProxy| InvalidProxy { place: format!("{name}: "), ..error })
            }
        }
    }
}

impl ProxyServer {
    /// The host: a name or an IP address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; 80 or 443 if the URL has none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether connections to the proxy itself use TLS.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The value of `Proxy-Authorization`, marked as sensitive. `None` if the URL has no credentials.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    /// Host and port, for messages.
    pub fn address(&self) -> String {
        join_host_port(&self.host, self.port)
    }

    /// The URL without credentials.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.is_https { "https" } else { "http" }, self.address())
    }
}

/// A host and a port as in a URI: an IPv6 address gets brackets.
pub(crate) fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl std::str::FromStr for ProxyServer {
    type Err = InvalidProxy;

    /// Parses `http://user:password@host:port`. The scheme may also be `https`. Scheme and credentials are optional; credentials are
    /// percent-encoded.
    fn from_str(url: &str) -> Result<Self, InvalidProxy> {
        let refuse = |reason| Err(InvalidProxy { place: String::new(), reason });
        // Without a scheme, a URL with credentials could not be parsed.
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let Ok(uri) = with_scheme.parse::<Uri>() else {
            return refuse("this is not a URL such as http://proxy.example:3128");
        };
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return refuse("only http:// and https:// proxies are supported"),
        };
        let (Some(authority), "" | "/", None) = (uri.authority(), uri.path(), uri.query()) else {
            return refuse("the URL of a proxy has no path, as in http://proxy.example:3128");
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return refuse("the URL of a proxy names a host, as in http://proxy.example:3128");
        }
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let authorization = authority.as_str().rsplit_once('@').map(|(user_info, _)| {
            let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
            let mut credentials: Vec<u8> = percent_decode_str(user).collect();
            credentials.push(b':');
            credentials.extend(percent_decode_str(password));
            let value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(credentials)));
            value.map(|mut value| {
                value.set_sensitive(true);
                value
            })
        });
        // Cannot fail, as Base64 is a valid header value.
        Ok(Self { is_https, host, port, authorization: authorization.and_then(Result::ok) })
    }
}

/// SECURITY: the credentials are not shown.
impl fmt::Debug for ProxyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProxyServer").field(&self.url()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(proxy: &Proxy, url: &str, variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let resolved = proxy.resolve_with(&url.parse().unwrap(), variable);
        resolved.map(|server| server.map(|server| server.url())).map_err(|error| error.to_string())
    }

    #[test]
    fn environment_variables_choose_proxy() {
        let acme = "https://acme.scalekit.com";
        let some = |url: &str| Ok(Some(url.to_owned()));
        for (url, variables, expected) in [
            (acme, &[][..], Ok(None)),
            (acme, &[("HTTPS_PROXY", "http://p:3128")], some("http://p:3128")),
            (acme, &[("https_proxy", "p:3128")], some("http://p:3128")),
            (acme, &[("HTTPS_PROXY", "p:1"), ("https_proxy", "p:2")], some("http://p:1")),
            (acme, &[("HTTPS_PROXY", ""), ("https_proxy", "p:2")], some("http://p:2")),
            (acme, &[("HTTP_PROXY", "p:1"), ("ALL_PROXY", "p:1")], Ok(None)),
            (acme, &[("HTTPS_PROXY", "p:1"), ("NO_PROXY", "*")], Ok(None)),
            (acme, &[("HTTPS_PROXY", "p:1"), ("no_proxy", "scalekit.com")], Ok(None)),
            (acme, &[("HTTPS_PROXY", "p:1"), ("NO_PROXY", "x, .scalekit.com")], Ok(None)),
            (acme, &[("HTTPS_PROXY", "p:1"), ("NO_PROXY", "kit.com,10.0.0.0/8")], some("http://p:1")),
            (acme, &[("HTTPS_PROXY", "p:1"), ("NO_PROXY", ""), ("no_proxy", "*")], Ok(None)),
            ("https://10.1.2.3", &[("HTTPS_PROXY", "p:1"), ("NO_PROXY", "10.0.0.0/8")], Ok(None)),
            ("https://[::1]", &[("HTTPS_PROXY", "p:1"), ("NO_PROXY", "::1")], Ok(None)),
            ("http://127.0.0.1", &[("HTTPS_PROXY", "p:1"), ("HTTP_PROXY", "p:1")], Ok(None)),
            (
                acme,
                &[("https_proxy", "socks5://user:secret@p:1")],
                Err("https_proxy: only http:// and https:// proxies are supported".to_owned()),
            ),
            // What is not used need not be right.
            (acme, &[("HTTPS_PROXY", "socks5://p:1"), ("NO_PROXY", "*")], Ok(None)),
        ] {
            assert_eq!(resolve(&Proxy::FromEnvironment, url, variables), expected, "{url} {variables:?}");
        }
    }

    #[test]
    fn setting_overrides_environment_variables() {
        let variables = [("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "*")];
        let acme = "https://acme.scalekit.com";
        assert_eq!(resolve(&Proxy::None, acme, &variables), Ok(None));
        let proxy = Proxy::Server("http://q:2".parse().unwrap());
        assert_eq!(resolve(&proxy, acme, &variables), Ok(Some("http://q:2".to_owned())));
        assert_eq!(resolve(&proxy, "http://localhost:1", &variables), Ok(None));
    }

    #[test]
    fn proxy_url_is_parsed_and_its_password_hidden() {
        for (url, address, authorization) in [
            ("http://p", "p:80", None),
            ("https://p", "p:443", None),
            ("p:3128", "p:3128", None),
            ("http://[::1]:3128/", "[::1]:3128", None),
            // user:pass
            ("http://user:pass@p:1", "p:1", Some("Basic dXNlcjpwYXNz")),
            // us@er:p:a/ss
            ("us%40er:p%3Aa%2Fss@p:1", "p:1", Some("Basic dXNAZXI6cDphL3Nz")),
            // user:
            ("http://user@p:1", "p:1", Some("Basic dXNlcjo=")),
        ] {
            let server: ProxyServer = url.parse().unwrap();
            assert_eq!(server.address(), address, "{url}");
            let value = server.authorization().map(|value| value.to_str().unwrap());
            assert_eq!(value, authorization, "{url}");
            assert!(server.authorization().is_none_or(HeaderValue::is_sensitive));
            assert!(!format!("{server:?} {}", server.url()).contains("pass"));
        }
        for (url, reason) in [
            ("", "not a URL"),
            ("http://", "not a URL"),
            ("http://a b", "not a URL"),
            ("socks5://p:1", "only http://"),
            ("http://p:1/path", "has no path"),
            ("http://p:1/?a=b", "has no path"),
            ("http://user:pass@:1", "host"),
        ] {
            let error = url.parse::<ProxyServer>().unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("pass"), "{url}: {error}");
        }
    }
}
