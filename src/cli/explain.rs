//! `keyward explain`: what a configuration does with one request.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use hyper::header::HOST;
use hyper::{Method, Request, Uri};

use super::ConfigFile;
use crate::config::Config;
use crate::identity::IdentityHeaders;
use crate::policy::{Requirement, Scope};
use crate::pool::{self, Address, Protocol};
use crate::rate_limit::{self, Subject};
use crate::rejection::Rejection;
use crate::request_head;
use crate::route::{Ambiguity, Auth, Route};

#[derive(Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// The method
    method: String,
    /// A path, or a full URL to choose the host
    target: String,
}

pub(super) fn run_explain(args: &ExplainArgs) -> Result<()> {
    let config = args.file.load_config()?;
    let text = explain_request(&config, &args.method, &args.target).map_err(anyhow::Error::msg)?;
    super::write_stdout(&text)?;
    Ok(())
}

/// `target` is a path, or a URL where the host matters.
fn explain_request(config: &Config, method: &str, target: &str) -> Result<String, String> {
    let upper = method.to_ascii_uppercase();
    if method != upper && COMMON_METHODS.contains(&upper.as_str()) {
        return Err(format!("methods are in capital letters; did you mean {upper}?"));
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is not a method"))?;
    let uri: Uri = target.parse().map_err(|_| format!("{target:?} is neither a path nor a URL"))?;
    if uri.authority().is_some() != uri.scheme().is_some() {
        return Err(format!("{target:?} is neither a path nor a URL; a path begins with '/'"));
    }
    let mut request = Request::new(());
    // A request needs a host. No route can name this one, so it stands for every host without a route of its own.
    let host = uri.authority().map_or("host.invalid", |authority| authority.as_str());
    request.headers_mut().insert(HOST, host.parse().map_err(|_| format!("{target:?} has no valid host"))?);
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    let host = request_head::check_head(&request, config.gateway.head);
    let (method, path) = (request.method(), request.uri().path());
    let find = |host: &request_head::Host| config.routes.find(method, &host.name, path);
    let found = host.as_ref().map_err(Clone::clone).and_then(find);
    let mut text = Lines(format!("{} {target}\n\n", request.method()));
    match &found {
        Ok(route) => explain_route(&mut text, config, route),
        Err(rejection) => {
            let ambiguity =
                host.as_ref().ok().and_then(|host| config.routes.explain_ambiguity(method, &host.name, path));
            explain_rejection(&mut text, rejection, ambiguity);
        }
    }
    if request.uri().authority().is_none() {
        let label = |found: Result<&Route, Rejection>| found.map(|route| Arc::clone(&route.label));
        let here = label(found);
        let differs =
            |host: &&str| label(config.routes.find(request.method(), host, request.uri().path())) != here;
        let hosts = config.routes.routes().iter().filter_map(|route| route.host.as_deref());
        if let Some(host) = hosts.filter(differs).min() {
            text.add_line(
                "note",
                "some routes are for one host only; to choose the host, give a full URL, such as",
            );
            text.add_more(&format!("http://{host}{target}"));
        }
    }
    Ok(text.0)
}

const COMMON_METHODS: [&str; 9] =
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// Lines of two columns: a label, and the text beside it.
struct Lines(String);

impl Lines {
    fn add_line(&mut self, label: &str, text: &str) {
        let _ = writeln!(self.0, "  {label:<12}{text}");
    }

    fn add_more(&mut self, text: &str) {
        self.add_line("", text);
    }
}

fn explain_rejection(text: &mut Lines, rejection: &Rejection, ambiguity: Option<Ambiguity<'_>>) {
    let (status, code) = (rejection.status(), rejection.code());
    text.add_line("answer", &format!("{status}, {code}"));
    match ambiguity {
        None => text.add_line("because", &explain_reason(rejection)),
        Some(Ambiguity::Unsafe(reason)) => text.add_line("because", reason),
        Some(Ambiguity::Elsewhere(reading, place)) => {
            text.add_line(
                "because",
                &format!("a service may read the path as {}, which is for", mask_control_chars(&reading)),
            );
            for route in place {
                text.add_more(&format!(
                    "{} ({}, upstream {})",
                    route.label,
                    describe_requirement(route),
                    route.upstream
                ));
            }
            if place.is_empty() {
                text.add_more("no route");
            }
        }
    }
    text.add_line("upstream", "nothing is forwarded");
}

/// SECURITY: a decoded path may hold control characters, which a terminal would obey.
fn mask_control_chars(path: &str) -> String {
    path.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}

fn explain_reason(rejection: &Rejection) -> String {
    match rejection {
        Rejection::NoRoute => "no route matches this path".to_owned(),
        Rejection::MethodNotAllowed(allow) => match allow.to_str().unwrap_or_default() {
            "" => "the method is never forwarded".to_owned(),
            methods => format!("the routes of this path accept {methods}"),
        },
        Rejection::AmbiguousPath => "a service may read the path as one for another route".to_owned(),
        Rejection::MalformedRequest(reason) => (*reason).to_owned(),
        Rejection::UriTooLong => "the target is longer than limits.uri".to_owned(),
        other => other.code().replace('_', " "),
    }
}

fn explain_route(text: &mut Lines, config: &Config, route: &Route) {
    text.add_line("route", &route.label);
    text.add_line("requires", &describe_requirement(route));
    for (index, name) in route.rate_limits.iter().enumerate() {
        let limit = config.rate_limits.iter().find(|limit| limit.name == *name);
        text.add_line(if index == 0 { "limits" } else { "" }, &limit.map(describe_limit).unwrap_or_default());
    }
    if let Some(upstream) = config.upstreams.iter().find(|upstream| upstream.name == route.upstream) {
        text.add_line("upstream", &format!("{} at {}", upstream.name, format_url(&upstream.origin)));
    } else {
        text.add_line("upstream", "none: it serves decisions alone");
    }
    match &route.auth {
        Auth::Key(requirement) | Auth::Shadow(requirement) => list_headers(text, config, requirement),
        Auth::Public => text.add_line("sets", FORWARDING_HEADERS),
    }
    let credential = if matches!(route.auth, Auth::Shadow(_)) { "" } else { "Authorization, and " };
    text.add_line(
        "removes",
        &format!("{credential}every spelling of an identity header that the client sends"),
    );
}

const FORWARDING_HEADERS: &str = "X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Request-Id";

/// Lists the headers that a route sets, each with the condition under which it is sent.
fn list_headers(text: &mut Lines, config: &Config, requirement: &Requirement) {
    let headers = IdentityHeaders::new(config.identity.clone());
    let [org, org_external, user, user_external, roles, token] =
        config.identity.header_names().map(|name| title_case(name.as_str()));
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
        None => rows.push((format!("{}<Name>", title_case(&config.identity.claim_prefix)), "for each claim")),
        Some(claims) => rows.extend(claims.iter().filter_map(|claim| {
            let name = headers.claim_header(claim)?;
            Some((title_case(name.as_str()), "where the key has the claim"))
        })),
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (index, (name, when)) in rows.iter().enumerate() {
        text.add_line(if index == 0 { "sets" } else { "" }, &format!("{name:<width$}  {when}"));
    }
    text.add_more(FORWARDING_HEADERS);
}

/// `X-Org-Id` for `x-org-id`.
fn title_case(name: &str) -> String {
    let mut start = true;
    let title = |char: char| {
        let char = if start { char.to_ascii_uppercase() } else { char };
        start = char == '-';
        char
    };
    name.chars().map(title).collect()
}

pub(super) fn list_methods(route: &Route) -> String {
    let names = |methods: &Vec<Method>| methods.iter().map(Method::as_str).collect::<Vec<_>>().join(",");
    route.methods.as_ref().map_or_else(|| "any".to_owned(), names)
}

pub(super) fn describe_requirement(route: &Route) -> String {
    let mut text = match &route.auth {
        Auth::Public => "nothing".to_owned(),
        Auth::Key(Requirement { scope, roles, claims })
        | Auth::Shadow(Requirement { scope, roles, claims }) => {
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
    if matches!(route.auth, Auth::Shadow(_)) {
        text.push_str("; in shadow mode, nothing is refused for it");
    }
    if route.preflight {
        text.push_str("; CORS preflights pass without a key");
    }
    text
}

fn describe_limit(limit: &rate_limit::Settings) -> String {
    let rate_limit::Settings { name, by, quota, claim, max, .. } = limit;
    let by = match by {
        Subject::Organization => "organization",
        Subject::User => "user",
        Subject::Key => "key",
    };
    let per = humantime::format_duration(quota.per);
    let mut text =
        format!("{name}: {} requests in {per} for each {by}, {} at once", quota.requests, quota.burst);
    if let Some(claim) = claim {
        text.push_str(&format!("; the claim {claim} can set up to {max}"));
    }
    text
}

fn format_url(settings: &pool::Settings) -> String {
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

#[cfg(test)]
mod tests;
