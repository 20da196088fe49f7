//! Error responses of key management, as `application/problem+json` (RFC 9457).

use ::scalekit::error::{Error, Refusal};
use ::scalekit::status;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::body::{self, Body};
use crate::keys::KeyError;
use crate::keys::rules::Forbidden;
use crate::rejection::KEYWARD_ERROR;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: Code,
    /// For people; may change.
    pub(super) detail: String,
    /// The key that an earlier request with the same `Idempotency-Key` created.
    pub(super) token_id: Option<Box<str>>,
    /// Ids of keys that may have been created without anyone having received them.
    pub(super) suspects: Vec<String>,
    /// Value of `Allow`.
    pub(super) allow: Option<&'static str>,
    /// In seconds.
    pub(super) retry_after: Option<u32>,
}

/// The closed list of codes. Their names are part of the interface and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    InvalidRequest,
    Unauthorized,
    NotPermitted,
    NotFound,
    NoRoute,
    MethodNotAllowed,
    BodyTimeout,
    AlreadyCreated,
    RequestInProgress,
    Conflict,
    BodyTooLarge,
    UnsupportedMediaType,
    IdempotencyKeyReused,
    Internal,
    ScalekitPermission,
    ScalekitUnavailable,
    OutcomeUnknown,
    SecretUnreadable,
    Overloaded,
}

impl Code {
    pub(super) fn name(self) -> &'static str {
        self.name_and_status().0
    }

    fn name_and_status(self) -> (&'static str, StatusCode) {
        match self {
            Self::InvalidRequest => ("invalid_request", StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED),
            Self::NotPermitted => ("not_permitted", StatusCode::FORBIDDEN),
            Self::NotFound => ("not_found", StatusCode::NOT_FOUND),
            Self::NoRoute => ("no_route", StatusCode::NOT_FOUND),
            Self::MethodNotAllowed => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
            Self::BodyTimeout => ("body_timeout", StatusCode::REQUEST_TIMEOUT),
            Self::AlreadyCreated => ("already_created", StatusCode::CONFLICT),
            Self::RequestInProgress => ("request_in_progress", StatusCode::CONFLICT),
            Self::Conflict => ("conflict", StatusCode::CONFLICT),
            Self::BodyTooLarge => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE),
            Self::UnsupportedMediaType => ("unsupported_media_type", StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Self::IdempotencyKeyReused => ("idempotency_key_reused", StatusCode::UNPROCESSABLE_ENTITY),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
            Self::ScalekitPermission => ("scalekit_permission", StatusCode::BAD_GATEWAY),
            Self::ScalekitUnavailable => ("scalekit_unavailable", StatusCode::SERVICE_UNAVAILABLE),
            Self::OutcomeUnknown => ("outcome_unknown", StatusCode::SERVICE_UNAVAILABLE),
            Self::SecretUnreadable => ("secret_unreadable", StatusCode::SERVICE_UNAVAILABLE),
            Self::Overloaded => ("overloaded", StatusCode::SERVICE_UNAVAILABLE),
        }
    }
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
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            status: code.name_and_status().1,
            code,
            detail: detail.into(),
            token_id: None,
            suspects: Vec::new(),
            allow: None,
            retry_after: None,
        }
    }

    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// SECURITY: the same for a key that does not exist and for one of another organization.
    pub(super) fn not_found() -> Self {
        Self::new(Code::NotFound, "The organization has no live key with this id.")
    }

    pub(super) fn internal() -> Self {
        Self::new(Code::Internal, "This is a bug in Keyward.")
    }

    /// Only for requests of which nothing was performed, as clients retry them.
    pub(super) fn overloaded(detail: &str) -> Self {
        Self { retry_after: Some(1), ..Self::new(Code::Overloaded, detail) }
    }

    pub(super) fn to_response(&self) -> Response<Body> {
        let code = self.code.name();
        let content = Content {
            r#type: format!("urn:keyward:management:{code}"),
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code,
            token_id: self.token_id.as_deref(),
            possible_token_ids: &self.suspects,
        };
        // Never fails: strings, a number and a list of strings can always be serialized.
        let mut text = serde_json::to_vec(&content).unwrap_or_default();
        text.push(b'\n');
        let mut response = Response::new(body::full(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(KEYWARD_ERROR, HeaderValue::from_static(code));
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

    fn of_failure(error: &Error, code: Code, detail: String) -> Self {
        let wait = error.hold().map_or(1, |wait| u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).max(1));
        Self { retry_after: Some(wait), ..Self::new(code, detail) }
    }
}

impl From<Forbidden> for Problem {
    fn from(forbidden: Forbidden) -> Self {
        Self::new(Code::NotPermitted, forbidden.to_string())
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        let detail = error.to_string();
        match error {
            KeyError::Invalid(_) => Self::invalid(detail),
            KeyError::NotFound => Self::not_found(),
            KeyError::Lost { error, suspects } => match suspects {
                Some(none) if none.is_empty() => Self::of_failure(&error, Code::ScalekitUnavailable, detail),
                suspects => Self {
                    suspects: suspects.unwrap_or_default(),
                    ..Self::of_failure(&error, Code::OutcomeUnknown, detail)
                },
            },
            KeyError::Call(Error::Refused(Refusal { code, .. })) => match code {
                status::Code::NotFound => Self::new(Code::NotFound, detail),
                status::Code::AlreadyExists | status::Code::Aborted => Self::new(Code::Conflict, detail),
                _ => Self::invalid(detail),
            },
            KeyError::Call(Error::Permission(_)) => Self::new(Code::ScalekitPermission, detail),
            KeyError::Call(error) => Self::of_failure(&error, Code::ScalekitUnavailable, detail),
            KeyError::OutcomeUnknown(error) => Self::of_failure(&error, Code::OutcomeUnknown, detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::OPENAPI;
    use super::*;

    const ALL: [Code; 19] = [
        Code::InvalidRequest,
        Code::Unauthorized,
        Code::NotPermitted,
        Code::NotFound,
        Code::NoRoute,
        Code::MethodNotAllowed,
        Code::BodyTimeout,
        Code::AlreadyCreated,
        Code::RequestInProgress,
        Code::Conflict,
        Code::BodyTooLarge,
        Code::UnsupportedMediaType,
        Code::IdempotencyKeyReused,
        Code::Internal,
        Code::ScalekitPermission,
        Code::ScalekitUnavailable,
        Code::OutcomeUnknown,
        Code::SecretUnreadable,
        Code::Overloaded,
    ];

    #[test]
    fn openapi_and_docs_list_every_error_code() {
        // `Overloaded` is the last one.
        assert_eq!(ALL.map(|code| code as usize), std::array::from_fn(|index| index));
        assert_eq!(ALL.len(), Code::Overloaded as usize + 1);
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let documented = &document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
        let mut documented: Vec<&str> =
            documented.as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
        let mut names = ALL.map(Code::name);
        documented.sort_unstable();
        names.sort_unstable();
        assert_eq!(documented, names);
        let page = include_str!("../../docs/management.md");
        let missing: Vec<&str> =
            names.into_iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
