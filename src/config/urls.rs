//! Parses addresses: of listeners, of upstreams, and of trusted proxies.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::diagnostics::quote_text;
use super::values::FromText;
use crate::listener::Listen;
use crate::peer::TrustedProxies;

/// A URL of a scheme, a host and optionally a port.
pub(super) struct Url {
    /// In lower case.
    pub(super) scheme: String,
    /// A name or an IP address; an IPv6 address has no brackets.
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

/// Parses a URL. `forms` describes the allowed forms for the error.
pub(super) fn read_url(given: &str, forms: &str) -> Result<Url, String> {
    let unlike = || format!("should be {forms}");
    let (scheme, rest) = given.split_once("://").ok_or_else(unlike)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // SECURITY: this text must not be repeated, as it may contain a password, possibly with an unencoded '/'.
    if rest.contains('@') {
        return Err("has a user or password, which Keyward does not send; remove it".to_owned());
    }
    if !matches!(path, "" | "/") {
        return Err("should end after host and port; paths are forwarded as clients send them".to_owned());
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            address
                .parse::<Ipv6Addr>()
                .map_err(|_| format!("{} is not an IPv6 address", quote_text(address)))?;
            (address, rest)
        }
        None if authority.matches(':').count() > 1 => {
            return Err("should have its IPv6 address in brackets, as in \"http://[::1]:8080\"".to_owned());
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let named = !host.is_empty() && (host.contains(':') || host.bytes().all(is_name_byte));
    if !named {
        return Err(unlike());
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        None => return Err(unlike()),
        Some(digits) => {
            let number = digits.parse::<u16>().ok().filter(|port| *port > 0);
            Some(number.ok_or_else(|| {
                format!("has the port {}, which should be from 1 to 65535", quote_text(digits))
            })?)
        }
    };
    Ok(Url { scheme: scheme.to_ascii_lowercase(), host: host.to_owned(), port })
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

/// Parses a route's `host`: a name, which is converted to lower case, or an IPv6 address in brackets; without a port.
pub(super) fn read_host(given: &str) -> Result<Box<str>, String> {
    let problem = if given.contains("://") || given.contains('/') {
        "should be a host name alone, without scheme and path"
    } else if given.parse::<Ipv6Addr>().is_ok() {
        "should have its IPv6 address in brackets, as in \"[::1]\""
    } else if let Some(address) = given.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match address.parse::<Ipv6Addr>() {
            Ok(address) => Ok(format!("[{address}]").into()),
            Err(_) => Err(format!("{} is not an IPv6 address", quote_text(address))),
        };
    } else if given.contains(':') {
        "is matched without a port; remove it"
    } else if given.contains('*') {
        "should be one host name; patterns are not supported"
    } else if !given.is_ascii() {
        "should be the host name in ASCII, as clients send it (xn--…)"
    } else {
        let name = given.strip_suffix('.').unwrap_or(given);
        if !name.is_empty()
            && name.bytes().all(is_name_byte)
            && name.split('.').all(|label| !label.is_empty())
        {
            return Ok(name.to_ascii_lowercase().into());
        }
        "should be a host name, such as \"api.example.com\""
    };
    Err(problem.to_owned())
}

impl FromText for Listen {
    fn parse_text(text: &str) -> Result<Self, String> {
        read_listen(text)
    }

    fn format_text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

fn read_listen(given: &str) -> Result<Listen, String> {
    if let Some(path) = unix_path(given) {
        return path.map(Listen::Unix);
    }
    given.parse().map(Listen::Tcp).map_err(|_| {
        let any = given.strip_prefix(':').or_else(|| given.strip_prefix("*:")).unwrap_or(given);
        let localhost = given.strip_prefix("localhost:");
        let hint = match (any.parse::<u16>(), localhost.map(str::parse::<u16>)) {
            (Ok(port), _) => format!("; did you mean \"0.0.0.0:{port}\"?"),
            (_, Some(Ok(port))) => format!("; did you mean \"127.0.0.1:{port}\"?"),
            _ => String::new(),
        };
        format!("should be an IP address and a port, such as \"0.0.0.0:4480\", or \"unix:/path\"{hint}")
    })
}

/// Whether two listeners cannot both be bound.
pub(super) fn listeners_clash(one: &Listen, two: &Listen) -> bool {
    match (one, two) {
        (Listen::Unix(one), Listen::Unix(two)) => one == two,
        (Listen::Tcp(one), Listen::Tcp(two)) => {
            let any = |address: &SocketAddr| address.ip().is_unspecified();
            one.port() == two.port() && one.port() != 0 && (one.ip() == two.ip() || any(one) || any(two))
        }
        (Listen::Unix(_), Listen::Tcp(_)) | (Listen::Tcp(_), Listen::Unix(_)) => false,
    }
}

/// Parses `unix:/path` or `unix:///path`; `None` for another form.
pub(super) fn unix_path(given: &str) -> Option<Result<PathBuf, String>> {
    /// Length of `sun_path` in `sockaddr_un`, without the terminating zero.
    const LONGEST: usize = 107;
    let path = given.strip_prefix("unix:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    Some(if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        Err("should have an absolute path after \"unix:\", as in \"unix:/run/app.sock\"".to_owned())
    } else if path.len() > LONGEST {
        Err(format!("should have a path of at most {LONGEST} bytes, the limit for unix sockets"))
    } else {
        Ok(PathBuf::from(path))
    })
}

/// An item of `trusted_proxies` or `proxy_protocol_from`: a network, an address, or `unix:`.
impl FromText for TrustedProxies {
    fn parse_text(text: &str) -> Result<Self, String> {
        read_trusted(text)
    }
}

fn read_trusted(given: &str) -> Result<TrustedProxies, String> {
    if given == "unix:" {
        return Ok(TrustedProxies { networks: Vec::new(), unix: true });
    }
    let network = given.parse().ok().or_else(|| given.parse::<IpAddr>().ok().map(IpNet::from));
    let network: IpNet = network.ok_or_else(|| {
        format!(
            "{} is neither a network such as \"10.0.0.0/8\", an address, nor \"unix:\"",
            quote_text(given)
        )
    })?;
    if network.trunc() != network {
        let (network, address) = (network.trunc(), network.addr());
        return Err(format!("is an address within a network; write \"{network}\" or \"{address}\""));
    }
    if let IpNet::V6(six) = network
        && let Some(four) = six.addr().to_ipv4_mapped()
    {
        // Peers' addresses are converted to IPv4, so this network would never match.
        let length = six.prefix_len().saturating_sub(96);
        return Err(format!("is an IPv4 network in IPv6 form; write \"{four}/{length}\""));
    }
    Ok(TrustedProxies { networks: vec![network], unix: false })
}
