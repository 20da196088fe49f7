//! An answer to `validate` makes a key good only if it keeps the contract, and bad for some seconds only if it is one of
//! the two that are about the key. All else is a fault, with the name that its status asks for.
//!
//! Input: the status and the key; header lines; an empty line; the body.

use std::time::{Duration, SystemTime};

use hyper::{HeaderMap, StatusCode};
use jiff::Timestamp;
use keyward::credential::{ApiKey, Settings};
use keyward::identity::Identity;
use keyward::scalekit::{Verdict, interpret_outcome};
use scalekit::call::{Operation, Permission};
use scalekit::error::Error;
use scalekit::response::HttpResponse;
use scalekit::rest;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::NO_INPUT;
use super::lines::{cut, head_and_rest, headers};

pub fn scalekit_answers(data: &[u8]) -> &'static str {
    let (lines, body) = head_and_rest(data);
    let Some((first, lines)) = lines.split_first() else { return NO_INPUT };
    let Some((status, key)) = cut(first, b" ") else { return NO_INPUT };
    let Ok(status) = StatusCode::from_bytes(status) else { return NO_INPUT };
    let key = std::str::from_utf8(key).ok().and_then(|key| ApiKey::parse(key, &Settings::default()));
    let Some(key) = key else { return NO_INPUT };
    let (headers, trailers) = (headers(lines.iter().copied()), HeaderMap::new());
    let answer = HttpResponse { status, headers, body: body.to_vec().into(), trailers };
    // The thirteenth of January, 2027.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);

    let outcome = rest::decode_response(Operation::Validate, &answer);
    let moment = Timestamp::try_from(now).expect("it is in the range");
    let reading = interpret_outcome(key.expose(), outcome, moment);
    let json = match serde_json::from_slice::<Value>(body) {
        Ok(json) => json,
        // In what is ignored there may be half of a surrogate pair, or a number beyond all measure.
        Err(_) if serde_json::from_slice::<IgnoredAny>(body).is_ok() => return NO_INPUT,
        Err(_) => Value::Null,
    };
    match (status.as_u16(), reading) {
        (200, Ok(Verdict::Valid(identity))) => {
            check_identity(&json["token_info"], &identity, key.expose(), now);
            "valid"
        }
        (status @ (400 | 404), Ok(Verdict::Invalid)) => {
            let code = if status == 404 { 5 } else { 3 };
            assert!(json.is_object() && json["code"] == code, "{json}");
            assert!(is_json(&answer.headers), "{:?}", answer.headers);
            let no_details = json["details"].is_null() || json["details"] == Value::Array(Vec::new());
            assert!(
                status == 400 || json["message"] != "Not Found" || !no_details,
                "the gateway's own answer: {json}"
            );
            "invalid"
        }
        (_, Ok(verdict)) => panic!("{status} is no verdict: {verdict:?}"),
        (200, Err(error)) => {
            assert!(matches!(error, Error::BrokenContract(_)), "{error:?}");
            "broken"
        }
        (status, Err(error)) => {
            let named = match status {
                401 => error == Error::Credentials,
                403 => error == Error::Permission(Permission::Read),
                429 => matches!(error, Error::Throttled(_)),
                499 | 500.. => error == Error::Unavailable(status),
                _ => matches!(error, Error::WrongEndpoint(_)),
            };
            assert!(named, "{status} is {error:?}");
            assert!(error.hold().is_none_or(|wait| wait <= Duration::from_secs(30)), "{error:?}");
            "fault"
        }
    }
}

fn check_identity(info: &Value, identity: &Identity, key: &str, now: SystemTime) {
    let text = |name: &str| match &info[name] {
        Value::Null => "",
        Value::String(text) => text,
        other => panic!("{name} is {other}"),
    };
    assert!(info.is_object(), "an identity is no {info}");
    for (name, header) in [
        ("organization_id", Some(&identity.org_id)),
        ("user_id", identity.user_id.as_ref()),
        ("token_id", identity.token_id.as_ref()),
    ] {
        assert!(text(name).chars().all(|char| char.is_ascii_graphic()), "{name}");
        assert_eq!(header.map_or(&b""[..], |value| value.as_bytes()), text(name).as_bytes(), "{name}");
    }
    assert_ne!(text("organization_id"), "");
    assert_ne!(text("token_id"), key, "an identifier is no key");
    let suffix = text("token_suffix");
    assert!(
        suffix.is_empty() || key.get(key.len() - 4..) == Some(suffix),
        "{suffix} is not the end of the key"
    );
    assert_eq!(identity.org_external_id.as_deref().unwrap_or_default(), text("organization_external_id"));
    assert_eq!(identity.user_external_id.as_deref().unwrap_or_default(), text("user_external_id"));
    assert_eq!(identity.expiry.is_some(), !text("expiry").is_empty());
    assert!(identity.expiry.is_none_or(|expiry| expiry > now), "an expired key");

    let roles: Vec<&str> = info["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(identity.roles, roles.into_iter().filter(|role| !role.is_empty()).collect::<Vec<_>>());
    let claims = info["custom_claims"].as_object();
    assert_eq!(identity.claims.len(), claims.map_or(0, serde_json::Map::len));
    for (name, value) in claims.into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert_eq!(identity.claims[name], text);
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.to_ascii_lowercase();
    kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json")
}
