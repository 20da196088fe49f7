//! The status with which a server refuses a call. REST uses gRPC's codes, too, and adds the corresponding HTTP status.

/// The status codes of gRPC, except OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 1
    Cancelled = 1,
    /// 2
    Unknown = 2,
    /// 3
    InvalidArgument = 3,
    /// 4
    DeadlineExceeded = 4,
    /// 5: also for a token that is expired or revoked.
    NotFound = 5,
    /// 6
    AlreadyExists = 6,
    /// 7
    PermissionDenied = 7,
    /// 8
    ResourceExhausted = 8,
    /// 9
    FailedPrecondition = 9,
    /// 10
    Aborted = 10,
    /// 11
    OutOfRange = 11,
    /// 12
    Unimplemented = 12,
    /// 13
    Internal = 13,
    /// 14
    Unavailable = 14,
    /// 15
    DataLoss = 15,
    /// 16: always about the client's access token.
    Unauthenticated = 16,
}

/// Each code with its name and the HTTP status that a gRPC gateway and the official SDKs map it to, in the order of the numbers.
const CODES: [(Code, &str, u16); 16] = [
    (Code::Cancelled, "CANCELLED", 499),
    (Code::Unknown, "UNKNOWN", 500),
    (Code::InvalidArgument, "INVALID_ARGUMENT", 400),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", 504),
    (Code::NotFound, "NOT_FOUND", 404),
    (Code::AlreadyExists, "ALREADY_EXISTS", 409),
    (Code::PermissionDenied, "PERMISSION_DENIED", 403),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED", 429),
    (Code::FailedPrecondition, "FAILED_PRECONDITION", 400),
    (Code::Aborted, "ABORTED", 409),
    (Code::OutOfRange, "OUT_OF_RANGE", 400),
    (Code::Unimplemented, "UNIMPLEMENTED", 501),
    (Code::Internal, "INTERNAL", 500),
    (Code::Unavailable, "UNAVAILABLE", 503),
    (Code::DataLoss, "DATA_LOSS", 500),
    (Code::Unauthenticated, "UNAUTHENTICATED", 401),
];

impl Code {
    /// The number on the wire, from 1 to 16.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The code of a number; `None` for 0 and for unknown numbers.
    pub fn from_number(number: i64) -> Option<Self> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        CODES.get(index).map(|(code, ..)| *code)
    }

    /// gRPC's name. It is assumed to be the `error_code` of Scalekit's ErrorInfo, for which only `UNAUTHENTICATED` is documented.
    pub fn name(self) -> &'static str {
        CODES[self as usize - 1].1
    }

    /// The corresponding HTTP status.
    pub fn http_status(self) -> u16 {
        CODES[self as usize - 1].2
    }

    /// The code that corresponds to an HTTP status, for a response without a code.
    pub fn from_http_status(status: u16) -> Self {
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

/// A refusal, as a server sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: Code,
    /// A message for people.
    pub message: String,
    /// Whether it is from Scalekit itself, which adds its ErrorInfo. Responses of the gateway in front have none.
    pub has_error_info: bool,
    /// The fields that violate a rule.
    pub violations: Vec<FieldViolation>,
}

/// A field that violates a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's name in the API.
    pub field: &'static str,
    /// What is wrong with its value.
    pub description: String,
    /// The rule's name.
    pub constraint: &'static str,
}

impl Status {
    /// A refusal by Scalekit itself.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), has_error_info: true, violations: Vec::new() }
    }

    /// A refusal by the gateway in front of Scalekit, such as for an unknown path.
    pub fn from_gateway(code: Code, message: impl Into<String>) -> Self {
        Self { has_error_info: false, ..Self::new(code, message) }
    }

    /// INVALID_ARGUMENT for one field.
    pub fn invalid_field(
        field: &'static str,
        constraint: &'static str,
        description: impl Into<String>,
    ) -> Self {
        let description = description.into();
        let message = format!("{field}: {description}");
        let violations = vec![FieldViolation { field, description, constraint }];
        Self { violations, ..Self::new(Code::InvalidArgument, message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_code_table_is_in_numeric_order() {
        for (index, (code, name, status)) in CODES.iter().enumerate() {
            assert_eq!(code.number() as usize, index + 1);
            assert_eq!(Code::from_number(index as i64 + 1), Some(*code));
            assert_eq!((code.name(), code.http_status()), (*name, *status));
        }
        for number in [0, 17, -1, i64::MIN, i64::MAX] {
            assert_eq!(Code::from_number(number), None);
        }
    }

    #[test]
    fn http_status_maps_to_itself() {
        for status in [400, 401, 403, 404, 409, 429, 499, 500, 501, 503, 504] {
            assert_eq!(Code::from_http_status(status).http_status(), status);
        }
    }
}
