//! What `keyward check` and `keyward explain` show.

use super::*;

#[test]
fn routes_stand_in_a_table_the_most_specific_first() {
    let expected = "\
HOST             PATH         METHODS      ASKS FOR                                             UPSTREAM
api.example.com  /*           any          a key; CORS preflights pass                          grpc
any              /healthz     any          nothing                                              orders
any              /v1/admin/*  POST,DELETE  a user's key, roles admin, claim env = \"production\"  orders
any              /*           any          a key                                                orders
";
    assert_eq!(describe_routes(&read("tests/config/valid/full.toml")), expected);
}

#[track_caller]
fn check(config: &Config, method: &str, target: &str, expected: &str) {
    assert_eq!(explain(config, method, target).as_deref(), Ok(expected), "{method} {target}");
}

#[test]
fn a_request_that_passes_is_explained() {
    let config = read("tests/config/valid/full.toml");
    let admin = "\
route       /v1/admin/*
asks for    a user's key, roles admin, claim env = \"production\"
upstream    orders (http://127.0.0.1:8080)
sets        x-org-id, x-token-id
            x-person, x-user-external-id, x-roles (for a user's key)
            x-org-external-id (where there is one)
            x-claim-plan, x-claim-cost (for claims)
removes     Authorization, and every identity header that the caller sends
";
    check(&config, "POST", "/v1/admin/x?y=z", admin);
    check(&config, "DELETE", "http://other.test:1/v1/admin", admin);
    let public = "\
route       /healthz
asks for    nothing
upstream    orders (http://127.0.0.1:8080)
removes     Authorization, and every identity header that the caller sends
";
    check(&config, "GET", "/healthz", public);
    // A host wins over a longer path.
    let host = explain(&config, "GET", "https://API.example.com/v1/admin/x").unwrap();
    assert!(
        host.starts_with("route       api.example.com/*\nasks for    a key; CORS preflights pass\n"),
        "{host}"
    );
    assert!(host.contains("upstream    grpc (h2c://127.0.0.1:9090)\n"), "{host}");
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
        assert!(explained.contains(&format!("upstream    {} ({url})\n", &path[1..])), "{explained}");
    }
    let organization = explain(&config, "GET", "/unix").unwrap();
    assert!(organization.contains("asks for    an organization's key\n"), "{organization}");
    assert!(organization.contains("x-user-id, x-user-external-id, x-roles (never)\n"), "{organization}");
    assert!(organization.contains("x-claim-<name> (for each claim)\n"), "{organization}");
}

#[test]
fn a_request_that_is_refused_is_explained() {
    let config = read("tests/config/valid/full.toml");
    check(
        &config,
        "GET",
        "/v1/admin/x",
        "answer      405 method_not_allowed\nallow       POST, DELETE\nforwarded   nothing\n",
    );
    check(&config, "GET", "/v1/../x", "answer      400 ambiguous_path\nforwarded   nothing\n");
    let only = parse(&format!("version = 1\n{REST}").replace("/*", "/v1"), "f", &environment()).unwrap();
    check(&only, "GET", "/v1/", "answer      404 no_route\nforwarded   nothing\n");
    assert_eq!(explain(&config, "G T", "/"), Err("\"G T\" is not a method".to_owned()));
    assert_eq!(explain(&config, "GET", "no path"), Err("\"no path\" is neither a path nor a URL".to_owned()));
}
