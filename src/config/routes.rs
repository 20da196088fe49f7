//! Converts `[[routes]]` to the route table.

mod warnings;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hyper::Method;
use toml::Spanned;

use super::diagnostics::{Lines, did_you_mean, quote_text};
use super::document::{Place, join_key};
use super::file::{self, Authentication, Mode};
use super::rate_limits::RateLimits;
use super::urls::read_host;
use super::values::tables::Table;
use super::values::{FromText, Text};
use crate::policy::{Requirement, Scope};
use crate::pool::Address;
use crate::route::{Auth, Clash, Pattern, Route, RouteTable, Service};
use crate::upstream;

/// A route with its index and its place in the file.
struct Numbered<'f> {
    index: usize,
    place: Place<'f>,
    route: Route,
}

/// `None` if there is a problem with a route. If no upstream is defined, which is a problem of its own, any name is accepted.
pub(super) fn convert_routes(
    file: Vec<Spanned<Table<file::Route>>>,
    root: &Place<'_>,
    upstreams: &[upstream::Settings],
    lines: &Lines<'_>,
    has_decision: bool,
    rate_limits: &RateLimits,
) -> Option<RouteTable> {
    let (place, names) = (root.child("routes"), root.child("upstreams").key_names());
    if !place.exists() || place.is_empty() {
        place.add_problem("is missing or empty, so nothing would be forwarded; add [[routes]]");
        return None;
    }
    let mut is_whole = !place.is_faulty();
    let (mut routes, mut labels): (Vec<Numbered<'_>>, _) = (Vec::new(), HashMap::new());
    let mut places = place.items_by_position();
    for route in file {
        let Some((index, place)) = places.remove(&route.span().start) else {
            // SECURITY: a route is never left out, as a route with fewer requirements could then match its requests.
            place.add_problem("has a route that cannot be found in the file");
            is_whole = false;
            continue;
        };
        let route = route.into_inner().0;
        let name = route.name.as_ref().map(|name| name.0.0.clone());
        if let Some(other) = name.and_then(|name| labels.insert(name, index)) {
            place.child("name").add_problem(format!("is already the name of routes[{other}]"));
            is_whole = false;
        }
        let converted = convert_route(index, route, &place, &names, has_decision, rate_limits);
        is_whole &= converted.is_sound;
        routes.extend(converted.route.map(|route| Numbered { index, place, route }));
    }
    if is_whole {
        for name in names.iter().filter(|name| routes.iter().all(|route| *route.route.upstream != ***name)) {
            root.add_warning(format!("upstreams.{name} is not used by any route"));
        }
    }
    let (indices, places): (Vec<usize>, Vec<Place<'_>>) =
        routes.iter().map(|route| (route.index, route.place.clone())).unzip();
    let mut routes: Vec<Route> = routes.into_iter().map(|route| route.route).collect();
    let services = group_services(upstreams);
    for route in &mut routes {
        route.service = services.get(&route.upstream).cloned().unwrap_or_default();
    }
    warnings::warn_of_routes(&indices, &routes, root);
    tell_labels_apart(&mut routes);
    let clashes = match RouteTable::new(routes) {
        Ok(table) => return is_whole.then_some(table),
        Err(clashes) => clashes,
    };
    // Each route is reported once: of three that clash, the second and the third, both with the first.
    let mut said = HashSet::new();
    for Clash(first, second) in clashes.into_iter().filter(|clash| said.insert(clash.1)) {
        let (line, _) = lines.find_position(places[first].at);
        let first = indices[first];
        places[second].add_problem(format!(
            "has the same host and path and a common method with routes[{first}] in line {line}, so both match the same \
             requests; list different methods"
        ));
    }
    None
}

/// The service of each upstream. Upstreams with the same address are one service.
fn group_services(upstreams: &[upstream::Settings]) -> HashMap<Arc<str>, Service> {
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

/// Normalizes an address. All names of the loopback address are the same.
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

/// Adds the methods to the labels of routes that differ only in their methods.
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

/// A route. It is present if host, path and methods are valid, even if something else is not, so that clashes are found.
struct Converted {
    route: Option<Route>,
    is_sound: bool,
}

fn convert_route(
    index: usize,
    file: file::Route,
    place: &Place<'_>,
    upstreams: &[&str],
    has_decision: bool,
    rate_limits: &RateLimits,
) -> Converted {
    let known = place.problem_count();
    let pattern = place.require_key("path", file.path, "\"/v1/*\"").map(|path| path.0);
    let methods: Option<Vec<Method>> =
        file.methods.map(|methods| methods.into_iter().map(|method| method.0).collect());
    check_methods(index, methods.as_deref(), &place.child("methods"));
    let is_placed = place.problem_count() == known
        && !["path", "host", "methods"].iter().any(|key| place.child(key).is_faulty());
    let example = format!("{:?}", upstreams.first().unwrap_or(&"api"));
    let upstream = match file.upstream {
        None if has_decision => None,
        upstream => place.require_key("upstream", upstream, &example),
    };
    let upstream = place.convert_value("upstream", upstream, |name| check_upstream(name, upstreams));
    let is_public = file.auth.0 == Authentication::None;
    let is_shadow = file.mode.0 == Mode::Shadow;
    if is_public && is_shadow {
        place.child("mode").add_problem("has nothing to check with auth = \"none\"; remove one of them");
    }
    let requirement = file.require.map(|require| convert_requirement(require.0, &place.child("require")));
    if is_public && place.has_key("require") {
        place.child("require").add_problem(
            "requires a key, but auth = \"none\" accepts requests without one; remove one of them",
        );
    }
    let rate_limits = rate_limits.of_route(file.rate_limits, is_public, &place.child("rate_limits"));
    let is_sound = place.problem_count() == known && !place.is_faulty();
    let Some(pattern) = pattern.filter(|_| is_placed) else { return Converted { route: None, is_sound } };
    if pattern.to_string().contains("/:") {
        place.add_warning(format!(
            "routes[{index}].path is matched literally, as there are no parameters: {pattern}"
        ));
    }
    if is_shadow {
        place.add_warning(format!(
            "routes[{index}] ({pattern}) is in shadow mode: requests without a valid key are forwarded, with their own Authorization"
        ));
    }
    if is_public && file.preflight {
        place.add_warning(format!("routes[{index}].preflight has no effect with auth = \"none\""));
    }
    if let Some(Requirement { scope: Some(Scope::Organization), roles, .. }) = &requirement
        && !roles.is_empty()
    {
        place.add_warning(format!(
            "routes[{index}].require admits no key: an organization's key has no roles"
        ));
    }
    let host = file.host.map(|host| host.0.0);
    let label = || format!("{}{pattern}", host.as_deref().unwrap_or_default()).into();
    let route = Route {
        label: file.name.map_or_else(label, |name| name.0.0),
        host,
        pattern,
        methods,
        // If a missing one is a problem, it is reported, and the route is not used.
        upstream: upstream.unwrap_or_default(),
        // Set once all upstreams are known.
        service: Service::default(),
        auth: match (is_public, is_shadow) {
            (true, _) => Auth::Public,
            (false, true) => Auth::Shadow(requirement.unwrap_or_default()),
            (false, false) => Auth::Key(requirement.unwrap_or_default()),
        },
        preflight: file.preflight,
        rate_limits,
    };
    Converted { route: Some(route), is_sound }
}

fn check_methods(index: usize, methods: Option<&[Method]>, place: &Place<'_>) {
    if place.is_empty() {
        place.add_problem("is empty, so no request would match; omit it to match every method");
    }
    if let Some(again) = methods.and_then(first_repeated) {
        place.add_problem(format!("lists {again} twice"));
    }
    for method in methods.into_iter().flatten().map(Method::as_str).filter(|method| !METHODS.contains(method))
    {
        let hint = did_you_mean(method, METHODS);
        if !hint.is_empty() {
            place.add_warning(format!("routes[{index}].methods has {method:?}{hint}"));
        }
    }
}

fn convert_requirement(file: file::Require, place: &Place<'_>) -> Requirement {
    for (place, problem) in [
        (place.clone(), "is empty; omit it to accept every valid key"),
        (place.child("roles"), "is empty; omit it, or list the roles that a key must have"),
        (place.child("claims"), "is empty; omit it, or list the claims that a key must have"),
    ] {
        if place.is_empty() {
            place.add_problem(problem);
        }
    }
    Requirement {
        scope: file.scope.map(|scope| scope.0),
        roles: file.roles.into_iter().flatten().map(|Text(RoleName(role))| role).collect(),
        claims: file.claims.map(|claims| claims.0.into_iter().collect()).unwrap_or_default(),
    }
}

impl FromText for Pattern {
    fn parse_text(text: &str) -> Result<Self, String> {
        if text.contains(['{', '}', '<', '>']) {
            return Err(
                "should have no parameters; \"/v1/orders/*\" matches all paths below /v1/orders".to_owned()
            );
        }
        if text == "*" {
            return Err("should begin with '/'; did you mean \"/*\"?".to_owned());
        }
        Ok(Self::parse(text)?)
    }
}

fn check_upstream(name: String, known: &[&str]) -> Result<Arc<str>, String> {
    if known.is_empty() || known.contains(&name.as_str()) {
        return Ok(name.into());
    }
    let hint = match did_you_mean(&name, known.iter().copied()) {
        hint if hint.is_empty() => {
            let names: Vec<String> = known.iter().map(|name| join_key("", name)).collect();
            format!("; known upstreams are {}", names.join(", "))
        }
        hint => hint,
    };
    Err(format!("there is no upstream named {}{hint}", quote_text(&name)))
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

impl FromText for Method {
    fn parse_text(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        match Self::from_bytes(text.as_bytes()) {
            Ok(Self::TRACE | Self::CONNECT) => Err(format!("{text} is never forwarded")),
            Ok(_) if text != upper => {
                Err(format!("should be in capital letters; did you mean {}?", quote_text(&upper)))
            }
            Ok(method) => Ok(method),
            Err(_) => Err(format!("{} is not a method{}", quote_text(text), did_you_mean(&upper, METHODS))),
        }
    }
}

pub(super) struct Host(Box<str>);

impl FromText for Host {
    fn parse_text(text: &str) -> Result<Self, String> {
        read_host(text).map(Self)
    }
}

pub(super) struct RouteName(Arc<str>);

impl FromText for RouteName {
    fn parse_text(text: &str) -> Result<Self, String> {
        let is_plain = (1..=128).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        let problem = || "should be 1 to 128 characters of printable ASCII".to_owned();
        is_plain.then(|| Self(text.into())).ok_or_else(problem)
    }
}

pub(super) struct RoleName(String);

impl FromText for RoleName {
    fn parse_text(text: &str) -> Result<Self, String> {
        let problem = || "should not be empty".to_owned();
        (!text.is_empty()).then(|| Self(text.to_owned())).ok_or_else(problem)
    }
}

fn first_repeated(methods: &[Method]) -> Option<&Method> {
    methods.iter().enumerate().find(|(at, method)| methods[..*at].contains(method)).map(|(_, method)| method)
}
