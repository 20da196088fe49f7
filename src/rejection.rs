//! The closed list of Keyward's own error responses. Each variant names the cause. One table has what clients are told, which
//! never includes anything internal.

use std::time::Duration;

use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use serde::Serialize;

use crate::body::{self, Body};

/// Marks a response as Keyward's own; its value is the code.
pub const KEYWARD_ERROR: HeaderName = HeaderName::from_static("keyward-error");

/// Why Keyward rejects a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The request is not valid HTTP; the text says why.
    MalformedRequest(&'static str),
    /// More than one `Authorization`.
    AmbiguousCredential,
    /// The path has a dot segment or a malformed escape, or the service could read it as the path of another route.
    AmbiguousPath,
    /// No Bearer credential.
    MissingCredential,
    /// The key is malformed, unknown, expired or revoked. All are answered alike, so that the response does not tell which.
    InvalidKey,
    /// The id of a key (`apit_…`) in place of the key. Clients get the same response as for any other invalid key.
    KeyIdPresented,
    /// A valid key that this route does not accept.
    NotPermitted,
    /// No route matches the path.
    NoRoute,
    /// The routes of the path do not accept the method. Holds the value of `Allow`.
    MethodNotAllowed(HeaderValue),
    /// The request's target is longer than `limits.uri`.
    UriTooLong,
    /// The request has more headers than `limits.headers`.
    HeadTooLarge,
    /// The request's body made no progress for too long.
    BodyTimeout,
    /// The request's body exceeds the limit.
    BodyTooLarge,
    /// Too many invalid keys from the client's address. Holds the time to wait, as below.
    Throttled(Duration),
    /// Too many requests of the identity, by a limit of `[rate_limits]`. Holds the time to wait.
    RateLimited(Duration),
    /// No connection to the upstream, or it broke before the response.
    UpstreamUnreachable,
    /// The upstream did not begin its response in time.
    UpstreamTimeout,
    /// The identity headers exceed their limit.
    IdentityTooLarge,
    /// Two claims of the key share a header.
    AmbiguousIdentity,
    /// Scalekit gave no verdict: it is down, slow, throttling, or refuses Keyward's own credentials.
    ValidationUnavailable(Duration),
    /// Too many requests wait for a verdict or are in progress, or hold too much memory.
    Overloaded(Duration),
}

/// What a client is told, apart from what depends on the request.
struct Answer {
    status: StatusCode,
    code: &'static str,
    /// The sentence in `title` and `error`.
    sentence: &'static str,
    detail: &'static str,
    grpc: GrpcCode,
}

/// The status codes of gRPC that rejections use, as numbered by its specification (`grpc/doc/statuscodes.md`).
#[derive(Clone, Copy)]
enum GrpcCode {
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// The properties of a request that decide the form of an error response. Taken before the request is consumed.
#[derive(Clone, Debug)]
pub struct ErrorFormat {
    head: bool,
    grpc: bool,
    /// Whether the HTTP status stays beside gRPC's.
    keeps_status: bool,
    /// Whether the client accepts a status in trailers after the response has begun, as gRPC does over HTTP/2.
    trailers: bool,
    /// Whether the request's body may not have been read to its end, so that the connection cannot be used again.
    close: bool,
}

impl ErrorFormat {
    /// Takes the properties from a request.
    pub fn from_request<B: http_body::Body>(request: &Request<B>) -> Self {
        // SECURITY: every gRPC call is a POST. The 200 of a gRPC error could be cached if it answered a GET, and would open a
        // tunnel if it answered a CONNECT.
        let grpc =
            request.method() == Method::POST && has_content_type(request.headers(), b"application/grpc");
        Self {
            head: request.method() == Method::HEAD,
            grpc,
            keeps_status: false,
            trailers: grpc && request.version() == Version::HTTP_2,
            close: request.version() < Version::HTTP_2 && !request.body().is_end_stream(),
        }
    }

    /// The form of a decision that denies a request with this method. Its status is what the gateway goes by; a gRPC client, to which
    /// the gateway passes the decision, gets gRPC's status beside it.
    ///
    /// SECURITY: never with the status 200 of gRPC errors, which is "allow" to every gateway.
    pub fn for_decision(method: &Method, is_grpc: bool, has_unread_body: bool) -> Self {
        let head = *method == Method::HEAD;
        Self { head, grpc: is_grpc, keeps_status: true, trailers: false, close: has_unread_body }
    }

    /// Whether a response that has begun with these headers may end with a gRPC status in its trailers. Other clients would take
    /// trailers for a successful end; gRPC-Web has its trailers within the body.
    pub fn takes_grpc_status(&self, answered: &HeaderMap) -> bool {
        self.trailers
            && has_content_type(answered, b"application/grpc")
            && !has_content_type(answered, b"application/grpc-web")
    }
}

/// Whether the content type is that of gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    has_content_type(headers, b"application/grpc")
}

fn has_content_type(headers: &HeaderMap, prefix: &[u8]) -> bool {
    let start = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().get(..prefix.len()));
    start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    request_id: &'a str,
    error: &'a str,
}

impl Rejection {
    /// The stable code in `Keyward-Error`, logs and metrics.
    pub fn code(&self) -> &'static str {
        self.describe_answer().code
    }

    /// The HTTP status; gRPC clients get a `grpc-status` instead.
    pub fn status(&self) -> StatusCode {
        self.describe_answer().status
    }

    /// Whether the client is at fault (4xx), not Keyward, Scalekit or the upstream.
    pub fn is_denial(&self) -> bool {
        self.status().is_client_error()
    }

    /// The table of what clients are told.
    #[rustfmt::skip]
    fn describe_answer(&self) -> Answer {
        use hyper::StatusCode as Http;
        use GrpcCode as Grpc;
        let row = |status, code, grpc, sentence, detail| Answer { status, code, sentence, detail, grpc };
        match self {
            Self::MalformedRequest(detail)          => row(Http::BAD_REQUEST,                     "malformed_request",      Grpc::Internal,          "Malformed request",           detail),
            Self::AmbiguousCredential               => row(Http::BAD_REQUEST,                     "ambiguous_credential",   Grpc::Internal,          "Ambiguous credential",        "The request carries more than one Authorization header; send exactly one."),
            Self::AmbiguousPath                     => row(Http::BAD_REQUEST,                     "ambiguous_path",         Grpc::Internal,          "Ambiguous path",              "The path has a '.' or '..' segment or a malformed or control-character escape, or could be read as the path of another route."),
            Self::MissingCredential                 => row(Http::UNAUTHORIZED,                    "missing_credential",     Grpc::Unauthenticated,   "Missing authorization token", "Send the API key as 'Authorization: Bearer <key>'."),
            Self::InvalidKey | Self::KeyIdPresented => row(Http::UNAUTHORIZED,                    "invalid_key",            Grpc::Unauthenticated,   "Invalid or expired token",    "The API key is not valid."),
            Self::NotPermitted                      => row(Http::FORBIDDEN,                       "not_permitted",          Grpc::PermissionDenied,  "Not permitted",               "The API key is valid, but this route does not accept it."),
            Self::NoRoute                           => row(Http::NOT_FOUND,                       "no_route",               Grpc::Unimplemented,     "No route",                    "No route matches this path."),
            Self::MethodNotAllowed(_)               => row(Http::METHOD_NOT_ALLOWED,              "method_not_allowed",     Grpc::Unimplemented,     "Method not allowed",          "This path does not accept the request's method; the Allow header lists the methods that it accepts."),
            Self::UriTooLong                        => row(Http::URI_TOO_LONG,                    "uri_too_long",           Grpc::ResourceExhausted, "URI too long",                "The request's target is longer than this server accepts."),
            Self::HeadTooLarge                      => row(Http::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large",         Grpc::ResourceExhausted, "Too many headers",            "The request has more headers than this server accepts."),
            Self::BodyTimeout                       => row(Http::REQUEST_TIMEOUT,                 "body_timeout",           Grpc::DeadlineExceeded,  "Body timeout",                "The request's body made no progress for too long."),
            Self::BodyTooLarge                      => row(Http::PAYLOAD_TOO_LARGE,               "body_too_large",         Grpc::ResourceExhausted, "Body too large",              "The request's body is longer than this server accepts."),
            Self::Throttled(_)                      => row(Http::TOO_MANY_REQUESTS,               "throttled",              Grpc::Unavailable,       "Too many bad keys",           "Too many invalid keys were sent from this address; try again later."),
            Self::RateLimited(_)                    => row(Http::TOO_MANY_REQUESTS,               "rate_limited",           Grpc::ResourceExhausted, "Too many requests",           "Too many requests were sent with this organization's, user's or API key's allowance; try again later."),
            Self::UpstreamUnreachable               => row(Http::BAD_GATEWAY,                     "upstream_unreachable",   Grpc::Unavailable,       "Upstream unreachable",        "The service behind this proxy cannot be reached, or closed the connection before it answered."),
            Self::UpstreamTimeout                   => row(Http::GATEWAY_TIMEOUT,                 "upstream_timeout",       Grpc::DeadlineExceeded,  "Upstream timeout",            "The service behind this proxy did not answer in time."),
            Self::IdentityTooLarge                  => row(Http::BAD_GATEWAY,                     "identity_too_large",     Grpc::Unavailable,       "Identity too large",          "The key's roles and claims exceed the limit for identity headers."),
            Self::AmbiguousIdentity                 => row(Http::BAD_GATEWAY,                     "ambiguous_identity",     Grpc::Unavailable,       "Ambiguous identity",          "Two of the key's claims map to the same header."),
            Self::ValidationUnavailable(_)          => row(Http::SERVICE_UNAVAILABLE,             "validation_unavailable", Grpc::Unavailable,       "Validation unavailable",      "The API key cannot be validated at the moment. It may be valid; try again later."),
            Self::Overloaded(_)                     => row(Http::SERVICE_UNAVAILABLE,             "overloaded",             Grpc::Unavailable,       "Overloaded",                  "This server has too many requests at the moment. The API key may be valid; try again later."),
        }
    }

    fn retry_after(&self) -> Option<HeaderValue> {
        match self {
            Self::Throttled(wait)
            | Self::RateLimited(wait)
            | Self::ValidationUnavailable(wait)
            | Self::Overloaded(wait) => {
                Some(HeaderValue::from(wait.as_millis().div_ceil(1000).clamp(1, 86_400) as u64))
            }
            _ => None,
        }
    }

    /// The challenge of RFC 6750 section 3. The configuration allows only realms that need no escaping.
    fn auth_challenge(&self, realm: &str) -> Option<HeaderValue> {
        let error = match self {
            Self::MissingCredential => "",
            Self::InvalidKey | Self::KeyIdPresented => ", error=\"invalid_token\"",
            Self::NotPermitted => ", error=\"insufficient_scope\"",
            _ => return None,
        };
        HeaderValue::try_from(format!("Bearer realm=\"{realm}\"{error}")).ok()
    }

    /// Builds the response: `application/problem+json` (RFC 9457), or "trailers only" for gRPC.
    pub fn to_response(&self, format: &ErrorFormat, request_id: &str, realm: &str) -> Response<Body> {
        let answer = self.describe_answer();
        let mut response = Response::new(body::empty());
        let headers = response.headers_mut();
        headers.insert(KEYWARD_ERROR, HeaderValue::from_static(answer.code));
        if let Some(value) = self.retry_after() {
            headers.insert(RETRY_AFTER, value);
        }
        if let Some(value) = self.auth_challenge(realm) {
            headers.insert(WWW_AUTHENTICATE, value);
        }
        if let Self::MethodNotAllowed(allow) = self {
            headers.insert(ALLOW, allow.clone());
        }
        if format.close {
            // SECURITY: the rest of a body that was not read must never be taken for the next request.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if format.grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            set_grpc_status(headers, &answer);
            if format.keeps_status {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                *response.status_mut() = answer.status;
            }
            return response;
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        *response.status_mut() = answer.status;
        if !format.head {
            let problem = Problem {
                r#type: format!("urn:keyward:error:{}", answer.code),
                title: answer.sentence,
                status: answer.status.as_u16(),
                detail: answer.detail,
                code: answer.code,
                request_id,
                error: answer.sentence,
            };
            // A struct of strings and one number always serializes.
            let mut text = serde_json::to_vec(&problem).unwrap_or_default();
            // For a shell, whose prompt should begin on a line of its own.
            text.push(b'\n');
            *response.body_mut() = body::full(text);
        }
        response
    }

    /// The trailers that end a gRPC response which the upstream had begun.
    pub fn to_trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        set_grpc_status(&mut trailers, &self.describe_answer());
        trailers
    }
}

fn set_grpc_status(headers: &mut HeaderMap, answer: &Answer) {
    headers.insert("grpc-status", HeaderValue::from(answer.grpc as u16));
    headers.insert("grpc-message", HeaderValue::from_static(answer.sentence));
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const WAIT: Duration = Duration::from_millis(1500);

    fn every() -> Vec<Rejection> {
        vec![
            Rejection::MalformedRequest("It is broken."),
            Rejection::AmbiguousCredential,
            Rejection::AmbiguousPath,
            Rejection::MissingCredential,
            Rejection::InvalidKey,
            Rejection::KeyIdPresented,
            Rejection::NotPermitted,
            Rejection::NoRoute,
            Rejection::MethodNotAllowed(HeaderValue::from_static("GET")),
            Rejection::UriTooLong,
            Rejection::HeadTooLarge,
            Rejection::BodyTimeout,
            Rejection::BodyTooLarge,
            Rejection::Throttled(WAIT),
            Rejection::RateLimited(WAIT),
            Rejection::UpstreamUnreachable,
            Rejection::UpstreamTimeout,
            Rejection::IdentityTooLarge,
            Rejection::AmbiguousIdentity,
            Rejection::ValidationUnavailable(WAIT),
            Rejection::Overloaded(WAIT),
        ]
    }

    fn client(head: bool, grpc: bool) -> ErrorFormat {
        ErrorFormat { head, grpc, keeps_status: false, trailers: grpc, close: false }
    }

    async fn json(response: Response<Body>) -> serde_json::Value {
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn rejections_are_problem_json_with_code_header() {
        for rejection in every() {
            let response = rejection.to_response(&client(false, false), "id-1", "api");
            assert_eq!(response.status(), rejection.status());
            assert_eq!(response.headers()[KEYWARD_ERROR], rejection.code());
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            let waits = matches!(rejection.status().as_u16(), 429 | 503);
            assert_eq!(
                response.headers().get(RETRY_AFTER).map(HeaderValue::as_bytes),
                waits.then_some(&b"2"[..])
            );
            let body = json(response).await;
            assert_eq!(body["code"], rejection.code());
            assert_eq!(body["status"], rejection.status().as_u16());
            assert_eq!(body["request_id"], "id-1");
            for text in ["type", "title", "detail", "error"] {
                assert!(body[text].as_str().is_some_and(|text| !text.is_empty()), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn rejection_texts_match_scalekit_middleware() {
        for (rejection, sentence, challenge) in [
            (Rejection::MissingCredential, "Missing authorization token", "Bearer realm=\"api\""),
            (
                Rejection::InvalidKey,
                "Invalid or expired token",
                "Bearer realm=\"api\", error=\"invalid_token\"",
            ),
            (Rejection::NotPermitted, "Not permitted", "Bearer realm=\"api\", error=\"insufficient_scope\""),
        ] {
            let response = rejection.to_response(&client(false, false), "", "api");
            assert_eq!(response.headers()[WWW_AUTHENTICATE], challenge);
            assert_eq!(json(response).await["error"], sentence);
        }
    }

    #[tokio::test]
    async fn head_gets_no_body_grpc_gets_trailers_only() {
        for rejection in every() {
            let head = rejection.to_response(&client(true, false), "", "api");
            assert_eq!(head.status(), rejection.status());
            assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
            let grpc = rejection.to_response(&client(false, true), "", "api");
            assert_eq!(grpc.status(), StatusCode::OK);
            let expected = match rejection.status().as_u16() {
                _ if rejection == Rejection::RateLimited(WAIT) => "8",
                401 => "16",
                403 => "7",
                404 | 405 => "12",
                400 => "13",
                429 | 502 | 503 => "14",
                408 | 504 => "4",
                413 | 414 | 431 => "8",
                other => panic!("no gRPC status stands for {other}"),
            };
            assert_eq!(grpc.headers()["grpc-status"], expected);
            assert_eq!(grpc.headers()[CONTENT_TYPE], "application/grpc");
            let decision = ErrorFormat::for_decision(&Method::POST, true, false);
            let decision = rejection.to_response(&decision, "", "api");
            assert_eq!(decision.status(), rejection.status());
            assert_eq!(decision.headers()["grpc-status"], expected);
        }
    }

    #[test]
    fn only_grpc_over_http2_gets_late_status() {
        for (method, version, asked, answered, takes) in [
            (Method::POST, Version::HTTP_2, "application/grpc", "application/grpc+proto", true),
            (Method::POST, Version::HTTP_2, "application/grpc", "text/event-stream", false),
            (Method::POST, Version::HTTP_2, "application/grpc", "application/grpc-web", false),
            (Method::POST, Version::HTTP_2, "application/json", "application/grpc", false),
            (Method::POST, Version::HTTP_11, "application/grpc", "application/grpc", false),
            (Method::GET, Version::HTTP_2, "application/grpc", "application/grpc", false),
        ] {
            let request = Request::builder().method(&method).version(version).header(CONTENT_TYPE, asked);
            let client = ErrorFormat::from_request(&request.body(body::empty()).unwrap());
            let answered = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(answered))]);
            assert_eq!(
                client.takes_grpc_status(&answered),
                takes,
                "{method} {version:?} {asked} {answered:?}"
            );
        }
        let trailers = Rejection::NotPermitted.to_trailers();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"7".parse().unwrap(), &"Not permitted".parse().unwrap())
        );
    }
}
