//! What `keyward explain` and the table of `keyward check` show.

use std::path::Path;

use super::super::check::format_routes;
use super::*;
use crate::config::{self, Environment};

fn environment() -> Environment {
    Environment::from_pairs([
        ("SCALEKIT_ENVIRONMENT_URL", "https://acme.scalekit.com"),
        ("SCALEKIT_CLIENT_ID", "skc_1"),
        ("SCALEKIT_CLIENT_SECRET", "not-a-real-secret"),
    ])
}

fn read_config(path: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    config::load(&path, &environment()).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn route_table_lists_most_specific_route_first() {
    let expected = "\
HOST             PATH         METHODS      REQUIRES                                            UPSTREAM
api.example.com  /*           any          a key; CORS preflights pass without a key           grpc
any              /healthz     any          nothing                                             orders
any              /v1/admin/*  POST,DELETE  a user's key, role admin, claim env = \"production\"  orders
any              /*           any          a key                                               orders
";
    assert_eq!(format_routes(&read_config("tests/config/valid/full.toml")), expected);
}

#[track_caller]
fn check(config: &Config, method: &str, target: &str, expected: &str) {
    let text = format!("{method} {target}\n\n  {expected}");
    assert_eq!(explain_request(config, method, target), Ok(text));
}

#[test]
fn explain_shows_route_requirement_and_headers() {
    let config = read_config("tests/config/valid/full.toml");
    let admin = "\
route       /v1/admin/*
  requires    a user's key, role admin, claim env = \"production\"
  limits      per-org: 600 requests in 1m for each organization, 100 at once; the claim rate_limit can set up to 6000
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
  removes     Authorization, and every spelling of an identity header that the client sends
";
    check(&config, "POST", "http://a.test/v1/admin/x?y=z", admin);
    check(&config, "DELETE", "http://other.test:1/v1/admin", admin);
    let public = "\
route       /healthz
  requires    nothing
  upstream    orders at http://127.0.0.1:8080
  sets        X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Request-Id
  removes     Authorization, and every spelling of an identity header that the client sends
";
    check(&config, "GET", "http://a.test/healthz", public);
    // A path alone stands for hosts that no route names.
    let note = "  note        some routes are for one host only; to choose the host, give a full URL, such as\n              \
                http://api.example.com/healthz\n";
    check(&config, "GET", "/healthz", &format!("{public}{note}"));
    // A host wins over a longer path.
    let host = explain_request(&config, "GET", "https://API.example.com:8443/v1/admin/x").unwrap();
    assert!(
        host.contains(
            "\n  route       api.example.com/*\n  requires    a key; CORS preflights pass without a key\n"
        ),
        "{host}"
    );
    assert!(host.contains("  upstream    grpc at h2c://127.0.0.1:9090\n"), "{host}");
}

#[test]
fn explain_shows_upstream_url_of_each_scheme() {
    let config = read_config("tests/config/valid/upstreams.toml");
    for (path, url) in [
        ("/http", "http://127.0.0.1:80"),
        ("/https", "https://api.internal:443"),
        ("/h2c", "h2c://[::1]:9090"),
        ("/unix", "unix:/run/app.sock"),
    ] {
        let explained = explain_request(&config, "GET", path).unwrap();
        assert!(explained.contains(&format!("  upstream    {} at {url}\n", &path[1..])), "{explained}");
    }
    let organization = explain_request(&config, "GET", "/unix").unwrap();
    assert!(organization.contains("  requires    an organization's key\n"), "{organization}");
    assert!(!organization.contains("X-User-") && !organization.contains("X-Roles"), "{organization}");
    assert!(organization.contains("  X-Claim-<Name>     for each claim\n"), "{organization}");
    let any = explain_request(&config, "GET", "/http").unwrap();
    assert!(any.contains("  X-Roles             for a user's key, where the user has any\n"), "{any}");
}

#[test]
fn explain_shows_rejection_and_its_reason() {
    let config = read_config("tests/config/valid/full.toml");
    let refused = |answer: &str, reason: &str| {
        format!("answer      {answer}\n  because     {reason}\n  upstream    nothing is forwarded\n")
    };
    let method =
        refused("405 Method Not Allowed, method_not_allowed", "the routes of this path accept POST, DELETE");
    check(&config, "GET", "http://a.test/v1/admin/x", &method);
    let path =
        refused("400 Bad Request, ambiguous_path", "the path has a '.' or '..' segment, possibly encoded");
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
    let file = "version = 1\n[upstreams.api]\nurl = \"http://127.0.0.1:1\"\n[[routes]]\npath = \"/v1\"\nupstream = \"api\"\n";
    let only = config::parse(file, "f", &environment()).unwrap();
    check(&only, "GET", "/v1/", &refused("404 Not Found, no_route", "no route matches this path"));
    let long = format!("/{}", "a".repeat(16 * 1024));
    check(
        &only,
        "GET",
        &long,
        &refused("414 URI Too Long, uri_too_long", "the target is longer than limits.uri"),
    );
    for (method, target, problem) in [
        ("G T", "/", "\"G T\" is not a method"),
        ("get", "/", "methods are in capital letters; did you mean GET?"),
        ("GET", "no path", "\"no path\" is neither a path nor a URL"),
        ("GET", "a.test:1", "\"a.test:1\" is neither a path nor a URL; a path begins with '/'"),
    ] {
        assert_eq!(explain_request(&config, method, target), Err(problem.to_owned()));
    }
}
