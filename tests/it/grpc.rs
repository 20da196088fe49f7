//! gRPC on the wire: trailers-only refusals, and responses with their status after the body.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use keyward::body::{self, Body};
use keyward_emulator::faults::{Answer, Effect, Fault, Target};

use crate::support::http::{HttpClient, HttpVersion, channel_body, data_frame, read_body, start_upstream};
use crate::support::{Setup, Stage};

/// A message of three bytes with its five-byte prefix.
const MESSAGE: &[u8] = b"\0\0\0\0\x03abc";

fn call(client: &HttpClient, path: &str, key: &str, body: Body) -> Request<Body> {
    let mut request = client.request(Method::POST, path, key, body);
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc+proto"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("5S"));
    request
}

#[tokio::test]
async fn refusal_is_grpc_status_in_trailers() {
    let stage = Stage::with(Setup { sections: "[negative_cache]\nttl = \"0s\"", ..Setup::default() }).await;
    let key = stage.issue_key();
    let mut client = stage.connect_http(HttpVersion::Http2).await;
    for (path, key, status, code) in [
        ("/v1.Orders/List", "", "16", "missing_credential"),
        ("/v1.Orders/List", "0123456789ABCDEFGHIJabcdefghij", "16", "invalid_key"),
        ("/v1/admin/x", &key, "7", "not_permitted"),
        ("/v1%2fadmin/x", &key, "13", "ambiguous_path"),
        ("/v1.Orders/List", &key, "14", "validation_unavailable"),
    ] {
        if status == "14" {
            stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(500))));
        }
        let request = call(&client, path, key, body::full(MESSAGE));
        let response = client.send(request).await.unwrap();
        let headers = response.headers().clone();
        assert_eq!(
            (response.status().as_u16(), &headers["grpc-status"]),
            (200, &HeaderValue::from_static(status))
        );
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(headers["keyward-error"], code);
        assert!(!headers["grpc-message"].is_empty());
        assert_eq!(read_body(response).await.unwrap().0, 0, "{code}");
    }
    assert_eq!(stage.forwarded_count(), 0);
}

#[tokio::test]
async fn grpc_call_passes_with_deadline_and_status() {
    let address = start_upstream(|request| async move {
        let headers = request.headers();
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["grpc-timeout"], "5S");
        assert_eq!(headers["x-org-id"], "org_1");
        let (mut incoming, (feed, content)) = (request.into_body(), channel_body());
        // A bidirectional stream: each message is returned as it arrives.
        tokio::spawn(async move {
            use http_body_util::BodyExt;
            while let Some(Ok(frame)) = incoming.frame().await {
                feed.send(Ok(frame)).await.unwrap();
            }
            let trailers = [("grpc-status", "5"), ("grpc-message", "no%20such%20order")]
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            feed.send(Ok(hyper::body::Frame::trailers(HeaderMap::from_iter(trailers)))).await.unwrap();
        });
        let mut response = Response::new(content);
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        Ok(response)
    })
    .await;
    let stage =
        Stage::with(Setup { upstream_url: Some(format!("h2c://{address}")), ..Setup::default() }).await;
    let mut client = stage.connect_http(HttpVersion::Http2).await;
    let (feed, content) = channel_body();
    let request = call(&client, "/v1.Orders/Chat", &stage.issue_key(), content);
    let mut response = client.send(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    for _ in 0..3 {
        use http_body_util::BodyExt;
        feed.send(data_frame(MESSAGE)).await.unwrap();
        let frame = response.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), MESSAGE);
    }
    drop(feed);
    let (rest, trailers) = read_body(response).await.unwrap();
    assert_eq!(rest, 0);
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"5".parse().unwrap(), &"no%20such%20order".parse().unwrap())
    );
}
