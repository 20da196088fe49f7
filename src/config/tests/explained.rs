//! What `keyward check` and `keyward explain` show.

use super::*;

#[test]
fn routes_stand_in_a_table_the_most_specific_first() {
    let expected = "\
HOST             PATH         METHODS      ASKS FOR                                            UPSTREAM
api.example.com  /*           any          a key; CORS preflights pass without a key           grpc
any              /healthz     any          nothing                                             orders
any              /v1/admin/*  POST,DELETE  a user's key, role admin, claim env = \"production\"  orders
any              /*           any          a key                                               orders
";
    assert_eq!(describe_routes(&read("tests/config/valid/full.toml")), expected);
}

#[track_caller]
fn check(config: &Config, method: &str, target: &str, expected: &str) {
    let text = format!("{method} {target}\n\n  {expected}");
    assert_eq!(explain(config, method, target), Ok(text));
}

#[test]
fn a_request_that_passes_is_explained() {
    let config = read("tests/config/valid/full.toml");
    let admin = "\
route       /v1/admin/*
  asks for    a user's key, role admin, claim env = \"production\"
  upstream    orders at http://127.0.0.1:8080
  sets        X-Org-Id            always
              X-Org-External-Id   where Scalekit has one
              X-Token-Id          where Scalekit has one
              X-Person            always
              X-User-External-Id  where Scalekit has one
              X-Roles             where the user has any
              X-Claim-Plan        where the key has the claim
              X-Claim-Cost        where the key has the claim
              X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Request-Id
  removes     Authorization, and every spelling of an identity header that the caller sends
";
    check(&config, "POST", "http://a.test/v1/admin/x?y=z", admin);
    check(&config, "DELETE", "http://other.test:1/v1/admin", admin);
    let public = "\
route       /healthz
  asks for    nothing
  upstream    orders at http://127.0.0.1:8080
  sets        X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Request-Id
  removes     Authorization, and every spelling of an identity header that the caller sends
";
    check(&config, "GET", "http://a.test/healthz", public);
    // A path alone is for no host in particular.
    let note = "  note        a host that a route names is another matter; ask with a whole URL, as in\n              \
                http://api.example.com/healthz\n";
    check(&config, "GET", "/healthz", &format!("{public}{note}"));
    // A host wins over a longer path.
    let host = explain(&config, "GET", "https://API.example.com:8443/v1/admin/x").unwrap();
    assert!(
        host.contains(
            "\n  route       api.example.com/*\n  asks for    a key; CORS preflights pass without a key\n"
        ),
        "{host}"
    );
    assert!(host.contains("  upstream    grpc at h2c://127.0.0.1:9090\n"), "{host}");
}

#[test]
fn every_kind_of_upstream_is_shown_as_it_is_written() {
    let config = read("tests/config/valid/upstreams.toml");
    for (path, url) in [
        ("/http", "http://127.0.0.1:80"),
        ("/https", "https://api.internal:443"),
        ("/h2c", "h2c://[::1]:9090"),
        ("/unix", "unix:/run/app.sock"),
    ] {
        let explained = explain(&config, "GET", path).unwrap();
        assert!(explained.contains(&format!("  upstream    {} at {url}\n", &path[1..])), "{explained}");
    }
    let organization = explain(&config, "GET", "/unix").unwrap();
    assert!(organization.contains("  asks for    an organization's key\n"), "{organization}");
    assert!(!organization.contains("X-User-") && !organization.contains("X-Roles"), "{organization}");
    assert!(organization.contains("  X-Claim-<Name>     for each claim\n"), "{organization}");
    let any = explain(&config, "GET", "/http").unwrap();
    assert!(any.contains("  X-Roles             for a user's key, where the user has any\n"), "{any}");
}

#[test]
fn a_request_that_is_refused_is_explained() {
    let config = read("tests/config/valid/full.toml");
    let refused = |answer: &str, reason: &str| {
        format!("answer      {answer}\n  because     {reason}\n  upstream    nothing is forwarded\n")
    };
    let method =
        refused("405 Method Not Allowed, method_not_allowed", "the routes of this path take POST, DELETE");
    check(&config, "GET", "http://a.test/v1/admin/x", &method);
    let path =
        refused("400 Bad Request, ambiguous_path", "the path has a '.' or '..' segment in some spelling");
    check(&config, "GET", "/v1/../x", &path);
    let reading = |reading: &str, routes: &str| {
        let because =
            format!("a service may read the path as {reading}, which is for\n              {routes}");
        refused("400 Bad Request, ambiguous_path", &because)
    };
    let admin = "/v1/admin/* (a user's key, role admin, claim env = \"production\", upstream orders)";
    check(&config, "POST", "http://a.test/V1/Admin", &reading("/V1/Admin", admin));
    check(&config, "GET", "http://a.test//x/v1/admin/1", &reading("/v1/admin/1", admin));
    check(
        &config,
        "GET",
        "http://a.test/healthz/",
        &reading("/healthz/", "/healthz (nothing, upstream orders)"),
    );
    let scheme =
        refused("400 Bad Request, malformed_request", "The target's scheme is neither http nor https.");
    check(&config, "GET", "ftp://a.test/", &scheme);
    let only = parse(&format!("version = 1\n{REST}").replace("/*", "/v1"), "f", &environment()).unwrap();
    check(&only, "GET", "/v1/", &refused("404 Not Found, no_route", "no route takes this path"));
    let long = format!("/{}", "a".repeat(16 * 1024));
    check(
        &only,
        "GET",
        &long,
        &refused("414 URI Too Long, uri_too_long", "the target is longer than limits.uri"),
    );
    for (method, target, problem) in [
        ("G T", "/", "\"G T\" is not a method"),
        ("get", "/", "methods are in capitals; did you mean GET?"),
        ("GET", "no path", "\"no path\" is neither a path nor a URL"),
        ("GET", "a.test:1", "\"a.test:1\" is neither a path nor a URL; a path begins with '/'"),
    ] {
        assert_eq!(explain(&config, method, target), Err(problem.to_owned()));
    }
}
