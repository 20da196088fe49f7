//! From a request to its answer: read, let the faults before the decision happen, decide, let those after it happen.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use jiff::Timestamp;
use scalekit::call::{Call, Operation};
use scalekit::response::HttpResponse;
use scalekit::transport::Transport;
use scalekit::{ExposeSecret, oauth};

use crate::Shared;
use crate::body::{Body, BodyError};
use crate::endpoint::{self, Endpoint};
use crate::faults::{Answer, Effect, Plan};

/// The longest request body that is read.
const MAX_BODY: usize = 1024 * 1024;

/// No answer: the connection, or the stream in HTTP/2, ends.
#[derive(Debug, thiserror::Error)]
#[error("ended without an answer")]
pub(crate) struct Broken;

/// Answers a request.
pub(crate) async fn answer(
    emulator: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Broken> {
    let (head, body) = request.into_parts();
    let transport = Transport::of_request(&head.headers);
    let endpoint = match Endpoint::of_request(transport, &head) {
        Ok(endpoint) => endpoint,
        Err(status) => return Ok(endpoint::send(transport.encode_response(Err(&status)))),
    };
    let _open = emulator.counters.begin(endpoint);
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Ok(endpoint::send(endpoint::too_large(transport)));
        }
        Err(_) => return Err(Broken),
    };
    let mut plan = emulator.faults.plan(endpoint);
    let outgoing = match before(&emulator, &mut plan).await? {
        Some(instead) => dictated(transport, endpoint, instead),
        None => decide(&emulator, transport, endpoint, &head, &body, &plan),
    };
    Ok(after(&mut plan, outgoing).await)
}

/// What the API itself answers.
fn decide(
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
            return match emulator.access.grant(body) {
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
        let outcome = emulator.store.perform(call, Timestamp::now());
        if operation == Operation::Validate {
            emulator.counters.decide();
        }
        if let Some(token) = revoked {
            emulator.store.revoke(&token);
        }
        outcome
    });
    transport.encode_response(outcome.as_ref())
}

/// The faults before the decision; perhaps with an answer that makes it needless.
async fn before(emulator: &Shared, plan: &mut Plan) -> Result<Option<Answer>, Broken> {
    let mut instead = None;
    for at in 0..plan.effects.len() {
        match &plan.effects[at] {
            Effect::Latency(time) => tokio::time::sleep(*time).await,
            Effect::Hang => plan.released().await,
            Effect::Reset => return Err(Broken),
            Effect::ExpireAccessTokens => emulator.access.expire_all(),
            Effect::Answer(answer) => instead = Some(answer.clone()),
            Effect::LatencyAfter(_)
            | Effect::HangAfter
            | Effect::ContentType(_)
            | Effect::Garbage
            | Effect::Truncated
            | Effect::RevokeAfter(_)
            // It stands here only as the answer that it comes to.
            | Effect::Quota(_)
            | Effect::Refuse => {}
        }
    }
    Ok(instead)
}

/// The faults after the decision.
async fn after(plan: &mut Plan, mut response: HttpResponse) -> Response<Body> {
    let mut truncated = false;
    for at in 0..plan.effects.len() {
        match &plan.effects[at] {
            Effect::LatencyAfter(time) => tokio::time::sleep(*time).await,
            Effect::HangAfter => plan.released().await,
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
    if truncated { truncate(response) } else { endpoint::send(response) }
}

fn dictated(transport: Transport, endpoint: Endpoint, answer: Answer) -> HttpResponse {
    let mut response = match answer.body {
        None => endpoint.response_of_status(transport, answer.status),
        // What a proxy in between says, it says as HTTP.
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

/// The whole length is announced, half of it sent, and then the transfer breaks.
fn truncate(response: HttpResponse) -> Response<Body> {
    let (mut head, body) = endpoint::split(response).0.into_parts();
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let half = body.slice(..body.len() / 2);
    let frames = stream::unfold(Some(half), |half| async move {
        match half {
            Some(half) => Some((Ok(Frame::data(half)), None)),
            None => {
                // The first half leaves before the break, not with it.
                tokio::time::sleep(Duration::from_millis(1)).await;
                Some((Err(BodyError::from(Broken)), None))
            }
        }
    });
    Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
}
