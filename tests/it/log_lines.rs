//! Lines of a running Keyward are those of `docs/log.schema.json`, and say why a request failed.

use std::net::SocketAddr;

use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Response};
use keyward::body;
use keyward_emulator::Emulator;
use keyward_emulator::store::Issue;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::process::{Folder, Running, keyward_run, route_file};
use crate::support::bind_loopback;
use crate::support::http::{HttpClient, HttpVersion, channel_body, data_frame, read_body, start_upstream};
use crate::support::raw::{Client, Reply};

const BAD_KEY: &str = "0123456789ABCDEFGHIJabcdefghij";
const ADMIN_ROUTE: &str = "[[routes]]\nname = \"admin\"\npath = \"/admin/*\"\nupstream = \"echo\"\n\
    require = { scope = \"user\", roles = [\"admin\"], claims = { environment = \"made-up-production\" } }\n";

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn schema() -> Value {
    serde_json::from_str(&read("docs/log.schema.json")).unwrap()
}

/// What is wrong with a line, by the keywords that the schema uses.
fn violations(schema: &Value, line: &Value) -> Vec<String> {
    let kind = if line["target"] == "access" { "request" } else { "event" };
    let (schema, line) = (&schema["$defs"][kind], line.as_object().unwrap());
    let mut found = Vec::new();
    for name in schema["required"].as_array().unwrap() {
        if !line.contains_key(name.as_str().unwrap()) {
            found.push(format!("{name} is missing"));
        }
    }
    for (name, value) in line {
        let Some(rule) = schema["properties"].get(name) else {
            if schema["additionalProperties"] == false {
                found.push(format!("{name} is not described"));
            }
            continue;
        };
        let has_type = match rule["type"].as_str() {
            Some("string") => value.is_string(),
            Some("integer") => {
                value.as_u64().is_some_and(|number| number <= rule["maximum"].as_u64().unwrap_or(u64::MAX))
            }
            Some("number") => value.as_f64().is_some_and(|number| number >= 0.0),
            Some(other) => panic!("{other} is not checked here"),
            None => rule.get("const") == Some(value),
        };
        let is_listed = rule["enum"].as_array().is_none_or(|listed| listed.contains(value));
        if !has_type || !is_listed {
            found.push(format!("{name} is {value}"));
        }
    }
    found
}

/// A service that answers gRPC calls, event streams and everything else; `/fails` gets 500.
async fn start_service() -> SocketAddr {
    start_upstream(|request| async move {
        let is_grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
        let mut response = Response::new(body::full("hello"));
        if is_grpc {
            let (feed, content) = channel_body();
            tokio::spawn(async move {
                let trailers =
                    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("5"))]);
                feed.send(data_frame("abc")).await.unwrap();
                let _ = feed.send(Ok(hyper::body::Frame::trailers(trailers))).await;
            });
            response = Response::new(content);
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        }
        if request.uri().path().ends_with("/fails") {
            *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
        }
        Ok(response)
    })
    .await
}

struct Rig {
    _folder: Folder,
    emulator: Emulator,
    running: Running,
    address: SocketAddr,
    ends: CancellationToken,
}

impl Rig {
    /// Keyward in front of the service, whose URL begins with this.
    async fn start(name: &str, scheme: &str) -> Self {
        let (folder, ends) = (Folder::new(name), CancellationToken::new());
        let secret = folder.write("secret", "dev");
        let emulator = Emulator::new(keyward_emulator::Settings::default());
        let (listener, scalekit) = bind_loopback().await;
        let (serving, until) = (emulator.clone(), ends.clone());
        tokio::spawn(async move { serving.serve(listener, until).await });
        let text =
            route_file(start_service().await, "drain_delay = \"0s\"\ntrusted_proxies = [\"127.0.0.1\"]");
        let file = folder.write("keyward.toml", &(text.replace("http://", scheme) + ADMIN_ROUTE));
        let running = Running::start(keyward_run(&file, scalekit, &secret));
        let address = running.address("server.address").await;
        running.until("\"ready\"").await;
        Self { _folder: folder, emulator, running, address, ends }
    }

    fn issue(&self, user: &str, roles: &[&str], claims: &[(&str, &str)]) -> String {
        let issue = Issue {
            organization_id: "org_1".into(),
            user_id: user.into(),
            roles: roles.iter().map(ToString::to_string).collect(),
            custom_claims: claims.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            ..Issue::default()
        };
        self.emulator.issue(issue).key
    }

    async fn send(&self, line: &str, key: &str, headers: &str) -> Reply {
        let mut client = Client::connect(self.address).await;
        let authorization = format!("authorization: Bearer {key}\r\n");
        let authorization = if key.is_empty() { "" } else { &authorization };
        client.send(format!("{line} HTTP/1.1\r\nhost: api.test:8443\r\n{authorization}{headers}\r\n")).await;
        client.read_reply().await
    }

    async fn call(&self, path: &str, key: &str) -> u16 {
        let mut client = HttpClient::connect(self.address, HttpVersion::Http2).await;
        let mut call = client.request(Method::POST, path, key, body::full("abc"));
        call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let response = client.send(call).await.unwrap();
        let status = response.status().as_u16();
        read_body(response).await.unwrap();
        status
    }

    /// Ends Keyward, and gives all lines.
    async fn finish(mut self) -> Vec<Value> {
        self.running.signal(rustix::process::Signal::TERM);
        assert_eq!(self.running.exit().await, Some(0));
        self.running.until("\"stopped\"").await;
        self.ends.cancel();
        self.running.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[track_caller]
fn check(line: &Value, expected: Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&line[name], value, "{name} in {line}");
    }
}

fn requests(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["target"] == "access").collect()
}

#[tokio::test]
async fn log_lines_match_published_schema() {
    let rig = Rig::start("schema", "http://").await;
    let key = rig.issue("usr_1", &[], &[]);
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nuser-agent: it\r\n";
    for (line, key) in [
        ("GET /v1", &*key),
        ("GET /v1", BAD_KEY),
        ("GET /public/x", ""),
        ("GET /public/fails", ""),
        ("GET /admin/x", &key),
        ("BREW /a/../b", &key),
    ] {
        rig.send(line, key, trace).await;
    }
    rig.call("/v1", &key).await;
    let mut client = Client::connect(rig.address).await;
    client.send("GET /public/x HTTP/1.1\r\n\r\n").await;
    client.read_reply().await;
    let (lines, schema) = (rig.finish().await, schema());
    assert_eq!(requests(&lines).len(), 8, "{lines:?}");
    assert!(lines.len() > 11, "{lines:?}");
    for line in &lines {
        assert_eq!(violations(&schema, line), [""; 0], "{line}");
    }
}

#[test]
fn page_describes_every_field_of_schema() {
    let (page, schema) = (read("docs/logs.md"), schema());
    let (_, page) = page.split_once("## A request").unwrap();
    let (request, events) = page.split_once("## Events").unwrap();
    let fields = |text: &str, columns: usize| {
        let rows = text
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.split('|').collect::<Vec<_>>());
        let rows = rows.filter(|row| row.len() == columns + 2);
        let names =
            rows.flat_map(|row| row[1].split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    let described: Vec<String> =
        schema["$defs"]["request"]["properties"].as_object().unwrap().keys().cloned().collect();
    // `message` is in the sentence above the table.
    let mut expected = described;
    expected.retain(|name| name != "message");
    expected.sort();
    assert_eq!(fields(request, 4), expected);
    for name in fields(events, 3) {
        assert!(schema["$defs"]["event"]["properties"].get(&name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn refused_key_line_names_requirement_without_values() {
    let rig = Rig::start("unmet", "http://").await;
    let good = ("environment", "made-up-production");
    let cases = [
        (rig.issue("", &["admin"], &[good]), "scope", "user"),
        (rig.issue("usr_1", &["reader"], &[good]), "role", "admin"),
        (rig.issue("usr_1", &["admin"], &[("environment", "made-up-test")]), "claim", "environment"),
    ];
    for (key, ..) in &cases {
        assert_eq!(rig.send("GET /admin/x", key, "").await.status, 403);
    }
    let lines = rig.finish().await;
    let requests = requests(&lines);
    assert_eq!(requests.len(), cases.len());
    for (line, (_, kind, name)) in requests.into_iter().zip(&cases) {
        check(
            line,
            serde_json::json!({
                "keyward.reason": "not_permitted", "keyward.requirement.kind": kind, "keyward.requirement.name": name,
                "keyward.route": "admin", "keyward.org.id": "org_1", "keyward.decision": "deny",
            }),
        );
        assert!(line["error.type"].is_null(), "the client is at fault: {line}");
        assert!(!line.to_string().contains("made-up"), "{line}");
    }
}

#[tokio::test]
async fn own_responses_are_logged_as_sent() {
    let rig = Rig::start("own", "http://").await;
    let reply = rig.send("GET /v1", "", "x-forwarded-proto: https\r\n").await;
    let head = rig.send("GET /public/fails", "", "").await;
    assert_eq!((reply.status, head.status), (401, 500));
    assert_eq!(rig.call("/v1", BAD_KEY).await, 200);
    let lines = rig.finish().await;
    let [own, upstream, call] = requests(&lines)[..] else { panic!("{lines:?}") };
    check(
        own,
        serde_json::json!({
            "http.response.status_code": 401, "http.response.body.size": reply.body.len(), "url.scheme": "https",
            "server.address": "api.test", "server.port": 8443, "keyward.reason": "missing_credential",
        }),
    );
    check(
        upstream,
        serde_json::json!({
            "http.response.status_code": 500, "error.type": "500", "keyward.decision": "allow", "url.scheme": "http",
        }),
    );
    check(
        call,
        serde_json::json!({
            "http.response.status_code": 200, "rpc.response.status_code": "UNAUTHENTICATED", "keyward.decision": "deny",
            "http.response.body.size": 0, "server.address": "api.test", "keyward.reason": "invalid_key",
        }),
    );
    assert!(own["rpc.response.status_code"].is_null() && call["server.port"].is_null());
}

#[tokio::test]
async fn grpc_status_of_service_is_logged() {
    let rig = Rig::start("grpc-status", "h2c://").await;
    let key = rig.issue("usr_1", &[], &[]);
    assert_eq!(rig.call("/v1", &key).await, 200);
    let lines = rig.finish().await;
    check(
        requests(&lines)[0],
        serde_json::json!({
            "http.response.status_code": 200, "rpc.response.status_code": "NOT_FOUND", "http.response.body.size": 3,
            "keyward.decision": "allow",
        }),
    );
}

#[tokio::test]
async fn unreachable_upstream_is_error_type_of_line() {
    let (folder, secret) = (Folder::new("error-type"), "made-up");
    let secret = folder.write("secret", secret);
    let (listener, nowhere) = bind_loopback().await;
    drop(listener);
    let file = folder.write("keyward.toml", &route_file(nowhere, "drain_delay = \"0s\""));
    let mut running = Running::start(keyward_run(&file, nowhere, &secret));
    let mut client = Client::connect(running.address("server.address").await).await;
    client.send("GET /public/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.read_reply().await.status, 502);
    running.until("\"not ready").await;
    running.signal(rustix::process::Signal::TERM);
    running.exit().await;
    running.until("\"stopped\"").await;
    let lines: Vec<Value> = running.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    check(
        requests(&lines)[0],
        serde_json::json!({
            "error.type": "upstream_unreachable", "keyward.reason": "upstream_unreachable", "keyward.decision": "error",
        }),
    );
    assert!(requests(&lines)[0]["keyward.error.message"].as_str().unwrap().contains("refused"));
    let not_ready =
        lines.iter().find(|line| line["message"].as_str().unwrap().starts_with("not ready")).unwrap();
    assert_eq!(not_ready["error.type"], "unreachable");
}
