//! Envoy's external authorization over gRPC (`envoy.service.auth.v3.Authorization/Check`): one unary call for each request. Field
//! numbers are those of `envoy/service/auth/v3/external_auth.proto` and `attribute_context.proto`; only what is used is declared.

#![expect(missing_docs, reason = "Envoy's API documents the messages")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use hyper::{Method, Request, Response, StatusCode};
use prost::Message;
use tokio::time::timeout;

use super::parse_target;
use crate::body::Body;
use crate::gateway::HEADERS_TO_REMOVE;
use crate::identity::Identity;
use crate::rejection::is_grpc;

/// The path of the call.
pub(super) const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The longest request message, in bytes. Envoy's headers have 60 KiB by default, and no body is sent unless asked for.
const MAX_MESSAGE: usize = 1024 * 1024;
/// For the message to arrive, which a gateway has before it calls.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A compression flag and the length of the message.
const PREFIX: usize = 5;
const NO_TARGET: &str =
    "the gateway must send attributes.request.http with method, path and host, and headers in UTF-8";

#[derive(Clone, PartialEq, Message)]
pub struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<AttributeContext>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AttributeContext {
    #[prost(message, optional, tag = "4")]
    pub request: Option<AttributeRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AttributeRequest {
    #[prost(message, optional, tag = "2")]
    pub http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub struct HttpRequest {
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(map = "string, string", tag = "3")]
    pub headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    pub path: String,
    #[prost(string, tag = "5")]
    pub host: String,
    /// In place of `headers`, where `encode_raw_headers` is set.
    #[prost(message, optional, tag = "13")]
    pub header_map: Option<RawHeaders>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RawHeaders {
    #[prost(message, repeated, tag = "1")]
    pub headers: Vec<RawHeader>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RawHeader {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
    #[prost(bytes = "vec", tag = "3")]
    pub raw_value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<RpcStatus>,
    #[prost(message, optional, tag = "2")]
    pub denied_response: Option<DeniedResponse>,
    #[prost(message, optional, tag = "3")]
    pub ok_response: Option<OkResponse>,
    #[prost(message, optional, tag = "4")]
    pub dynamic_metadata: Option<prost_types::Struct>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct DeniedResponse {
    #[prost(message, optional, tag = "1")]
    pub status: Option<HttpStatus>,
    #[prost(message, repeated, tag = "2")]
    pub headers: Vec<HeaderOption>,
    #[prost(string, tag = "3")]
    pub body: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct HttpStatus {
    #[prost(int32, tag = "1")]
    pub code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct OkResponse {
    #[prost(message, repeated, tag = "2")]
    pub headers: Vec<HeaderOption>,
    #[prost(string, repeated, tag = "5")]
    pub headers_to_remove: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct HeaderOption {
    #[prost(message, optional, tag = "1")]
    pub header: Option<RawHeader>,
    #[prost(int32, tag = "3")]
    pub append_action: i32,
}

/// `HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD`.
const OVERWRITE: i32 = 2;
/// Codes of `google.rpc.Code`.
const OK: i32 = 0;
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;

/// Reads the request that is asked about.
///
/// # Errors
/// What the gateway must be set up to send.
pub(super) async fn read_check(request: Request<Body>) -> Result<Request<Body>, &'static str> {
    let content = timeout(READ_TIMEOUT, read_content(request.into_body())).await.unwrap_or_default();
    let content = content
        .ok_or("the gateway must send at most 1 MiB, without the request's body, within 10 seconds")?;
    // Without compression, which nobody asked for, and to the end.
    let message = match content.split_first_chunk::<PREFIX>() {
        Some(([0, a, b, c, d], rest)) if u32::from_be_bytes([*a, *b, *c, *d]) as usize == rest.len() => rest,
        _ => return Err("the gateway must send one uncompressed gRPC message"),
    };
    let check = CheckRequest::decode(message).map_err(|_| NO_TARGET)?;
    let http = check.attributes.and_then(|attributes| attributes.request?.http).ok_or(NO_TARGET)?;
    let host = HeaderValue::from_str(&http.host).ok().filter(|host| !host.is_empty()).ok_or(NO_TARGET)?;
    let target = parse_target(http.method.as_bytes(), http.path.as_bytes(), host).ok_or(NO_TARGET)?;
    let headers = read_headers(http.headers, http.header_map).ok_or(NO_TARGET)?;
    Ok(target.into_request(headers))
}

/// `None` if it is longer than allowed, or breaks off.
async fn read_content(mut body: Body) -> Option<BytesMut> {
    let mut content = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            content.extend_from_slice(&data);
        }
        if content.len() > MAX_MESSAGE + PREFIX {
            return None;
        }
    }
    Some(content)
}

/// `None` if a name or value is not one of HTTP, or there are too many: a header that is skipped could be a forged identity header which stays.
fn read_headers(merged: HashMap<String, String>, raw: Option<RawHeaders>) -> Option<HeaderMap> {
    let merged = merged.into_iter().map(|(name, value)| (name, value.into_bytes()));
    let raw = raw.into_iter().flat_map(|raw| raw.headers).map(|header| {
        let value = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
        (header.key, value)
    });
    let mut headers = HeaderMap::new();
    for (name, value) in merged.chain(raw).filter(|(name, _)| !name.starts_with(':')) {
        // `append` would panic at 32,768 names, of which a message of 1 MiB can have more.
        headers.try_append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?).ok()?;
    }
    Some(headers)
}

/// Encodes a decision as the response to the call.
pub(super) async fn encode_decision(decision: Response<Body>, client_is_grpc: bool) -> Response<Body> {
    let (head, body) = decision.into_parts();
    let is_allowed = head.status == StatusCode::OK;
    let options = |skipped: &[HeaderName]| {
        let kept = head.headers.iter().filter(|(name, _)| !skipped.contains(name));
        let option = |(name, value): (&HeaderName, &HeaderValue)| HeaderOption {
            header: Some(RawHeader {
                key: name.as_str().to_owned(),
                value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
                raw_value: Vec::new(),
            }),
            append_action: OVERWRITE,
        };
        kept.map(option).collect::<Vec<_>>()
    };
    let mut check = CheckResponse {
        status: Some(RpcStatus { code: if is_allowed { OK } else { PERMISSION_DENIED } }),
        ..CheckResponse::default()
    };
    if is_allowed {
        let removed = head.headers.get(HEADERS_TO_REMOVE).and_then(|names| names.to_str().ok());
        check.ok_response = Some(OkResponse {
            headers: options(&[HEADERS_TO_REMOVE, CACHE_CONTROL]),
            headers_to_remove: removed
                .into_iter()
                .flat_map(|names| names.split(','))
                .map(str::to_owned)
                .collect(),
        });
        check.dynamic_metadata = head.extensions.get::<Arc<Identity>>().map(|identity| describe(identity));
    } else {
        // A response of Keyward's own, which is in memory.
        let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        check.denied_response = Some(DeniedResponse {
            status: Some(HttpStatus { code: head.status.as_u16().into() }),
            headers: options(&[CONTENT_LENGTH, CONNECTION]),
            body: denied_body(&text, client_is_grpc),
        });
    }
    respond(Some(&check), OK, "")
}

/// The problem, or its title alone where Envoy makes a `grpc-message` of it.
fn denied_body(problem: &[u8], client_is_grpc: bool) -> String {
    #[derive(serde::Deserialize)]
    struct Problem {
        title: String,
    }
    match serde_json::from_slice::<Problem>(problem) {
        Ok(problem) if client_is_grpc => problem.title,
        _ => String::from_utf8_lossy(problem).into_owned(),
    }
}

/// The identity for Envoy's own rate limits and logs.
fn describe(identity: &Identity) -> prost_types::Struct {
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let id = |id: &HeaderValue| text(&String::from_utf8_lossy(id.as_bytes()));
    let claims = identity.claims.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    let claims = prost_types::value::Kind::StructValue(prost_types::Struct { fields: claims });
    let mut fields = vec![
        ("organization_id", id(&identity.org_id)),
        ("claims", prost_types::Value { kind: Some(claims) }),
    ];
    fields.extend(identity.user_id.as_ref().map(|user| ("user_id", id(user))));
    fields.extend(identity.token_id.as_ref().map(|token| ("token_id", id(token))));
    prost_types::Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

/// The response to a call that could not be read: INVALID_ARGUMENT, which Envoy takes for a denial.
pub(super) fn refuse_call(mistake: &'static str) -> Response<Body> {
    respond(None, INVALID_ARGUMENT, mistake)
}

fn respond(message: Option<&CheckResponse>, code: i32, text: &'static str) -> Response<Body> {
    let mut content = BytesMut::new();
    if let Some(message) = message {
        content.put_u8(0);
        content.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
        content.extend_from_slice(&message.encode_to_vec());
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    trailers.insert("grpc-message", HeaderValue::from_static(text));
    let body = Full::new(Bytes::from(content)).map_err(|never| match never {});
    let mut response =
        Response::new(body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Whether the client of the request that is asked about speaks gRPC.
pub(super) fn is_grpc_client(request: &Request<Body>) -> bool {
    request.method() == Method::POST && is_grpc(request.headers())
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn message_that_does_not_arrive_is_not_waited_for() {
        let body = StreamBody::new(futures_util::stream::pending()).boxed_unsync();
        let mistake = read_check(Request::new(body)).await.unwrap_err();
        assert!(mistake.contains("within 10 seconds"), "{mistake}");
    }
}
