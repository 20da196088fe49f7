//! Every call, reply and refusal over both transports, in both directions, and malformed responses.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request};
use scalekit::call::{Call, Operation, Reply};
use scalekit::error::Error;
use scalekit::status::{Code, Status};
use scalekit::token::{Claims, Created, NewToken, PageRequest, Token, TokenUpdate};
use scalekit::transport::Transport;
use scalekit::{ExposeSecret, grpc, rest};

use crate::support::{replies, token};

const BOTH: [Transport; 2] = [Transport::Rest, Transport::Grpc];

fn claims() -> Claims {
    Claims::from([("team".into(), "ü \"\r\n\u{0}".into()), ("b".into(), "x".repeat(256))])
}

fn calls() -> Vec<Call> {
    let new = NewToken {
        organization_id: "org_1".into(),
        user_id: Some("usr_1".into()),
        custom_claims: claims(),
        expiry: Some("2027-12-01T00:00:00.123456789Z".parse().unwrap()),
        description: Some("CI & more".into()),
    };
    let update = |custom_claims, description: Option<&str>| {
        Call::Update(
            "apit_1".into(),
            TokenUpdate { custom_claims, description: description.map(str::to_owned) },
        )
    };
    let page = PageRequest {
        organization_id: "org_1".into(),
        user_id: Some("usr_1&a=b".into()),
        page_size: Some(30),
        page_token: Some("a+b/c= ü".into()),
    };
    vec![
        Call::Create(NewToken { organization_id: "org_1".into(), ..NewToken::default() }),
        Call::Create(new),
        Call::Validate("0123abcXYZ".into()),
        Call::Invalidate("apit_1".into()),
        Call::List(PageRequest { organization_id: "org_1".into(), ..PageRequest::default() }),
        Call::List(page),
        update(Some(claims()), None),
        update(None, Some("")),
        update(Some(claims()), Some("text")),
    ]
}

/// The fields of a call, including secrets.
fn contents(call: &Call) -> String {
    match call {
        Call::Validate(token) | Call::Invalidate(token) => format!("{call:?} {}", token.expose_secret()),
        Call::Update(token, _) => format!("{call:?} {}", token.expose_secret()),
        Call::Create(_) | Call::List(_) => format!("{call:?}"),
    }
}

fn decode_request(transport: Transport, request: Request<Bytes>) -> Result<Call, Status> {
    let (head, body) = request.into_parts();
    assert_eq!(Transport::of_request(&head.headers), transport);
    transport.decode_request(transport.route_request(&head)?, &head, &body)
}

#[test]
fn calls_round_trip_over_rest_and_grpc() {
    for transport in BOTH {
        for call in calls() {
            let request = transport.encode_request(&call);
            let (path, head) = (request.uri().path().to_owned(), request.clone().into_parts().0);
            assert_eq!(transport.route_request(&head), Ok(call.operation()), "{path}");
            let read = decode_request(transport, request).unwrap();
            assert_eq!(contents(&read), contents(&call), "{transport:?}");
        }
    }
}

#[test]
fn rest_requests_follow_http_annotations() {
    for (call, expected) in calls().iter().zip([
        r#"POST /api/v1/tokens {"organization_id":"org_1"}"#,
        "",
        r#"POST /api/v1/tokens:validate {"token":"0123abcXYZ"}"#,
        r#"POST /api/v1/tokens:invalidate {"token":"apit_1"}"#,
        "GET /api/v1/tokens?organization_id=org_1 ",
        "GET /api/v1/tokens?organization_id=org_1&user_id=usr_1%26a%3Db&page_size=30&page_token=a%2Bb%2Fc%3D+%C3%BC ",
        "",
        r#"POST /api/v1/tokens:update {"token":"apit_1","description":""}"#,
    ]) {
        let request = rest::encode_request(call);
        let body = std::str::from_utf8(request.body()).unwrap();
        let text = format!("{} {} {body}", request.method(), request.uri());
        assert!(expected.is_empty() || text == expected, "{text}");
        let json = HeaderValue::from_static("application/json");
        let content_type = (request.method() == "POST").then_some(&json);
        assert_eq!(request.headers().get(CONTENT_TYPE), content_type);
    }
}

#[test]
fn grpc_request_uses_descriptor_field_numbers() {
    let request = grpc::encode_request(&Call::Validate("abc".into()));
    assert_eq!(request.uri(), "/scalekit.v1.tokens.ApiTokenService/ValidateToken");
    assert_eq!(
        (&request.headers()["te"], request.version()),
        (&"trailers".parse().unwrap(), http::Version::HTTP_2)
    );
    assert_eq!(&request.body()[..], b"\0\0\0\0\x05\x0a\x03abc");
}

#[test]
fn debug_shows_no_token() {
    for call in [
        Call::Validate("s3cret".into()),
        Call::Invalidate("s3cret".into()),
        Call::Update("s3cret".into(), TokenUpdate::default()),
    ] {
        assert!(!format!("{call:?}").contains("s3cret"));
    }
    let created = Created { token: "s3cret".into(), info: token() };
    assert!(!format!("{created:?} {:?}", Reply::Created(created.clone())).contains("s3cret"));
}

#[test]
fn replies_round_trip_over_rest_and_grpc() {
    for transport in BOTH {
        for (operation, reply) in replies() {
            let response = transport.encode_response(Ok(&reply));
            let read = transport.decode_response(operation, &response).unwrap();
            assert_eq!(format!("{read:?}"), format!("{reply:?}"), "{transport:?}");
            if let (Reply::Created(read), Reply::Created(created)) = (read, reply) {
                assert_eq!(read.token.expose_secret(), created.token.expose_secret());
                let status = if transport == Transport::Rest { 201 } else { 200 };
                assert_eq!(response.status.as_u16(), status);
            }
        }
    }
}

#[test]
fn rest_reply_includes_unset_fields() {
    let bare = Token { token_id: "apit_1".into(), organization_id: "org_1".into(), ..Token::default() };
    let response = rest::encode_response(Ok(&Reply::Token(bare)));
    assert_eq!(
        std::str::from_utf8(&response.body).unwrap(),
        r#"{"token_info":{"token_id":"apit_1","organization_id":"org_1","organization_external_id":"","user_id":"","user_external_id":"","custom_claims":{},"description":"","token_suffix":"","email":"","roles":[]}}"#
    );
}

#[test]
fn refusals_round_trip_over_rest_and_grpc() {
    for number in 1..=16 {
        let code = Code::from_number(number).unwrap();
        let status = Status::new(code, "100% of ü");
        let read = |transport: Transport| {
            let response = transport.encode_response(Err(&status));
            transport.decode_response(Operation::Update, &response).unwrap_err()
        };
        match (read(Transport::Rest), read(Transport::Grpc)) {
            (Error::Refused(rest), Error::Refused(grpc)) => {
                assert_eq!((rest.code, rest.message.as_str()), (code, "100% of ü"));
                assert_eq!(grpc, rest);
            }
            // Over REST it is an ordinary 5xx.
            (Error::Unavailable(501), Error::WrongEndpoint(_)) => assert_eq!(code, Code::Unimplemented),
            (rest, grpc) => assert_eq!(rest, grpc, "{code:?}"),
        }
    }
}

#[test]
fn field_refusal_carries_field_violation() {
    let status = Status::invalid_field("token", "rule", "100% of ü\n");
    let response = rest::encode_response(Err(&status));
    assert_eq!(
        std::str::from_utf8(&response.body).unwrap(),
        r#"{"code":3,"details":[{"@type":"type.googleapis.com/scalekit.v1.errdetails.ErrorInfo","error_code":"INVALID_ARGUMENT","validation_error_info":{"field_violations":[{"constraint":"rule","description":"100% of ü\n","field":"token"}]}}],"message":"token: 100% of ü\n"}"#
    );
    assert_eq!(rest::encode_refusal(413, &status).status, 413);
    let gateway = rest::encode_response(Err(&Status::from_gateway(Code::NotFound, "Not Found")));
    assert_eq!(&gateway.body[..], br#"{"code":5,"details":[],"message":"Not Found"}"#);
    let response = grpc::encode_response(Err(&status));
    assert_eq!(response.headers["grpc-status"], "3");
    assert_eq!(response.headers["grpc-message"], "token: 100%25 of %C3%BC%0A");
    assert!(response.headers.contains_key("grpc-status-details-bin") && response.trailers.is_empty());
}

#[test]
fn unknown_routes_get_grpc_gateway_errors() {
    for (method, path, code) in [
        ("GET", "/", Code::NotFound),
        ("POST", "/api/v1/tokens:fetch", Code::NotFound),
        ("POST", "/api/v1/tokens%3Avalidate", Code::NotFound),
        ("GET", "/api/v1/tokens:validate", Code::Unimplemented),
        ("DELETE", "/api/v1/tokens", Code::Unimplemented),
    ] {
        let status = rest::route_request(&method.parse().unwrap(), path).unwrap_err();
        assert_eq!((status.code, status.has_error_info), (code, false), "{method} {path}");
    }
    let good = "/scalekit.v1.tokens.ApiTokenService/ValidateToken";
    for (method, path, content_type, is_known) in [
        ("POST", good, "application/grpc", true),
        ("POST", good, "application/grpc+proto", true),
        ("POST", good, "application/grpc; charset=utf-8", true),
        ("POST", good, "application/grpc+json", false),
        ("POST", good, "application/json", false),
        ("GET", good, "application/grpc", false),
        ("POST", "/scalekit.v1.tokens.ApiTokenService/FetchToken", "application/grpc", false),
        ("POST", "/other.Service/ValidateToken", "application/grpc", false),
    ] {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let routed = grpc::route_request(&method.parse().unwrap(), path, &headers);
        let expected = if is_known { Ok(Operation::Validate) } else { Err(Code::Unimplemented) };
        assert_eq!(routed.map_err(|status| status.code), expected, "{method} {path} {content_type}");
    }
}

#[test]
fn malformed_request_errors_do_not_repeat_content() {
    for (operation, query, body, code) in [
        (Operation::Validate, "", "s3cret", Code::InvalidArgument),
        (Operation::Validate, "", r#"["s3cret"]"#, Code::InvalidArgument),
        (Operation::Validate, "", r#"{"token":["s3cret"]}"#, Code::InvalidArgument),
        (Operation::Create, "", r#"{"organization_id":"org_1","expiry":"s3cret"}"#, Code::InvalidArgument),
        (Operation::Create, "", r#"{"custom_claims":{"a":1}}"#, Code::InvalidArgument),
        (Operation::List, "page_size=s3cret", "", Code::InvalidArgument),
        (Operation::List, "page_size=31", "", Code::InvalidArgument),
        (Operation::List, "page_size=-1", "", Code::InvalidArgument),
    ] {
        let status = rest::decode_request(operation, Some(query), body.as_bytes()).unwrap_err();
        assert_eq!(status.code, code, "{query} {body}");
        assert!(!status.message.contains("s3cret"), "{}", status.message);
    }
    for (body, code) in [
        (&b""[..], Code::Internal),
        (b"\0\0\0\0\x02\x0a\xff", Code::Internal),
        (b"\0\0\0\0\x09", Code::Internal),
        (b"\x01\0\0\0\0", Code::Unimplemented),
    ] {
        assert_eq!(grpc::decode_request(Operation::Validate, body).unwrap_err().code, code, "{body:?}");
    }
    let status = grpc::decode_request(Operation::Create, b"\0\0\0\0\0").unwrap_err();
    assert_eq!(status.violations[0].field, "token");
    // Absent, null and empty content all mean an empty token; camelCase and snake_case are both accepted.
    for body in ["", "{}", r#"{"token":null}"#, r#"{"token":""}"#] {
        let call = rest::decode_request(Operation::Validate, None, body.as_bytes()).unwrap();
        assert_eq!(contents(&call), contents(&Call::Validate("".into())));
    }
    let camel = br#"{"organizationId":"org_1","userId":"usr_1","customClaims":{"a":"b"}}"#;
    let Ok(Call::Create(new)) = rest::decode_request(Operation::Create, None, camel) else {
        panic!("no call")
    };
    assert_eq!((new.organization_id.as_str(), new.user_id.as_deref()), ("org_1", Some("usr_1")));
}
