//! Encodes and decodes the API over gRPC, for clients and servers, without I/O. All calls are unary: one length-prefixed message
//! each way, and a status in the trailers or, without a message, in the headers.

mod messages;

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine};
use bytes::{BufMut, Bytes};
use http::header::{CONTENT_TYPE, HeaderName, TE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};
use prost::Message;
use secrecy::{ExposeSecret, SecretString};

use self::messages::non_empty;
use crate::call::{Call, Operation, Reply};
use crate::error::{Error, Refusal};
use crate::proto;
use crate::response::HttpResponse;
use crate::rest::{known_page, known_token, new_token, page_size};
use crate::status::{Code, Status};
use crate::token::{Page, PageRequest, Token, TokenUpdate};
use crate::wipe::wipe_on_drop;

const SERVICE: &str = "/scalekit.v1.tokens.ApiTokenService/";
const GRPC: &str = "application/grpc";

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The characters that `grpc-message` percent-encodes, besides those outside ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// A compression flag and the length of the message.
const PREFIX_BYTES: usize = 5;

// ---- For clients.

/// Encodes a call as a request for HTTP/2. The caller adds authority and `Authorization`.
pub fn encode_request(call: &Call) -> Request<Bytes> {
    let named = |token: &SecretString| proto::TokenRequest { token: token.expose_secret().to_owned() };
    let (path, body) = match call {
        Call::Create(new) => {
            ("CreateToken", frame_message(&proto::CreateTokenRequest { token: Some(new.into()) }))
        }
        Call::Validate(token) => ("ValidateToken", frame_message(&named(token))),
        Call::Invalidate(token) => ("InvalidateToken", frame_message(&named(token))),
        Call::List(page) => ("ListTokens", frame_message(&proto::ListTokensRequest::from(page))),
        Call::Update(token, update) => {
            let request = proto::UpdateTokenRequest {
                token: token.expose_secret().to_owned(),
                description: update.description.clone(),
                custom_claims: update.custom_claims.clone().unwrap_or_default(),
            };
            ("UpdateToken", frame_message(&request))
        }
    };
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    // Cannot fail: a service and a method's name form a valid path.
    *request.uri_mut() = format!("{SERVICE}{path}").parse().unwrap_or_else(|_| Uri::from_static(SERVICE));
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    request
}

/// Decodes the response to a call, like [`rest::decode_response`](crate::rest::decode_response).
///
/// # Errors
/// `Refused` if Scalekit itself refuses the call. A gateway answers unknown paths with UNIMPLEMENTED, which is
/// `WrongEndpoint`. A response without a status was cut off, which is `ConnectionLost`.
pub fn decode_response(operation: Operation, response: &HttpResponse) -> Result<Reply, Error> {
    if response.status != StatusCode::OK {
        return Err(response.status_error(operation.permission()));
    }
    if !matches!(grpc_subtype(&response.headers), Some("" | "+proto")) {
        return Err(Error::WrongEndpoint("its answer is not gRPC".into()));
    }
    let field = |name| response.trailers.get(&name).or_else(|| response.headers.get(&name));
    let number = field(STATUS).and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
    match number {
        None => Err(Error::ConnectionLost("its answer has no grpc-status".into())),
        Some(0) => decode_success(operation, &response.body),
        Some(number) => {
            let message = field(MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
            let message = percent_decode(message).decode_utf8_lossy();
            Err(status_error(operation, number, &message, response))
        }
    }
}

fn status_error(operation: Operation, number: i64, message: &str, response: &HttpResponse) -> Error {
    let Some(code) = Code::from_number(number) else {
        return Error::WrongEndpoint(format!("gRPC code {number}"));
    };
    match code {
        Code::Unauthenticated => Error::Credentials,
        Code::PermissionDenied => Error::Permission(operation.permission()),
        Code::ResourceExhausted => Error::Throttled(response.retry_after()),
        Code::Unimplemented => Error::WrongEndpoint(format!("gRPC code {number}")),
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Error::Unavailable(code.http_status()),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange => Error::Refused(Refusal::new(code, message)),
    }
}

fn decode_success(operation: Operation, body: &[u8]) -> Result<Reply, Error> {
    match operation {
        Operation::Create => {
            let created: proto::CreateTokenResponse = decode_body(body)?;
            new_token(created.token, created.token_info.map(Token::try_from).transpose()?)
        }
        Operation::Validate | Operation::Update => {
            let info = decode_body::<proto::TokenResponse>(body)?.token_info;
            let token = info.ok_or(Error::BrokenContract("a 200 without token_info"))?.try_into()?;
            known_token(operation, token).map(Reply::Token)
        }
        Operation::Invalidate => decode_body::<()>(body).map(|()| Reply::Invalidated),
        Operation::List => {
            let page: proto::ListTokensResponse = decode_body(body)?;
            let tokens = page.tokens.into_iter().map(Token::try_from).collect::<Result<_, _>>()?;
            let page = Page {
                tokens,
                total_count: page.total_count.into(),
                next_page_token: non_empty(page.next_page_token),
                prev_page_token: non_empty(page.prev_page_token),
            };
            known_page(page).map(Reply::Page)
        }
    }
}

fn decode_body<M: Message + Default>(body: &[u8]) -> Result<M, Error> {
    let message = unframe_message(body).ok().and_then(|message| M::decode(message).ok());
    message.ok_or(Error::BrokenContract("a message that is not the one expected"))
}

// ---- For servers.

/// Whether the content type is that of gRPC, with messages in any encoding.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    grpc_subtype(headers).is_some()
}

/// Determines the operation of a request.
///
/// # Errors
/// UNIMPLEMENTED for anything else.
pub fn route_request(method: &Method, path: &str, headers: &HeaderMap) -> Result<Operation, Status> {
    let unimplemented = |message: &str| Err(Status::from_gateway(Code::Unimplemented, message));
    if method != Method::POST || !matches!(grpc_subtype(headers), Some("" | "+proto")) {
        return unimplemented("gRPC is POST with messages in protobuf");
    }
    match path.strip_prefix(SERVICE) {
        Some("CreateToken") => Ok(Operation::Create),
        Some("ValidateToken") => Ok(Operation::Validate),
        Some("InvalidateToken") => Ok(Operation::Invalidate),
        Some("ListTokens") => Ok(Operation::List),
        Some("UpdateToken") => Ok(Operation::Update),
        Some(_) => unimplemented("unknown method"),
        None => unimplemented("unknown service"),
    }
}

/// Decodes the call of a request.
///
/// # Errors
/// Why the body is not the expected message. The content is not repeated, as it may contain a token.
pub fn decode_request(operation: Operation, body: &[u8]) -> Result<Call, Status> {
    let token = |body| decode_message::<proto::TokenRequest>(body).map(|request| request.token.into());
    Ok(match operation {
        Operation::Create => {
            let token = decode_message::<proto::CreateTokenRequest>(body)?.token;
            let token =
                token.ok_or_else(|| Status::invalid_field("token", "required", "value is required"))?;
            Call::Create(token.try_into()?)
        }
        Operation::Validate => Call::Validate(token(body)?),
        Operation::Invalidate => Call::Invalidate(token(body)?),
        Operation::List => {
            let page: proto::ListTokensRequest = decode_message(body)?;
            Call::List(PageRequest {
                organization_id: page.organization_id,
                user_id: page.user_id.and_then(non_empty),
                page_size: page_size(page.page_size)?,
                page_token: non_empty(page.page_token),
            })
        }
        Operation::Update => {
            let update: proto::UpdateTokenRequest = decode_message(body)?;
            let custom_claims = Some(update.custom_claims).filter(|claims| !claims.is_empty());
            Call::Update(update.token.into(), TokenUpdate { custom_claims, description: update.description })
        }
    })
}

/// Encodes the response to a call. A refusal has its status in the headers, and neither content nor trailers.
pub fn encode_response(outcome: Result<&Reply, &Status>) -> HttpResponse {
    let frame = match outcome {
        Ok(Reply::Created(created)) => frame_message(&proto::CreateTokenResponse::from(created)),
        Ok(Reply::Token(token)) => frame_message(&proto::TokenResponse { token_info: Some(token.into()) }),
        Ok(Reply::Invalidated) => frame_message(&()),
        Ok(Reply::Page(page)) => frame_message(&proto::ListTokensResponse::from(page)),
        Err(status) => return encode_refusal(status),
    };
    let mut response = HttpResponse::with_content(200, GRPC, frame);
    response.trailers.insert(STATUS, HeaderValue::from_static("0"));
    response
}

fn encode_refusal(status: &Status) -> HttpResponse {
    let mut response = HttpResponse::with_content(200, GRPC, Bytes::new());
    let headers = &mut response.headers;
    headers.insert(STATUS, HeaderValue::from(status.code.number()));
    let message = utf8_percent_encode(&status.message, ENCODED).to_string();
    headers.extend(HeaderValue::try_from(message).map(|message| (MESSAGE, message)));
    if status.has_error_info {
        let details = BASE64_STANDARD_NO_PAD.encode(proto::RpcStatus::from(status).encode_to_vec());
        headers.extend(HeaderValue::try_from(details).map(|details| (DETAILS, details)));
    }
    response
}

fn decode_message<M: Message + Default>(body: &[u8]) -> Result<M, Status> {
    let broken = || Status::from_gateway(Code::Internal, "not the message expected");
    unframe_message(body).and_then(|message| M::decode(message).map_err(|_| broken()))
}

// ---- Framing.

/// The rest of the content type after `application/grpc`, without parameters. `None` if it is not gRPC.
fn grpc_subtype(headers: &HeaderMap) -> Option<&str> {
    let subtype = headers.get(CONTENT_TYPE)?.to_str().ok()?.strip_prefix(GRPC)?;
    let subtype = subtype.split(';').next().unwrap_or_default().trim();
    (subtype.is_empty() || subtype.starts_with('+')).then_some(subtype)
}

fn frame_message(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Cannot fail, as a `Vec` grows as needed.
    let _ = message.encode(&mut frame);
    wipe_on_drop(frame)
}

/// Returns the single message of a unary call. Compressed messages are refused, as they were not requested.
fn unframe_message(body: &[u8]) -> Result<&[u8], Status> {
    let broken = |message| Status::from_gateway(Code::Internal, message);
    let (prefix, message) = body.split_at_checked(PREFIX_BYTES).ok_or_else(|| broken("incomplete frame"))?;
    let length = prefix[1..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    match prefix[0] {
        0 if length == message.len() => Ok(message),
        0 => Err(broken("not exactly one frame")),
        _ => Err(Status::from_gateway(Code::Unimplemented, "compression is not supported")),
    }
}
