//! Whether there is memory for a request, at the moment its head is there.

use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};

use crate::budget::{Account, Held, REQUEST};
use crate::rejection::Rejection;

/// A header in memory beside its bytes, in bytes.
const HEADER: usize = 112;
/// What callers are told to wait when there is no memory for their request.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Counts a request, by what its headers take. One over a limit loses them at once.
///
/// SECURITY: HTTP/2 makes a head of 64 KiB and four times that in memory from one byte a field, and all that came in one go
/// are there before the first of them is answered.
pub(super) fn admit(
    request: &mut Request<Incoming>,
    max_headers: usize,
    account: &Arc<Account>,
) -> Result<Held, Rejection> {
    let headers = request.headers();
    let count = headers.len();
    let size = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER).sum::<usize>();
    let refused = if count > max_headers {
        Rejection::HeadTooLarge
    } else {
        match account.request(REQUEST + size) {
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
