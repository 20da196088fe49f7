//! Which route takes a request. The path is matched and forwarded as sent, byte for byte; a path that a backend could
//! read in another way, and that would then take another route, is refused.

pub mod changes;
mod reading;

use std::sync::Arc;

use hyper::Method;
use hyper::header::HeaderValue;

use self::reading::{has_dot_segment, readings};
use crate::policy::Requirement;
use crate::rejection::Rejection;

/// One `[[routes]]` of the file.
#[derive(Clone, Debug)]
pub struct Route {
    /// The label in logs and metrics: `name`, or else the host and path as written.
    pub label: Arc<str>,
    /// Only requests for this host, in lower case and without a port.
    pub host: Option<Box<str>>,
    /// Which paths.
    pub pattern: Pattern,
    /// Only these methods; `None` takes all but TRACE and CONNECT.
    pub methods: Option<Vec<Method>>,
    /// The name of the upstream.
    pub upstream: Arc<str>,
    /// What it takes to pass.
    pub auth: Auth,
    /// Whether a CORS preflight passes without a key.
    pub preflight: bool,
}

/// What it takes to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Nothing. No identity is set.
    Public,
    /// A valid key that meets the requirement.
    Key(Requirement),
}

/// A path as written in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This path alone.
    Exact(Box<str>),
    /// `/v1/*` is `Prefix("/v1")`: `/v1` and all below it. `/*` is `Prefix("")`.
    Prefix(Box<str>),
}

impl Pattern {
    /// Reads a pattern. The error says what would be right.
    ///
    /// # Errors
    /// For anything but a plain absolute path, with or without `/*` at its end.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (path, prefix) = match text.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if !text.starts_with('/') {
            return Err("a path begins with '/'");
        }
        if path.contains('*') {
            return Err("'*' may stand only at the end, as '/*', for everything below a segment");
        }
        if path.contains(['?', '#']) {
            return Err("a path has no query and no fragment");
        }
        if path.bytes().any(|byte| !byte.is_ascii_graphic()) || path.contains(['%', '\\', ';']) {
            return Err(
                "a path has visible ASCII without '%', '\\' and ';' only; wider prefixes take the rest",
            );
        }
        if path.contains("//") || (prefix && path.ends_with('/')) {
            return Err("a path has no empty segment");
        }
        if has_dot_segment(path.as_bytes()) {
            return Err("a path has no '.' or '..' segment");
        }
        Ok(if prefix { Self::Prefix(path.into()) } else { Self::Exact(path.into()) })
    }

    /// Whether it takes every path that the other takes.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(_), Self::Prefix(_)) => false,
            (_, Self::Exact(path) | Self::Prefix(path)) => self.takes(path.as_bytes()),
        }
    }

    fn takes(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == path,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_bytes())
                .is_some_and(|rest| matches!(rest.first(), None | Some(b'/'))),
        }
    }

    /// Higher wins.
    fn rank(&self) -> (bool, usize) {
        match self {
            Self::Exact(path) => (true, path.len()),
            Self::Prefix(path) => (false, path.len()),
        }
    }
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
pub struct RouteTable(Vec<Route>);

/// Two routes that could not be told apart, as places in the list given.
#[derive(Debug, PartialEq, Eq)]
pub struct Clash(pub usize, pub usize);

impl RouteTable {
    /// Sorts the routes: host before no host, exact before prefix, longer before shorter.
    ///
    /// # Errors
    /// The pairs that have the same host and path and a method in common.
    pub fn new(mut routes: Vec<Route>) -> Result<Self, Vec<Clash>> {
        let clashes: Vec<Clash> = (0..routes.len())
            .flat_map(|first| (first + 1..routes.len()).map(move |second| (first, second)))
            .filter(|&(first, second)| routes[first].clashes(&routes[second]))
            .map(|(first, second)| Clash(first, second))
            .collect();
        if !clashes.is_empty() {
            return Err(clashes);
        }
        routes.sort_by_key(|route| std::cmp::Reverse((route.host.is_some(), route.pattern.rank())));
        Ok(Self(routes))
    }

    /// The routes, the most specific first.
    pub fn routes(&self) -> &[Route] {
        &self.0
    }

    /// The route of a request.
    ///
    /// # Errors
    /// `AmbiguousPath`, `NoRoute`, or `MethodNotAllowed`: the path decides before the method. TRACE and CONNECT are
    /// never taken.
    pub fn find(&self, method: &Method, host: &str, path: &str) -> Result<&Route, Rejection> {
        if *method == Method::TRACE || *method == Method::CONNECT {
            return Err(Rejection::MethodNotAllowed(allow(&self.group(host, path).unwrap_or_default())));
        }
        let group = self.group(host, path)?;
        group
            .iter()
            .find(|route| route.takes_method(method))
            .copied()
            .ok_or_else(|| Rejection::MethodNotAllowed(allow(&group)))
    }

    /// The route that a CORS preflight (Fetch standard, section 3.2.2) for `method` asks about, if it may pass.
    pub fn find_preflight(&self, method: &Method, host: &str, path: &str) -> Option<&Route> {
        self.find(method, host, path).ok().filter(|route| route.preflight)
    }

    /// The routes of the winning path, which differ in their methods.
    fn group(&self, host: &str, path: &str) -> Result<Vec<&Route>, Rejection> {
        let path = path.as_bytes();
        let readings = readings(path)?;
        let winner = self.first(host, path);
        for reading in readings {
            let other = self.first(host, &reading);
            let same = match (winner, other) {
                (Some(winner), Some(other)) => winner.same_place(other),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !same {
                return Err(Rejection::AmbiguousPath);
            }
        }
        let winner = winner.ok_or(Rejection::NoRoute)?;
        Ok(self.0.iter().filter(|route| winner.same_place(route)).collect())
    }

    fn first(&self, host: &str, path: &[u8]) -> Option<&Route> {
        self.0.iter().find(|route| {
            route.host.as_deref().is_none_or(|own| own.eq_ignore_ascii_case(host))
                && route.pattern.takes(path)
        })
    }
}

impl Route {
    fn same_place(&self, other: &Self) -> bool {
        self.host == other.host && self.pattern == other.pattern
    }

    fn clashes(&self, other: &Self) -> bool {
        let overlap = match (&self.methods, &other.methods) {
            (Some(one), Some(two)) => one.iter().any(|method| two.contains(method)),
            (None, _) | (_, None) => true,
        };
        overlap && self.same_place(other)
    }

    fn takes_method(&self, method: &Method) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.contains(method))
    }
}

fn allow(group: &[&Route]) -> HeaderValue {
    let all = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let listed: Vec<&str> =
        group.iter().flat_map(|route| route.methods.iter().flatten()).map(Method::as_str).collect();
    let names = if group.iter().any(|route| route.methods.is_none()) { &all[..] } else { &listed };
    // Method names are tokens, and tokens are visible ASCII.
    HeaderValue::try_from(names.join(", ")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str, methods: &[Method], auth: Auth) -> Route {
        let (host, path) = match text.find('/') {
            Some(0) | None => (None, text),
            Some(at) => (Some(text[..at].into()), &text[at..]),
        };
        Route {
            label: text.into(),
            host,
            pattern: Pattern::parse(path).unwrap(),
            methods: (!methods.is_empty()).then(|| methods.to_vec()),
            upstream: "api".into(),
            auth,
            preflight: text == "/cors/*",
        }
    }

    fn table() -> RouteTable {
        let key = || Auth::Key(Requirement::default());
        RouteTable::new(vec![
            route("/*", &[], key()),
            route("/public/*", &[], Auth::Public),
            route("/healthz", &[Method::GET], Auth::Public),
            route("/v1/*", &[], key()),
            route("/v1/admin/*", &[Method::POST, Method::DELETE], key()),
            route("/v1/admin/*", &[Method::GET], key()),
            route("api.test/v1/*", &[], key()),
            route("/cors/*", &[Method::PUT], key()),
        ])
        .unwrap()
    }

    #[track_caller]
    fn check(method: Method, host: &str, path: &str, expected: Result<&str, &str>) {
        let table = table();
        let found = table.find(&method, host, path);
        assert_eq!(found.as_ref().map(|route| &*route.label).map_err(Rejection::code), expected, "{path}");
    }

    #[test]
    fn the_most_specific_route_wins() {
        for (path, expected) in [
            ("/", "/*"),
            ("/v1", "/v1/*"),
            ("/v1/", "/v1/*"),
            ("/v12", "/*"),
            ("/v1/orders", "/v1/*"),
            ("/V1/orders", "/*"),
            ("/v1/administrators", "/v1/*"),
            ("/healthz", "/healthz"),
            ("/healthz/", "/*"),
            ("/public/a%20b", "/public/*"),
        ] {
            check(Method::GET, "x", path, Ok(expected));
        }
        check(Method::GET, "API.test", "/v1/admin", Ok("api.test/v1/*"));
        check(Method::GET, "api.test", "/healthz", Ok("/healthz"));
    }

    #[test]
    fn the_path_decides_before_the_method() {
        check(Method::DELETE, "x", "/v1/admin/1", Ok("/v1/admin/*"));
        check(Method::PUT, "x", "/v1/admin/1", Err("method_not_allowed"));
        check(Method::POST, "x", "/healthz", Err("method_not_allowed"));
        check(Method::TRACE, "x", "/v1/orders", Err("method_not_allowed"));
        check(Method::CONNECT, "x", "/v1/orders", Err("method_not_allowed"));
        let Err(Rejection::MethodNotAllowed(allow)) = table().find(&Method::PUT, "x", "/v1/admin/1").cloned()
        else {
            panic!("PUT is not taken")
        };
        assert_eq!(allow, "POST, DELETE, GET");
    }

    #[test]
    fn no_route_is_404_but_trace_and_connect_are_405_everywhere() {
        let table = RouteTable::new(vec![route("/v1/*", &[Method::GET], Auth::Public)]).unwrap();
        assert_eq!(table.find(&Method::POST, "x", "/v2").err(), Some(Rejection::NoRoute));
        for (method, path) in [(Method::TRACE, "/v2"), (Method::TRACE, "/v1"), (Method::CONNECT, "")] {
            let rejection = table.find(&method, "x", path).err();
            assert_eq!(rejection.map(|rejection| rejection.code()), Some("method_not_allowed"));
        }
    }

    #[test]
    fn a_dot_segment_in_any_spelling_is_ambiguous() {
        for path in [
            "/..",
            "/.",
            "/v1/../public",
            "/v1/./x",
            "/v1/%2e%2e/x",
            "/v1/%2E./x",
            "/v1/..;x/y",
            "/v1/..;/y",
            "/v1/%2e%2e;a=b/y",
            "/v1\\..\\x",
            "/v1/..%5cx",
            "/v1/..%2fx",
            "/public/%252e%252e/v1",
            "/public/%252e%252e%252fv1",
            "/public/..%255cv1",
            "/v1/%25%32%65./x",
        ] {
            check(Method::GET, "x", path, Err("ambiguous_path"));
        }
    }

    #[test]
    fn a_broken_control_or_overlong_escape_is_ambiguous() {
        for path in [
            "/a%c0%af",
            "/a/%C0%AE%c0%ae/b",
            "/a%25c0%25af",
            "/a%e0%80%af",
            "/a%f0%80%80%af",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%00",
            "/a%0d%0a",
            "/a%7f",
            "/a%2500",
            "",
            "*",
            "x/y",
        ] {
            check(Method::GET, "x", path, Err("ambiguous_path"));
        }
    }

    #[test]
    fn a_path_that_another_reading_takes_elsewhere_is_ambiguous() {
        for path in [
            "//v1/orders",
            "/v1%2Fadmin",
            "/v1%2forders",
            "/v1%252forders",
            "/v1\\admin",
            "/v1%5Cadmin",
            "/v1%255Cadmin",
            "/v1;x/orders",
            "/v1//admin",
            "/public;/x",
            "/%76%31/orders",
            "/healthz;x",
            "/he%61lthz",
            "/v1/admin;x",
            "/v1/;/admin",
        ] {
            check(Method::GET, "x", path, Err("ambiguous_path"));
        }
    }

    #[test]
    fn parameters_may_be_cut_off_before_or_after_decoding() {
        let key = || Auth::Key(Requirement::default());
        let table = RouteTable::new(vec![
            route("/files/*", &[], Auth::Public),
            route("/files/all/secret", &[], key()),
        ]);
        let table = table.unwrap();
        // Cut, then decoded, as servlet containers do, each is /files/all/secret; decoded first, none is.
        for path in [
            "/files/all;x%2Fy/%73ecret",
            "/files/all;%2F/secre%74",
            "/files/all%3Bx%252Fy/%73ecret",
            "/files\\all;x%2Fy/secret",
        ] {
            let found = table.find(&Method::GET, "x", path);
            assert_eq!(found.err(), Some(Rejection::AmbiguousPath), "{path}");
        }
        assert!(table.find(&Method::GET, "x", "/files/some;x%2Fy/%73ecret").is_ok());
    }

    #[test]
    fn an_odd_path_that_every_reading_takes_the_same_way_passes() {
        for path in [
            "/v1/a%2Fb",
            "/v1/a;b=c/d",
            "/v1/orders//x",
            "/v1/100%25",
            "/v1/a\\b",
            "/v1/%C3%A9%E0%A0%80%F0%90%80%80",
            "/v1/%C0",
            "/v1/%E9",
            "/v1/...",
            "/v1/a..b",
        ] {
            check(Method::GET, "x", path, Ok("/v1/*"));
        }
    }

    #[test]
    fn a_preflight_is_found_by_the_method_it_asks_about() {
        let table = table();
        assert!(table.find_preflight(&Method::PUT, "x", "/cors/a").is_some());
        assert!(table.find_preflight(&Method::GET, "x", "/cors/a").is_none());
        assert!(table.find_preflight(&Method::GET, "x", "/v1/a").is_none());
    }

    #[test]
    fn routes_that_cannot_be_told_apart_clash() {
        let key = || Auth::Key(Requirement::default());
        let clash = RouteTable::new(vec![
            route("/a", &[Method::GET, Method::PUT], key()),
            route("/a/*", &[], key()),
            route("/a", &[Method::PUT], Auth::Public),
        ]);
        assert_eq!(clash.err(), Some(vec![Clash(0, 2)]));
    }

    #[test]
    fn a_pattern_that_could_be_read_in_two_ways_is_refused() {
        for bad in [
            "v1", "", "*", "/v1*", "/*/x", "/a?b", "/a#b", "/a%20b", "/a;b", "/a\\b", "//a", "/a//*",
            "/a/../b", "/é",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }
}
