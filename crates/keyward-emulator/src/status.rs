//! The error status of a call. It is a gRPC status; REST maps the code to an HTTP status.

/// The gRPC codes in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// An error status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// Whether an `ErrorInfo` goes with it. Errors of the gateway in front of Scalekit have none.
    pub(crate) details: bool,
    pub(crate) violations: Vec<Violation>,
}

/// A field that violates a constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) field: &'static str,
    pub(crate) description: String,
    pub(crate) constraint: &'static str,
}

impl Status {
    /// An error of Scalekit itself.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: true, violations: Vec::new() }
    }

    /// An error of the gateway in front of Scalekit.
    pub(crate) fn from_gateway(code: Code, message: impl Into<String>) -> Self {
        Self { details: false, ..Self::new(code, message) }
    }

    /// A field violates a constraint.
    pub(crate) fn invalid_field(
        field: &'static str,
        constraint: &'static str,
        description: impl Into<String>,
    ) -> Self {
        let description = description.into();
        let message = format!("{field}: {description}");
        Self {
            violations: vec![Violation { field, description, constraint }],
            ..Self::new(Code::InvalidArgument, message)
        }
    }
}

impl Code {
    pub(crate) fn number(self) -> i32 {
        self as i32
    }

    /// The `error_code` in `ErrorInfo`. Only `UNAUTHENTICATED` is known from Scalekit; the others are assumed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }

    pub(crate) fn http_status(self) -> u16 {
        match self {
            Self::Cancelled => 499,
            Self::Unknown | Self::Internal => 500,
            Self::InvalidArgument => 400,
            Self::DeadlineExceeded => 504,
            Self::NotFound => 404,
            Self::AlreadyExists => 409,
            Self::PermissionDenied => 403,
            Self::ResourceExhausted => 429,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::Unauthenticated => 401,
        }
    }

    pub(crate) fn from_http_status(status: u16) -> Self {
        match status {
            400 => Self::InvalidArgument,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::NotFound,
            409 => Self::AlreadyExists,
            429 => Self::ResourceExhausted,
            499 => Self::Cancelled,
            500 => Self::Internal,
            501 => Self::Unimplemented,
            502 | 503 => Self::Unavailable,
            504 => Self::DeadlineExceeded,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_status_maps_to_code_and_back() {
        for status in [400, 401, 403, 404, 409, 429, 499, 500, 501, 503, 504] {
            assert_eq!(Code::from_http_status(status).http_status(), status);
        }
    }
}
