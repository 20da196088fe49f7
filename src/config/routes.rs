//! `[[routes]]`.

mod warnings;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hyper::Method;

use super::reader::{Found, Lines, Section, did_you_mean, dotted};
use super::urls::host;
use super::values::{boolean, choice, shown, text};
use crate::policy::{Requirement, Scope};
use crate::pool::Address;
use crate::route::{Auth, Clash, Pattern, Route, RouteTable, Service};
use crate::upstream;

/// The routes; `None` where there is a problem with one. Without any upstream, which is a problem already, each is accepted.
pub(super) fn read(
    sections: Option<Vec<Section<'_, '_>>>,
    settings: &[upstream::Settings],
    upstreams: &[Arc<str>],
    found: &Found,
    lines: &Lines<'_>,
    warnings: &mut Vec<String>,
) -> Option<RouteTable> {
    let sections = sections?;
    let places: Vec<usize> = sections.iter().map(Section::place).collect();
    let (before, mut names) = (found.count(), HashMap::new());
    // With their places in the file.
    let mut routes: Vec<(usize, Route)> = Vec::new();
    for (index, mut section) in sections.into_iter().enumerate() {
        let name = section.take("name", |value| name(text(value)?));
        if let Some(other) = name.as_ref().and_then(|name| names.insert(Arc::clone(name), index)) {
            section.problem("name", format!("is the name of routes[{other}] already"));
        }
        routes.extend(route(index, name, section, upstreams, found, warnings).map(|route| (index, route)));
    }
    let whole = found.count() == before;
    if whole {
        for upstream in upstreams {
            if !routes.iter().any(|(_, route)| route.upstream == *upstream) {
                warnings.push(format!("upstreams.{upstream} is used by no route"));
            }
        }
    }
    let (numbers, mut routes): (Vec<usize>, Vec<Route>) = routes.into_iter().unzip();
    let services = services(settings);
    for route in &mut routes {
        route.service = services.get(&route.upstream).cloned().unwrap_or_default();
    }
    warnings::warn(&numbers, &routes, warnings);
    tell_labels_apart(&mut routes);
    let clashes = match RouteTable::new(routes) {
        Ok(table) => return whole.then_some(table),
        Err(clashes) => clashes,
    };
    // Of three that are alike, the second and the third clash with the first; no more needs to be said.
    let mut said = HashSet::new();
    for Clash(first, second) in clashes.into_iter().filter(|clash| said.insert(clash.1)) {
        let (first, second) = (numbers[first], numbers[second]);
        let (line, _) = lines.place(places[first]);
        let text = format!(
            "has the same host, path and a method in common with routes[{first}] in line {line}, so that they cannot be \
             told apart; list different methods"
        );
        found.add(Some(places[second]), format!("routes[{second}]"), text);
    }
    None
}

/// The service of each upstream: upstreams with one address are one service.
fn services(upstreams: &[upstream::Settings]) -> HashMap<Arc<str>, Service> {
    let service = |upstream: &upstream::Settings| {
        let address = place_of(&upstream.origin.address);
        let mut names = upstreams.iter().filter(|other| place_of(&other.origin.address) == address);
        let case_sensitive = names.clone().all(|name| name.case_sensitive_paths);
        Service {
            name: names.next().map_or_else(Arc::default, |first| Arc::clone(&first.name)),
            case_sensitive,
        }
    };
    upstreams.iter().map(|upstream| (Arc::clone(&upstream.name), service(upstream))).collect()
}

/// An address in one spelling; a machine has one loopback, whatever it is called.
fn place_of(address: &Address) -> Address {
    match address {
        Address::Tcp(host, port)
            if ["localhost", "localhost.", "::1"].contains(&&*host.to_ascii_lowercase()) =>
        {
            Address::Tcp("127.0.0.1".into(), *port)
        }
        Address::Tcp(host, port) => Address::Tcp(host.to_ascii_lowercase().into(), *port),
        unix @ Address::Unix(_) => unix.clone(),
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

/// A route of which host, path and methods are known, even where something else is wrong: it may clash with another.
fn route(
    index: usize,
    name: Option<Arc<str>>,
    mut section: Section<'_, '_>,
    upstreams: &[Arc<str>],
    found: &Found,
    warnings: &mut Vec<String>,
) -> Option<Route> {
    let before = found.count();
    let pattern = section.require("path", "\"/v1/*\"", |value| pattern(&text(value)?));
    let host = section.take("host", |value| host(&text(value)?));
    let none = "would take no request; leave it out to take every method";
    let methods = section.list("methods", Some(none), method);
    if let Some(again) = methods.as_deref().and_then(first_repeated) {
        section.problem("methods", format!("lists {again} twice"));
    }
    for method in methods.iter().flatten().map(Method::as_str).filter(|method| !METHODS.contains(method)) {
        let hint = did_you_mean(method, METHODS.into_iter());
        if !hint.is_empty() {
            warnings.push(format!("routes[{index}].methods has {method:?}{hint}"));
        }
    }
    let has_place = found.count() == before;
    let example = format!("{:?}", upstreams.first().map_or("api", |name| name));
    let upstream = section.require("upstream", &example, |value| upstream(&text(value)?, upstreams));
    let public = section.take("auth", choice(&[("key", false), ("none", true)])).unwrap_or(false);
    let preflight = section.take("preflight", boolean).unwrap_or(false);
    let requirement = section.optional_section("require").map(requirement);
    if public && requirement.is_some() {
        section.problem(
            "require",
            "asks something of the key, and auth = \"none\" takes no key; remove one of them",
        );
    }
    section.finish();
    let pattern = pattern.filter(|_| has_place)?;
    if pattern.to_string().contains("/:") {
        warnings.push(format!("routes[{index}].path is matched as it stands: {pattern} has no parameters"));
    }
    if public && preflight {
        warnings.push(format!("routes[{index}].preflight adds nothing to auth = \"none\""));
    }
    if let Some(Requirement { scope: Some(Scope::Organization), roles, .. }) = &requirement
        && !roles.is_empty()
    {
        warnings
            .push(format!("routes[{index}].require lets nobody pass: an organization's key has no roles"));
    }
    let label = || format!("{}{pattern}", host.as_deref().unwrap_or_default()).into();
    Some(Route {
        label: name.unwrap_or_else(label),
        host,
        pattern,
        methods,
        // Without one there is a problem, and so no configuration.
        upstream: upstream.unwrap_or_default(),
        // Known once all upstreams are.
        service: Service::default(),
        auth: if public { Auth::Public } else { Auth::Key(requirement.unwrap_or_default()) },
        preflight,
    })
}

fn requirement(mut section: Section<'_, '_>) -> Requirement {
    if section.is_empty() {
        section.problem_with_all("asks for nothing; leave it out, and every good key passes");
    }
    let scopes = choice(&[("user", Scope::User), ("organization", Scope::Organization)]);
    let scope = section.take("scope", scopes);
    let none = "asks for no role; leave it out, or name the roles that a key must have";
    let roles = section.list("roles", Some(none), |role| match role {
        "" => Err("is empty, and no role is".to_owned()),
        role => Ok(role.to_owned()),
    });
    let claims = section.optional_section("claims");
    if let Some(claims) = claims.as_ref().filter(|claims| claims.is_empty()) {
        claims.problem_with_all("asks for no claim; leave it out, or name the claims that a key must have");
    }
    let claims = claims.map(|claims| claims.texts(|_, value| Ok(value.to_owned()))).unwrap_or_default();
    section.finish();
    Requirement { scope, roles: roles.unwrap_or_default(), claims: claims.into_iter().collect() }
}

fn pattern(given: &str) -> Result<Pattern, String> {
    if given.contains(['{', '}', '<', '>']) {
        return Err("should have no parameters; \"/v1/orders/*\" takes all below /v1/orders".to_owned());
    }
    if given == "*" {
        return Err("a path begins with '/'; did you mean \"/*\"?".to_owned());
    }
    Ok(Pattern::parse(given)?)
}

fn upstream(given: &str, known: &[Arc<str>]) -> Result<Arc<str>, String> {
    if known.is_empty() {
        return Ok(given.into());
    }
    let found = known.iter().find(|name| ***name == *given).cloned();
    found.ok_or_else(|| {
        let names = || known.iter().map(|name| &**name);
        let hint = match did_you_mean(given, names()) {
            hint if hint.is_empty() => {
                let names: Vec<String> = names().map(|name| dotted("", name)).collect();
                format!("; known are {}", names.join(", "))
            }
            hint => hint,
        };
        format!("no upstream is named {}{hint}", shown(given))
    })
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

fn method(given: &str) -> Result<Method, String> {
    let upper = given.to_ascii_uppercase();
    match Method::from_bytes(given.as_bytes()) {
        Ok(Method::TRACE | Method::CONNECT) => Err(format!("{given} is never forwarded")),
        Ok(_) if given != upper => Err(format!("methods are in capitals; did you mean {}?", shown(&upper))),
        Ok(method) => Ok(method),
        Err(_) => {
            Err(format!("{} is not a method{}", shown(given), did_you_mean(&upper, METHODS.into_iter())))
        }
    }
}

fn name(given: String) -> Result<Arc<str>, String> {
    let plain =
        (1..=128).contains(&given.len()) && given.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    plain.then(|| given.into()).ok_or_else(|| "should be 1 to 128 characters of printable ASCII".to_owned())
}

fn first_repeated(methods: &[Method]) -> Option<&Method> {
    methods.iter().enumerate().find(|(at, method)| methods[..*at].contains(method)).map(|(_, method)| method)
}
