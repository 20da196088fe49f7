//! The meaning of each response to a validation.

use jiff::Timestamp;
use scalekit::call::{Operation, Permission, Reply};
use scalekit::error::{Error, Refusal};
use scalekit::response::HttpResponse;
use scalekit::status::Code;
use scalekit::token::Token;
use scalekit::validate::{Presented, Validation, interpret_outcome, is_token};
use scalekit::{grpc, rest};

use crate::support::{TOKEN, token};

fn now() -> Timestamp {
    "2026-11-24T00:00:00Z".parse().unwrap()
}

/// The meaning over REST and over gRPC, which must be the same.
fn present(presented: Presented<'_>, told: &Token) -> Result<Validation, Error> {
    let reply = Reply::Token(told.clone());
    let over_rest = rest::decode_response(Operation::Validate, &rest::encode_response(Ok(&reply)));
    let over_grpc = grpc::decode_response(Operation::Validate, &grpc::encode_response(Ok(&reply)));
    let meaning = interpret_outcome(presented, over_rest, now());
    assert_eq!(interpret_outcome(presented, over_grpc, now()), meaning);
    meaning
}

fn told(change: impl FnOnce(&mut Token)) -> Token {
    let mut token = token();
    change(&mut token);
    token
}

#[test]
fn valid_token_has_fields_of_response() {
    for valid in [
        token(),
        told(|token| token.token_suffix = None),
        told(|token| token.token_id = String::new()),
        told(|token| token.expiry = None),
        told(|token| token.expiry = "2026-11-24T00:00:00.000000001Z".parse().ok()),
        told(|token| token.user_id = None),
        told(|token| token.expiry = Some(Timestamp::MAX)),
    ] {
        assert_eq!(present(Presented::Token(TOKEN), &valid), Ok(Validation::Valid(valid.clone())));
    }
}

#[test]
fn contradictory_success_is_no_verdict() {
    for (contradiction, token) in [
        ("a token without organization_id", told(|token| token.organization_id = String::new())),
        ("what was presented is a token id", told(|token| token.token_id = TOKEN.into())),
        ("token_suffix is not the end of the key", told(|token| token.token_suffix = Some("aaaa".into()))),
        ("token_suffix is not the end of the key", told(|token| token.token_suffix = Some("Z".into()))),
        ("token_suffix is not the end of the key", told(|token| token.token_suffix = Some(TOKEN.into()))),
        ("an expired key is said to be valid; compare the clocks", told(|token| token.expiry = Some(now()))),
        (
            "an expired key is said to be valid; compare the clocks",
            told(|token| token.expiry = Some(Timestamp::MIN)),
        ),
    ] {
        assert_eq!(present(Presented::Token(TOKEN), &token), Err(Error::BrokenContract(contradiction)));
    }
    for reply in [Reply::Invalidated, Reply::Page(Default::default())] {
        assert!(matches!(
            interpret_outcome(Presented::Token(TOKEN), Ok(reply), now()),
            Err(Error::BrokenContract(_))
        ));
    }
    let empty = Ok(Reply::Token(Token::default()));
    assert!(matches!(
        interpret_outcome(Presented::Token(TOKEN), empty, now()),
        Err(Error::BrokenContract(_))
    ));
}

#[test]
fn token_id_finds_only_that_token() {
    let found = present(Presented::TokenId("apit_1"), &token());
    assert_eq!(found, Ok(Validation::Valid(token())));
    for other in ["apit_2", "", TOKEN] {
        let found = present(Presented::TokenId(other), &token());
        assert_eq!(found, Err(Error::BrokenContract("token_id is not the one asked for")), "{other}");
    }
}

#[test]
fn only_not_found_and_invalid_argument_are_definite() {
    for number in 1..=16 {
        let code = Code::from_number(number).unwrap();
        let outcome = Err(Error::Refused(Refusal { code, message: "x".into() }));
        let meaning = interpret_outcome(Presented::Token(TOKEN), outcome, now());
        match code {
            Code::NotFound | Code::InvalidArgument => assert_eq!(meaning, Ok(Validation::Invalid)),
            _ => assert_eq!(meaning, Err(Error::WrongEndpoint(format!("code {number} to a validation")))),
        }
    }
    for error in [
        Error::Credentials,
        Error::Permission(Permission::Read),
        Error::Throttled(None),
        Error::Unavailable(503),
        Error::Timeout,
        Error::WrongEndpoint("HTTP 404".into()),
        Error::ConnectionLost("x".into()),
        Error::AccessToken(Box::new(Error::Credentials)),
    ] {
        assert_eq!(interpret_outcome(Presented::Token(TOKEN), Err(error.clone()), now()), Err(error));
    }
}

#[test]
fn rest_responses_follow_the_contract_table() {
    let meaning = |status: u16, content_type: &'static str, body: &str| {
        let response = HttpResponse {
            status: status.try_into().unwrap(),
            headers: [("content-type".parse().unwrap(), content_type.parse().unwrap())].into_iter().collect(),
            body: body.to_owned().into(),
            ..HttpResponse::default()
        };
        interpret_outcome(
            Presented::Token(TOKEN),
            rest::decode_response(Operation::Validate, &response),
            now(),
        )
    };
    let json = |status, body: &str| meaning(status, "application/json", body);
    let gone = r#"{"code":5,"message":"Token not found","details":[{"@type":"x"}]}"#;
    assert_eq!(json(404, gone), Ok(Validation::Invalid));
    assert_eq!(json(404, r#"{"code":5,"message":"Not Found","details":[{}]}"#), Ok(Validation::Invalid));
    assert_eq!(json(400, r#"{"code":3,"message":"malformed"}"#), Ok(Validation::Invalid));
    let wrong = |status| Err(Error::WrongEndpoint(format!("HTTP {status}")));
    assert_eq!(json(404, r#"{"code":5,"message":"Not Found","details":[]}"#), wrong(404));
    assert_eq!(json(404, "{}"), wrong(404));
    assert_eq!(meaning(404, "text/html", gone), wrong(404));
    assert_eq!(json(400, r#"{"code":5,"message":"gone"}"#), wrong(400));
    assert_eq!(json(400, "bad request"), wrong(400));
    assert!(matches!(json(400, r#"{"code":9}"#), Err(Error::WrongEndpoint(_))));
    assert!(matches!(json(409, r#"{"code":6}"#), Err(Error::WrongEndpoint(_))));
    assert_eq!(json(401, gone), Err(Error::Credentials));
    assert_eq!(json(403, gone), Err(Error::Permission(Permission::Read)));
    assert_eq!(json(429, gone), Err(Error::Throttled(None)));
    assert_eq!(json(500, gone), Err(Error::Unavailable(500)));
    assert_eq!(json(204, ""), wrong(204));
    assert!(matches!(json(200, gone), Err(Error::BrokenContract(_))));
}

#[test]
fn token_ids_and_other_text_are_refused() {
    for good in [TOKEN, "a", "0aZ-._~", &"a".repeat(512), "apit", "apit-1"] {
        assert!(is_token(good), "{good}");
    }
    for bad in ["", "apit_1", "APIT_1", "aPiT_", "a b", "a\n", "ü", "a\u{0}", &"a".repeat(513)] {
        assert!(!is_token(bad), "{bad}");
    }
}
