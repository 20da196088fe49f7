//! The API over REST: JSON with snake_case names, as a gRPC gateway with unset fields switched on writes it.

use std::collections::BTreeMap;
use std::str::FromStr;

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::access::{Grant, GrantError};
use crate::call::{Call, Create, Endpoint, List, Reply, Update};
use crate::status::{Code, Status};
use crate::store::Token;

/// Finds what a request calls.
pub(crate) fn route(method: &Method, path: &str) -> Result<Endpoint, Status> {
    let allowed: &[(Method, Endpoint)] = match path {
        "/oauth/token" => &[(Method::POST, Endpoint::Token)],
        "/api/v1/tokens" => &[(Method::POST, Endpoint::Create), (Method::GET, Endpoint::List)],
        "/api/v1/tokens:validate" => &[(Method::POST, Endpoint::Validate)],
        "/api/v1/tokens:invalidate" => &[(Method::POST, Endpoint::Invalidate)],
        "/api/v1/tokens:update" => &[(Method::POST, Endpoint::Update)],
        _ => return Err(Status::gateway(Code::NotFound, "Not Found")),
    };
    let endpoint = allowed.iter().find(|(allowed, _)| allowed == method).map(|(_, endpoint)| *endpoint);
    // A gRPC gateway says 501 where others say 405.
    endpoint.ok_or_else(|| Status::gateway(Code::Unimplemented, "Method Not Allowed"))
}

/// Reads a call. Absent, null and `""` are the same, but for the description of an update.
pub(crate) fn read(endpoint: Endpoint, query: Option<&str>, body: &[u8]) -> Result<Call, Status> {
    Ok(match endpoint {
        Endpoint::Create => {
            let body: CreateBody = parse(body)?;
            let expiry = body.expiry.as_deref().map(Timestamp::from_str).transpose().map_err(|_| {
                let rule = "value is not a time such as 2026-12-01T00:00:00Z";
                Status::invalid("expiry", "timestamp", rule)
            })?;
            Call::Create(Create {
                organization_id: body.organization_id.unwrap_or_default(),
                user_id: body.user_id.unwrap_or_default(),
                custom_claims: body.custom_claims.unwrap_or_default(),
                expiry,
                description: body.description.unwrap_or_default(),
            })
        }
        Endpoint::Validate => Call::Validate { token: parse::<TokenBody>(body)?.token.unwrap_or_default() },
        Endpoint::Invalidate => {
            Call::Invalidate { token: parse::<TokenBody>(body)?.token.unwrap_or_default() }
        }
        Endpoint::Update => {
            let body: UpdateBody = parse(body)?;
            Call::Update(Update {
                token: body.token.unwrap_or_default(),
                custom_claims: body.custom_claims.unwrap_or_default(),
                description: body.description,
            })
        }
        Endpoint::List => Call::List(read_list(query.unwrap_or_default())?),
        Endpoint::Token => {
            return Err(Status::gateway(Code::Internal, "an access token is no call of the API"));
        }
    })
}

/// Writes what a call gave.
pub(crate) fn write(outcome: Result<Reply, Status>) -> Response<Bytes> {
    match outcome {
        Ok(Reply::Created { key, token }) => {
            let (token_id, token_info) = (&*token.token_id, token_json(&token));
            response(201, &CreatedJson { token: &key, token_id, token_info })
        }
        Ok(Reply::Token(token)) => response(200, &InfoJson { token_info: token_json(&token) }),
        Ok(Reply::Nothing) => response(200, &json!({})),
        Ok(Reply::Page(page)) => {
            let body = PageJson {
                tokens: page.tokens.iter().map(|token| token_json(token)).collect(),
                total_count: page.total_count,
                next_page_token: &page.next_page_token,
                prev_page_token: &page.prev_page_token,
            };
            response(200, &body)
        }
        Err(status) => refusal(status.code.http(), &status),
    }
}

/// Writes a new access token, or why there is none.
pub(crate) fn write_grant(outcome: Result<Grant, GrantError>) -> Response<Bytes> {
    let mut response = match outcome {
        Ok(Grant { access_token, expires_in }) => response(
            200,
            &json!({"access_token": access_token, "token_type": "Bearer", "expires_in": expires_in, "scope": "openid"}),
        ),
        Err(GrantError { error, description }) => {
            let status = if error == "invalid_client" { 401 } else { 400 };
            response(status, &json!({"error": error, "error_description": description}))
        }
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Writes the answer that this endpoint gives with this HTTP status, for a fault.
pub(crate) fn write_status(endpoint: Endpoint, http: u16) -> Response<Bytes> {
    let code = Code::of_http(http);
    match (http, endpoint) {
        (200..400, _) => response(http, &json!({})),
        (_, Endpoint::Token) => response(http, &json!({"error": code.name().to_ascii_lowercase()})),
        _ => refusal(http, &Status::new(code, code.name())),
    }
}

/// Writes a refusal under an HTTP status, which need not be the one that its code maps to.
pub(crate) fn refusal(http: u16, status: &Status) -> Response<Bytes> {
    let violations = status.violations.iter().map(|violation| ViolationJson {
        field: violation.field,
        description: &violation.description,
        constraint: violation.constraint,
    });
    let field_violations: Vec<_> = violations.collect();
    let info = ErrorInfoJson {
        kind: "type.googleapis.com/scalekit.v1.errdetails.ErrorInfo",
        error_code: status.code.name(),
        validation_error_info: (!field_violations.is_empty()).then_some(ValidationJson { field_violations }),
    };
    let details = if status.details { vec![info] } else { Vec::new() };
    response(http, &RefusalJson { code: status.code.number(), message: &status.message, details })
}

#[derive(Deserialize)]
struct CreateBody {
    #[serde(alias = "organizationId")]
    organization_id: Option<String>,
    #[serde(alias = "userId")]
    user_id: Option<String>,
    #[serde(alias = "customClaims")]
    custom_claims: Option<BTreeMap<String, String>>,
    expiry: Option<String>,
    description: Option<String>,
}

#[derive(Default, Deserialize)]
struct TokenBody {
    token: Option<String>,
}

#[derive(Deserialize)]
struct UpdateBody {
    token: Option<String>,
    #[serde(alias = "customClaims")]
    custom_claims: Option<BTreeMap<String, String>>,
    description: Option<String>,
}

/// Parses a body; an empty one is an empty message. What does not parse is not repeated: there may be a key in it.
fn parse<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Status> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Status::new(
            Code::InvalidArgument,
            format!("the body is not the JSON expected: line {line} column {column}"),
        )
    })
}

fn read_list(query: &str) -> Result<List, Status> {
    let mut list = List::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "organization_id" | "organizationId" => list.organization_id = value.into_owned(),
            "user_id" | "userId" => list.user_id = value.into_owned(),
            "page_token" | "pageToken" => list.page_token = value.into_owned(),
            "page_size" | "pageSize" => {
                list.page_size = value
                    .parse()
                    .map_err(|_| Status::invalid("page_size", "int32", "value is not a number"))?;
            }
            _ => {}
        }
    }
    Ok(list)
}

#[derive(Serialize)]
struct CreatedJson<'a> {
    token: &'a str,
    token_id: &'a str,
    token_info: TokenJson<'a>,
}

#[derive(Serialize)]
struct InfoJson<'a> {
    token_info: TokenJson<'a>,
}

#[derive(Serialize)]
struct PageJson<'a> {
    tokens: Vec<TokenJson<'a>>,
    total_count: i32,
    next_page_token: &'a str,
    prev_page_token: &'a str,
}

#[derive(Serialize)]
struct RefusalJson<'a> {
    code: i32,
    message: &'a str,
    details: Vec<ErrorInfoJson<'a>>,
}

#[derive(Serialize)]
struct ErrorInfoJson<'a> {
    #[serde(rename = "@type")]
    kind: &'static str,
    error_code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_error_info: Option<ValidationJson<'a>>,
}

#[derive(Serialize)]
struct ValidationJson<'a> {
    field_violations: Vec<ViolationJson<'a>>,
}

#[derive(Serialize)]
struct ViolationJson<'a> {
    field: &'static str,
    description: &'a str,
    constraint: &'static str,
}

/// A token as JSON has it: every string, map and list is there, also when it is empty.
#[derive(Serialize)]
struct TokenJson<'a> {
    token_id: &'a str,
    organization_id: &'a str,
    organization_external_id: &'a str,
    user_id: &'a str,
    user_external_id: &'a str,
    custom_claims: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry: Option<String>,
    created_at: String,
    description: &'a str,
    token_suffix: &'a str,
    email: &'a str,
    roles: &'a [String],
}

fn token_json(token: &Token) -> TokenJson<'_> {
    let issue = &token.issue;
    TokenJson {
        token_id: &token.token_id,
        organization_id: &issue.organization_id,
        organization_external_id: &issue.organization_external_id,
        user_id: &issue.user_id,
        user_external_id: &issue.user_external_id,
        custom_claims: &issue.custom_claims,
        expiry: issue.expiry.map(rfc3339),
        created_at: rfc3339(token.created_at),
        description: &issue.description,
        token_suffix: &token.token_suffix,
        email: &issue.email,
        roles: &issue.roles,
    }
}

/// 0, 3, 6 or 9 digits after the point: as few as the moment needs.
fn rfc3339(moment: Timestamp) -> String {
    match moment.subsec_nanosecond() {
        0 => format!("{moment:.0}"),
        nanos if nanos % 1_000_000 == 0 => format!("{moment:.3}"),
        nanos if nanos % 1_000 == 0 => format!("{moment:.6}"),
        _ => format!("{moment:.9}"),
    }
}

fn response(status: u16, body: &impl Serialize) -> Response<Bytes> {
    // Strings, numbers, maps and lists of these always have a form in JSON.
    let mut response = Response::new(Bytes::from(serde_json::to_vec(body).unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
