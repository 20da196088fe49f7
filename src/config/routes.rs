//! Upstreams and routes.

use std::sync::Arc;
use std::time::Duration;

use hyper::{Method, Uri};

use super::file::readable;
use super::reader::{Found, Section, boolean, choice, did_you_mean, duration, list, text};
use crate::origin::{self, Address, Protocol, Tls};
use crate::policy::{Requirement, Scope};
use crate::route::{Auth, Clash, Pattern, Route, RouteTable};
use crate::tls::KeyPair;
use crate::upstream;

/// The upstreams that can be used, and the names of all.
pub(super) fn upstreams(section: Section<'_, '_>) -> (Vec<upstream::Settings>, Vec<Arc<str>>) {
    if section.is_missing() {
        section.problem("", "is missing; for example [upstreams.api] with url = \"http://127.0.0.1:8080\"");
    }
    let (mut upstreams, mut names) = (Vec::new(), Vec::new());
    for (name, section) in section.named_sections() {
        let name: Arc<str> = name.into();
        names.push(Arc::clone(&name));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            section.problem("", "a name is 1 to 64 letters, digits, '-' and '_'");
        }
        upstreams.extend(upstream(name, section));
    }
    (upstreams, names)
}

fn upstream(name: Arc<str>, mut section: Section<'_, '_>) -> Option<upstream::Settings> {
    let target = section.require("url", "\"http://127.0.0.1:8080\"", |value| target(&text(value)?));
    let protocols = choice(&[("auto", Protocol::Auto), ("1", Protocol::Http1), ("2", Protocol::Http2)]);
    let protocol = section.take("http", protocols);
    let connect_timeout = time(&mut section, "connect_timeout", 1000);
    let idle_timeout = time(&mut section, "idle_timeout", 4000);
    let response_timeout = time(&mut section, "response_timeout", 30_000);
    let file = |value: &super::reader::Value<'_>| readable(&text(value)?);
    let roots = section.take("ca_file", file);
    let server_name = section.take("server_name", text);
    let certificate = section.take("client_certificate", file);
    let key = section.take("client_key", file);
    if certificate.is_some() != key.is_some() {
        section.problem("client_certificate", "and client_key belong together");
    }
    let identity = certificate.zip(key).map(|(certificate, key)| KeyPair { certificate, key });
    let target = target.map(|mut target| {
        match &mut target.tls {
            Some(tls) => *tls = Tls { roots, server_name: server_name.map(Into::into), identity },
            None if roots.is_some() || server_name.is_some() || identity.is_some() => {
                section.problem(
                    "url",
                    "is not https://, which ca_file, server_name and client_certificate are for",
                );
            }
            None => {}
        }
        match (target.protocol, protocol) {
            (Protocol::Http2, Some(Protocol::Http1)) => {
                section.problem("http", "cannot be \"1\" with h2c://")
            }
            (Protocol::Auto, Some(protocol)) => target.protocol = protocol,
            _ => {}
        }
        target
    });
    section.finish();
    let Target { address, tls, protocol } = target?;
    let origin = origin::Settings { address, tls, protocol, connect_timeout, idle_timeout };
    Some(upstream::Settings { name, origin, response_timeout })
}

fn time(section: &mut Section<'_, '_>, key: &'static str, default_ms: u64) -> Duration {
    section.take(key, duration(Duration::from_millis(1))).unwrap_or_else(|| Duration::from_millis(default_ms))
}

struct Target {
    address: Address,
    tls: Option<Tls>,
    protocol: Protocol,
}

fn target(url: &str) -> Result<Target, String> {
    const FORMS: &str = "should be http://host:port, https://host, h2c://host:port or unix:/path";
    if let Some(path) = url.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        let absolute = path.starts_with('/');
        let target = Target { address: Address::Unix(path.into()), tls: None, protocol: Protocol::Auto };
        return absolute.then_some(target).ok_or_else(|| FORMS.to_owned());
    }
    let uri: Uri = url.parse().map_err(|_| FORMS.to_owned())?;
    let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or(FORMS)?;
    if authority.as_str().contains('@') {
        return Err("has user information, which Keyward does not send".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("has a path; Keyward forwards the path as the caller sent it".to_owned());
    }
    let (tls, protocol, port) = match uri.scheme_str() {
        Some("http") => (None, Protocol::Auto, 80),
        Some("https") => (Some(Tls::default()), Protocol::Auto, 443),
        Some("h2c") => (None, Protocol::Http2, 80),
        _ => return Err(FORMS.to_owned()),
    };
    let host = authority.host().trim_matches(['[', ']']);
    Ok(Target { address: Address::Tcp(host.into(), authority.port_u16().unwrap_or(port)), tls, protocol })
}

pub(super) fn routes(
    sections: Vec<Section<'_, '_>>,
    upstreams: &[Arc<str>],
    found: &Found,
    warnings: &mut Vec<String>,
) -> Option<RouteTable> {
    let places: Vec<usize> = sections.iter().map(Section::place).collect();
    let read: Vec<Option<Route>> = sections.into_iter().map(|section| route(section, upstreams)).collect();
    for upstream in upstreams {
        if !read.iter().flatten().any(|route| route.upstream == *upstream) {
            warnings.push(format!("upstreams.{} is used by no route", upstream));
        }
    }
    let mut routes: Vec<Route> = read.into_iter().collect::<Option<_>>()?;
    tell_labels_apart(&mut routes);
    match RouteTable::new(routes) {
        Ok(table) => Some(table),
        Err(clashes) => {
            for Clash(first, second) in clashes {
                let text = format!(
                    "has the same host, path and a method in common with routes[{first}], so that they cannot be told \
                     apart; list different methods"
                );
                found.add(Some(places[second]), format!("routes[{second}]"), text);
            }
            None
        }
    }
}

/// Routes that differ in their methods alone get them into their labels.
fn tell_labels_apart(routes: &mut [Route]) {
    let labels: Vec<Arc<str>> = routes.iter().map(|route| Arc::clone(&route.label)).collect();
    for route in routes {
        if let Some(methods) = &route.methods
            && labels.iter().filter(|label| **label == route.label).count() > 1
        {
            let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
            route.label = format!("{} {}", methods.join(","), route.label).into();
        }
    }
}

fn route(mut section: Section<'_, '_>, upstreams: &[Arc<str>]) -> Option<Route> {
    let pattern = section.require("path", "\"/v1/*\"", |value| Ok(Pattern::parse(&text(value)?)?));
    let host = section.take("host", |value| host(&text(value)?));
    let methods = section.take("methods", |value| list(value)?.iter().map(|name| method(name)).collect());
    let names = || upstreams.iter().map(|name| &**name);
    let upstream = section.require("upstream", "\"api\"", |value| {
        let given = text(value)?;
        let known = upstreams.iter().find(|name| ***name == *given);
        let unknown = || format!("no upstream is named \"{given}\"{}", did_you_mean(&given, names()));
        known.cloned().ok_or_else(unknown)
    });
    let public = section.take("auth", choice(&[("key", false), ("none", true)])).unwrap_or(false);
    let preflight = section.take("preflight", boolean).unwrap_or(false);
    let name = section.take("name", |value| {
        let name = text(value)?;
        let plain = (1..=128).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        plain.then_some(name).ok_or_else(|| "should be 1 to 128 characters of printable ASCII".to_owned())
    });
    if public && section.has("require") {
        section.problem("require", "asks for a key, and auth = \"none\" for none; remove one");
    }
    let requirement = requirement(section.section("require"));
    section.finish();
    let pattern = pattern?;
    let label = name.unwrap_or_else(|| format!("{}{pattern}", host.as_deref().unwrap_or_default()));
    Some(Route {
        label: label.into(),
        host,
        pattern,
        methods,
        upstream: upstream?,
        auth: if public { Auth::Public } else { Auth::Key(requirement) },
        preflight,
    })
}

fn requirement(mut section: Section<'_, '_>) -> Requirement {
    let scopes = choice(&[("user", Scope::User), ("organization", Scope::Organization)]);
    let requirement = Requirement {
        scope: section.take("scope", scopes),
        roles: section.take("roles", list).unwrap_or_default(),
        claims: section.section("claims").texts().into_iter().collect(),
    };
    section.finish();
    requirement
}

fn host(given: &str) -> Result<Box<str>, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if given.contains(':') && !given.starts_with('[') {
        return Err("is matched without a port; remove it".to_owned());
    }
    let literal = given.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !given.is_empty() && given.bytes().all(plain),
    };
    let name = given.to_ascii_lowercase();
    valid
        .then(|| name.strip_suffix('.').unwrap_or(&name).into())
        .ok_or_else(|| "should be one host name; there are no patterns".to_owned())
}

fn method(given: &str) -> Result<Method, String> {
    let upper = given.to_ascii_uppercase();
    match Method::from_bytes(given.as_bytes()) {
        Ok(Method::TRACE | Method::CONNECT) => Err(format!("{given} is never forwarded")),
        Ok(_) if given != upper => Err(format!("methods are in capitals; did you mean \"{upper}\"?")),
        Ok(method) => Ok(method),
        Err(_) => Err(format!("{given:?} is not a method")),
    }
}
