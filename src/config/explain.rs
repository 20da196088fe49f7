//! What a configuration does, in words.

use std::fmt::Write as _;

use hyper::header::HeaderName;
use hyper::{Method, Request, Uri};

use super::Config;
use crate::identity::Headers;
use crate::message;
use crate::origin::{self, Address, Protocol};
use crate::policy::{Requirement, Scope};
use crate::rejection::Rejection;
use crate::route::{Auth, Route};

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
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is not a method"))?;
    let uri: Uri = target.parse().map_err(|_| format!("{target:?} is neither a path nor a URL"))?;
    let host = uri.host().unwrap_or("any.host").to_owned();
    let mut request = Request::new(());
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    if let Ok(value) = host.parse() {
        request.headers_mut().insert(hyper::header::HOST, value);
    }
    let found = message::check(&request, config.gateway.head)
        .and_then(|host| config.routes.find(request.method(), &host.name, request.uri().path()));
    Ok(match found {
        Ok(route) => passes(config, route),
        Err(rejection) => refused(&rejection),
    })
}

fn refused(rejection: &Rejection) -> String {
    let mut text = format!("answer      {} {}\n", rejection.status().as_u16(), rejection.code());
    if let Rejection::MethodNotAllowed(allow) = rejection {
        let _ = writeln!(text, "allow       {}", allow.to_str().unwrap_or_default());
    }
    text + "forwarded   nothing\n"
}

fn passes(config: &Config, route: &Route) -> String {
    let headers = Headers::new(config.identity.clone());
    let [org, org_external, user, user_external, roles, token] = headers.names();
    let mut text = format!("route       {}\n", route.label);
    let _ = writeln!(text, "asks for    {}", asks_for(route));
    if let Some(upstream) = config.upstreams.iter().find(|upstream| upstream.name == route.upstream) {
        let _ = writeln!(text, "upstream    {} ({})", upstream.name, url(&upstream.origin));
    }
    if let Auth::Key(requirement) = &route.auth {
        let _ = writeln!(text, "sets        {org}, {token}");
        let users = if requirement.scope == Some(Scope::Organization) { "never" } else { "for a user's key" };
        let _ = writeln!(text, "            {user}, {user_external}, {roles} ({users})");
        let _ = writeln!(text, "            {org_external} (where there is one)");
        let _ = match &config.identity.claims {
            None => writeln!(text, "            {}<name> (for each claim)", headers.claim_prefix()),
            Some(claims) if claims.is_empty() => Ok(()),
            Some(claims) => {
                let names: Vec<_> = claims.iter().filter_map(|claim| headers.claim_header(claim)).collect();
                let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
                writeln!(text, "            {} (for claims)", names.join(", "))
            }
        };
    }
    text + "removes     Authorization, and every identity header that the caller sends\n"
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
            if !roles.is_empty() {
                let _ = write!(text, ", roles {}", roles.join(" and "));
            }
            for (name, value) in claims {
                let _ = write!(text, ", claim {name} = {value:?}");
            }
            text
        }
    };
    if route.preflight {
        text.push_str("; CORS preflights pass");
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
