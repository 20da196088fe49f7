//! Warnings about combinations of routes that are probably not intended.

use std::iter::zip;

use crate::config::document::Place;
use crate::policy::Requirement;
use crate::route::{Auth, Pattern, Route};

/// Adds the warnings about routes. `numbers` are their indices in the file.
pub(super) fn warn_of_routes(numbers: &[usize], routes: &[Route], place: &Place<'_>) {
    let all: Vec<Numbered<'_>> =
        zip(numbers, routes).map(|(&number, route)| Numbered { number, route }).collect();
    warn_of_loose_hosts(&all, place);
    warn_of_strict_hosts(&all, place);
    warn_of_strict_exact_routes(&all, place);
    warn_of_similar_paths(&all, place);
}

#[derive(Clone, Copy)]
struct Numbered<'r> {
    number: usize,
    route: &'r Route,
}

/// Whether some client that `one` admits would be refused by `other`.
fn asks_less(one: &Route, other: &Route) -> bool {
    match (&one.auth, &other.auth) {
        (_, Auth::Public | Auth::Shadow(_)) => false,
        (Auth::Public | Auth::Shadow(_), Auth::Key(_)) => true,
        (Auth::Key(one), Auth::Key(other)) => !one.asks_same(other) && *other != Requirement::default(),
    }
}

fn is_same_service(one: &Route, other: &Route) -> bool {
    one.service.name == other.service.name
}

/// A route with a host takes precedence over one without, and clients choose the host.
fn warn_of_loose_hosts(all: &[Numbered<'_>], place: &Place<'_>) {
    for Numbered { number: wide, route: with_host } in all {
        let Some(host) = &with_host.host else { continue };
        let around = |route: &Route| {
            route.host.is_none()
                && is_same_service(route, with_host)
                && with_host.pattern.covers(&route.pattern)
                && asks_less(with_host, route)
        };
        for Numbered { number: strict, route } in all.iter().filter(|other| around(other.route)) {
            place.add_warning(format!(
                "routes[{wide}] lets clients that send the host {host} reach {} without the requirements of \
                 routes[{strict}]; set the same host in routes[{strict}], or no host in either",
                route.pattern
            ));
        }
    }
}

/// A route with a host only protects requests for that host.
fn warn_of_strict_hosts(all: &[Numbered<'_>], place: &Place<'_>) {
    for Numbered { number: strict, route } in all {
        let Some(host) = &route.host else { continue };
        let takes = |other: &&Numbered<'_>| {
            other.route.host.is_none()
                && other.route.pattern.covers(&route.pattern)
                && other.route.shares_method(route)
        };
        let winner = all.iter().filter(takes).max_by_key(|other| pattern_rank(&other.route.pattern));
        if let Some(Numbered { number: loose, route: other }) = winner
            && is_same_service(other, route)
            && asks_less(other, route)
        {
            place.add_warning(format!(
                "routes[{loose}] lets clients that send any host but {host} reach {} without the requirements of \
                 routes[{strict}]; set a host in routes[{loose}], or no host in either",
                route.pattern
            ));
        }
    }
}

/// An exact route does not match `/v1/rotate.json`, which some services treat as `/v1/rotate`.
fn warn_of_strict_exact_routes(all: &[Numbered<'_>], place: &Place<'_>) {
    for Numbered { number: strict, route } in all {
        let Pattern::Exact(path) = &route.pattern else { continue };
        let beside = Pattern::Exact(format!("{path}.json").into());
        let takes = |other: &&Numbered<'_>| {
            (other.route.host == route.host || other.route.host.is_none())
                && matches!(other.route.pattern, Pattern::Prefix(_))
                && other.route.pattern.covers(&beside)
                && other.route.shares_method(route)
        };
        let winner = all
            .iter()
            .filter(takes)
            .max_by_key(|other| (other.route.host.is_some(), pattern_rank(&other.route.pattern)));
        if let Some(Numbered { number: loose, route: other }) = winner
            && is_same_service(other, route)
            && asks_less(other, route)
        {
            place.add_warning(format!(
                "routes[{loose}] matches {path}.json without the requirements of routes[{strict}] for {path}: make sure that \
                 the service does not treat a path with a suffix as the path without it, as Rails does, or set the same \
                 requirements in routes[{loose}]"
            ));
        }
    }
}

/// Paths that differ only in letter case or a final slash are refused as ambiguous if their routes have different requirements.
fn warn_of_similar_paths(all: &[Numbered<'_>], place: &Place<'_>) {
    for (at, Numbered { number: second, route }) in all.iter().enumerate() {
        let refused = |other: &&Numbered<'_>| {
            other.route.host == route.host
                && other.route.pattern != route.pattern
                && other.route.pattern.is_like(
                    &route.pattern,
                    route.service.case_sensitive && other.route.service.case_sensitive,
                )
                && other.route.shares_method(route)
                && !(other.route.auth.asks_same(&route.auth) && is_same_service(other.route, route))
        };
        if let Some(Numbered { number: first, route: other }) = all[..at].iter().find(refused) {
            place.add_warning(format!(
                "requests for {} are refused as ambiguous: routes[{first}] has {}, and many services treat both as one path; \
                 set the same requirements for both or, if only letter case differs and the service distinguishes it, set \
                 case_sensitive_paths = true in its [upstreams] section (routes[{second}])",
                route.pattern, other.pattern
            ));
        }
    }
}

fn pattern_rank(pattern: &Pattern) -> (bool, usize) {
    match pattern {
        Pattern::Exact(path) => (true, path.len()),
        Pattern::Prefix(path) => (false, path.len()),
    }
}
