//! The fields `RateLimit-Policy` and `RateLimit` of a response (draft-ietf-httpapi-ratelimit-headers-11), which tell the client what
//! is allowed and what is left.

use std::fmt::Write as _;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::gcra::{Level, Quota};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The values of both fields, a member for each limit.
#[derive(Debug, Default)]
pub(super) struct Fields {
    policy: String,
    limit: String,
}

impl Fields {
    /// Names are letters, digits, `-` and `_`, and need no escaping in a structured field (RFC 9651).
    pub(super) fn add(&mut self, name: &str, quota: Quota, level: Level) {
        let separator = if self.policy.is_empty() { "" } else { ", " };
        let window = round_up(quota.per);
        let _ = write!(self.policy, "{separator}\"{name}\";q={};w={window}", quota.requests);
        let until = if level.remaining == 0 { level.next } else { level.full };
        let _ = write!(self.limit, "{separator}\"{name}\";r={};t={}", level.remaining, round_up(until));
    }

    /// Adds the fields, unless they are empty.
    pub(super) fn append_to(self, headers: &mut HeaderMap) {
        for (name, value) in [(POLICY, self.policy), (LIMIT, self.limit)] {
            if let Some(value) = HeaderValue::try_from(value).ok().filter(|value| !value.is_empty()) {
                headers.append(name, value);
            }
        }
    }
}

/// In seconds.
fn round_up(time: Duration) -> u128 {
    time.as_millis().div_ceil(1000)
}
