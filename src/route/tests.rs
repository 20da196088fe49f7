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
        rate_limits: Vec::new(),
    }
}

fn role(name: &str) -> Auth {
    Auth::Key(Requirement { roles: vec![name.to_owned()], ..Requirement::default() })
}

fn table() -> RouteTable {
    let key = || Auth::Key(Requirement::default());
    RouteTable::new(vec![
        route("/*", &[], key()),
        route("/public/*", &[], Auth::Public),
        route("/healthz", &[Method::GET], Auth::Public),
        route("/v1/*", &[], role("reader")),
        route("/v1/admin/*", &[Method::POST, Method::DELETE], role("admin")),
        route("/v1/admin/*", &[Method::GET], role("auditor")),
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
fn most_specific_route_wins() {
    for (path, expected) in [
        ("/", "/*"),
        ("/v1", "/v1/*"),
        ("/v1/", "/v1/*"),
        ("/v12", "/*"),
        ("/v1/orders", "/v1/*"),
        ("/v1/administrators", "/v1/*"),
        ("/healthz", "/healthz"),
        ("/healthz/x", "/*"),
        ("/public/a%20b", "/public/*"),
    ] {
        check(Method::GET, "x", path, Ok(expected));
    }
    check(Method::GET, "API.test", "/v1/admin", Ok("api.test/v1/*"));
    check(Method::GET, "api.test", "/healthz", Ok("/healthz"));
}

#[test]
fn path_is_matched_before_method() {
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
fn missing_route_is_404_trace_and_connect_405() {
    let table = RouteTable::new(vec![route("/v1/*", &[Method::GET], Auth::Public)]).unwrap();
    assert_eq!(table.find(&Method::POST, "x", "/v2").err(), Some(Rejection::NoRoute));
    for (method, path) in [(Method::TRACE, "/v2"), (Method::TRACE, "/v1"), (Method::CONNECT, "")] {
        let rejection = table.find(&method, "x", path).err();
        assert_eq!(rejection.map(|rejection| rejection.code()), Some("method_not_allowed"));
    }
}

#[test]
fn dot_segment_in_any_spelling_is_ambiguous() {
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
fn broken_control_or_overlong_escape_is_ambiguous() {
    for path in [
        "/a%c0%af",
        "/a/%C0%AE%c0%ae/b",
        "/a%25c0%25af",
        "/a%e0%80%af",
        "/a%f0%80%80%af",
        "/a%f8%80%80%80%af",
        "/a%fc%80%80%80%80%af",
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
fn path_with_reading_on_other_route_is_ambiguous() {
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
fn path_parameters_are_cut_before_and_after_decoding() {
    let key = || Auth::Key(Requirement::default());
    let table =
        RouteTable::new(vec![route("/files/*", &[], Auth::Public), route("/files/all/secret", &[], key())]);
    let table = table.unwrap();
    // Cut, then decoded, as servlet containers do, each is /files/all/secret; decoded first, none is.
    for path in [
        "/files/all;x%2Fy/%73ecret",
        "/files/all;%2F/secre%74",
        "/files/all%3Bx%252Fy/%73ecret",
        "/files/all\\;x%2Fy/secret",
    ] {
        let found = table.find(&Method::GET, "x", path);
        assert_eq!(found.err(), Some(Rejection::AmbiguousPath), "{path}");
    }
    assert!(table.find(&Method::GET, "x", "/files/some;x%2Fy/%73ecret").is_ok());
}

#[test]
fn path_with_equivalent_readings_passes() {
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
fn two_leading_separators_are_read_as_an_authority() {
    for path in [
        "//x/v1/orders",
        "///x/v1/orders",
        "/\\x/v1/orders",
        "/\\\\x/v1/orders",
        "\\/x/v1",
        "/%2fx/v1/orders",
        "/%5Cx/v1/orders",
        "/%255cx/v1/orders",
        "//x:80/v1/orders",
        "//user@x/v1/orders",
        "//x\\v1/orders",
        "//x//y/v1/orders",
        "//x//v1/orders",
        "//x/V1%2forders",
    ] {
        check(Method::GET, "x", path, Err("ambiguous_path"));
    }
    check(Method::GET, "x", "//x/orders", Ok("/*"));
}

#[test]
fn letter_case_and_final_slash_bypass_no_route() {
    for path in [
        "/V1/orders",
        "/v1/Admin",
        "/v1/ADMIN/users",
        "/Healthz",
        "/healthz/",
        "/HEALTHZ/",
        "/healthz//",
        "/%48ealthz",
        "/%56%31/orders",
        "//x/V1;y/orders",
        "/v1/adm%C4%B1n",
        "/v1/adm\u{130}n",
    ] {
        check(Method::GET, "x", path, Err("ambiguous_path"));
    }
    // Nobody is served either way.
    check(Method::PUT, "x", "/v1/admin/", Err("method_not_allowed"));
}

#[test]
fn encoded_query_or_fragment_delimiter_ends_path() {
    let table =
        RouteTable::new(vec![route("/*", &[], Auth::Public), route("/v1/rotate", &[], role("admin"))]);
    let table = table.unwrap();
    for path in [
        "/v1/rotate;x/y",
        "/v1/rotate%3fx/y",
        "/v1/rotate%23/y",
        "/v1/rotate%3bx/y",
        "/v1/rotate%253f",
        "/v1/rotate.",
        "/v1./rotate",
        "/v1/rotate%20",
        "/v1/%20rotate%20./",
        "/v1/rotate/;x",
    ] {
        let found = table.find(&Method::GET, "x", path);
        assert_eq!(found.err(), Some(Rejection::AmbiguousPath), "{path}");
    }
    for path in ["/v1/rotate.json", "/v1/rotates", "/v1/a%3fb", "/v1/a%23b", "/v1/a;b/c", "/v1/a%20b."] {
        assert!(table.find(&Method::GET, "x", path).is_ok(), "{path}");
    }
}

/// The answer of a table with `/*` and `/api/*` for `GET path`.
fn of_two(root: Route, api: Route, path: &str) -> bool {
    RouteTable::new(vec![root, api]).unwrap().find(&Method::GET, "x", path).is_ok()
}

#[test]
fn readings_with_same_requirement_are_not_ambiguous() {
    let all = |auth| route("/*", &[], auth);
    let roles = |names: [&str; 2]| {
        Auth::Key(Requirement { roles: names.map(str::to_owned).to_vec(), ..Requirement::default() })
    };
    let asks_same = route("/api/*", &[], roles(["a", "b"]));
    for path in ["/API/x", "//api/x", "//x/api/y", "/api%2Fx", "/Api"] {
        assert!(of_two(all(roles(["b", "a"])), asks_same.clone(), path), "{path}");
        assert!(!of_two(all(role("a")), asks_same.clone(), path), "{path}");
        // The service of the wide route serves something at this path that no route lets through.
        let elsewhere = Service { name: "other".into(), case_sensitive: false };
        let other_service = Route { service: elsewhere, ..asks_same.clone() };
        assert!(!of_two(all(roles(["a", "b"])), other_service, path), "{path}");
        let other_method = Route { methods: Some(vec![Method::PUT]), ..asks_same.clone() };
        assert!(!of_two(all(roles(["a", "b"])), other_method, path), "{path}");
    }
}

#[test]
fn letter_case_counts_for_case_sensitive_services() {
    let cased = |route: Route, case_sensitive| Route {
        service: Service { name: "api".into(), case_sensitive },
        ..route
    };
    for (root, api, passes) in
        [(false, false, false), (true, false, false), (false, true, false), (true, true, true)]
    {
        let root = cased(route("/*", &[], Auth::Public), root);
        let api = cased(route("/api/*", &[], role("a")), api);
        assert_eq!(of_two(root.clone(), api.clone(), "/API/x"), passes);
        assert!(!of_two(root, api, "//x/api/x"), "only letter case is told apart");
    }
}

#[test]
fn similar_paths_with_different_requirements_are_ambiguous() {
    let exact =
        RouteTable::new(vec![route("/a", &[], Auth::Public), route("/a/", &[], role("admin"))]).unwrap();
    let prefix =
        RouteTable::new(vec![route("/a/*", &[], Auth::Public), route("/A/*", &[], role("admin"))]).unwrap();
    for (table, path) in [(&exact, "/a"), (&exact, "/a/"), (&prefix, "/a/x"), (&prefix, "/A/x")] {
        let found = table.find(&Method::GET, "x", path);
        assert_eq!(found.err(), Some(Rejection::AmbiguousPath), "{path}");
    }
}

#[test]
fn ambiguity_names_the_conflicting_reading() {
    let table = table();
    let Some(Ambiguity::Elsewhere(reading, place)) =
        table.explain_ambiguity(&Method::GET, "x", "//x/v1/admin/1")
    else {
        panic!("it is ambiguous")
    };
    assert_eq!((&*reading, &*place[0].label, place.len()), ("/v1/admin/1", "/v1/admin/*", 2));
    assert_eq!(table.explain_ambiguity(&Method::GET, "x", "/v1/orders"), None);
}

#[test]
fn long_path_with_too_many_readings_is_refused() {
    let table = table();
    let long = |part: &str| format!("/v1/{}", part.repeat(8 * 1024 / part.len()));
    for part in ["a", "%C3%A9", "%20", "a%2Fb", "a%3Db%26", "caf\u{e9}-"] {
        let found = table.find(&Method::GET, "x", &long(part));
        assert_eq!(found.map(|route| &*route.label), Ok("/v1/*"), "{part}");
    }
    for part in ["/a\\b;c%2F", "//a;b%5cc%253b"] {
        assert_eq!(
            table.find(&Method::GET, "x", &long(part)).err(),
            Some(Rejection::AmbiguousPath),
            "{part}"
        );
        let short = format!("/v1/{}", part.repeat(100 / part.len()));
        assert!(table.find(&Method::GET, "x", &short).is_ok(), "{part}");
    }
}

#[test]
fn preflight_route_is_found_by_requested_method() {
    let table = table();
    assert!(table.find_preflight(&Method::PUT, "x", "/cors/a").is_some());
    assert!(table.find_preflight(&Method::GET, "x", "/cors/a").is_none());
    assert!(table.find_preflight(&Method::GET, "x", "/v1/a").is_none());
    assert!(table.find_preflight(&Method::TRACE, "x", "/cors/a").is_none());
    assert!(table.find_preflight(&Method::PUT, "x", "/CORS/a").is_none());
    assert!(table.find_preflight(&Method::PUT, "x", "//x/v1/a").is_none());
}

#[test]
fn routes_with_same_place_and_method_clash() {
    let key = || Auth::Key(Requirement::default());
    let clash = RouteTable::new(vec![
        route("/a", &[Method::GET, Method::PUT], key()),
        route("/a/*", &[], key()),
        route("/a", &[Method::PUT], Auth::Public),
    ]);
    assert_eq!(clash.err(), Some(vec![Clash(0, 2)]));
}

#[test]
fn ambiguous_route_pattern_is_refused() {
    for bad in [
        "v1", "", "*", "/v1*", "/*/x", "/a?b", "/a#b", "/a%20b", "/a;b", "/a\\b", "//a", "/a//*", "/a/../b",
        "/é",
    ] {
        assert!(Pattern::parse(bad).is_err(), "{bad}");
    }
}
