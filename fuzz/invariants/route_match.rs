//! The most specific route takes a request, and the path decides before the method.
//!
//! Input: routes, one a line, as `GET,PUT api.test /v1/*` with `-` for any method or host; the request on the last, as
//! `GET api.test /v1/orders`.

use std::collections::BTreeSet;

use hyper::Method;
use keyward::rejection::Rejection;
use keyward::route::{Auth, Clash, Pattern, Route, RouteTable, Service};

use super::{NO_INPUT, naive};

pub fn route_match(data: &[u8]) -> &'static str {
    let Ok(text) = std::str::from_utf8(data) else { return NO_INPUT };
    let Some((lines, request)) = text.rsplit_once('\n') else { return NO_INPUT };
    let Some((method, host, path)) = words(request) else { return NO_INPUT };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return NO_INPUT };
    let routes: Vec<Route> = lines.lines().take(12).filter_map(route).collect();

    let clashes = clashes(&routes);
    let table = match RouteTable::new(routes.clone()) {
        Ok(table) => table,
        Err(found) => {
            assert_eq!(found, clashes);
            return "clash";
        }
    };
    assert_eq!(clashes, [], "none is found");

    let winners = naive::winners(&routes, host, path.as_bytes());
    let never = method == Method::TRACE || method == Method::CONNECT;
    match table.find(&method, host, path) {
        Err(Rejection::AmbiguousPath) => {
            let alike = naive::winners(&routes, host, path.as_bytes()).first().is_some_and(|own| {
                naive::rivals(&routes, host, path.as_bytes(), own).iter().any(|rival| {
                    let takes =
                        naive::place_of(&routes, rival).into_iter().find(|route| takes(route, &method));
                    takes.is_none_or(|route| route.auth != own.auth)
                })
            });
            assert!((alike || !is_plain(path)) && !never, "a plain path is refused: {path}");
            "ambiguous"
        }
        Err(Rejection::NoRoute) => {
            assert!(winners.is_empty() && !never, "{winners:?}");
            "no route"
        }
        Err(Rejection::MethodNotAllowed(_)) if never => "never",
        Err(Rejection::MethodNotAllowed(allow)) => {
            assert!(!winners.is_empty() && !winners.iter().any(|route| takes(route, &method)), "{winners:?}");
            let wanted: BTreeSet<&str> =
                winners.iter().flat_map(|route| route.methods.iter().flatten()).map(Method::as_str).collect();
            let allow = allow.to_str().unwrap();
            assert_eq!(allow.split(", ").filter(|name| !name.is_empty()).collect::<BTreeSet<_>>(), wanted);
            "not allowed"
        }
        Err(other) => panic!("{other:?}"),
        Ok(found) => {
            let expected: Vec<_> = winners.iter().filter(|route| takes(route, &method)).collect();
            assert!(!never && expected.len() == 1, "{method} {host} {path}: {expected:?}");
            assert_eq!(found.label, expected[0].label, "{method} {host} {path}");
            "found"
        }
    }
}

fn words(line: &str) -> Option<(&str, &str, &str)> {
    let (first, rest) = line.split_once(' ')?;
    let (second, third) = rest.split_once(' ')?;
    Some((first, second, third))
}

fn route(line: &str) -> Option<Route> {
    let (methods, host, path) = words(line)?;
    let all: Option<Vec<Method>> =
        methods.split(',').map(|name| Method::from_bytes(name.as_bytes()).ok()).collect();
    Some(Route {
        label: line.into(),
        host: (host != "-").then(|| host.to_ascii_lowercase().into()),
        pattern: Pattern::parse(path).ok()?,
        methods: if methods == "-" { None } else { Some(all?) },
        upstream: "".into(),
        service: Service::default(),
        auth: Auth::Public,
        preflight: false,
        rate_limits: Vec::new(),
    })
}

fn takes(route: &Route, method: &Method) -> bool {
    route.methods.as_ref().is_none_or(|methods| methods.contains(method))
}

/// Two routes of one place that one method could take both.
fn clashes(routes: &[Route]) -> Vec<Clash> {
    let mut clashes = Vec::new();
    for (second, two) in routes.iter().enumerate() {
        for (first, one) in routes[..second].iter().enumerate() {
            let place = (&one.host, one.pattern.to_string()) == (&two.host, two.pattern.to_string());
            let common = match (&one.methods, &two.methods) {
                (Some(one), Some(two)) => one.iter().any(|method| two.contains(method)),
                _ => true,
            };
            if place && common {
                clashes.push(Clash(first, second));
            }
        }
    }
    clashes.sort_by_key(|clash| (clash.0, clash.1));
    clashes
}

/// Whether nobody could read a path in two ways.
fn is_plain(path: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    path.starts_with('/')
        && path.bytes().all(harmless)
        && !path.contains("//")
        && !path.contains("./")
        && !path.ends_with('.')
}
