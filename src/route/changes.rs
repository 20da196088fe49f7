//! The changes between two route tables that a reload warns about and delays: routes that are dropped, opened, added or require
//! less. A route that requires more is not reported.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use hyper::Method;

use super::{Auth, Pattern, Route, RouteTable};
use crate::policy::{Requirement, Scope};

/// How a route has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It no longer exists, or not for all of its methods. Its requests are refused, or matched by another route.
    Dropped,
    /// Requests that required a key, or were refused, are forwarded without one.
    Opened,
    /// It requires less than before.
    Loosened,
    /// It requires a key for requests that were refused before.
    Added,
}

/// One difference between two route tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How the route has changed.
    pub kind: Kind,
    /// The label of the route: the old one of a dropped route, the new one otherwise.
    pub route: Arc<str>,
    /// What was required before.
    pub from: String,
    /// What is required now.
    pub to: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.kind {
            Kind::Dropped => "drops",
            Kind::Opened => "opens",
            Kind::Loosened => "loosens",
            Kind::Added => "adds",
        };
        write!(f, "{verb} the route {:?}: from {} to {}", self.route, self.from, self.to)
    }
}

/// Lists the routes that `after` drops, opens, loosens or adds. Routes are compared by host, path and method, not by label, and
/// by their effect on requests: a new route within an older one that requires more counts as loosened.
pub fn compare_tables(before: &RouteTable, after: &RouteTable) -> Vec<Change> {
    let changed = |own: &RouteTable, other: &RouteTable| -> Vec<Route> {
        own.routes()
            .iter()
            .filter(|route| !other.routes().iter().any(|same| route.is_same_rule(same)))
            .cloned()
            .collect()
    };
    let differing = [changed(before, after), changed(after, before)].concat();
    let tables = || before.routes().iter().chain(after.routes());
    // Every method that a route names, and `None` for all others.
    let named: BTreeSet<&str> =
        tables().flat_map(|route| route.methods.iter().flatten()).map(Method::as_str).collect();
    let methods: Vec<Option<&str>> = named.into_iter().map(Some).chain([None]).collect();
    let mut changes: Vec<Change> = Vec::new();
    let mut seen = BTreeSet::new();
    for route in &differing {
        // A differing route may also change the result for the more specific patterns that it covers.
        for place in tables().filter(|place| route.pattern.covers(&place.pattern)) {
            if !seen.insert((route.host.as_deref(), place.pattern.to_string())) {
                continue;
            }
            for method in &methods {
                let at = |table| find_winner(table, route.host.as_deref(), &place.pattern, *method);
                if let Some(change) = find_change(at(before), at(after), &place.pattern)
                    && !changes.contains(&change)
                {
                    changes.push(change);
                }
            }
        }
    }
    changes.sort_by_key(|change| change.kind);
    changes
}

/// Finds the route that requests for this pattern match. A host or method of `None` stands for all that no route names.
fn find_winner<'a>(
    table: &'a RouteTable,
    host: Option<&str>,
    place: &Pattern,
    method: Option<&str>,
) -> Option<&'a Route> {
    let takes_host = |route: &&Route| route.host.is_none() || route.host.as_deref() == host;
    let winner = table.routes().iter().filter(takes_host).find(|route| route.pattern.covers(place))?;
    let takes_method = |route: &&Route| match (&route.methods, method) {
        (None, _) => true,
        (Some(methods), Some(method)) => methods.iter().any(|own| own.as_str() == method),
        (Some(_), None) => false,
    };
    table.routes().iter().filter(|route| winner.same_place(route)).find(takes_method)
}

fn find_change(before: Option<&Route>, after: Option<&Route>, place: &Pattern) -> Option<Change> {
    let change = |kind, label: &Arc<str>| {
        let [from, to] = [before, after].map(describe_route);
        Some(Change { kind, route: Arc::clone(label), from, to })
    };
    match (before, after) {
        (None, None) => None,
        (None, Some(now)) if now.auth.is_open() => change(Kind::Opened, &now.label),
        (None, Some(now)) => change(Kind::Added, &now.label),
        (Some(was), None) => change(Kind::Dropped, &was.label),
        // The route itself is gone, and another route matches its requests.
        (Some(was), Some(now))
            if was.pattern == *place && !was.same_place(now) && !now.takes_part_of(was) =>
        {
            change(Kind::Dropped, &was.label)
        }
        (Some(was), Some(now)) if !now.auth.asks_as_much_as(&was.auth) => {
            change(if now.auth.is_open() { Kind::Opened } else { Kind::Loosened }, &now.label)
        }
        (Some(was), Some(now)) if now.preflight && !was.preflight => change(Kind::Loosened, &now.label),
        (Some(_), Some(_)) => None,
    }
}

impl Route {
    /// Whether both match the same requests and require the same.
    fn is_same_rule(&self, other: &Self) -> bool {
        self.same_place(other)
            && self.methods == other.methods
            && self.auth == other.auth
            && self.preflight == other.preflight
    }

    /// Whether it matches only some of the other's requests, because it is for one host.
    fn takes_part_of(&self, other: &Self) -> bool {
        self.host.is_some() && other.host.is_none()
    }
}

impl Auth {
    /// Whether every client that this admits is admitted by the other, too.
    fn asks_as_much_as(&self, other: &Self) -> bool {
        match (self, other) {
            (_, other) if other.is_open() => true,
            (Self::Key(own), Self::Key(other)) => own.includes(other),
            _ => false,
        }
    }
}

fn describe_route(route: Option<&Route>) -> String {
    let Some(route) = route else { return "no route".to_owned() };
    let mut text = match &route.auth {
        Auth::Public => "no key".to_owned(),
        Auth::Shadow(_) => "no key (shadow mode)".to_owned(),
        Auth::Key(Requirement { scope, roles, claims }) => {
            let mut text = "a key".to_owned();
            match scope {
                None => {}
                Some(Scope::User) => text.push_str(" of scope user"),
                Some(Scope::Organization) => text.push_str(" of scope organization"),
            }
            if !roles.is_empty() {
                text.push_str(&format!(", roles {roles:?}"));
            }
            if !claims.is_empty() {
                text.push_str(&format!(", claims {claims:?}"));
            }
            text
        }
    };
    if route.preflight {
        text.push_str(", preflights pass");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[host]/path[ METHOD,…] none|key|user|preflight|ROLE+ROLE`
    fn table(lines: &[&str]) -> RouteTable {
        let route = |line: &&str| {
            let words: Vec<&str> = line.split(' ').collect();
            let (place, methods, auth) = match words[..] {
                [place, auth] => (place, None, auth),
                [place, methods, auth] => (place, Some(methods), auth),
                _ => panic!("{line}"),
            };
            let at = place.find('/').unwrap();
            let requirement = match auth {
                "key" | "preflight" => Requirement::default(),
                "user" => Requirement { scope: Some(Scope::User), ..Requirement::default() },
                "claim" => {
                    Requirement { claims: [("a".into(), "b".into())].into(), ..Requirement::default() }
                }
                roles => Requirement {
                    roles: roles.split('+').map(str::to_owned).collect(),
                    ..Requirement::default()
                },
            };
            Route {
                label: place.into(),
                host: (at > 0).then(|| place[..at].into()),
                pattern: Pattern::parse(&place[at..]).unwrap(),
                methods: methods.map(|all| all.split(',').map(|name| name.parse().unwrap()).collect()),
                upstream: "api".into(),
                service: Default::default(),
                auth: if auth == "none" { Auth::Public } else { Auth::Key(requirement) },
                preflight: auth == "preflight",
                rate_limits: Vec::new(),
            }
        };
        RouteTable::new(lines.iter().map(route).collect()).unwrap()
    }

    #[track_caller]
    fn check(before: &[&str], after: &[&str], expected: &[(Kind, &str)]) {
        let changes = compare_tables(&table(before), &table(after));
        let found: Vec<(Kind, &str)> = changes.iter().map(|change| (change.kind, &*change.route)).collect();
        assert_eq!(found, expected, "{changes:?}");
    }

    use Kind::{Added, Dropped, Loosened, Opened};

    #[test]
    fn equal_or_stricter_table_has_no_changes() {
        check(&["/* none", "/admin/* key"], &["/admin/* key", "/* none"], &[]);
        check(&["/* none"], &["/* key"], &[]);
        check(&["/* key"], &["/* user"], &[]);
        check(&["/* admin"], &["/* admin+reader"], &[]);
        check(&["/* key"], &["/* claim"], &[]);
        check(&["/* preflight"], &["/* key"], &[]);
        check(&["/* key"], &["/* key", "/admin/* admin"], &[]);
        check(&["/* key"], &["/* key", "a.test/* key"], &[]);
        check(&["/* none"], &["/* none", "/admin/* key"], &[]);
        check(&[], &[], &[]);
    }

    #[test]
    fn dropped_route_is_found_by_host_path_method() {
        check(&["/* none", "/admin/* key"], &["/* none"], &[(Dropped, "/admin/*")]);
        check(&["/a key", "/b key"], &["/a key"], &[(Dropped, "/b")]);
        check(&["/* key", "/b key"], &["/* key"], &[(Dropped, "/b")]);
        check(&["/* key", "/admin/* admin"], &["/* key"], &[(Dropped, "/admin/*")]);
        check(&["a.test/* key", "/* key"], &["/* key"], &[(Dropped, "a.test/*")]);
        check(&["/a GET,POST key"], &["/a GET key"], &[(Dropped, "/a")]);
        check(&["/a key"], &["/a GET key"], &[(Dropped, "/a")]);
        check(&["/a key"], &[], &[(Dropped, "/a")]);
    }

    #[test]
    fn route_change_to_public_is_always_found() {
        check(&["/* key"], &["/* none"], &[(Opened, "/*")]);
        check(&["/* key"], &["/* key", "/public/* none"], &[(Opened, "/public/*")]);
        check(&["/a key"], &["/a key", "/b none"], &[(Opened, "/b")]);
        check(&["/a GET key", "/a POST key"], &["/a GET none", "/a POST key"], &[(Opened, "/a")]);
        // A route with a host goes before those without.
        check(
            &["/* none", "/admin/* key"],
            &["/* none", "/admin/* key", "a.test/* none"],
            &[(Opened, "a.test/*")],
        );
    }

    #[test]
    fn loosened_requirement_is_found_in_every_part() {
        check(&["/* user"], &["/* key"], &[(Loosened, "/*")]);
        check(&["/* user"], &["/* admin"], &[(Loosened, "/*")]);
        check(&["/* admin+reader"], &["/* admin"], &[(Loosened, "/*")]);
        check(&["/* claim"], &["/* key"], &[(Loosened, "/*")]);
        check(&["/* key"], &["/* preflight"], &[(Loosened, "/*")]);
        check(&["/* admin"], &["/* admin", "/v1/* key"], &[(Loosened, "/v1/*")]);
        check(
            &["/* admin", "/v1/* admin+reader"],
            &["/* key", "/v1/* admin"],
            &[(Loosened, "/v1/*"), (Loosened, "/*")],
        );
    }

    #[test]
    fn added_route_is_found_where_requests_were_refused() {
        check(&["/a key"], &["/a key", "/b key"], &[(Added, "/b")]);
        check(&["/a GET key"], &["/a key"], &[(Added, "/a")]);
    }

    #[test]
    fn change_names_the_route_and_both_requirements() {
        let changes = compare_tables(&table(&["/* user"]), &table(&["/* none"]));
        assert_eq!(changes[0].to_string(), "opens the route \"/*\": from a key of scope user to no key");
        let changes = compare_tables(&table(&["/* admin"]), &table(&[]));
        assert_eq!(
            changes[0].to_string(),
            "drops the route \"/*\": from a key, roles [\"admin\"] to no route"
        );
    }
}
