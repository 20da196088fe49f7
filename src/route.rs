//! The route table. A path is matched and forwarded byte for byte as it was sent. A path is refused if the service could read it
//! in a way that matches a route with other requirements.

pub mod changes;
mod path_readings;

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use hyper::Method;
use hyper::header::HeaderValue;

use self::path_readings::{find_readings, has_dot_segment};
use crate::policy::Requirement;
use crate::rejection::Rejection;

/// An entry of `[[routes]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The label in logs and metrics: `name`, or else the host and path as written.
    pub label: Arc<str>,
    /// Only requests for this host, in lower case and without a port.
    pub host: Option<Box<str>>,
    /// The paths that it matches.
    pub pattern: Pattern,
    /// Only these methods; `None` for all but TRACE and CONNECT.
    pub methods: Option<Vec<Method>>,
    /// The name of the upstream; empty for a route that serves decisions alone.
    pub upstream: Arc<str>,
    /// The service behind that upstream.
    pub service: Service,
    /// What it requires.
    pub auth: Auth,
    /// Whether CORS preflights are forwarded without a key.
    pub preflight: bool,
    /// The names of the rate limits that count its requests.
    pub rate_limits: Vec<Arc<str>>,
}

/// A service. `[upstreams]` may list its address under several names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The name of the first upstream with its address.
    pub name: Arc<str>,
    /// Whether it distinguishes paths by letter case, by the settings of all its upstreams.
    pub case_sensitive: bool,
}

/// What a route requires of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// No key; no identity is set.
    Public,
    /// A valid key that meets the requirement.
    Key(Requirement),
    /// No key: the requirement is checked, and the result recorded, but no request is refused for it.
    Shadow(Requirement),
}

impl Auth {
    /// Whether requests without a valid key are forwarded.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Public | Self::Shadow(_))
    }
}

/// The path of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Only this path.
    Exact(Box<str>),
    /// `/v1/*` is `Prefix("/v1")` and matches `/v1` and all paths below it. `/*` is `Prefix("")`.
    Prefix(Box<str>),
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// What is wrong, for anything but a plain absolute path with or without `/*` at its end.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (path, prefix) = match text.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if !text.starts_with('/') {
            return Err("should begin with '/'");
        }
        if path.contains('*') {
            return Err("should have '*' only at the end, as in '/v1/*', which matches all paths below /v1");
        }
        if path.contains(['?', '#']) {
            return Err("should have no query and no fragment");
        }
        if path.bytes().any(|byte| !byte.is_ascii_graphic()) || path.contains(['%', '\\', ';']) {
            return Err(
                "should only have visible ASCII characters except '%', '\\' and ';'; use a prefix such as '/v1/*' for others",
            );
        }
        if path.contains("//") || (prefix && path.ends_with('/')) {
            return Err("should have no empty segment");
        }
        if has_dot_segment(path.as_bytes()) {
            return Err("should have no '.' or '..' segment");
        }
        Ok(if prefix { Self::Prefix(path.into()) } else { Self::Exact(path.into()) })
    }

    /// Whether it matches every path that the other matches.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(_), Self::Prefix(_)) => false,
            (_, Self::Exact(path) | Self::Prefix(path)) => self.matches_path(path.as_bytes()),
        }
    }

    /// Whether a service may treat both patterns as one, because they differ only in a final slash or, unless it is case-sensitive,
    /// in letter case.
    pub fn is_like(&self, other: &Self, case_sensitive: bool) -> bool {
        let case = if case_sensitive { Case::Compared } else { Case::Ignored };
        match (self, other) {
            (Self::Exact(_), Self::Exact(path)) => self.may_match(path.as_bytes(), case),
            (Self::Prefix(one), Self::Prefix(path)) => {
                one.len() == path.len() && self.may_match(path.as_bytes(), case)
            }
            _ => false,
        }
    }

    fn matches_path(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == path,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_bytes())
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'/'))),
        }
    }

    /// Whether a service that ignores a final slash, and with `Case::Ignored` letter case, could match the path with this pattern.
    fn may_match(&self, path: &[u8], case: Case) -> bool {
        let equal = |one: &[u8], other: &[u8]| match case {
            Case::Ignored => one.eq_ignore_ascii_case(other),
            Case::Compared => one == other,
        };
        match self {
            Self::Exact(exact) => equal(without_final_slash(exact.as_bytes()), without_final_slash(path)),
            Self::Prefix(prefix) => path.split_at_checked(prefix.len()).is_some_and(|(start, rest)| {
                matches!(rest.first(), None | Some(b'/')) && equal(start, prefix.as_bytes())
            }),
        }
    }
}

/// Whether paths are compared with letter case.
#[derive(Clone, Copy)]
enum Case {
    Ignored,
    Compared,
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{path}/*"),
        }
    }
}

/// All routes, the most specific first.
#[derive(Debug)]
pub struct RouteTable {
    routes: Vec<Route>,
    /// The ranges of `routes` that have the same host and path. The routes of such a place differ in their methods.
    places: Vec<Range<usize>>,
}

/// The indices of two routes that match the same requests.
#[derive(Debug, PartialEq, Eq)]
pub struct Clash(pub usize, pub usize);

/// Why a path is ambiguous.
#[derive(Debug, PartialEq, Eq)]
pub enum Ambiguity<'t> {
    /// It is refused with any routes, for this reason.
    Unsafe(&'static str),
    /// A service could read it as this path, which these routes match.
    Elsewhere(String, &'t [Route]),
}

/// The kind of request that a route is searched for.
#[derive(Clone, Copy)]
enum Query<'m> {
    Request(&'m Method),
    /// A CORS preflight for this method.
    Preflight(&'m Method),
}

enum Refusal<'t> {
    Ambiguous(Ambiguity<'t>),
    NoRoute,
    Method(&'t [Route]),
}

impl RouteTable {
    /// Sorts the routes: host before no host, exact before prefix, longer before shorter.
    ///
    /// # Errors
    /// The pairs that have the same host and path and a method in common.
    pub fn new(routes: Vec<Route>) -> Result<Self, Vec<Clash>> {
        let clashes: Vec<Clash> = (0..routes.len())
            .flat_map(|first| (first + 1..routes.len()).map(move |second| (first, second)))
            .filter(|&(first, second)| routes[first].clashes_with(&routes[second]))
            .map(|(first, second)| Clash(first, second))
            .collect();
        if !clashes.is_empty() {
            return Err(clashes);
        }
        // Routes of the same place are sorted next to each other.
        let first_of_place = |route: &Route| routes.iter().position(|other| route.same_place(other));
        let mut order: Vec<&Route> = routes.iter().collect();
        order.sort_by_cached_key(|route| (Reverse(route.rank()), first_of_place(route)));
        let routes: Vec<Route> = order.into_iter().cloned().collect();
        let mut places: Vec<Range<usize>> = Vec::new();
        for place in routes.chunk_by(Route::same_place) {
            let start = places.last().map_or(0, |last| last.end);
            places.push(start..start + place.len());
        }
        Ok(Self { routes, places })
    }

    /// The routes, the most specific first.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Finds the route of a request.
    ///
    /// # Errors
    /// `AmbiguousPath`, `NoRoute`, or `MethodNotAllowed` if only the method does not match, which is always so for TRACE and
    /// CONNECT.
    pub fn find(&self, method: &Method, host: &str, path: &str) -> Result<&Route, Rejection> {
        if *method == Method::TRACE || *method == Method::CONNECT {
            return Err(Rejection::MethodNotAllowed(allow_header(
                self.find_place(host, path.as_bytes()).unwrap_or_default(),
            )));
        }
        self.find_unambiguous(Query::Request(method), host, path).map_err(|refusal| match refusal {
            Refusal::Ambiguous(_) => Rejection::AmbiguousPath,
            Refusal::NoRoute => Rejection::NoRoute,
            Refusal::Method(place) => Rejection::MethodNotAllowed(allow_header(place)),
        })
    }

    /// Finds the route that a CORS preflight (Fetch standard, section 3.2.2) for `method` is about, if the preflight is allowed.
    pub fn find_preflight(&self, method: &Method, host: &str, path: &str) -> Option<&Route> {
        self.find_unambiguous(Query::Preflight(method), host, path).ok()
    }

    /// Why `find` returns `AmbiguousPath`, if it does.
    pub fn explain_ambiguity(&self, method: &Method, host: &str, path: &str) -> Option<Ambiguity<'_>> {
        match self.find_unambiguous(Query::Request(method), host, path) {
            Err(Refusal::Ambiguous(ambiguity)) => Some(ambiguity),
            _ => None,
        }
    }

    /// Finds the route if every way in which a service could read the path leads to a route with the same requirements. A request
    /// without a route is refused without this comparison.
    fn find_unambiguous(&self, query: Query<'_>, host: &str, path: &str) -> Result<&Route, Refusal<'_>> {
        let path = path.as_bytes();
        let readings = find_readings(path).map_err(|reason| Refusal::Ambiguous(Ambiguity::Unsafe(reason)))?;
        // Places before this one do not match any reading of the path.
        let similar = |place: &[Route]| place[0].pattern.may_match(path, Case::Ignored);
        let from = self.places_of(host).position(similar).ok_or(Refusal::NoRoute)?;
        let place = self.places_of(host).skip(from).find(|place| place[0].pattern.matches_path(path));
        let place = place.ok_or(Refusal::NoRoute)?;
        let route = query.find_route(place).ok_or(Refusal::Method(place))?;
        let readings = readings.iter().map(|reading| (0, reading.as_slice()));
        for (from, reading) in std::iter::once((from, path)).chain(readings) {
            if let Some(other) = differing_place(self.places_of(host).skip(from), query, reading, route) {
                let reading = String::from_utf8_lossy(reading).into_owned();
                return Err(Refusal::Ambiguous(Ambiguity::Elsewhere(reading, other)));
            }
        }
        Ok(route)
    }

    /// The routes of the most specific pattern that matches.
    fn find_place(&self, host: &str, path: &[u8]) -> Option<&[Route]> {
        self.places_of(host).find(|place| place[0].pattern.matches_path(path))
    }

    /// The places for a host, the most specific first. Each has at least one route.
    fn places_of(&self, host: &str) -> impl Iterator<Item = &[Route]> {
        let place = |range: &Range<usize>| self.routes.get(range.clone());
        self.places.iter().filter_map(place).filter(move |place| place[0].takes_host(host))
    }
}

/// Finds a place with other requirements that a service may match the path with when it ignores letter case or a final slash. Only
/// places at least as specific as the path's own are considered. The result is an empty slice if no place matches the path, as
/// such a request would be refused.
///
/// SECURITY: Express, Koa, ASP.NET Core and IIS ignore letter case and a final slash.
fn differing_place<'t>(
    places: impl Iterator<Item = &'t [Route]>,
    query: Query<'_>,
    path: &[u8],
    route: &Route,
) -> Option<&'t [Route]> {
    let mut own = None;
    for place in places {
        let first = &place[0];
        if own.is_some_and(|own| first.rank() < own) {
            break;
        }
        let are_distinguished =
            || route.service.case_sensitive && place.iter().all(|other| other.service.case_sensitive);
        if !first.pattern.may_match(path, Case::Ignored)
            || (are_distinguished() && !first.pattern.may_match(path, Case::Compared))
        {
            continue;
        }
        if !query.find_route(place).is_some_and(|other| query.is_same(route, other)) {
            return Some(place);
        }
        if first.pattern.matches_path(path) {
            own = Some(first.rank());
        }
    }
    own.is_none().then_some(&[])
}

impl Query<'_> {
    fn find_route<'t>(&self, place: &'t [Route]) -> Option<&'t Route> {
        let (method, preflight) = match self {
            Self::Request(method) => (method, false),
            Self::Preflight(method) => (method, true),
        };
        place.iter().find(|route| route.takes_method(method)).filter(|route| !preflight || route.preflight)
    }

    /// Whether both routes require the same of this request and forward it to the same service.
    fn is_same(&self, one: &Route, other: &Route) -> bool {
        let asks = match self {
            Self::Request(_) => one.auth.asks_same(&other.auth),
            Self::Preflight(_) => true,
        };
        asks && one.service.name == other.service.name
    }
}

impl Auth {
    /// Whether both admit the same clients.
    pub fn asks_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Public, Self::Public) | (Self::Shadow(_), Self::Shadow(_)) => true,
            (Self::Key(one), Self::Key(other)) => one.asks_same(other),
            _ => false,
        }
    }
}

impl Route {
    /// The specificity; the highest wins. A final slash of an exact path does not count.
    fn rank(&self) -> (bool, bool, usize) {
        let (exact, length) = match &self.pattern {
            Pattern::Exact(path) => (true, without_final_slash(path.as_bytes()).len()),
            Pattern::Prefix(path) => (false, path.len()),
        };
        (self.host.is_some(), exact, length)
    }

    fn same_place(&self, other: &Self) -> bool {
        self.host == other.host && self.pattern == other.pattern
    }

    fn clashes_with(&self, other: &Self) -> bool {
        self.shares_method(other) && self.same_place(other)
    }

    /// Whether both match some method.
    pub fn shares_method(&self, other: &Self) -> bool {
        match (&self.methods, &other.methods) {
            (Some(one), Some(two)) => one.iter().any(|method| two.contains(method)),
            (None, _) | (_, None) => true,
        }
    }

    fn takes_host(&self, host: &str) -> bool {
        self.host.as_deref().is_none_or(|own| own.eq_ignore_ascii_case(host))
    }

    fn takes_method(&self, method: &Method) -> bool {
        let forwarded = *method != Method::TRACE && *method != Method::CONNECT;
        forwarded && self.methods.as_ref().is_none_or(|methods| methods.contains(method))
    }
}

fn without_final_slash(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

fn allow_header(place: &[Route]) -> HeaderValue {
    let all = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let listed: Vec<&str> =
        place.iter().flat_map(|route| route.methods.iter().flatten()).map(Method::as_str).collect();
    let names = if place.iter().any(|route| route.methods.is_none()) { &all[..] } else { &listed };
    // Method names are tokens, and tokens are visible ASCII.
    HeaderValue::try_from(names.join(", ")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests;
