//! Traces: what the collector and the upstream get, whom they trust, and that they never hold up a request.

mod collector;

use std::time::{Duration, Instant};

use keyward::listener::Listen;
use keyward::metrics::Outcome;
use keyward_emulator::faults::{Answer as Answered, Effect, Fault, Target};
use keyward_emulator::store::Issue;
use keyward_emulator::{self as emulator, Emulator};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::collector::{Answer, Attributes, Collector, to_hex};
use crate::process::{Folder, Running, echo, keyward, keyward_run, route_file};
use crate::support::raw::Client;
use crate::support::tls::Authority;
use crate::support::{Setup, Stage, TEST_TIMEOUT, bind_loopback, wait_until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const EVERYBODY: &str = "[traces]\ntrust_parent = \"always\"";

fn traceparent(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\ntracestate: vendor=1\r\n")
}

async fn start(collector: &Collector) -> Stage {
    Stage::with(Setup { environment: collector.environment(), ..Setup::default() }).await
}

/// A GET with more header lines; gives the status.
async fn get(stage: &Stage, path: &str, key: &str, lines: &str) -> u16 {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: api.test:8080\r\nuser-agent: tester\r\nauthorization: Bearer {key}\r\n{lines}\r\n"
    );
    stage.send(request).await.status
}

/// Stops Keyward, which exports all spans before it ends.
async fn stop(stage: &mut Stage) {
    stage.stop.cancel();
    timeout(TEST_TIMEOUT, &mut stage.running).await.expect("an end in time").unwrap();
}

fn spans_with(stage: &Stage, outcome: &'static str) -> u64 {
    stage.metrics.trace_spans.get_or_create(&Outcome { outcome }).get()
}

/// The code of a span's status: 0 is unset, 2 is an error.
fn status(span: &Span) -> i32 {
    span.status.as_ref().map_or(0, |status| status.code)
}

#[tokio::test]
async fn spans_lead_from_caller_to_upstream() {
    let collector = Collector::start().await;
    let mut environment = collector.environment();
    environment.push(("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=made%20up".to_owned()));
    environment.push(("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()));
    let stage = Stage::with(Setup { environment, sections: EVERYBODY, ..Setup::default() }).await;
    let issued = stage.issue(Issue { user_id: "usr_1".into(), ..Issue::default() });
    assert_eq!(get(&stage, "/v1/orders?q=1", &issued.key, &traceparent("01")).await, 200);

    let spans = collector.wait_for(3).await;
    let (server, validation, client) =
        (spans.named("GET /*"), spans.named("validate key"), spans.named("GET"));
    assert_eq!(to_hex(&server.parent_span_id), PARENT);
    for span in [server, validation, client] {
        assert_eq!(to_hex(&span.trace_id), TRACE);
        assert_eq!((span.trace_state.as_str(), status(span)), ("vendor=1", 0), "{span:?}");
        let within = server.start_time_unix_nano <= span.start_time_unix_nano
            && span.start_time_unix_nano <= span.end_time_unix_nano
            && span.end_time_unix_nano <= server.end_time_unix_nano;
        assert!(within, "{span:?} outside of {server:?}");
    }
    assert!(validation.end_time_unix_nano <= client.start_time_unix_nano, "one after the other");
    assert_eq!(server.kind, SpanKind::Server as i32);
    for span in [validation, client] {
        assert_eq!((span.kind, &span.parent_span_id), (SpanKind::Client as i32, &server.span_id));
    }
    let request = stage.last_request();
    let parent = format!("00-{TRACE}-{}-01", to_hex(&client.span_id));
    assert_eq!(request.header_values("traceparent"), [parent.as_str()]);
    assert_eq!(request.header("tracestate"), Some("vendor=1"));

    Attributes::of(server).check(&[
        ("http.request.method", "GET"),
        ("url.path", "/v1/orders"),
        ("url.scheme", "http"),
        ("http.route", "/*"),
        ("http.response.status_code", "200"),
        ("server.address", "api.test"),
        ("server.port", "8080"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "tester"),
        ("keyward.decision", "allow"),
        ("keyward.org.id", "org_1"),
        ("keyward.user.id", "usr_1"),
        ("keyward.request.id", request.header("x-request-id").unwrap()),
    ]);
    Attributes::of(validation).check(&[
        ("keyward.validation.outcome", "valid"),
        ("keyward.validation.flight", "own"),
        ("keyward.validation.requests", "1"),
        ("server.address", "127.0.0.1"),
    ]);
    let host = request.header("host").unwrap();
    assert_eq!(host, "api.test:8080");
    let attributes = Attributes::of(client);
    attributes.check(&[("http.response.status_code", "200"), ("keyward.upstream", "echo")]);
    assert!(attributes.get("url.full").unwrap().ends_with("/v1/orders"), "{attributes:?}");
    collector.resource().check(&[
        ("service.name", "keyward"),
        ("telemetry.sdk.language", "rust"),
        ("deployment.environment.name", "test"),
    ]);
    collector.with_first(|export| {
        assert_eq!(export.path, "/v1/traces");
        assert_eq!(export.headers["content-type"], "application/x-protobuf");
        assert_eq!(export.headers["x-tenant"], "made up");
    });
}

#[tokio::test]
async fn refusals_and_failures_show_in_spans() {
    let collector = Collector::start().await;
    let mut stage = start(&collector).await;
    let key = stage.issue_key();
    assert_eq!(get(&stage, "/bad", "000000000000000000000000000001", "").await, 401);
    assert_eq!(get(&stage, "/again", "000000000000000000000000000001", "").await, 401);
    assert_eq!(get(&stage, "/v1/admin/x", &key, "").await, 403);
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answered::status(401))));
    assert_eq!(get(&stage, "/down", &key, "").await, 503);
    stage.emulator.clear_faults();
    stop(&mut stage).await;

    let spans = collector.spans();
    let of = |path: &str, expected: &[(&str, &str)], code: i32| {
        let server = spans.0.iter().find(|span| Attributes::of(span).get("url.path") == Some(path)).unwrap();
        Attributes::of(server).check(expected);
        assert_eq!(status(server), code, "{server:?}");
        let children = spans.0.iter().filter(|span| span.parent_span_id == server.span_id);
        children.collect::<Vec<_>>()
    };
    let denied = ("keyward.decision", "deny");
    let bad =
        of("/bad", &[("http.response.status_code", "401"), denied, ("keyward.reason", "invalid_key")], 0);
    assert_eq!((bad.len(), bad[0].kind, status(bad[0])), (1, SpanKind::Client as i32, 0), "{bad:?}");
    Attributes::of(bad[0]).check(&[("keyward.validation.outcome", "invalid_key")]);
    let remembered = of("/again", &[("http.response.status_code", "401"), denied], 0);
    assert_eq!((remembered.len(), remembered[0].kind), (1, SpanKind::Internal as i32), "no call was made");
    Attributes::of(remembered[0]).check(&[("keyward.validation.flight", "none")]);
    let forbidden = of("/v1/admin/x", &[("http.response.status_code", "403"), denied], 0);
    Attributes::of(forbidden[0]).check(&[("keyward.validation.outcome", "valid")]);
    let error = ("error.type", "validation_unavailable");
    let down = of("/down", &[("http.response.status_code", "503"), ("keyward.decision", "error"), error], 2);
    Attributes::of(down[0]).check(&[error]);
    assert_eq!(status(down[0]), 2);
}

#[tokio::test]
async fn failing_upstream_is_an_error_of_both_spans() {
    let (listener, closed) = bind_loopback().await;
    drop(listener);
    let collector = Collector::start().await;
    let environment = collector.environment();
    let upstream_url = Some(format!("http://{closed}"));
    let stage = Stage::with(Setup { environment, upstream_url, ..Setup::default() }).await;
    assert_eq!(get(&stage, "/public/x", "", "").await, 502);
    let spans = collector.wait_for(2).await;
    for span in &spans.0 {
        Attributes::of(span).check(&[("error.type", "upstream_unreachable")]);
        assert_eq!(status(span), 2, "{span:?}");
    }
    let client = Attributes::of(spans.named("GET"));
    client.check(&[("server.port", &closed.port().to_string())]);
    assert_eq!(client.get("http.response.status_code"), None);
}

#[tokio::test]
async fn error_of_upstream_fails_client_span() {
    // A 4xx is an error of the client that sent the request: here, of Keyward's. A response that breaks off is one of both.
    for (path, code, error) in [("/status/404", 0, "404"), ("/cut/10", 2, "upstream_broke_off")] {
        let collector = Collector::start().await;
        let stage = start(&collector).await;
        get(&stage, path, &stage.issue_key(), "").await;
        let spans = collector.wait_for(3).await;
        assert_eq!((status(spans.named("GET /*")), status(spans.named("GET"))), (code, 2), "{spans:?}");
        Attributes::of(spans.named("GET")).check(&[("error.type", error)]);
    }
}

#[tokio::test]
async fn client_that_leaves_still_has_its_spans() {
    let collector = Collector::start().await;
    let stage = start(&collector).await;
    let key = stage.issue_key();
    let mut client = stage.connect().await;
    client.send(format!("GET /slow/60000 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
    wait_until(|| stage.forwarded_count() == 1).await;
    drop(client);
    let spans = collector.wait_for(3).await;
    let server = Attributes::of(spans.named("GET /*"));
    server.check(&[("keyward.decision", "error"), ("keyward.reason", "caller_gone")]);
    assert_eq!((server.get("http.response.status_code"), status(spans.named("GET /*"))), (None, 0));
    Attributes::of(spans.named("GET")).check(&[("error.type", "cancelled")]);
}

#[tokio::test]
async fn shared_flight_tells_how_many_are_aboard() {
    let collector = Collector::start().await;
    let (environment, scalekit) = (collector.environment(), "max_in_flight_per_key = 1\ntimeout = \"10s\"");
    let stage = Stage::with(Setup { environment, scalekit, ..Setup::default() }).await;
    let key = stage.issue_key();
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::HangAfter));
    let requests = async {
        let (first, second, third) = tokio::join!(
            get(&stage, "/1", &key, ""),
            get(&stage, "/2", &key, ""),
            get(&stage, "/3", &key, "")
        );
        assert_eq!([first, second, third], [200; 3]);
    };
    let release = async {
        wait_until(|| stage.metrics.validations_waiting.get() == 3).await;
        stage.emulator.clear_faults();
    };
    tokio::join!(requests, release);
    let spans = collector.wait_for(9).await;
    let validations = spans.0.iter().filter(|span| span.name == "validate key").map(Attributes::of);
    let mut seats: Vec<_> = validations
        .map(|attributes| {
            ["keyward.validation.flight", "keyward.validation.requests"]
                .map(|name| attributes.get(name).unwrap().to_owned())
        })
        .collect();
    seats.sort();
    assert_eq!(seats, [["own", "1"], ["shared", "2"], ["shared", "2"]]);
}

#[tokio::test]
async fn strangers_flag_neither_samples_nor_names_the_trace() {
    let collector = Collector::start().await;
    for (server, sections, counts) in [
        ("", "", false),
        ("trusted_proxies = [\"127.0.0.1\"]", "", true),
        ("trusted_proxies = [\"127.0.0.1\"]", "[traces]\ntrust_parent = \"never\"", false),
        ("", EVERYBODY, true),
    ] {
        let mut environment = collector.environment();
        environment.push(("OTEL_TRACES_SAMPLER", "parentbased_always_off".to_owned()));
        let setup = Setup { environment, server, sections, ..Setup::default() };
        let mut stage = Stage::with(setup).await;
        let before = collector.spans().0.len();
        assert_eq!(get(&stage, "/public/x", "", &traceparent("01")).await, 200);
        let request = stage.last_request();
        stop(&mut stage).await;
        let parent = request.header("traceparent").unwrap();
        assert_eq!(parent.contains(TRACE), counts, "{parent}");
        assert_eq!(parent.ends_with("-01"), counts, "{parent}");
        assert_eq!(request.header("tracestate").is_some(), counts);
        assert_eq!(collector.spans().0.len() - before, if counts { 2 } else { 0 }, "{server} {sections}");
    }
}

#[tokio::test]
async fn trace_of_stranger_is_linked() {
    let collector = Collector::start().await;
    let stage = start(&collector).await;
    assert_eq!(get(&stage, "/public/x", "", &traceparent("00")).await, 200);
    let spans = collector.wait_for(2).await;
    let server = spans.named("GET /public/*");
    assert_ne!(to_hex(&server.trace_id), TRACE);
    assert!(server.parent_span_id.is_empty(), "{server:?}");
    assert_eq!(server.links.len(), 1);
    let link = &server.links[0];
    assert_eq!((to_hex(&link.trace_id).as_str(), to_hex(&link.span_id).as_str()), (TRACE, PARENT));
}

#[tokio::test]
async fn trusted_parent_that_is_not_sampled_is_not_exported() {
    let collector = Collector::start().await;
    let setup = Setup { environment: collector.environment(), sections: EVERYBODY, ..Setup::default() };
    let mut stage = Stage::with(setup).await;
    assert_eq!(get(&stage, "/public/x", "", &traceparent("00")).await, 200);
    let parent = stage.last_request().header("traceparent").unwrap().to_owned();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-00"), "{parent}");
    assert!(!parent.contains(PARENT), "{parent}");
    stop(&mut stage).await;
    assert_eq!(collector.spans().0.len(), 0);
}

#[tokio::test]
async fn trace_headers_pass_unchanged_without_collector() {
    let stage = Stage::start().await;
    assert_eq!(get(&stage, "/public/x", "", &traceparent("01")).await, 200);
    let request = stage.last_request();
    assert_eq!(request.header("traceparent"), Some(&*format!("00-{TRACE}-{PARENT}-01")));
    assert_eq!(request.header("tracestate"), Some("vendor=1"));
    let metrics = stage.get_admin("/metrics").await.text();
    assert!(!metrics.contains("trace_spans_total{"), "{metrics}");
}

#[tokio::test]
async fn decision_has_span_with_validation() {
    let collector = Collector::start().await;
    let sections = "[decision]\nlisten = \"127.0.0.1:0\"";
    let setup = Setup { environment: collector.environment(), sections, ..Setup::default() };
    let stage = Stage::with(setup).await;
    let key = stage.issue_key();
    let Some(Listen::Tcp(address)) = stage.decision else { panic!("a port") };
    let mut client = Client::connect(address).await;
    client
        .send(format!(
            "GET /decision/v1/orders?q=1 HTTP/1.1\r\nhost: api.test\r\nauthorization: Bearer {key}\r\n\r\n"
        ))
        .await;
    assert_eq!(client.read_reply().await.status, 200);
    let spans = collector.wait_for(2).await;
    let server = spans.named("GET /*");
    assert_eq!(spans.named("validate key").parent_span_id, server.span_id);
    Attributes::of(server).check(&[("url.path", "/v1/orders"), ("http.response.status_code", "200")]);
}

#[tokio::test]
async fn no_key_query_or_claim_is_exported() {
    let collector = Collector::start().await;
    let mut stage = start(&collector).await;
    let claims = [("secret-claim".to_owned(), "claimvalue".to_owned())].into();
    let roles = vec!["secretrole".to_owned()];
    let key =
        stage.issue(Issue { user_id: "usr_1".into(), custom_claims: claims, roles, ..Issue::default() }).key;
    let unknown = "111111111111111111111111111111";
    for path in ["/v1/orders?token=queryvalue", "/v1/admin/x?token=queryvalue", "/%2e%2e/?token=queryvalue"] {
        for key in [&*key, unknown] {
            get(&stage, path, key, "cookie: cookievalue\r\nreferer: http://a/?token=queryvalue\r\n").await;
        }
    }
    stop(&mut stage).await;
    let bytes = collector.all_bytes();
    let contains = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(contains("/v1/orders"), "something was exported");
    for secret in [&*key, unknown, "queryvalue", "claimvalue", "secretrole", "cookievalue", "Bearer"] {
        assert!(!contains(secret), "{secret} was exported");
    }
}

#[tokio::test]
async fn long_texts_of_clients_are_cut() {
    let collector = Collector::start().await;
    let stage = start(&collector).await;
    let (method, long) = ("BREW".repeat(10), "x".repeat(8000));
    let request = format!(
        "{method} /public/{long} HTTP/1.1\r\nhost: a\r\nuser-agent: {long}\r\ntraceparent: {long}\r\n\r\n"
    );
    assert_eq!(stage.send(request).await.status, 200);
    let spans = collector.wait_for(2).await;
    for span in [spans.named("HTTP /public/*"), spans.named("HTTP")] {
        Attributes::of(span)
            .check(&[("http.request.method", "_OTHER"), ("http.request.method_original", &method)]);
        let size = prost::Message::encoded_len(span);
        assert!(size < 2048, "{size} bytes");
    }
}

#[tokio::test]
async fn hanging_collector_neither_delays_nor_fills_memory() {
    let collector = Collector::answering(Answer::Never).await;
    let mut environment = collector.environment();
    environment.push(("OTEL_BSP_MAX_QUEUE_SIZE", "20".to_owned()));
    environment.push(("OTEL_EXPORTER_OTLP_TIMEOUT", "600000".to_owned()));
    let mut stage = Stage::with(Setup { environment, ..Setup::default() }).await;
    let key = stage.issue_key();
    for _ in 0..50 {
        assert_eq!(get(&stage, "/v1/orders", &key, "").await, 200);
    }
    wait_until(|| !collector.all_bytes().is_empty()).await;
    assert!(spans_with(&stage, "queue_full") >= 150 - 20, "{}", spans_with(&stage, "queue_full"));
    assert!(collector.spans().0.len() <= 20);
    let began = Instant::now();
    stop(&mut stage).await;
    assert!(began.elapsed() < Duration::from_secs(8), "the end does not wait for the collector");
}

#[tokio::test]
async fn lost_spans_are_counted() {
    let (listener, closed) = bind_loopback().await;
    drop(listener);
    let refusing = Collector::answering(Answer::Status(400)).await;
    let rejecting = Collector::answering(Answer::Reject(2)).await;
    for (address, outcome) in
        [(closed, "failed"), (refusing.address, "failed"), (rejecting.address, "rejected")]
    {
        let environment = Collector { address, ..refusing.clone() }.environment();
        let stage = Stage::with(Setup { environment, ..Setup::default() }).await;
        assert_eq!(get(&stage, "/public/x", "", "").await, 200);
        wait_until(|| spans_with(&stage, outcome) == 2).await;
        assert_eq!(spans_with(&stage, "exported"), 0);
        let metrics = stage.get_admin("/metrics").await.text();
        assert!(
            metrics.contains(&format!("keyward_trace_spans_total{{outcome=\"{outcome}\"}} 2")),
            "{metrics}"
        );
    }
}

#[tokio::test]
async fn collector_over_tls_is_verified_and_reached_without_proxy() {
    let authority = Authority::new();
    let collector = Collector::over_tls(authority.server("localhost", &["h2", "http/1.1"], false)).await;
    for (roots, outcome) in [(authority.file(), "exported"), (Authority::new().file(), "failed")] {
        let environment = vec![
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                format!("https://localhost:{}/in", collector.address.port()),
            ),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", roots.display().to_string()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10".to_owned()),
            ("HTTPS_PROXY", "http://127.0.0.1:1".to_owned()),
        ];
        let stage = Stage::with(Setup { environment, ..Setup::default() }).await;
        assert_eq!(get(&stage, "/public/x", "", "").await, 200);
        wait_until(|| spans_with(&stage, outcome) == 2).await;
    }
    collector.with_first(|export| assert_eq!(export.path, "/in"));
}

#[tokio::test]
async fn last_spans_are_exported_at_sigterm() {
    let collector = Collector::start().await;
    let (folder, ends) = (Folder::new("traces"), CancellationToken::new());
    let secret = folder.write("secret", "dev\n");
    let (listener, scalekit) = bind_loopback().await;
    let emulator = Emulator::new(emulator::Settings::default());
    let (serving, until) = (emulator.clone(), ends.clone());
    tokio::spawn(async move { serving.serve(listener, until).await });
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"0s\""));
    let mut command = keyward_run(&file, scalekit, &secret);
    let endpoint = format!("http://{}", collector.address);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "600000");
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=made-up-secret").env("OTEL_SERVICE_NAME", "orders");
    command.env("OTEL_TRACES_SAMPLER", "parentbased_alwayson");
    let mut running = Running::start(command);
    let address = running.address("server.address").await;
    running.until(&format!("traces are exported to {endpoint}/v1/traces")).await;
    running.until("OTEL_TRACES_SAMPLER is").await;
    let mut client = Client::connect(address).await;
    client.send(format!("GET /public/x HTTP/1.1\r\nhost: a\r\n{}\r\n", traceparent("01"))).await;
    assert_eq!(client.read_reply().await.status, 200);
    drop(client);
    running.until("\"span_id\"").await;
    assert_eq!(collector.spans().0.len(), 0, "they wait for the interval");
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    running.until("\"stopped\"").await;

    let spans = collector.wait_for(2).await;
    collector.resource().check(&[("service.name", "orders")]);
    let text = running.text();
    let line = text.lines().find(|line| line.contains("\"span_id\"")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let server = spans.named("GET /public/*");
    assert_eq!(line["span_id"], to_hex(&server.span_id));
    assert_eq!(line["trace_id"], to_hex(&server.trace_id));
    assert!(!text.contains("made-up-secret"), "{text}");
    ends.cancel();
}

#[tokio::test]
async fn check_tells_where_traces_go() {
    let folder = Folder::new("traces-check");
    let file = folder.write("keyward.toml", &route_file("127.0.0.1:1".parse().unwrap(), ""));
    for (format, expected) in [
        ("text", "Traces are exported to http://collector:4318/v1/traces."),
        ("json", "\"traces\": \"http://collector:4318/v1/traces\""),
    ] {
        let mut command = keyward(&["check", "--format", format, &file]);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let output = timeout(TEST_TIMEOUT, command.output()).await.expect("an end in time").unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(expected), "{text}");
    }
}
