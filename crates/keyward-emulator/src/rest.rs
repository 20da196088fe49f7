//! The API over REST: JSON with snake_case names and with unset fields, as Scalekit's gRPC gateway writes it.

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

pub(crate) fn find_endpoint(method: &Method, path: &str) -> Result<Endpoint, Status> {
    let allowed: &[(Method, Endpoint)] = match path {
        "/oauth/token" => &[(Method::POST, Endpoint::Token)],
        "/api/v1/tokens" => &[(Method::POST, Endpoint::Create), (Method::GET, Endpoint::List)],
        "/api/v1/tokens:validate" => &[(Method::POST, Endpoint::Validate)],
        "/api/v1/tokens:invalidate" => &[(Method::POST, Endpoint::Invalidate)],
        "/api/v1/tokens:update" => &[(Method::POST, Endpoint::Update)],
        _ => return Err(Status::from_gateway(Code::NotFound, "Not Found")),
    };
    let endpoint = allowed.iter().find(|(allowed, _)| allowed == method).map(|(_, endpoint)| *endpoint);
    // The gRPC gateway answers 501 instead of 405.
    endpoint.ok_or_else(|| Status::from_gateway(Code::Unimplemented, "Method Not Allowed"))
}

/// Absent, null and empty are equal, except for the description of an update.
pub(crate) fn decode_call(endpoint: Endpoint, query: Option<&str>, body: &[u8]) -> Result<Call, Status> {
    Ok(match endpoint {
        Endpoint::Create => {
            let body: CreateBody = parse_body(body)?;
            let expiry = body.expiry.as_deref().map(Timestamp::from_str).transpose().map_err(|_| {
                let rule = "value is not a time such as 2026-12-01T00:00:00Z";
                Status::invalid_field("expiry", "timestamp", rule)
            })?;
            Call::Create(Create {
                organization_id: body.organization_id.unwrap_or_default(),
                user_id: body.user_id.unwrap_or_default(),
                custom_claims: body.custom_claims.unwrap_or_default(),
                expiry,
                description: body.description.unwrap_or_default(),
            })
        }
        Endpoint::Validate => {
            Call::Validate { token: parse_body::<TokenBody>(body)?.token.unwrap_or_default() }
        }
        Endpoint::Invalidate => {
            Call::Invalidate { token: parse_body::<TokenBody>(body)?.token.unwrap_or_default() }
        }
        Endpoint::Update => {
            let body: UpdateBody = parse_body(body)?;
            Call::Update(Update {
                token: body.token.unwrap_or_default(),
                custom_claims: body.custom_claims.unwrap_or_default(),
                description: body.description,
            })
        }
        Endpoint::List => Call::List(parse_list_query(query.unwrap_or_default())?),
        Endpoint::Token => {
            return Err(Status::from_gateway(Code::Internal, "an access token is no call of the API"));
        }
    })
}

pub(crate) fn encode_outcome(outcome: Result<Reply, Status>) -> Response<Bytes> {
    match outcome {
        Ok(Reply::Created { key, token }) => {
            let (token_id, token_info) = (&*token.token_id, to_token_json(&token));
            json_response(201, &CreatedJson { token: &key, token_id, token_info })
        }
        Ok(Reply::Token(token)) => json_response(200, &InfoJson { token_info: to_token_json(&token) }),
        Ok(Reply::Nothing) => json_response(200, &json!({})),
        Ok(Reply::Page(page)) => {
            let body = PageJson {
                tokens: page.tokens.iter().map(|token| to_token_json(token)).collect(),
                total_count: page.total_count,
                next_page_token: &page.next_page_token,
                prev_page_token: &page.prev_page_token,
            };
            json_response(200, &body)
        }
        Err(status) => error_response(status.code.http_status(), &status),
    }
}

pub(crate) fn encode_grant(outcome: Result<Grant, GrantError>) -> Response<Bytes> {
    let mut response = match outcome {
        Ok(Grant { access_token, expires_in }) => json_response(
            200,
            &json!({"access_token": access_token, "token_type": "Bearer", "expires_in": expires_in, "scope": "openid"}),
        ),
        Err(GrantError { error, description }) => {
            let status = if error == "invalid_client" { 401 } else { 400 };
            json_response(status, &json!({"error": error, "error_description": description}))
        }
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The response of this endpoint for the HTTP status of a fault.
pub(crate) fn encode_status(endpoint: Endpoint, http: u16) -> Response<Bytes> {
    let code = Code::from_http_status(http);
    match (http, endpoint) {
        (200..400, _) => json_response(http, &json!({})),
        (_, Endpoint::Token) => json_response(http, &json!({"error": code.name().to_ascii_lowercase()})),
        _ => error_response(http, &Status::new(code, code.name())),
    }
}

/// `http` need not be the HTTP status that the code maps to.
pub(crate) fn error_response(http: u16, status: &Status) -> Response<Bytes> {
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
    json_response(http, &RefusalJson { code: status.code.number(), message: &status.message, details })
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

/// An empty body is an empty message. Errors do not quote the input, which may hold a key.
fn parse_body<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Status> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Status::new(
            Code::InvalidArgument,
            format!("the body is not the JSON expected: line {line} column {column}"),
        )
    })
}

fn parse_list_query(query: &str) -> Result<List, Status> {
    let mut list = List::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "organization_id" | "organizationId" => list.organization_id = value.into_owned(),
            "user_id" | "userId" => list.user_id = value.into_owned(),
            "page_token" | "pageToken" => list.page_token = value.into_owned(),
            "page_size" | "pageSize" => {
                list.page_size = value
                    .parse()
                    .map_err(|_| Status::invalid_field("page_size", "int32", "value is not a number"))?;
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

/// Empty strings, maps and lists are written too.
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

fn to_token_json(token: &Token) -> TokenJson<'_> {
    let issue = &token.issue;
    TokenJson {
        token_id: &token.token_id,
        organization_id: &issue.organization_id,
        organization_external_id: &issue.organization_external_id,
        user_id: &issue.user_id,
        user_external_id: &issue.user_external_id,
        custom_claims: &issue.custom_claims,
        expiry: issue.expiry.map(format_rfc3339),
        created_at: format_rfc3339(token.created_at),
        description: &issue.description,
        token_suffix: &token.token_suffix,
        email: &issue.email,
        roles: &issue.roles,
    }
}

/// With 0, 3, 6 or 9 fractional digits, as few as needed, as protobuf's JSON mapping asks.
fn format_rfc3339(moment: Timestamp) -> String {
    match moment.subsec_nanosecond() {
        0 => format!("{moment:.0}"),
        nanos if nanos % 1_000_000 == 0 => format!("{moment:.3}"),
        nanos if nanos % 1_000 == 0 => format!("{moment:.6}"),
        _ => format!("{moment:.9}"),
    }
}

fn json_response(status: u16, body: &impl Serialize) -> Response<Bytes> {
    // Cannot fail: the types here hold only strings, numbers, and maps and lists of them.
    let mut response = Response::new(Bytes::from(serde_json::to_vec(body).unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
