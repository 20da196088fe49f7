//! Memory for a request, reserved when its head has arrived.

use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};

use crate::budget::{Account, Held};
use crate::memory_plan::REQUEST;
use crate::rejection::Rejection;

/// What a header takes in memory besides its name and value, in bytes.
const HEADER_OVERHEAD: usize = 112;
/// `Retry-After` where there is no memory for a request.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Reserves what a request and its headers take. A request over a limit loses its headers at once.
///
/// SECURITY: HTTP/2 (HPACK) makes a head of 64 KiB, four times that in memory, from one byte for each field, and all heads
/// that arrived together are in memory before the first of them is answered.
pub(super) fn reserve_memory(
    request: &mut Request<Incoming>,
    max_headers: usize,
    account: &Arc<Account>,
) -> Result<Held, Rejection> {
    let headers = request.headers();
    let count = headers.len();
    let size = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD)
        .sum::<usize>();
    let refused = if count > max_headers {
        Rejection::HeadTooLarge
    } else {
        match account.hold_request(REQUEST + size) {
            Some(held) => return Ok(held),
            None => Rejection::Overloaded(RETRY_AFTER),
        }
    };
    let content_type = request.headers_mut().remove(CONTENT_TYPE);
    *request.headers_mut() = HeaderMap::new();
    if let Some(content_type) = content_type {
        request.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    Err(refused)
}
