//! Metrics are what `docs/metrics.md` says, and what the alert rules and the dashboard ask for.

mod operations;
mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{Method, Response};
use keyward::body;
use keyward::metrics::{Listener, Management, OrganizationClass, Outcome, RateLimit, Shadow};
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;

use crate::support::http::{HttpVersion, read_body, start_upstream};
use crate::support::{Setup, Stage, wait_until};
use crate::tunnel;

const BAD_KEY: &str = "0123456789ABCDEFGHIJabcdefghij";

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A family of metrics, as served in the text format.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    /// The label sets of its series, without `le`.
    series: BTreeSet<BTreeMap<String, String>>,
    /// The names of its samples.
    samples: BTreeSet<String>,
}

impl Family {
    fn labels(&self) -> BTreeSet<&str> {
        self.series.iter().flatten().map(|(name, _)| name.as_str()).collect()
    }
}

/// Labels in braces. Their values have no quotes and commas here.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').filter_map(|pair| pair.trim().split_once("=\""));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned())).collect()
}

fn parse_families(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            current = name.to_owned();
            families.insert(current.clone(), Family { kind: kind.to_owned(), ..Family::default() });
        } else if !line.starts_with('#') {
            let series = line.rsplit_once(' ').unwrap().0;
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let mut labels = parse_labels(labels.trim_end_matches('}'));
            labels.remove("le");
            let family = families.get_mut(&current).unwrap();
            family.samples.insert(name.to_owned());
            family.series.insert(labels);
        }
    }
    families
}

/// What is served after requests of every kind, with each family present.
async fn serve_all_families() -> BTreeMap<String, Family> {
    let stage = Stage::with(Setup { scalekit: "validations_per_minute = 100000", ..Setup::default() }).await;
    let key = stage.issue_key();
    for (path, key) in
        [("/v1", &*key), ("/v1", BAD_KEY), ("/v1", "apit_1"), ("/v1/admin/x", &key), ("/v1", "")]
    {
        stage.get(path, key).await;
    }
    stage.send("GET /public/x HTTP/1.1\r\nhost: a\r\nx-org-id: forged\r\n\r\n").await;
    stage.send("PUT /v1/admin/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(500))));
    stage.get("/v1", &stage.issue_key()).await;
    stage.emulator.clear_faults();
    drop(tunnel::open(&stage, &key).await);
    wait_until(|| stage.metrics.requests_in_flight.get() == 0).await;
    // What would need TLS, key management, limits, a drain and a broken connection.
    stage.metrics.certificate_expiry.get_or_create(&Listener { listener: "server" }).set(1);
    stage.metrics.connection_errors.get_or_create(&Outcome { outcome: "tls" }).inc();
    stage.metrics.management.get_or_create(&Management { operation: "create", outcome: "done" }).inc();
    let limit = RateLimit { limit: "free".into(), outcome: "allowed" };
    stage.metrics.rate_limits.get_or_create(&limit).inc();
    stage.metrics.shadow_requests.get_or_create(&Shadow { route: "/*".into(), outcome: "allowed" }).inc();
    stage.metrics.usage_file_writes.get_or_create(&Outcome { outcome: "ok" }).inc();
    let organization = OrganizationClass { organization: "org_1".into(), class: "2xx" };
    stage.metrics.organization_requests.get_or_create(&organization).inc();
    stage.metrics.trace_spans.get_or_create(&Outcome { outcome: "exported" }).inc();
    stage.metrics.shared_up.set(1.0);
    stage.metrics.shared_operations.get_or_create(&Outcome { outcome: "ok" }).inc();
    stage.metrics.drain_begin.set(1.0);
    stage.metrics.drain_end.set(2.0);
    parse_families(&stage.get_admin("/metrics").await.text())
}

/// The value of a series in the text format, or nothing.
async fn value(stage: &Stage, series: &str) -> Option<f64> {
    let text = stage.get_admin("/metrics").await.text();
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn unmet_requirement_is_counted_by_kind_not_told() {
    let stage = Stage::start().await;
    let environment = |value: &str| [("environment".to_owned(), value.to_owned())].into();
    for (user, roles, claims, kind) in [
        ("", vec![], environment("production"), "scope"),
        ("usr_1", vec!["reader".to_owned()], environment("production"), "role"),
        ("usr_1", vec!["admin".to_owned()], environment("secret-value"), "claim"),
    ] {
        let issue = Issue { user_id: user.into(), roles, custom_claims: claims, ..Issue::default() };
        let reply = stage.get("/v1/admin/x", &stage.issue(issue).key).await;
        assert_eq!((reply.status, reply.code()), (403, Some("not_permitted")));
        let told = format!("{:?} {}", reply.headers, reply.text());
        for hidden in ["admin", "environment", "production", "scope=", "claim", "secret-value"] {
            assert!(!told.replace("insufficient_scope", "").contains(hidden), "{hidden} in {told}");
        }
        let series = format!(
            "keyward_http_requests_total{{route=\"/v1/admin/*\",method=\"GET\",code=\"403\",outcome=\"deny\",reason=\"{kind}\"}}"
        );
        assert_eq!(value(&stage, &series).await, Some(1.0), "{series}");
    }
}

#[tokio::test]
async fn streams_are_counted_apart_from_other_responses() {
    let address = start_upstream(|request| async move {
        let mut response = Response::new(body::full("x"));
        let kind = request.uri().path().rsplit('/').next().unwrap_or_default();
        let kind = match kind {
            "events" => "Text/Event-Stream; charset=utf-8",
            "call" => "application/grpc+proto",
            _ => "application/json",
        };
        response.headers_mut().insert("content-type", HeaderValue::from_static(kind));
        Ok(response)
    })
    .await;
    let stage =
        Stage::with(Setup { upstream_url: Some(format!("http://{address}")), ..Setup::default() }).await;
    let key = stage.issue_key();
    for path in ["/events", "/call", "/plain"] {
        assert_eq!(stage.get(path, &key).await.status, 200);
    }
    let mut client = stage.connect_http(HttpVersion::Http2).await;
    let mut call = client.request(Method::POST, "/call", "", body::full("x"));
    call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    read_body(client.send(call).await.unwrap()).await.unwrap();
    wait_until(|| stage.metrics.requests_in_flight.get() == 0).await;
    for (series, expected) in [
        ("keyward_stream_duration_seconds_count{route=\"/*\",kind=\"event_stream\"}", Some(1.0)),
        ("keyward_stream_duration_seconds_count{route=\"/*\",kind=\"grpc\"}", Some(1.0)),
        ("keyward_stream_duration_seconds_count{route=\"/*\",kind=\"websocket\"}", None),
        ("keyward_http_request_duration_seconds_count{route=\"/*\",class=\"2xx\"}", Some(1.0)),
        // A rejection of Keyward's own is no stream, and counts by the code that others would get.
        ("keyward_http_request_duration_seconds_count{route=\"/*\",class=\"4xx\"}", Some(1.0)),
    ] {
        assert_eq!(value(&stage, series).await, expected, "{series}");
    }
}

#[tokio::test]
async fn websocket_tunnel_counts_as_stream() {
    let stage = Stage::start().await;
    drop(tunnel::open(&stage, &stage.issue_key()).await);
    wait_until(|| stage.metrics.requests_in_flight.get() == 0).await;
    let tunnels = "keyward_stream_duration_seconds_count{route=\"/*\",kind=\"websocket\"}";
    assert_eq!(value(&stage, tunnels).await, Some(1.0));
    let text = stage.get_admin("/metrics").await.text();
    assert!(!text.contains("keyward_http_request_duration_seconds_count"), "{text}");
}

#[tokio::test]
async fn shared_validations_are_counted() {
    let stage = Stage::with(Setup { scalekit: "max_in_flight_per_key = 1", ..Setup::default() }).await;
    let key = stage.issue_key();
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang));
    let requests = futures_util::future::join_all((0..5).map(|_| stage.get("/v1", &key)));
    let release = async {
        wait_until(|| stage.metrics.validations_waiting.get() == 5).await;
        stage.emulator.clear_faults();
    };
    let (replies, ()) = tokio::join!(requests, release);
    assert!(replies.iter().all(|reply| reply.status == 200));
    // One call for the first request, one for the second, which the others share.
    assert_eq!(value(&stage, "keyward_validations_total{outcome=\"valid\"}").await, Some(2.0));
    assert_eq!(value(&stage, "keyward_validations_shared_total").await, Some(3.0));
}

#[tokio::test]
async fn own_part_leaves_out_waits_for_others() {
    let stage = Stage::start().await;
    let key = stage.issue_key();
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Latency(Duration::from_millis(200))));
    assert_eq!(stage.get("/slow/200", &key).await.status, 200);
    wait_until(|| stage.metrics.requests_in_flight.get() == 0).await;
    let whole = value(&stage, "keyward_http_request_duration_seconds_sum{route=\"/*\",class=\"2xx\"}").await;
    let own = value(&stage, "keyward_own_duration_seconds_sum").await;
    assert!(own.unwrap() <= whole.unwrap() - 0.4, "{whole:?} {own:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn process_figures_are_those_of_this_process() {
    let stage = Stage::start().await;
    let resident = value(&stage, "process_resident_memory_bytes").await.unwrap();
    assert!((1e6..1e10).contains(&resident), "{resident}");
    assert!(value(&stage, "process_cpu_seconds_total").await.unwrap() >= 0.0);
    let started = value(&stage, "process_start_time_seconds").await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 3600.0..=now + 2.0).contains(&started), "{started} {now}");
    let sockets: Vec<_> = (0..40).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let open = value(&stage, "process_open_fds").await.unwrap();
    assert!((40.0..1e5).contains(&open), "{open}");
    drop(sockets);
    assert!(value(&stage, "process_max_fds").await.unwrap() >= open);
}
