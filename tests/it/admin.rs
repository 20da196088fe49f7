//! The admin port, and what is counted.

use crate::support::{Setup, Stage};

/// A sample of `/metrics`.
async fn sample(stage: &Stage, line: &str) -> Option<f64> {
    let text = stage.ask_admin("/metrics").await.text();
    text.lines().find_map(|own| own.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test]
async fn health_is_told_apart_from_readiness() {
    let stage = Stage::start().await;
    for (path, status, text) in [("/livez", 200, "live\n"), ("/readyz", 200, "ready\n"), ("/", 404, "/livez")]
    {
        let reply = stage.ask_admin(path).await;
        assert_eq!(reply.status, status);
        assert!(reply.text().starts_with(text), "{}", reply.text());
        assert_eq!(reply.header("cache-control"), Some("no-store"));
    }
    let mut client = crate::support::raw::Client::connect(stage.admin).await;
    client.send("POST /readyz HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(
        stage.ask("GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n").await.status,
        401,
        "not on the public port"
    );
}

#[tokio::test]
async fn the_routes_and_the_version_are_json() {
    let stage = Stage::start().await;
    let routes = stage.ask_admin("/routes").await.json();
    assert_eq!(routes["routes"].as_array().unwrap().len(), 3);
    assert_eq!(routes["routes"][0]["path"], "/v1/admin/*");
    assert_eq!(stage.ask_admin("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn requests_are_counted_by_what_the_configuration_names_and_by_nothing_from_the_caller() {
    let stage = Stage::with(Setup { sections: "[negative_cache]\nttl = \"1m\"", ..Setup::default() }).await;
    let key = stage.key();
    for path in ["/v1/orders", "/v1/secret-path", "/public/x"] {
        assert_eq!(stage.get(path, &key).await.status, 200);
    }
    for _ in 0..2 {
        stage.get("/v1", "0123456789ABCDEFGHIJabcdefghij").await;
    }
    stage.ask("BREW /public/pot HTTP/1.1\r\nhost: evil.test\r\nx-org-id: forged\r\n\r\n").await;
    for (line, value) in [
        ("keyward_http_requests_total{route=\"/*\",method=\"GET\",code=\"200\",outcome=\"allow\"}", 2.0),
        (
            "keyward_http_requests_total{route=\"/public/*\",method=\"GET\",code=\"200\",outcome=\"allow\"}",
            1.0,
        ),
        ("keyward_http_requests_total{route=\"/*\",method=\"GET\",code=\"401\",outcome=\"deny\"}", 2.0),
        (
            "keyward_http_requests_total{route=\"/public/*\",method=\"other\",code=\"200\",outcome=\"allow\"}",
            1.0,
        ),
        ("keyward_validations_total{outcome=\"valid\"}", 2.0),
        ("keyward_validation_retries_total", 0.0),
        ("keyward_negative_cache_hits_total", 1.0),
        ("keyward_forged_headers_total{route=\"/public/*\"}", 1.0),
        ("keyward_http_requests_in_flight", 0.0),
        ("keyward_ready", 1.0),
        ("keyward_breaker_open", 0.0),
        ("keyward_http_request_duration_seconds_count{route=\"/*\"}", 4.0),
    ] {
        assert_eq!(sample(&stage, line).await, Some(value), "{line}");
    }
    let text = stage.ask_admin("/metrics").await.text();
    for word in [&*key, "secret-path", "evil", "BREW", "org_1", "forged\""] {
        assert!(!text.contains(word), "{word}");
    }
}
