//! Raw bytes at the management listener: it stays available and bounded, and acts only on well-formed requests.

use keyward_emulator::faults::{Effect, Fault, Target};
use serde_json::json;

use super::{ApiRequest, KEYS, ManagementStage, id, ordinary_body};
use crate::support::wait_until;

#[tokio::test]
async fn ambiguous_framing_creates_no_smuggled_key() {
    let management = ManagementStage::start().await;
    let hidden = ApiRequest::create(&json!({"description": "smuggled"})).to_bytes();
    let head = format!("POST {KEYS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
    for framing in [
        format!("content-length: 2\r\ncontent-length: {}\r\n\r\n{{}}{hidden}", hidden.len()),
        format!("content-length: -1\r\n\r\n{hidden}"),
        format!("content-length: +2\r\n\r\n{{}}{hidden}"),
        format!("content-length: 2, 2\r\n\r\n{{}}{hidden}"),
        format!("content-length: 99999999999999999999\r\n\r\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\nzz\r\n{hidden}"),
        format!("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("transfer-encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("x: a\nb\r\ncontent-length : 0\r\n\r\n{hidden}"),
        format!("x\0y: a\r\n\r\n{hidden}"),
        format!("x: a\0b\r\n\r\n{hidden}"),
    ] {
        let mut client = management.connect().await;
        client.send(format!("{head}{framing}")).await;
        let answer = String::from_utf8_lossy(&client.read_to_end().await).into_owned();
        assert_eq!(answer.matches("HTTP/1.1 201").count(), 0, "{framing}\n{answer}");
    }
    let list = management.send(&ApiRequest::new("GET", KEYS)).await.text();
    assert!(!list.contains("smuggled"), "{list}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    let one = format!("{KEYS}/{}", id(&made));
    let mut all = String::new();
    for ask in [
        ApiRequest::new("GET", &*one),
        ApiRequest::new("DELETE", &*one),
        ApiRequest::new("GET", &*one),
        ApiRequest::create(&ordinary_body()),
    ] {
        all.push_str(&ask.to_bytes());
    }
    let mut client = management.connect().await;
    client.send(all).await;
    for status in [200, 204, 404, 201] {
        assert_eq!(client.read_reply().await.status, status);
    }
}

#[tokio::test]
async fn pathological_json_bodies_are_refused_fast() {
    let management = ManagementStage::start().await;
    let deep = "[".repeat(60_000);
    let nested = format!("{{\"custom_claims\":{}", "{\"a\":".repeat(10_000));
    let numbers = format!("{{\"user_id\":{}}}", "9".repeat(100_000));
    let many: String = (0..9_000).map(|number| format!("\"a{number}\":\"b\",")).collect();
    for body in [
        deep.as_bytes().to_vec(),
        nested.into_bytes(),
        numbers.into_bytes(),
        format!("{{\"custom_claims\":{{{many}\"z\":\"b\"}}}}").into_bytes(),
        b"{\"user_id\":\"\xff\xfe\"}".to_vec(),
        b"{\"user_id\":\"\\ud800\"}".to_vec(),
        b"{\"user_id\":\"a\0b\"}".to_vec(),
        b"{\"user_id\":1e99999}".to_vec(),
        b"\0".to_vec(),
    ] {
        let mut client = management.connect().await;
        let head = format!(
            "POST {KEYS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        client.send(head).await;
        client.send(&body).await;
        let reply = client.read_reply().await;
        assert_eq!((reply.status, reply.code()), (400, Some("invalid_request")), "{}", reply.text());
        assert!(reply.text().len() < 1000, "{}", reply.text().len());
    }
    assert_eq!(management.stage.emulator.counts().creations, 0);
}

#[tokio::test]
async fn claims_of_any_unicode_round_trip() {
    let management = ManagementStage::start().await;
    let claims =
        json!({"käse": "\u{0}\r\n\t\u{1b}[31m", "😀": "\"\\/\u{202e}\u{feff}", " ": " ", "%41": "%2e%2e%2f"});
    let made = management.create(&json!({"custom_claims": claims, "description": "\u{0}\r\n"})).await;
    assert_eq!(made["token_info"]["custom_claims"], claims);
    assert_eq!(management.get_key(id(&made)).await["custom_claims"], claims);
    let changed = management.patch(id(&made), &json!({"custom_claims": {"käse": null}})).await.json();
    assert!(changed["custom_claims"].get("käse").is_none());
}

#[tokio::test]
async fn incomplete_body_creates_no_key() {
    let management = ManagementStage::start().await;
    for end in ["{\"user_id\":\"usr_1\"}", "{\"user_id\":"] {
        let mut client = management.connect().await;
        let head = format!(
            "POST {KEYS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{end}"
        );
        client.send(head).await;
        // The client closes its half: hyper takes that for the end.
        tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
        let answer = String::from_utf8_lossy(&client.read_to_end().await).into_owned();
        assert!(!answer.contains("201"), "{answer}");
    }
    assert_eq!(management.stage.emulator.counts().creations, 0);
}

#[tokio::test]
async fn client_that_writes_first_receives_refusal_of_body() {
    let management = ManagementStage::start().await;
    let one = format!("{KEYS}/apit_1");
    let long = 300 * 1024;
    for (method, path, origin, length, status) in [
        ("POST", KEYS, "origin: null\r\n", 1000, 403),
        ("POST", KEYS, "", long, 413),
        ("DELETE", &one, "", 1000, 404),
        ("PUT", KEYS, "", long, 405),
    ] {
        let mut client = management.connect().await;
        client
            .send(format!(
                "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{origin}content-length: {length}\r\n\r\n"
            ))
            .await;
        // The refusal arrives long before the body ends.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        for _ in 0..length / 100 {
            tokio::io::AsyncWriteExt::write_all(&mut client.stream, &[b'x'; 100]).await.expect("it is taken");
        }
        let rest = vec![b'x'; length % 100];
        client.send(rest).await;
        assert_eq!(client.read_reply().await.status, status, "{method} {length}");
        client.send(ApiRequest::new("GET", KEYS).to_bytes()).await;
        assert_eq!(client.read_reply().await.status, 200, "and the connection goes on");
    }
}

#[tokio::test]
async fn idle_connections_do_not_lock_out_new_client() {
    let management = ManagementStage::of(
        "listen = \"127.0.0.1:0\"",
        crate::support::Setup { server: "header_timeout = \"1s\"", ..Default::default() },
    )
    .await;
    let mut waiting = Vec::new();
    for number in 0..300 {
        let mut client = management.connect().await;
        client.send(if number % 2 == 0 { "GET / HT" } else { "" }).await;
        waiting.push(client);
    }
    // Their places are free again after `header_timeout`.
    assert_eq!(management.send(&ApiRequest::new("GET", KEYS)).await.status, 200);
    for client in &mut waiting[..256] {
        client.read_to_end().await;
    }
}

#[tokio::test]
async fn concurrent_requests_are_bounded_over_http2() {
    use crate::support::http::{HttpClient, HttpVersion};
    let management = ManagementStage::start().await;
    let Some(keyward::listener::Listen::Tcp(address)) = management.stage.management else { panic!("a port") };
    management.stage.emulator.set_fault(Fault::new(Target::List, Effect::Hang));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let http_client = HttpClient::connect(address, HttpVersion::Http2).await;
        for _ in 0..100 {
            let mut http_client = http_client.again();
            asking.spawn(async move {
                let mut request = http_client.request(hyper::Method::GET, KEYS, "", keyward::body::empty());
                *request.uri_mut() = format!("http://localhost{KEYS}").parse().unwrap();
                http_client.send(request).await.unwrap().status()
            });
        }
    }
    // Of 300 requests 256 have a place, 32 of these call Scalekit, and the others get 503.
    for _ in 0..268 {
        assert_eq!(asking.join_next().await.unwrap().unwrap(), 503);
    }
    wait_until(|| {
        management.metric("list", "overloaded") == 224 && management.metric("none", "overloaded") == 44
    })
    .await;
    management.stage.emulator.clear_faults();
    while let Some(status) = asking.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
}
