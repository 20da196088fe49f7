//! From a request to its answer: read, let the faults before the decision happen, decide, let those after it happen.

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
use crate::wire::{Outgoing, Wire};

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
    let wire = Wire::of(&head);
    let endpoint = match wire.route(&head) {
        Ok(endpoint) => endpoint,
        Err(status) => return Ok(wire.write(Err(status)).send()),
    };
    let _open = emulator.counters.begin(endpoint);
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Ok(wire.too_large().send()),
        Err(_) => return Err(Broken),
    };
    let mut plan = emulator.faults.plan(endpoint);
    let outgoing = match before(&emulator, &mut plan).await? {
        Some(instead) => dictated(wire, endpoint, instead),
        None => decide(&emulator, wire, endpoint, &head, &body, &plan),
    };
    Ok(after(&mut plan, outgoing).await)
}

/// What the API itself answers.
fn decide(
    emulator: &Shared,
    wire: Wire,
    endpoint: Endpoint,
    head: &Parts,
    body: &[u8],
    plan: &Plan,
) -> Outgoing {
    let Some(permission) = endpoint.permission() else {
        return rest::write_grant(emulator.access.grant(body)).into();
    };
    let allowed = emulator.access.authorize(&head.headers, permission);
    let call = allowed.and_then(|()| wire.read(endpoint, head, body));
    wire.write(call.and_then(|call| {
        let Call::Validate { token } = &call else {
            return emulator.store.perform(call, Timestamp::now());
        };
        let revoked =
            plan.effects.iter().any(|effect| matches!(effect, Effect::RevokeAfter(_))).then(|| token.clone());
        let verdict = emulator.store.perform(call, Timestamp::now());
        emulator.counters.decide();
        if let Some(token) = revoked {
            emulator.store.revoke(&token);
        }
        verdict
    }))
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
async fn after(plan: &mut Plan, mut outgoing: Outgoing) -> Response<Body> {
    let response = &mut outgoing.response;
    let mut truncated = false;
    for at in 0..plan.effects.len() {
        match &plan.effects[at] {
            Effect::LatencyAfter(time) => tokio::time::sleep(*time).await,
            Effect::HangAfter => plan.released().await,
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
    if truncated { truncate(outgoing.response) } else { outgoing.send() }
}

fn dictated(wire: Wire, endpoint: Endpoint, answer: Answer) -> Outgoing {
    let mut outgoing = match answer.body {
        None => wire.write_status(endpoint, answer.status),
        // What a proxy in between says, it says as HTTP.
        Some(body) => rest::write_status(endpoint, answer.status).map(|_| body).into(),
    };
    if let Some(content_type) = answer.content_type {
        set_content_type(&mut outgoing.response, &content_type);
    }
    if let Some(seconds) = answer.retry_after {
        outgoing.response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    outgoing
}

fn set_content_type(response: &mut Response<Bytes>, content_type: &str) {
    if let Ok(value) = HeaderValue::from_str(content_type) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
}

/// The whole length is announced, half of it sent, and then the transfer breaks.
fn truncate(response: Response<Bytes>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
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
