//! Handles a request: faults before the decision, the decision, faults after it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use jiff::Timestamp;

use crate::Shared;
use crate::body::{Body, BodyError};
use crate::call::{Call, Endpoint};
use crate::faults::{Answer, Effect, Plan};
use crate::rest;
use crate::wire::{Encoded, Wire};

/// Limit of a request body, in bytes.
const MAX_BODY: usize = 1024 * 1024;

/// Makes hyper close the HTTP/1.1 connection, or reset the HTTP/2 stream, without a response.
#[derive(Debug, thiserror::Error)]
#[error("closed without a response")]
pub(crate) struct NoResponse;

pub(crate) async fn handle_request(
    emulator: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, NoResponse> {
    let (head, body) = request.into_parts();
    let wire = Wire::detect(&head);
    let endpoint = match wire.find_endpoint(&head) {
        Ok(endpoint) => endpoint,
        Err(status) => return Ok(wire.encode_outcome(Err(status)).into_response()),
    };
    let _open = emulator.counters.count_call(endpoint);
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Ok(wire.body_too_large().into_response()),
        Err(_) => return Err(NoResponse),
    };
    let mut plan = emulator.faults.take_plan(endpoint);
    let encoded = match apply_faults_before(&emulator, &mut plan).await? {
        Some(instead) => encode_fault_answer(wire, endpoint, instead),
        None => decide_call(&emulator, wire, endpoint, &head, &body, &plan),
    };
    Ok(apply_faults_after(&mut plan, encoded).await)
}

/// The response of the API itself.
fn decide_call(
    emulator: &Shared,
    wire: Wire,
    endpoint: Endpoint,
    head: &Parts,
    body: &[u8],
    plan: &Plan,
) -> Encoded {
    let Some(permission) = endpoint.permission() else {
        return rest::encode_grant(emulator.access.grant_token(body)).into();
    };
    let allowed = emulator.access.authorize(&head.headers, permission);
    let call = allowed.and_then(|()| wire.decode_call(endpoint, head, body));
    wire.encode_outcome(call.and_then(|call| {
        let Call::Validate { token } = &call else {
            return emulator.store.perform_call(call, Timestamp::now());
        };
        let revoked =
            plan.effects.iter().any(|effect| matches!(effect, Effect::RevokeAfter(_))).then(|| token.clone());
        let verdict = emulator.store.perform_call(call, Timestamp::now());
        emulator.counters.count_verdict();
        if let Some(token) = revoked {
            emulator.store.revoke_key(&token);
        }
        verdict
    }))
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

async fn apply_faults_after(plan: &mut Plan, mut encoded: Encoded) -> Response<Body> {
    let response = &mut encoded.response;
    let mut truncated = false;
    for at in 0..plan.effects.len() {
        match &plan.effects[at] {
            Effect::LatencyAfter(time) => tokio::time::sleep(*time).await,
            Effect::HangAfter => plan.wait_for_release().await,
            Effect::ContentType(content_type) => set_content_type(response, content_type),
            Effect::Garbage => {
                let noise = response.body().iter().map(|byte| byte | 0x80);
                *response.body_mut() = noise.collect();
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
    if truncated { truncate_body(encoded.response) } else { encoded.into_response() }
}

fn encode_fault_answer(wire: Wire, endpoint: Endpoint, answer: Answer) -> Encoded {
    let mut encoded = match answer.body {
        None => wire.encode_status(endpoint, answer.status),
        // A body stands for the page of a proxy in between, which answers in plain HTTP also to gRPC.
        Some(body) => rest::encode_status(endpoint, answer.status).map(|_| body).into(),
    };
    if let Some(content_type) = answer.content_type {
        set_content_type(&mut encoded.response, &content_type);
    }
    if let Some(seconds) = answer.retry_after {
        encoded.response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    encoded
}

fn set_content_type(response: &mut Response<Bytes>, content_type: &str) {
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
}

/// Announces the whole length and breaks the transfer after half of it.
fn truncate_body(response: Response<Bytes>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
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
