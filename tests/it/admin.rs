//! The admin port: liveness, readiness and metrics.

use keyward_emulator as emulator;

use crate::support::raw::Client;
use crate::support::{Setup, Stage, wait_until};

const BAD: &str = "0123456789ABCDEFGHIJabcdefghij";

async fn metrics(stage: &Stage) -> String {
    let reply = stage.get_admin("/metrics").await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4;"));
    reply.text()
}

/// The value of a series, 0 if it does not exist.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn readiness_follows_first_probe_and_ends_with_drain() {
    let settings = emulator::Settings { client_secret: "another".into(), ..emulator::Settings::default() };
    let server = "drain_delay = \"300ms\"";
    let mut stage = Stage::with(Setup { emulator: settings, ready: false, server, ..Setup::default() }).await;
    let reply = stage.get_admin("/readyz").await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().starts_with("not ready: "), "{}", reply.text());
    assert_eq!(stage.get_admin("/livez").await.status, 200);
    stage.emulator.set_client_secret("dev");
    let wait = async { while stage.get_admin("/readyz").await.status != 200 {} };
    tokio::time::timeout(crate::support::TEST_TIMEOUT, wait).await.unwrap();
    assert_eq!(value(&metrics(&stage).await, "keyward_ready"), 1.0);
    stage.stop.cancel();
    let reply = stage.get_admin("/readyz").await;
    assert_eq!((reply.status, reply.text().as_str()), (503, "not ready: draining\n"));
    assert_eq!(value(&metrics(&stage).await, "keyward_ready"), 0.0);
    assert_eq!(stage.get_admin("/livez").await.status, 200);
    (&mut stage.running).await.unwrap();
}

#[tokio::test]
async fn counters_follow_requests() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    let before = metrics(&stage).await;
    stage.get("/v1", &key).await;
    stage.get("/v1", BAD).await;
    stage.get("/v1", BAD).await;
    stage.send("GET /public/x HTTP/1.1\r\nhost: a\r\nx-org-id: forged\r\n\r\n").await;
    stage.send("BREW /public/pot HTTP/1.1\r\nhost: a\r\n\r\n").await;
    stage.send("PUT /v1/admin/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    wait_until(|| stage.metrics.requests_in_flight.get() == 0 && stage.metrics.connections.get() == 0).await;
    let after = metrics(&stage).await;
    let requests = |route, method, code, outcome, reason| {
        format!(
            "keyward_http_requests_total{{route=\"{route}\",method=\"{method}\",code=\"{code}\",outcome=\"{outcome}\",\
             reason=\"{reason}\"}}"
        )
    };
    for (series, by) in [
        (&*requests("/*", "GET", 200, "allow", ""), 1.0),
        (&requests("/*", "GET", 401, "deny", "invalid_key"), 2.0),
        (&requests("/public/*", "GET", 200, "allow", ""), 1.0),
        (&requests("/public/*", "other", 200, "allow", ""), 1.0),
        (&requests("", "PUT", 405, "deny", "method_not_allowed"), 1.0),
        ("keyward_http_request_duration_seconds_count{route=\"/*\",class=\"2xx\"}", 1.0),
        ("keyward_http_request_duration_seconds_count{route=\"/*\",class=\"4xx\"}", 2.0),
        ("keyward_http_request_duration_seconds_count{route=\"\",class=\"4xx\"}", 1.0),
        ("keyward_own_duration_seconds_count", 6.0),
        ("keyward_upstream_duration_seconds_count{route=\"/*\"}", 1.0),
        ("keyward_validations_total{outcome=\"valid\"}", 1.0),
        ("keyward_validations_total{outcome=\"invalid\"}", 1.0),
        ("keyward_negative_cache_hits_total", 1.0),
        ("keyward_negative_cache_entries", 1.0),
        ("keyward_forged_headers_total{route=\"/public/*\"}", 1.0),
        ("keyward_validation_retries_total", 0.0),
        ("keyward_breaker_open", 0.0),
        ("keyward_connections", 0.0),
        ("keyward_http_requests_in_flight", 0.0),
    ] {
        assert_eq!(value(&after, series) - value(&before, series), by, "{series} in\n{after}");
    }
}

#[tokio::test]
async fn metric_labels_come_from_configuration_only() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    stage.get("/canary/path?canary=1", &key).await;
    stage
        .send("CANARY /canary HTTP/1.1\r\nhost: canary.test\r\nx-canary: 1\r\nuser-agent: canary\r\n\r\n")
        .await;
    stage.get("/v1", BAD).await;
    let text = metrics(&stage).await;
    assert!(!text.to_ascii_lowercase().contains("canary"), "{text}");
    assert!(
        !text.contains(&key) && !text.contains(BAD) && !text.contains("org_1") && !text.contains("127.0.0.1")
    );
    assert!(text.ends_with('\n'));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(name.starts_with("keyward_") || name.starts_with("process_"), "{line}");
        for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
            let (label, _) = label.split_once("=\"").unwrap();
            let known = ["route", "method", "code", "class", "outcome", "reason", "le", "version"];
            assert!(known.contains(&label), "{line}");
        }
    }
}

#[tokio::test]
async fn version_and_routes_are_json() {
    let stage = Stage::start().await;
    let version = stage.get_admin("/version").await.json();
    assert_eq!(
        (&version["name"], &version["version"]),
        (&"keyward".into(), &env!("CARGO_PKG_VERSION").into())
    );
    let routes = stage.get_admin("/routes").await.json();
    let routes = routes["routes"].as_array().unwrap();
    assert_eq!(routes.len(), 3);
    let admin = routes.iter().find(|route| route["path"] == "/v1/admin/*").unwrap();
    assert_eq!((&admin["auth"], &admin["upstream"]), (&"key".into(), &"echo".into()));
    assert_eq!(admin["methods"], serde_json::json!(["GET", "POST"]));
}

#[tokio::test]
async fn admin_port_is_read_only() {
    let stage = Stage::start().await;
    for path in ["/", "/metrics/", "/debug", "/v1", "/livez/x"] {
        assert_eq!(stage.get_admin(path).await.status, 404, "{path}");
    }
    for method in ["POST", "DELETE", "PUT", "OPTIONS"] {
        let mut client = Client::connect(stage.admin).await;
        client.send(format!("{method} /readyz HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n")).await;
        let reply = client.read_reply().await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    let mut client = Client::connect(stage.admin).await;
    client.send("HEAD /livez HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    let all = String::from_utf8(client.read_to_end().await).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 ") && all.ends_with("\r\n\r\n"), "{all}");
    // The public port does not serve it.
    for path in ["/livez", "/readyz", "/metrics", "/routes", "/version"] {
        assert_eq!(stage.get(path, "").await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn web_pages_cannot_read_admin_port() {
    let stage = Stage::start().await;
    let ask = async |path: &str, headers: &str| {
        let mut client = Client::connect(stage.admin).await;
        client.send(format!("GET {path} HTTP/1.1\r\n{headers}\r\n")).await;
        client.read_reply().await
    };
    for path in ["/routes", "/metrics", "/version"] {
        for headers in [
            // DNS rebinding: a name of the web page that resolves to loopback.
            "host: evil.example:4481\r\n",
            "host: localhost.evil.example\r\n",
            "host: localhost\r\norigin: http://evil.example\r\n",
            "host: 127.0.0.1\r\nsec-fetch-site: cross-site\r\n",
        ] {
            let reply = ask(path, headers).await;
            assert_eq!(reply.status, 403, "{path} {headers}");
            assert!(!reply.text().contains("keyward"), "{}", reply.text());
        }
        for host in ["localhost:4481", "127.0.0.1", "[::1]:4481", "10.1.2.3:4481"] {
            assert_eq!(ask(path, &format!("host: {host}\r\n")).await.status, 200, "{path} {host}");
        }
        let typed = "host: localhost\r\nsec-fetch-site: none\r\nuser-agent: Mozilla/5.0\r\n";
        assert_eq!(ask(path, typed).await.status, 200);
    }
    // Probes send another host, or none.
    for path in ["/livez", "/readyz"] {
        assert_eq!(ask(path, "host: probe.internal\r\n").await.status, 200, "{path}");
        assert_eq!(ask(path, "host: localhost\r\norigin: null\r\n").await.status, 403, "{path}");
    }
    let mut client = Client::connect(stage.admin).await;
    client.send("GET /metrics HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.read_reply().await.status, 200, "HTTP/1.0 without a host");
}
