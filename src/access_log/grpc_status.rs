//! The status of a gRPC call, by the names that OpenTelemetry's conventions use.

use hyper::header::HeaderMap;

/// The `grpc-status` in headers or trailers, by the name that OpenTelemetry's conventions ask for. A code that gRPC does not define is
/// `UNKNOWN`, as to its clients.
pub(super) fn parse(headers: &HeaderMap) -> Option<&'static str> {
    let status = headers.get("grpc-status")?;
    let code = status.to_str().ok().and_then(|code| code.parse::<usize>().ok());
    Some(code.and_then(|code| GRPC_STATUSES.get(code)).copied().unwrap_or("UNKNOWN"))
}

/// By number (`grpc/doc/statuscodes.md`).
const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_status_is_logged_by_name() {
        let status = |value: &str| {
            parse(&HeaderMap::from_iter([("grpc-status".parse().unwrap(), value.parse().unwrap())]))
        };
        assert_eq!((status("0"), status("16")), (Some("OK"), Some("UNAUTHENTICATED")));
        assert_eq!((status("17"), status("x")), (Some("UNKNOWN"), Some("UNKNOWN")));
        assert_eq!(parse(&HeaderMap::new()), None);
    }
}
