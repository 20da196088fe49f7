//! Responses of any shape: complete, truncated, too large, or of a server that is not Scalekit.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use scalekit::call::{Operation, Permission, Reply};
use scalekit::error::{Error, Refusal};
use scalekit::response::HttpResponse;
use scalekit::status::Code;
use scalekit::token::Token;
use scalekit::{grpc, rest};

use crate::support::replies;

#[test]
fn token_with_absent_or_unknown_fields_is_parsed() {
    let read = |token_info: &str| {
        let body = format!(r#"{{"token_info":{token_info}}}"#);
        match rest::decode_response(Operation::Validate, &json(200, &body)) {
            Ok(Reply::Token(token)) => token,
            other => panic!("{other:?}"),
        }
    };
    let bare = Token { organization_id: "org_1".into(), ..Token::default() };
    for text in [
        r#"{"organization_id":"org_1"}"#,
        r#"{"organization_id":"org_1","user_id":"","expiry":"","token_suffix":"","created_at":"","token_id":""}"#,
        r#"{"organization_id":"org_1","user_id":null,"expiry":null,"roles":null,"custom_claims":null,"token_id":null,"email":null}"#,
        r#"{"organization_id":"org_1","email":7,"description":{"a":1},"created_at":"soon","unknown":[{}]}"#,
    ] {
        assert_eq!(read(text), bare, "{text}");
    }
    let claims =
        read(r#"{"organization_id":"org_1","custom_claims":{"a":"b","n":1,"o":{"x":[true]},"z":null}}"#);
    let claims: Vec<_> = claims.custom_claims.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(claims, [("a", "b"), ("n", "1"), ("o", r#"{"x":[true]}"#), ("z", "null")]);
}

fn json(status: u16, body: &str) -> HttpResponse {
    typed(status, "application/json", body)
}

fn typed(status: u16, content_type: &'static str, body: &str) -> HttpResponse {
    HttpResponse {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]),
        body: Bytes::copy_from_slice(body.as_bytes()),
        trailers: HeaderMap::new(),
    }
}

fn framed(message: &[u8]) -> HttpResponse {
    let mut body = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    body.extend_from_slice(message);
    let mut response = typed(200, "application/grpc", "");
    response.body = body.into();
    response.trailers.insert("grpc-status", HeaderValue::from_static("0"));
    response
}

#[test]
fn malformed_rest_success_breaks_contract() {
    let token = r#"{"token_id":"apit_1","organization_id":"org_1"}"#;
    for (operation, body) in [
        (Operation::Create, "{}".to_owned()),
        (Operation::Create, format!(r#"{{"token_info":{token}}}"#)),
        (Operation::Create, format!(r#"{{"token":"","token_info":{token}}}"#)),
        (Operation::Create, format!(r#"{{"token":null,"token_info":{token}}}"#)),
        (Operation::Create, format!(r#"{{"token":"a\u001b[31m","token_info":{token}}}"#)),
        (Operation::Create, r#"{"token":"abc"}"#.to_owned()),
        (Operation::Create, r#"{"token":"abc","token_info":{}}"#.to_owned()),
        (Operation::Create, r#"{"token":"abc","token_info":{"organization_id":"org_1"}}"#.to_owned()),
        (Operation::Update, r#"{"token_info":{"organization_id":"org_1"}}"#.to_owned()),
        (Operation::Update, r#"{"token_info":null}"#.to_owned()),
        (Operation::Validate, "{}".to_owned()),
        (Operation::Validate, r#"{"token_info":["apit_1","org_1",null]}"#.to_owned()),
        (Operation::Validate, r#"{"token_info":{"organization_id":7}}"#.to_owned()),
        (
            Operation::Validate,
            r#"{"token_info":{"organization_id":"org_1","organization_id":"org_2"}}"#.to_owned(),
        ),
        (Operation::Validate, r#"{"token_info":{"organization_id":"org_1","expiry":"soon"}}"#.to_owned()),
        (Operation::Validate, r#"{"token_info":{"organization_id":"org_1","roles":["a",1]}}"#.to_owned()),
        (Operation::List, r#"{"tokens":{}}"#.to_owned()),
        (Operation::List, r#"{"tokens":[{}]}"#.to_owned()),
        (Operation::List, r#"{"tokens":[["apit_1","org_1"]]}"#.to_owned()),
        (Operation::List, r#"{"tokens":[],"total_count":"many"}"#.to_owned()),
    ] {
        let outcome = rest::decode_response(operation, &json(200, &body));
        assert!(matches!(outcome, Err(Error::BrokenContract(_))), "{operation:?} {body}: {outcome:?}");
    }
    let all =
        [Operation::Create, Operation::Validate, Operation::Invalidate, Operation::List, Operation::Update];
    for operation in all {
        for body in ["", "null", "[]", "true", "<html>", "{\"token_info\":{", "{}garbage", "\u{0}"] {
            let outcome = rest::decode_response(operation, &json(200, body));
            assert!(matches!(outcome, Err(Error::BrokenContract(_))), "{operation:?} {body}: {outcome:?}");
        }
    }
}

#[test]
fn truncated_reply_is_never_accepted() {
    for (operation, reply) in replies() {
        let whole = rest::encode_response(Ok(&reply));
        for length in 0..whole.body.len() {
            let cut = HttpResponse { body: whole.body.slice(..length), ..whole.clone() };
            assert!(rest::decode_response(operation, &cut).is_err(), "{operation:?} {length}");
        }
        let whole = grpc::encode_response(Ok(&reply));
        for length in 0..whole.body.len() {
            let cut = HttpResponse { body: whole.body.slice(..length), ..whole.clone() };
            assert!(grpc::decode_response(operation, &cut).is_err(), "{operation:?} {length}");
        }
    }
}

#[test]
fn malformed_grpc_success_breaks_contract() {
    let org = b"\x12\x05org_1";
    let with_nanos = [&b"\x0a\x0f"[..], org, b"\x3a\x06\x10\xff\xff\xff\xff\x07"].concat();
    for (operation, response) in [
        (Operation::Validate, framed(b"")),
        (Operation::Validate, framed(b"\x0a\x00")),
        (Operation::Validate, framed(b"\x0a\xff")),
        (Operation::Validate, framed(b"<html>")),
        (Operation::Validate, framed(&with_nanos)),
        (Operation::Create, framed(b"")),
        (Operation::Create, framed(b"\x0a\x03abc")),
        (Operation::List, framed(b"\x0a\x00")),
    ] {
        let outcome = grpc::decode_response(operation, &response);
        assert!(matches!(outcome, Err(Error::BrokenContract(_))), "{operation:?}: {outcome:?}");
    }
    // Compressed, two frames, a wrong message length.
    for body in [&b"\x01\0\0\0\0"[..], b"\0\0\0\0\0\0\0\0\0\0", b"\0\xff\xff\xff\xff", b"\0\0\0\0\x01"] {
        let response = HttpResponse { body: Bytes::from_static(body), ..framed(b"") };
        let outcome = grpc::decode_response(Operation::Invalidate, &response);
        assert!(matches!(outcome, Err(Error::BrokenContract(_))), "{body:?}: {outcome:?}");
    }
    assert!(matches!(grpc::decode_response(Operation::Invalidate, &framed(b"")), Ok(Reply::Invalidated)));
}

#[test]
fn rest_failures_have_their_own_errors() {
    let info = r#"[{"@type":"type.googleapis.com/scalekit.v1.errdetails.ErrorInfo","error_code":"X"}]"#;
    let refused = |code, message: &str| Error::Refused(Refusal { code, message: message.to_owned() });
    let wrong = |status: u16| Error::WrongEndpoint(format!("HTTP {status}"));
    for (status, body, expected) in [
        (404, format!(r#"{{"code":5,"message":"gone","details":{info}}}"#), refused(Code::NotFound, "gone")),
        (
            404,
            format!(r#"{{"code":5,"message":"Not Found","details":{info}}}"#),
            refused(Code::NotFound, "Not Found"),
        ),
        (404, r#"{"code":5,"message":"gone","details":[]}"#.into(), refused(Code::NotFound, "gone")),
        (400, r#"{"code":3,"message":"a\nb"}"#.into(), refused(Code::InvalidArgument, r"a\nb")),
        (400, r#"{"code":9}"#.into(), refused(Code::FailedPrecondition, "")),
        (409, r#"{"code":6,"message":null}"#.into(), refused(Code::AlreadyExists, "")),
        (404, r#"{"code":5,"message":"Not Found","details":[]}"#.into(), wrong(404)),
        (404, r#"{"code":5,"message":"Not Found","details":null}"#.into(), wrong(404)),
        (404, r#"{"code":5,"message":"Not Found"}"#.into(), wrong(404)),
        (404, "<html>".into(), wrong(404)),
        (404, "{}".into(), wrong(404)),
        (404, r#"{"code":"5"}"#.into(), wrong(404)),
        (404, r#"{"code":16}"#.into(), wrong(404)),
        (404, r#"{"code":3}"#.into(), wrong(404)),
        (400, r#"{"code":5,"message":"gone"}"#.into(), wrong(400)),
        (404, r#"[5,"gone",null]"#.into(), wrong(404)),
        (409, r#"{"code":0}"#.into(), wrong(409)),
        (302, String::new(), wrong(302)),
        (204, String::new(), wrong(204)),
        (418, r#"{"code":5,"message":"gone"}"#.into(), wrong(418)),
        (401, r#"{"code":5,"message":"gone"}"#.into(), Error::Credentials),
        (403, "<html>".into(), Error::Permission(Permission::Rotate)),
        (429, String::new(), Error::Throttled(None)),
        (500, String::new(), Error::Unavailable(500)),
        (499, String::new(), Error::Unavailable(499)),
        (503, r#"{"code":5,"message":"gone"}"#.into(), Error::Unavailable(503)),
        (999, String::new(), Error::Unavailable(999)),
    ] {
        let outcome = rest::decode_response(Operation::Invalidate, &json(status, &body));
        assert_eq!(outcome.unwrap_err(), expected, "{status} {body}");
    }
    let gone = r#"{"code":5,"message":"gone"}"#;
    for (content_type, expected) in [
        ("Application/JSON; charset=utf-8", refused(Code::NotFound, "gone")),
        ("text/html", wrong(404)),
        ("application/jsonx", wrong(404)),
        ("", wrong(404)),
    ] {
        let outcome = rest::decode_response(Operation::Validate, &typed(404, content_type, gone));
        assert_eq!(outcome.unwrap_err(), expected, "{content_type}");
    }
    for (retry_after, seconds) in
        [("7", Some(7)), ("99999999999", Some(86_400)), ("soon", None), ("-1", None)]
    {
        let mut response = json(429, "");
        response.headers.insert("retry-after", retry_after.parse().unwrap());
        let expected = Error::Throttled(seconds.map(std::time::Duration::from_secs));
        assert_eq!(rest::decode_response(Operation::Validate, &response).unwrap_err(), expected);
    }
}

#[test]
fn grpc_failures_have_their_own_errors() {
    let failure = |status: &'static str, in_trailers: bool| {
        let mut response = typed(200, "application/grpc+proto", "");
        let fields = if in_trailers { &mut response.trailers } else { &mut response.headers };
        fields.insert("grpc-status", HeaderValue::from_static(status));
        fields.insert("grpc-message", HeaderValue::from_static("100%25 of %C3%BC%0A%zz"));
        grpc::decode_response(Operation::Validate, &response).unwrap_err()
    };
    let refused = |code| Error::Refused(Refusal { code, message: "100% of ü\\n%zz".to_owned() });
    let wrong = |code| Error::WrongEndpoint(format!("gRPC code {code}"));
    for (status, expected) in [
        ("1", Error::Unavailable(499)),
        ("2", Error::Unavailable(500)),
        ("3", refused(Code::InvalidArgument)),
        ("4", Error::Unavailable(504)),
        ("5", refused(Code::NotFound)),
        ("6", refused(Code::AlreadyExists)),
        ("7", Error::Permission(Permission::Read)),
        ("8", Error::Throttled(None)),
        ("9", refused(Code::FailedPrecondition)),
        ("10", refused(Code::Aborted)),
        ("11", refused(Code::OutOfRange)),
        ("12", wrong(12)),
        ("13", Error::Unavailable(500)),
        ("14", Error::Unavailable(503)),
        ("15", Error::Unavailable(500)),
        ("16", Error::Credentials),
        ("17", wrong(17)),
        ("", Error::ConnectionLost("its answer has no grpc-status".into())),
        ("x", Error::ConnectionLost("its answer has no grpc-status".into())),
    ] {
        assert_eq!(failure(status, true), expected, "{status}");
        assert_eq!(failure(status, false), expected, "{status}");
    }
    for (status, expected) in [
        (400, Error::WrongEndpoint("HTTP 400".into())),
        (401, Error::Credentials),
        (403, Error::Permission(Permission::Read)),
        (404, Error::WrongEndpoint("HTTP 404".into())),
        (429, Error::Throttled(None)),
        (503, Error::Unavailable(503)),
    ] {
        let response = typed(status, "application/grpc", "");
        assert_eq!(grpc::decode_response(Operation::Validate, &response).unwrap_err(), expected);
    }
    for content_type in ["application/json", "application/grpc-web", "application/grpc+json", ""] {
        let response = HttpResponse { headers: typed(200, content_type, "").headers, ..framed(b"") };
        let expected = Error::WrongEndpoint("its answer is not gRPC".into());
        assert_eq!(
            grpc::decode_response(Operation::Invalidate, &response).unwrap_err(),
            expected,
            "{content_type}"
        );
    }
}

#[tokio::test]
async fn oversized_response_is_not_read() {
    const TOO_LARGE: Error = Error::BrokenContract("the response is too large");
    let read =
        |length: usize| HttpResponse::read(Response::new(Full::new(Bytes::from(vec![b'x'; length]))), 10);
    assert_eq!(read(10).await.unwrap().body.len(), 10);
    assert_eq!(read(11).await.unwrap_err(), TOO_LARGE);
    // Without a length, and without an end.
    let chunk =
        || Some((Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(b"xxx"))), ()));
    let endless = futures_util::stream::unfold((), move |()| std::future::ready(chunk()));
    let response = Response::new(StreamBody::new(endless).boxed());
    assert_eq!(HttpResponse::read(response, 10).await.unwrap_err(), TOO_LARGE);
    assert_eq!(Operation::Validate.max_response_bytes(), 256 * 1024);
    assert_eq!(Operation::List.max_response_bytes(), 30 * 256 * 1024);
}
