//! `/openapi.json` is consistent, and its responses are exactly those that occur.

use std::collections::BTreeSet;
use std::time::Duration;

use keyward::management::OPENAPI;
use keyward_emulator::access::Permission;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use serde_json::{Value, json};

use super::schema::{DOCUMENT, conform, resolve};
use super::{ApiRequest, KEYS, ManagementStage, SECRET, id, ordinary_body};
use crate::support::http::{HttpClient, HttpVersion, channel_body};
use crate::support::tls::{Folder, toml};

/// Every value in the document, with its pointer.
fn walk<'v>(value: &'v Value, place: String, visit: &mut impl FnMut(&str, &'v Value)) {
    visit(&place, value);
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| walk(value, format!("{place}/{name}"), visit))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| walk(item, format!("{place}/{index}"), visit));
        }
        _ => {}
    }
}

#[test]
fn openapi_document_is_consistent() {
    assert_eq!(DOCUMENT["openapi"], "3.1.0");
    let mut used = BTreeSet::new();
    let mut names = BTreeSet::new();
    walk(&DOCUMENT, String::new(), &mut |place, value| {
        if let Some(reference) = value["$ref"].as_str() {
            resolve(value);
            used.insert(reference.to_owned());
        }
        if let Some(name) = value["operationId"].as_str() {
            assert!(names.insert(name), "{name} twice");
            assert!(value["summary"].is_string(), "{place}");
        }
        // Examples match their schema.
        if let Some(examples) =
            value["examples"].as_array().filter(|_| place.starts_with("/components/schemas/Key"))
        {
            examples
                .iter()
                .filter(|_| place.ends_with("/Key"))
                .for_each(|example| conform(value, example, place));
        }
    });
    assert_eq!(names.len(), 8);
    for (kind, components) in DOCUMENT["components"].as_object().unwrap() {
        for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
            assert!(used.contains(&format!("#/components/{kind}/{name}")), "{name} is used nowhere");
        }
    }
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        let mut given: Vec<&str> = item["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|parameter| resolve(parameter)["name"].as_str().unwrap())
            .collect();
        given.sort_unstable();
        let mut asked: Vec<&str> =
            path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
        asked.sort_unstable();
        assert_eq!(given, asked, "{path}");
    }
}

/// A creation, change or rotation whose body never ends.
async fn body_timeout(management: &ManagementStage, method: &str, path: &str) {
    let mut client = management.connect().await;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
    );
    client.send(head).await;
    let reply = client.read_reply_within(Duration::from_secs(15)).await;
    assert_eq!(reply.code(), Some("body_timeout"));
    management.check_response(method, path, &reply);
}

#[tokio::test]
async fn every_documented_response_occurs() {
    let folder = Folder::new();
    let file = folder.write("secret", SECRET);
    let locked = ManagementStage::with(&format!("secret_file = {}", toml(&file))).await;
    let management = ManagementStage::with("allowed_claims = [\"team\"]\nrequire_expiry = true").await;
    let until = json!({"expiry": "2099-01-01T00:00:00Z", "custom_claims": {"team": "a"}});
    let (made, old) = (management.create(&until).await, management.create(&until).await);
    let (_, endless) = management.issue("org_1");
    let one = format!("{KEYS}/{}", id(&made));
    let create = ApiRequest::create(&until);
    let [list, show] = [KEYS, &one].map(|path| ApiRequest::new("GET", path));
    let patch = |body: &Value| ApiRequest::new("PATCH", &*one).json(body);
    let change = patch(&json!({"custom_claims": {"team": "b"}}));
    let rotate = ApiRequest::new("POST", format!("{KEYS}/{}/rotate", id(&old)));
    let revoke = ApiRequest::new("DELETE", &*one);
    let usage = ApiRequest::new("GET", "/v1/usage");
    let all = [&create, &list, &show, &change, &rotate, &revoke, &usage];
    management.send(&ApiRequest::new("GET", "/openapi.json")).await;

    // 401, 403, 404, 400.
    for ask in all {
        assert_eq!(locked.send(ask).await.status, 401);
        assert_eq!(management.send(&ask.clone().header("origin", "null")).await.status, 403);
    }
    for ask in [
        ApiRequest::create(&ordinary_body()),
        patch(&json!({"custom_claims": {"plan": "paid"}})),
        ApiRequest::new("POST", format!("{KEYS}/{endless}/rotate")),
    ] {
        assert_eq!(management.code(&ask).await.1, "not_permitted");
    }
    let none = |method: &str, end: &str| ApiRequest::new(method, format!("{KEYS}/apit_0{end}"));
    for ask in [
        none("GET", ""),
        none("PATCH", "").json(&json!({"description": "x"})),
        none("DELETE", ""),
        none("POST", "/rotate"),
    ] {
        assert_eq!(management.send(&ask).await.status, 404);
    }
    let uncounted = ManagementStage::with("[usage]\nenabled = false").await;
    assert_eq!(uncounted.code(&usage).await, (404, "not_found".to_owned()));
    for target in [Target::Create, Target::List] {
        management.stage.emulator.set_fault(Fault::new(target, Effect::Answer(Answer::status(404))).times(1));
    }
    for ask in [&create, &list] {
        assert_eq!(management.code(ask).await.1, "not_found");
    }
    for ask in [
        ApiRequest::create(&json!({"x": 1})),
        ApiRequest::new("GET", format!("{KEYS}?x=1")),
        ApiRequest::new("GET", format!("{one}?x=1")),
        patch(&json!({})),
        ApiRequest::new("DELETE", format!("{one}?x=1")),
        rotate.clone().json(&json!({"x": 1})),
        ApiRequest::new("GET", "/v1/usage?x=1"),
    ] {
        assert_eq!(management.send(&ask).await.status, 400);
    }

    // 413, 415, 408, 409, 422.
    let long = format!("{{\"description\":\"{}\"}}", "x".repeat(128 * 1024));
    for (method, path) in
        [("POST", KEYS.to_owned()), ("PATCH", one.clone()), ("POST", format!("{one}/rotate"))]
    {
        let ask = ApiRequest::new(method, &*path).header("content-type", "application/json").body(&*long);
        assert_eq!(management.code(&ask).await.1, "body_too_large");
        assert_eq!(management.send(&ApiRequest::new(method, path).body("{}")).await.status, 415);
    }
    let rotate_path = format!("{one}/rotate");
    tokio::join!(
        body_timeout(&management, "POST", KEYS),
        body_timeout(&management, "PATCH", &one),
        body_timeout(&management, "POST", &rotate_path)
    );
    for ask in [&create, &rotate] {
        let ask = ask.clone().with_idempotency_key("one");
        assert_eq!(management.send(&ask).await.status, 201);
        assert_eq!(management.send(&ask).await.status, 409);
        let other = ask.json(&json!({}));
        assert_eq!(management.send(&other.body("{ }")).await.status, 422);
    }

    // 502, 503, 200, 204.
    management.stage.emulator.set_permissions(&[Permission::Write]);
    for ask in [&list, &show, &change, &ApiRequest::new("POST", &*rotate_path), &revoke] {
        assert_eq!(management.send(ask).await.status, 502);
    }
    management.stage.emulator.set_permissions(&[Permission::Read, Permission::Rotate]);
    assert_eq!(management.send(&create).await.status, 502);
    management.stage.emulator.set_permissions(&[Permission::Read, Permission::Write, Permission::Rotate]);
    std::fs::remove_file(file).unwrap();
    for ask in all {
        assert_eq!(locked.send(ask).await.status, 503);
    }
    for ask in [list, show, change, usage] {
        assert_eq!(management.send(&ask).await.status, 200);
    }
    assert_eq!(management.send(&revoke).await.status, 204);

    let mut documented = BTreeSet::new();
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
        {
            let statuses = operation["responses"].as_object().unwrap().keys();
            documented.extend(statuses.map(|status| format!("{} {path} {status}", method.to_uppercase())));
        }
    }
    let mut seen = management.seen.lock().unwrap().clone();
    for other in [&locked, &uncounted] {
        seen.extend(other.seen.lock().unwrap().iter().cloned());
    }
    assert_eq!(
        documented.difference(&seen).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "documented, and not given"
    );
    assert_eq!(
        seen.difference(&documented).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "given, and not documented"
    );
}

#[tokio::test]
async fn openapi_document_is_served_unchanged() {
    let management = ManagementStage::start().await;
    let reply = management.send(&ApiRequest::new("GET", "/openapi.json")).await;
    assert_eq!((reply.status, &*reply.text()), (200, OPENAPI));
}

#[tokio::test]
async fn chunked_and_http2_bodies_are_accepted() {
    let management = ManagementStage::start().await;
    let Some(keyward::listener::Listen::Tcp(address)) = management.stage.management else { panic!("a port") };
    let body = ordinary_body().to_string();
    let mut http_client = HttpClient::connect(address, HttpVersion::Http2).await;
    let (feed, stream) = channel_body();
    let mut request = http_client.request(hyper::Method::POST, KEYS, "", stream);
    *request.uri_mut() = format!("http://localhost{KEYS}").parse().unwrap();
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let feeding = async {
        for piece in body.as_bytes().chunks(7) {
            feed.send(Ok(hyper::body::Frame::data(bytes::Bytes::copy_from_slice(piece)))).await.unwrap();
        }
        drop(feed);
    };
    let (response, ()) = tokio::join!(http_client.send(request), feeding);
    assert_eq!(response.unwrap().status(), 201);
    let mut client = management.connect().await;
    client.send(format!("POST {KEYS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")).await;
    for piece in body.as_bytes().chunks(7) {
        client.send(format!("{:x}\r\n", piece.len())).await;
        client.send(piece).await;
        client.send("\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.read_reply().await.status, 201);
}
