//! Encodes and decodes the API over REST, for clients and servers, without I/O: JSON with snake_case names, as described by the
//! `google.api.http` annotations of `ApiTokenService`.

mod bodies;

use std::borrow::Cow;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Uri};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use self::bodies::{CreateBody, CreatedInfo, ErrorBody, Info, TokenBody, UpdateBody};
use crate::call::{Call, Operation, Reply};
use crate::error::Error;
use crate::json::Object;
use crate::proto;
use crate::response::HttpResponse;
use crate::status::{Code, Status};
use crate::token::{Created, Page, PageRequest, Token, TokenUpdate};
use crate::validate::is_presentable;
use crate::wipe::wipe_on_drop;

const TOKENS: &str = "/api/v1/tokens";
const VALIDATE: &str = "/api/v1/tokens:validate";
const INVALIDATE: &str = "/api/v1/tokens:invalidate";
const UPDATE: &str = "/api/v1/tokens:update";

const JSON: &str = "application/json";
/// Enough for a request with a token of 512 characters.
const CONTENT_BYTES: usize = 544;

const ERROR_INFO: &str = "type.googleapis.com/scalekit.v1.errdetails.ErrorInfo";

// ---- For clients.

/// Encodes a call as a request. The caller adds authority and `Authorization`.
pub fn encode_request(call: &Call) -> Request<Bytes> {
    match call {
        Call::Create(new) => post_request(TOKENS, new),
        Call::Validate(token) => post_request(VALIDATE, &TokenBody { token: token.expose_secret() }),
        Call::Invalidate(token) => post_request(INVALIDATE, &TokenBody { token: token.expose_secret() }),
        Call::Update(token, update) => {
            post_request(UPDATE, &UpdateBody { token: token.expose_secret(), update })
        }
        Call::List(page) => {
            let mut request = Request::new(Bytes::new());
            *request.uri_mut() = page_uri(page);
            request
        }
    }
}

/// Decodes the response to a call. The reply to a validation must be interpreted with
/// [`validate::interpret_outcome`](crate::validate::interpret_outcome).
///
/// # Errors
/// `Refused` only if Scalekit itself refuses the call: 400, 404 or 409 in JSON with a code that matches the status, which is not
/// a gateway's response for an unknown path. Otherwise by the status.
pub fn decode_response(operation: Operation, response: &HttpResponse) -> Result<Reply, Error> {
    match (response.status.as_u16(), operation) {
        (200 | 201, Operation::Create) => {
            let created: CreatedInfo = decode_success(response)?;
            new_token(created.token, created.token_info.map(|Object(token)| token))
        }
        (200, Operation::Validate | Operation::Update) => {
            let info: Info = decode_success(response)?;
            let token = info.token_info.ok_or(Error::BrokenContract("a 200 without token_info"))?.0;
            known_token(operation, token).map(Reply::Token)
        }
        (200, Operation::Invalidate) => decode_success::<IgnoredAny>(response).map(|_| Reply::Invalidated),
        (200, Operation::List) => known_page(decode_success(response)?).map(Reply::Page),
        (status @ (400 | 404 | 409), _) if response.is_json() => {
            let refusal = serde_json::from_slice::<Object<ErrorBody>>(&response.body).ok();
            let refusal = refusal.and_then(|Object(body)| body.to_refusal(status));
            Err(refusal.map_or_else(|| response.status_error(operation.permission()), Error::Refused))
        }
        _ => Err(response.status_error(operation.permission())),
    }
}

fn decode_success<T: DeserializeOwned>(response: &HttpResponse) -> Result<T, Error> {
    serde_json::from_slice(&response.body)
        .map(|Object(body)| body)
        .map_err(|_| Error::BrokenContract("a 200 that is not the JSON expected"))
}

/// SECURITY: the new token is written to terminals and files, so it must be visible ASCII.
pub(crate) fn new_token(token: String, info: Option<Token>) -> Result<Reply, Error> {
    let info = info.ok_or(Error::BrokenContract("the new token's token_info is missing"))?;
    if !is_presentable(&token) {
        return Err(Error::BrokenContract("the new token is missing, or is not visible ASCII"));
    }
    let info = known_token(Operation::Create, info)?;
    Ok(Reply::Created(Created { token: token.into(), info }))
}

/// Checks that a token has its organization and, except in a validation, its id.
pub(crate) fn known_token(operation: Operation, token: Token) -> Result<Token, Error> {
    if token.organization_id.is_empty() {
        return Err(Error::BrokenContract("a token without organization_id"));
    }
    if token.token_id.is_empty() && operation != Operation::Validate {
        return Err(Error::BrokenContract("a token without token_id"));
    }
    Ok(token)
}

pub(crate) fn known_page(mut page: Page) -> Result<Page, Error> {
    let tokens = page.tokens.into_iter().map(|token| known_token(Operation::List, token));
    page.tokens = tokens.collect::<Result<_, _>>()?;
    Ok(page)
}

fn post_request(path: &'static str, body: &impl Serialize) -> Request<Bytes> {
    // Serializing cannot fail: the body has only strings and maps of strings.
    // SECURITY: enough capacity for most requests, so that the buffer does not grow and leave a copy of the token in memory.
    let mut content = Vec::with_capacity(CONTENT_BYTES);
    if serde_json::to_writer(&mut content, body).is_err() {
        content.clear();
    }
    let mut request = Request::new(wipe_on_drop(content));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(path);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    request
}

fn page_uri(page: &PageRequest) -> Uri {
    let mut query = form_urlencoded::Serializer::for_suffix(format!("{TOKENS}?"), TOKENS.len() + 1);
    query.append_pair("organization_id", &page.organization_id);
    if let Some(user) = &page.user_id {
        query.append_pair("user_id", user);
    }
    if let Some(size) = page.page_size {
        query.append_pair("page_size", &size.to_string());
    }
    if let Some(token) = &page.page_token {
        query.append_pair("page_token", token);
    }
    // Percent-encoded text is a valid URI, unless it is longer than 64 KiB.
    query.finish().parse().unwrap_or_else(|_| Uri::from_static(TOKENS))
}

// ---- For servers.

/// Determines the operation of a request.
///
/// # Errors
/// The gateway's response for an unknown path or method.
pub fn route_request(method: &Method, path: &str) -> Result<Operation, Status> {
    let operation = match (method.as_str(), path) {
        ("POST", TOKENS) => Operation::Create,
        ("GET", TOKENS) => Operation::List,
        ("POST", VALIDATE) => Operation::Validate,
        ("POST", INVALIDATE) => Operation::Invalidate,
        ("POST", UPDATE) => Operation::Update,
        // A gRPC gateway answers 501 instead of 405.
        (_, TOKENS | VALIDATE | INVALIDATE | UPDATE) => {
            return Err(Status::from_gateway(Code::Unimplemented, "Method Not Allowed"));
        }
        _ => return Err(Status::from_gateway(Code::NotFound, "Not Found")),
    };
    Ok(operation)
}

/// Decodes the call of a request. Absent, `null` and `""` are equivalent, except for the description of an update. Names may also
/// be in camelCase, as in all JSON of protobuf.
///
/// # Errors
/// INVALID_ARGUMENT with the line and column. The content is not repeated, as it may contain a token.
pub fn decode_request(operation: Operation, query: Option<&str>, body: &[u8]) -> Result<Call, Status> {
    let token = |body| parse_body::<proto::TokenRequest>(body).map(|body| SecretString::from(body.token));
    Ok(match operation {
        Operation::Create => Call::Create(parse_body::<CreateBody>(body)?.into_new_token()?),
        Operation::Validate => Call::Validate(token(body)?),
        Operation::Invalidate => Call::Invalidate(token(body)?),
        Operation::List => Call::List(parse_query(query.unwrap_or_default())?),
        Operation::Update => {
            let body: proto::UpdateTokenRequest = parse_body(body)?;
            let custom_claims = Some(body.custom_claims).filter(|claims| !claims.is_empty());
            Call::Update(body.token.into(), TokenUpdate { custom_claims, description: body.description })
        }
    })
}

/// Encodes the response to a call.
pub fn encode_response(outcome: Result<&Reply, &Status>) -> HttpResponse {
    match outcome {
        Ok(Reply::Created(created)) => json_response(201, &proto::CreateTokenResponse::from(created)),
        Ok(Reply::Token(token)) => {
            json_response(200, &proto::TokenResponse { token_info: Some(token.into()) })
        }
        Ok(Reply::Invalidated) => json_response(200, &serde_json::json!({})),
        Ok(Reply::Page(page)) => json_response(200, &proto::ListTokensResponse::from(page)),
        Err(status) => encode_refusal(status.code.http_status(), status),
    }
}

/// Encodes a refusal with an HTTP status that may differ from that of its code.
pub fn encode_refusal(http_status: u16, status: &Status) -> HttpResponse {
    let violations = status.violations.iter().map(|violation| {
        serde_json::json!({
            "field": violation.field,
            "description": violation.description,
            "constraint": violation.constraint,
        })
    });
    let violations: Vec<_> = violations.collect();
    let mut info = serde_json::json!({"@type": ERROR_INFO, "error_code": status.code.name()});
    if !violations.is_empty() {
        info["validation_error_info"] = serde_json::json!({"field_violations": violations});
    }
    let details = if status.has_error_info { vec![info] } else { Vec::new() };
    let body =
        serde_json::json!({"code": status.code.number(), "message": status.message, "details": details});
    json_response(http_status, &body)
}

fn json_response(status: u16, body: &impl Serialize) -> HttpResponse {
    // Cannot fail: the body has only strings, numbers, lists and maps of strings.
    HttpResponse::with_content(status, JSON, serde_json::to_vec(body).unwrap_or_default())
}

/// Parses a request's body. An empty body is an empty message.
fn parse_body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Status> {
    let body = if body.is_empty() { b"{}" } else { body };
    let parsed = serde_json::from_slice(body).map(|Object(body)| body);
    parsed.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = format!("the body is not the JSON expected: line {line} column {column}");
        Status::new(Code::InvalidArgument, message)
    })
}

fn parse_query(query: &str) -> Result<PageRequest, Status> {
    let mut page = PageRequest::default();
    let text = |value: Cow<'_, str>| Some(value.into_owned()).filter(|text| !text.is_empty());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "organization_id" | "organizationId" => page.organization_id = value.into_owned(),
            "user_id" | "userId" => page.user_id = text(value),
            "page_token" | "pageToken" => page.page_token = text(value),
            "page_size" | "pageSize" => {
                let size = value.parse::<i32>();
                let size =
                    size.map_err(|_| Status::invalid_field("page_size", "int32", "value is not a number"))?;
                page.page_size = page_size(size)?;
            }
            _ => {}
        }
    }
    Ok(page)
}

/// A page size as it is on both wires: 0 is the default.
pub(crate) fn page_size(size: i32) -> Result<Option<u8>, Status> {
    match u8::try_from(size) {
        Ok(0) => Ok(None),
        Ok(size @ ..=crate::limits::MAX_PAGE_SIZE) => Ok(Some(size)),
        _ => Err(Status::invalid_field("page_size", "int32.gte_lte", "value must be from 0 to 30")),
    }
}
