//! What goes wrong with key management, as `application/problem+json` (RFC 9457).

use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::body::{self, Body};
use crate::keys::KeyError;
use crate::keys::rules::Forbidden;
use crate::rejection::KEYWARD_ERROR;
use crate::scalekit::Fault;
use crate::scalekit::management::CallError;

/// Why a request was not done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// Stable, for programs.
    pub(super) code: &'static str,
    /// For people.
    pub(super) detail: String,
    /// The key that there is already.
    pub(super) token_id: Option<Box<str>>,
    /// Keys that may have been made, and that nobody has seen.
    pub(super) suspects: Vec<String>,
    /// For `Allow`.
    pub(super) allow: Option<&'static str>,
    /// Seconds.
    pub(super) retry_after: Option<u32>,
}

#[derive(Serialize)]
struct Content<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    possible_token_ids: &'a [String],
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { status, code, detail, token_id: None, suspects: Vec::new(), allow: None, retry_after: None }
    }

    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    /// There is no such thing, or not here: one answer for both.
    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "The organization has no live key of this id.")
    }

    /// The answer. It is never to be kept.
    pub(super) fn response(&self) -> Response<Body> {
        let content = Content {
            r#type: format!("urn:keyward:management:{}", self.code),
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            token_id: self.token_id.as_deref(),
            possible_token_ids: &self.suspects,
        };
        // Texts, a number and a list of texts always have a form in JSON.
        let mut response = Response::new(body::full(serde_json::to_vec(&content).unwrap_or_default()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(KEYWARD_ERROR, HeaderValue::from_static(self.code));
        if let Some(methods) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(methods));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"management\""));
        }
        response
    }
}

impl From<Forbidden> for Problem {
    fn from(forbidden: Forbidden) -> Self {
        Self::new(StatusCode::FORBIDDEN, "not_permitted", forbidden.to_string())
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let detail = error.to_string();
        match error {
            KeyError::Invalid { .. } => Self::invalid(detail),
            KeyError::NotFound => Self::not_found(),
            KeyError::Lost { fault, suspects } => {
                let suspects = suspects.unwrap_or_default();
                Self { detail, suspects, ..Self::of_a_fault(&fault, "outcome_unknown") }
            }
            KeyError::Call(CallError::Refused(refusal)) => match refusal.code {
                5 => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
                6 | 10 => Self::new(StatusCode::CONFLICT, "conflict", detail),
                _ => Self::invalid(detail),
            },
            KeyError::Call(CallError::Permission(_)) => {
                Self::new(StatusCode::BAD_GATEWAY, "scalekit_permission", detail)
            }
            KeyError::Call(CallError::Fault(fault)) => Self::of_a_fault(&fault, "scalekit_unavailable"),
            KeyError::Call(CallError::Lost(fault)) => Self::of_a_fault(&fault, "outcome_unknown"),
        }
    }
}

impl Problem {
    fn of_a_fault(fault: &Fault, code: &'static str) -> Self {
        let wait =
            fault.retry_after().map_or(1, |wait| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).max(1));
        Self {
            retry_after: Some(wait),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, fault.to_string())
        }
    }
}
