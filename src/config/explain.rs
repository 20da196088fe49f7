//! What a configuration does, in words.

use std::fmt::Write as _;
use std::sync::Arc;

use hyper::header::HOST;
use hyper::{Method, Request, Uri};

use super::Config;
use crate::identity::Headers;
use crate::message;
use crate::origin::{self, Address, Protocol};
use crate::policy::{Requirement, Scope};
use crate::rejection::Rejection;
use crate::route::{Ambiguity, Auth, Route};

/// The routes, the most specific first, as a table.
pub fn describe_routes(config: &Config) -> String {
    let header = ["HOST", "PATH", "METHODS", "ASKS FOR", "UPSTREAM"].map(str::to_owned);
    let row = |route: &Route| {
        let host = route.host.as_deref().unwrap_or("any").to_owned();
        [host, route.pattern.to_string(), methods(route), asks_for(route), route.upstream.to_string()]
    };
    let rows: Vec<[String; 5]> =
        std::iter::once(header).chain(config.routes.routes().iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

/// What happens to a request: `target` is a path, or a URL where the host matters.
///
/// # Errors
/// When method or target are none.
pub fn explain(config: &Config, method: &str, target: &str) -> Result<String, String> {
    let upper = method.to_ascii_uppercase();
    if method != upper && COMMON.contains(&upper.as_str()) {
        return Err(format!("methods are in capitals; did you mean {upper}?"));
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is not a method"))?;
    let uri: Uri = target.parse().map_err(|_| format!("{target:?} is neither a path nor a URL"))?;
    if uri.authority().is_some() != uri.scheme().is_some() {
        return Err(format!("{target:?} is neither a path nor a URL; a path begins with '/'"));
    }
    let mut request = Request::new(());
    // A request has a host; this one is no route's, so that it stands for all that are named in none.
    let host = uri.authority().map_or("host.invalid", |authority| authority.as_str());
    request.headers_mut().insert(HOST, host.parse().map_err(|_| format!("{target:?} has no valid host"))?);
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    let host = message::check(&request, config.gateway.head);
    let (method, path) = (request.method(), request.uri().path());
    let find = |host: &message::Host| config.routes.find(method, &host.name, path);
    let found = host.as_ref().map_err(Clone::clone).and_then(find);
    let mut text = Lines(format!("{} {target}\n\n", request.method()));
    match &found {
        Ok(route) => passes(&mut text, config, route),
        Err(rejection) => {
            let ambiguity =
                host.as_ref().ok().and_then(|host| config.routes.ambiguity(method, &host.name, path));
            refused(&mut text, rejection, ambiguity);
        }
    }
    if request.uri().authority().is_none() {
        let label = |found: Result<&Route, Rejection>| found.map(|route| Arc::clone(&route.label));
        let here = label(found);
        let differs =
            |host: &&str| label(config.routes.find(request.method(), host, request.uri().path())) != here;
        let hosts = config.routes.routes().iter().filter_map(|route| route.host.as_deref());
        if let Some(host) = hosts.filter(differs).min() {
            text.add("note", "a host that a route names is another matter; ask with a whole URL, as in");
            text.more(&format!("http://{host}{target}"));
        }
    }
    Ok(text.0)
}

const COMMON: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// A word, and what is said of it in the lines beside it.
struct Lines(String);

impl Lines {
    fn add(&mut self, word: &str, text: &str) {
        let _ = writeln!(self.0, "  {word:<12}{text}");
    }

    fn more(&mut self, text: &str) {
        self.add("", text);
    }
}

fn refused(text: &mut Lines, rejection: &Rejection, ambiguity: Option<Ambiguity<'_>>) {
    let (status, code) = (rejection.status(), rejection.code());
    text.add("answer", &format!("{status}, {code}"));
    match ambiguity {
        None => text.add("because", &reason(rejection)),
        Some(Ambiguity::Unsafe(reason)) => text.add("because", reason),
        Some(Ambiguity::Elsewhere(reading, place)) => {
            text.add(
                "because",
                &format!("a service may read the path as {}, which is for", shown_path(&reading)),
            );
            for route in place {
                text.more(&format!("{} ({}, upstream {})", route.label, asks_for(route), route.upstream));
            }
            if place.is_empty() {
                text.more("no route");
            }
        }
    }
    text.add("upstream", "nothing is forwarded");
}

/// A path without what a terminal would obey.
fn shown_path(path: &str) -> String {
    path.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}

/// Only the first three can come of a path and a method that a URL can have.
fn reason(rejection: &Rejection) -> String {
    match rejection {
        Rejection::NoRoute => "no route takes this path".to_owned(),
        Rejection::MethodNotAllowed(allow) => match allow.to_str().unwrap_or_default() {
            "" => "the method is never forwarded".to_owned(),
            methods => format!("the routes of this path take {methods}"),
        },
        Rejection::AmbiguousPath => "a service may read the path as one for another route".to_owned(),
        Rejection::MalformedRequest(reason) => (*reason).to_owned(),
        Rejection::UriTooLong => "the target is longer than limits.uri".to_owned(),
        other => other.code().replace('_', " "),
    }
}

fn passes(text: &mut Lines, config: &Config, route: &Route) {
    text.add("route", &route.label);
    text.add("asks for", &asks_for(route));
    if let Some(upstream) = config.upstreams.iter().find(|upstream| upstream.name == route.upstream) {
        text.add("upstream", &format!("{} at {}", upstream.name, url(&upstream.origin)));
    }
    match &route.auth {
        Auth::Key(requirement) => sets(text, config, requirement),
        Auth::Public => text.add("sets", FORWARDING),
    }
    text.add("removes", "Authorization, and every spelling of an identity header that the caller sends");
}

const FORWARDING: &str = "X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Request-Id";

/// The identity headers of a route, with when each is there.
fn sets(text: &mut Lines, config: &Config, requirement: &Requirement) {
    let headers = Headers::new(config.identity.clone());
    let [org, org_external, user, user_external, roles, token] =
        headers.names().map(|name| titled(name.as_str()));
    let mut rows =
        vec![(org, "always"), (org_external, "where Scalekit has one"), (token, "where Scalekit has one")];
    match requirement.scope {
        None => rows.extend([
            (user, "for a user's key"),
            (user_external, "for a user's key, where Scalekit has one"),
            (roles, "for a user's key, where the user has any"),
        ]),
        Some(Scope::User) => rows.extend([
            (user, "always"),
            (user_external, "where Scalekit has one"),
            (roles, "where the user has any"),
        ]),
        Some(Scope::Organization) => {}
    }
    match &config.identity.claims {
        None => rows.push((format!("{}<Name>", titled(headers.claim_prefix())), "for each claim")),
        Some(claims) => rows.extend(claims.iter().filter_map(|claim| {
            let name = headers.claim_header(claim)?;
            Some((titled(name.as_str()), "where the key has the claim"))
        })),
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (index, (name, when)) in rows.iter().enumerate() {
        text.add(if index == 0 { "sets" } else { "" }, &format!("{name:<width$}  {when}"));
    }
    text.more(FORWARDING);
}

/// A header's name as people write it.
fn titled(name: &str) -> String {
    let mut start = true;
    let title = |char: char| {
        let char = if start { char.to_ascii_uppercase() } else { char };
        start = char == '-';
        char
    };
    name.chars().map(title).collect()
}

fn methods(route: &Route) -> String {
    let names = |methods: &Vec<Method>| methods.iter().map(Method::as_str).collect::<Vec<_>>().join(",");
    route.methods.as_ref().map_or_else(|| "any".to_owned(), names)
}

fn asks_for(route: &Route) -> String {
    let mut text = match &route.auth {
        Auth::Public => "nothing".to_owned(),
        Auth::Key(Requirement { scope, roles, claims }) => {
            let mut text = match scope {
                None => "a key".to_owned(),
                Some(Scope::User) => "a user's key".to_owned(),
                Some(Scope::Organization) => "an organization's key".to_owned(),
            };
            match roles.as_slice() {
                [] => {}
                [role] => text.push_str(&format!(", role {role}")),
                roles => text.push_str(&format!(", roles {}", roles.join(" and "))),
            }
            for (name, value) in claims {
                text.push_str(&format!(", claim {name} = {value:?}"));
            }
            text
        }
    };
    if route.preflight {
        text.push_str("; CORS preflights pass without a key");
    }
    text
}

fn url(settings: &origin::Settings) -> String {
    let scheme = match (&settings.tls, settings.protocol) {
        (Some(_), _) => "https",
        (None, Protocol::Http2) => "h2c",
        (None, _) => "http",
    };
    match &settings.address {
        Address::Unix(path) => format!("unix:{}", path.display()),
        Address::Tcp(host, port) if host.contains(':') => format!("{scheme}://[{host}]:{port}"),
        Address::Tcp(host, port) => format!("{scheme}://{host}:{port}"),
    }
}
