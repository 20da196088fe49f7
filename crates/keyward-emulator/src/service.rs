//! Handles a request: faults before the decision, the decision, faults after it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use jiff::Timestamp;
use scalekit::call::{Call, Operation};
use scalekit::response::HttpResponse;
use scalekit::transport::Transport;
use scalekit::{ExposeSecret, oauth};

use crate::Shared;
use crate::body::{Body, BodyError, full};
use crate::endpoint::{self, Endpoint};
use crate::faults::{Answer, Effect, Plan};

/// Limit of a request body, in bytes.
const MAX_BODY: usize = 1024 * 1024;

/// Answered without an access token and without faults: for orchestrators, and `keyward healthcheck --admin`.
const READINESS_PATH: &str = "/readyz";

/// Makes hyper close the HTTP/1.1 connection, or reset the HTTP/2 stream, without a response.
#[derive(Debug, thiserror::Error)]
#[error("closed without a response")]
pub(crate) struct NoResponse;

pub(crate) async fn handle_request(
    emulator: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, NoResponse> {
    let (head, body) = request.into_parts();
    if head.uri.path() == READINESS_PATH && head.method == Method::GET {
        return Ok(Response::new(full("ready\n")));
    }
    let transport = Transport::of_request(&head.headers);
    let endpoint = match Endpoint::of_request(transport, &head) {
        Ok(endpoint) => endpoint,
        Err(status) => return Ok(endpoint::to_http_response(transport.encode_response(Err(&status)))),
    };
    let _open = emulator.counters.count_call(endpoint);
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(endpoint::to_http_response(endpoint::too_large(transport)));
        }
        Err(_) => return Err(NoResponse),
    };
    let mut plan = emulator.faults.take_plan(endpoint);
    let response = match apply_faults_before(&emulator, &mut plan).await? {
        Some(instead) => encode_fault_answer(transport, endpoint, instead),
        None => decide_call(&emulator, transport, endpoint, &head, &body, &plan),
    };
    Ok(apply_faults_after(&mut plan, response).await)
}

/// The response of the API itself.
fn decide_call(
    emulator: &Shared,
    transport: Transport,
    endpoint: Endpoint,
    head: &Parts,
    body: &[u8],
    plan: &Plan,
) -> HttpResponse {
    let operation = match endpoint {
        Endpoint::Api(operation) => operation,
        Endpoint::Token => {
            return match emulator.access.grant_token(body) {
                Ok(grant) => oauth::encode_grant(&grant),
                Err(refusal) => oauth::encode_error(refusal.error, refusal.description),
            };
        }
    };
    let allowed = emulator.access.authorize(&head.headers, operation.permission());
    let call = allowed.and_then(|()| transport.decode_request(operation, head, body));
    let is_due = plan.effects.iter().any(|effect| matches!(effect, Effect::RevokeAfter(_)));
    let outcome = call.and_then(|call| {
        let revoked = match &call {
            Call::Validate(token) if is_due => Some(token.expose_secret().to_owned()),
            _ => None,
        };
        let outcome = emulator.store.perform_call(call, Timestamp::now());
        if operation == Operation::Validate {
            emulator.counters.count_verdict();
        }
        if let Some(token) = revoked {
            emulator.store.revoke_key(&token);
        }
        outcome
    });
    transport.encode_response(outcome.as_ref())
}

/// Applies the faults before the decision. One may bring the response itself.
async fn apply_faults_before(emulator: &Shared, plan: &mut Plan) -> Result<Option<Answer>, NoResponse> {
    let mut instead = None;
    for at in 0..plan.effects.len() {
        match &plan.effects[at] {
            Effect::Latency(time) => tokio::time::sleep(*time).await,
            Effect::Hang => plan.wait_for_release().await,
            Effect::Reset => return Err(NoResponse),
            Effect::ExpireAccessTokens => emulator.access.expire_all(),
            Effect::Answer(answer) => instead = Some(answer.clone()),
            Effect::LatencyAfter(_)
            | Effect::HangAfter
            | Effect::ContentType(_)
            | Effect::Garbage
            | Effect::Truncated
            | Effect::RevokeAfter(_)
            // A plan lists it only as the `Answer` that it leads to.
            | Effect::Quota(_)
            | Effect::Refuse => {}
        }
    }
    Ok(instead)
}

async fn apply_faults_after(plan: &mut Plan, mut response: HttpResponse) -> Response<Body> {
    let mut truncated = false;
    for at in 0..plan.effects.len() {
        match &plan.effects[at] {
            Effect::LatencyAfter(time) => tokio::time::sleep(*time).await,
            Effect::HangAfter => plan.wait_for_release().await,
            Effect::ContentType(content_type) => set_content_type(&mut response, content_type),
            Effect::Garbage => {
                response.body = response.body.iter().map(|byte| byte | 0x80).collect();
            }
            Effect::Truncated => truncated = true,
            Effect::Latency(_)
            | Effect::Hang
            | Effect::Reset
            | Effect::ExpireAccessTokens
            | Effect::Answer(_)
            | Effect::RevokeAfter(_)
            | Effect::Quota(_)
            | Effect::Refuse => {}
        }
    }
    if truncated { truncate_body(response) } else { endpoint::to_http_response(response) }
}

fn encode_fault_answer(transport: Transport, endpoint: Endpoint, answer: Answer) -> HttpResponse {
    let mut response = match answer.body {
        None => endpoint.response_of_status(transport, answer.status),
        // A body stands for the page of a proxy in between, which answers in plain HTTP also to gRPC.
        Some(body) => HttpResponse { body, ..endpoint.response_of_status(Transport::Rest, answer.status) },
    };
    if let Some(content_type) = answer.content_type {
        set_content_type(&mut response, &content_type);
    }
    if let Some(seconds) = answer.retry_after {
        response.headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn set_content_type(response: &mut HttpResponse, content_type: &str) {
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers.insert(CONTENT_TYPE, value);
    }
}

/// Announces the whole length and breaks the transfer after half of it.
fn truncate_body(response: HttpResponse) -> Response<Body> {
    let (mut head, body) = endpoint::split_trailers(response).0.into_parts();
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let half = body.slice(..body.len() / 2);
    let frames = stream::unfold(Some(half), |half| async move {
        match half {
            Some(half) => Some((Ok(Frame::data(half)), None)),
            None => {
                // Lets hyper flush the first half before the error.
                tokio::time::sleep(Duration::from_millis(1)).await;
                Some((Err(BodyError::from(NoResponse)), None))
            }
        }
    });
    Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
}
