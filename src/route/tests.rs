//! Route tables and the readings of paths.

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
        service: Service::default(),
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
    let table =
        RouteTable::new(vec![route("/files/*", &[], Auth::Public), route("/files/all/secret", &[], key())]);
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
        "v1", "", "*", "/v1*", "/*/x", "/a?b", "/a#b", "/a%20b", "/a;b", "/a\\b", "//a", "/a//*", "/a/../b",
        "/é",
    ] {
        assert!(Pattern::parse(bad).is_err(), "{bad}");
    }
}
