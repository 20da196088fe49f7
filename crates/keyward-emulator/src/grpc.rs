//! The API over gRPC. All calls are unary; an error is a trailers-only response.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine};
use bytes::{BufMut, Bytes, BytesMut};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Response};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message;

use crate::call::{Call, Create, Endpoint, List, Reply, Update};
use crate::proto;
use crate::status::{Code, Status};
use crate::store::Token;

const SERVICE: &str = "/scalekit.v1.tokens.ApiTokenService/";

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

// What `grpc-message` encodes besides all that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Compression flag and message length.
const FRAME_HEAD: usize = 5;

/// Whether the content type is gRPC with any message encoding.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    content_subtype(headers).is_some()
}

pub(crate) fn find_endpoint(method: &Method, path: &str, headers: &HeaderMap) -> Result<Endpoint, Status> {
    let unimplemented = |message: &str| Err(Status::from_gateway(Code::Unimplemented, message));
    if method != Method::POST || !matches!(content_subtype(headers), Some("" | "+proto")) {
        return unimplemented("gRPC is POST with messages in protobuf");
    }
    Ok(match path.strip_prefix(SERVICE) {
        Some("CreateToken") => Endpoint::Create,
        Some("ValidateToken") => Endpoint::Validate,
        Some("InvalidateToken") => Endpoint::Invalidate,
        Some("ListTokens") => Endpoint::List,
        Some("UpdateToken") => Endpoint::Update,
        Some(_) => return unimplemented("unknown method"),
        None => return unimplemented("unknown service"),
    })
}

pub(crate) fn decode_call(endpoint: Endpoint, body: &[u8]) -> Result<Call, Status> {
    Ok(match endpoint {
        Endpoint::Create => {
            let token = decode_message::<proto::CreateTokenRequest>(body)?.token;
            let Some(token) = token else {
                return Err(Status::invalid_field("token", "required", "value is required"));
            };
            Call::Create(Create {
                organization_id: token.organization_id,
                user_id: token.user_id,
                custom_claims: token.custom_claims,
                expiry: token.expiry.as_ref().map(to_timestamp).transpose()?,
                description: token.description,
            })
        }
        Endpoint::Validate => Call::Validate { token: decode_message::<proto::TokenRequest>(body)?.token },
        Endpoint::Invalidate => {
            Call::Invalidate { token: decode_message::<proto::TokenRequest>(body)?.token }
        }
        Endpoint::List => {
            let list: proto::ListTokensRequest = decode_message(body)?;
            Call::List(List {
                organization_id: list.organization_id,
                user_id: list.user_id.unwrap_or_default(),
                page_size: list.page_size,
                page_token: list.page_token,
            })
        }
        Endpoint::Update => {
            let update: proto::UpdateTokenRequest = decode_message(body)?;
            Call::Update(Update {
                token: update.token,
                custom_claims: update.custom_claims,
                description: update.description,
            })
        }
        Endpoint::Token => return Err(Status::from_gateway(Code::Unimplemented, "unknown method")),
    })
}

/// The response and its trailers.
pub(crate) fn encode_outcome(outcome: Result<Reply, Status>) -> (Response<Bytes>, Option<HeaderMap>) {
    let frame = match outcome {
        Ok(Reply::Created { key, token }) => encode_frame(&proto::CreateTokenResponse {
            token: key,
            token_id: token.token_id.clone(),
            token_info: Some(to_token_message(&token)),
        }),
        Ok(Reply::Token(token)) => {
            encode_frame(&proto::TokenResponse { token_info: Some(to_token_message(&token)) })
        }
        Ok(Reply::Nothing) => return success_response(encode_frame(&())),
        Ok(Reply::Page(page)) => encode_frame(&proto::ListTokensResponse {
            tokens: page.tokens.iter().map(|token| to_token_message(token)).collect(),
            total_count: page.total_count,
            next_page_token: page.next_page_token,
            prev_page_token: page.prev_page_token,
        }),
        Err(status) => return (error_response(&status), None),
    };
    success_response(frame)
}

/// The response for the HTTP status of a fault.
pub(crate) fn encode_status(http: u16) -> (Response<Bytes>, Option<HeaderMap>) {
    match http {
        200..400 => success_response(encode_frame(&())),
        _ => {
            let code = Code::from_http_status(http);
            (error_response(&Status::new(code, code.name())), None)
        }
    }
}

fn success_response(frame: Bytes) -> (Response<Bytes>, Option<HeaderMap>) {
    (grpc_response(frame), Some(HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))])))
}

/// The part of the content type after `application/grpc`, without parameters.
fn content_subtype(headers: &HeaderMap) -> Option<&str> {
    let subtype = headers.get(CONTENT_TYPE)?.to_str().ok()?.strip_prefix("application/grpc")?;
    let subtype = subtype.split(';').next().unwrap_or_default().trim();
    (subtype.is_empty() || subtype.starts_with('+')).then_some(subtype)
}

fn error_response(status: &Status) -> Response<Bytes> {
    let mut response = grpc_response(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(STATUS, HeaderValue::from(status.code.number()));
    let message = utf8_percent_encode(&status.message, ENCODED).to_string();
    headers.extend(HeaderValue::try_from(message).map(|message| (MESSAGE, message)));
    if status.details {
        let details = BASE64_STANDARD_NO_PAD.encode(to_rpc_status(status).encode_to_vec());
        headers.extend(HeaderValue::try_from(details).map(|details| (DETAILS, details)));
    }
    response
}

fn to_rpc_status(status: &Status) -> proto::RpcStatus {
    let violations = status.violations.iter().map(|violation| proto::FieldViolation {
        field: violation.field.to_owned(),
        description: violation.description.clone(),
        constraint: violation.constraint.to_owned(),
    });
    let field_violations: Vec<_> = violations.collect();
    let info = proto::ErrorInfo {
        error_code: status.code.name().to_owned(),
        validation_error_info: (!field_violations.is_empty())
            .then_some(proto::ValidationErrorInfo { field_violations }),
    };
    let info = proto::Any {
        type_url: "type.googleapis.com/scalekit.v1.errdetails.ErrorInfo".to_owned(),
        value: info.encode_to_vec(),
    };
    proto::RpcStatus { code: status.code.number(), message: status.message.clone(), details: vec![info] }
}

/// Decodes the message of a unary call. Errors do not quote the input, which may hold a key.
fn decode_message<M: Message + Default>(body: &[u8]) -> Result<M, Status> {
    let broken = |message| Status::from_gateway(Code::Internal, message);
    let (head, message) = body.split_at_checked(FRAME_HEAD).ok_or_else(|| broken("no whole frame"))?;
    let length = head[1..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    match head[0] {
        0 if length == message.len() => M::decode(message).map_err(|_| broken("not the message expected")),
        0 => Err(broken("not exactly one frame")),
        _ => Err(Status::from_gateway(Code::Unimplemented, "compression is not supported")),
    }
}

fn encode_frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

fn to_token_message(token: &Token) -> proto::Token {
    let issue = &token.issue;
    let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    proto::Token {
        token_id: token.token_id.clone(),
        organization_id: issue.organization_id.clone(),
        organization_external_id: issue.organization_external_id.clone(),
        user_id: optional(&issue.user_id),
        user_external_id: optional(&issue.user_external_id),
        custom_claims: BTreeMap::clone(&issue.custom_claims),
        expiry: issue.expiry.map(proto::Timestamp::from),
        created_at: Some(token.created_at.into()),
        description: optional(&issue.description),
        token_suffix: token.token_suffix.clone(),
        email: optional(&issue.email),
        roles: issue.roles.clone(),
    }
}

fn to_timestamp(timestamp: &proto::Timestamp) -> Result<Timestamp, Status> {
    timestamp.to_jiff().ok_or_else(|| Status::invalid_field("expiry", "timestamp", "value is not a time"))
}

fn grpc_response(body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_holds_exactly_one_message() {
        let whole = encode_frame(&proto::TokenRequest { token: "abc".to_owned() });
        assert_eq!(&whole[..], b"\0\0\0\0\x05\x0a\x03abc");
        let compressed = [&[1], &whole[1..]].concat();
        for (body, expected) in [
            (&whole[..], None),
            (b"\0\0\0\0\0", None),
            (b"", Some(Code::Internal)),
            (&whole[..4], Some(Code::Internal)),
            (&whole[..9], Some(Code::Internal)),
            (&[&whole[..], b"\0"].concat(), Some(Code::Internal)),
            (b"\0\xff\xff\xff\xff", Some(Code::Internal)),
            (b"\0\0\0\0\x02\x0a\xff", Some(Code::Internal)),
            (&compressed, Some(Code::Unimplemented)),
        ] {
            let outcome = decode_message::<proto::TokenRequest>(body);
            assert_eq!(outcome.err().map(|status| status.code), expected, "{body:?}");
        }
    }

    #[test]
    fn grpc_content_types_are_recognised() {
        for (content_type, grpc, good) in [
            ("application/grpc", true, true),
            ("application/grpc+proto", true, true),
            ("application/grpc; charset=utf-8", true, true),
            ("application/grpc+json", true, false),
            ("application/grpc-web", false, false),
            ("application/json", false, false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            assert_eq!(is_grpc(&headers), grpc, "{content_type}");
            let path = format!("{SERVICE}ValidateToken");
            assert_eq!(find_endpoint(&Method::POST, &path, &headers).is_ok(), good, "{content_type}");
        }
    }

    #[test]
    fn timestamps_survive_encoding_and_decoding() {
        for text in ["2026-12-01T00:00:00Z", "1969-12-31T23:59:59.25Z", "9999-12-30T00:00:00.000000001Z"] {
            let before: Timestamp = text.parse().unwrap();
            assert_eq!(to_timestamp(&before.into()), Ok(before), "{text}");
        }
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert!(to_timestamp(&proto::Timestamp { seconds, nanos }).is_err());
        }
    }

    #[test]
    fn error_message_is_percent_encoded() {
        let response = error_response(&Status::invalid_field("token", "rule", "100% of ü\n"));
        assert_eq!(response.headers()[STATUS], "3");
        assert_eq!(response.headers()[MESSAGE], "token: 100%25 of %C3%BC%0A");
        let details = BASE64_STANDARD_NO_PAD.decode(&response.headers()[DETAILS]).unwrap();
        let status = proto::RpcStatus::decode(&details[..]).unwrap();
        let info = proto::ErrorInfo::decode(&status.details[0].value[..]).unwrap();
        assert_eq!((status.code, info.error_code.as_str()), (3, "INVALID_ARGUMENT"));
        assert_eq!(info.validation_error_info.unwrap().field_violations[0].field, "token");
    }
}
