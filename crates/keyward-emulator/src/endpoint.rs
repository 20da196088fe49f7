//! What can be called, and how a response goes back: over REST or gRPC for the API, only over REST for access tokens.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response};
use scalekit::call::{Operation, Reply};
use scalekit::response::HttpResponse;
use scalekit::status::{Code, Status};
use scalekit::transport::Transport;
use scalekit::{oauth, rest};

use crate::body::{Body, full};

const JSON: &str = "application/json";

/// What can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// An access token.
    Token,
    /// A call of the API.
    Api(Operation),
}

impl Endpoint {
    /// Finds what a request calls.
    pub(crate) fn of_request(transport: Transport, head: &Parts) -> Result<Self, Status> {
        match (transport, head.uri.path()) {
            (Transport::Rest, oauth::PATH) if head.method == Method::POST => Ok(Self::Token),
            (Transport::Rest, oauth::PATH) => {
                Err(Status::from_gateway(Code::Unimplemented, "Method Not Allowed"))
            }
            _ => transport.route_request(head).map(Self::Api),
        }
    }

    /// The response that goes with an HTTP status, for a fault.
    pub(crate) fn response_of_status(self, transport: Transport, status: u16) -> HttpResponse {
        let code = Code::from_http_status(status);
        match (transport, status) {
            (Transport::Rest, 200..400) => HttpResponse::with_content(status, JSON, "{}"),
            (Transport::Rest, _) if self == Self::Token => {
                let error = serde_json::json!({"error": code.name().to_ascii_lowercase()});
                HttpResponse::with_content(status, JSON, error.to_string())
            }
            (Transport::Rest, _) => rest::encode_refusal(status, &Status::new(code, code.name())),
            (Transport::Grpc, 200..400) => transport.encode_response(Ok(&Reply::Invalidated)),
            (Transport::Grpc, _) => transport.encode_response(Err(&Status::new(code, code.name()))),
        }
    }
}

/// The response to a request whose body is too large.
pub(crate) fn too_large(transport: Transport) -> HttpResponse {
    let status = Status::from_gateway(Code::ResourceExhausted, "request body too large");
    match transport {
        Transport::Rest => rest::encode_refusal(413, &status),
        Transport::Grpc => transport.encode_response(Err(&status)),
    }
}

/// A response without its trailers, and those.
pub(crate) fn split_trailers(response: HttpResponse) -> (Response<Bytes>, HeaderMap) {
    let mut head = Response::new(response.body);
    *head.status_mut() = response.status;
    *head.headers_mut() = response.headers;
    (head, response.trailers)
}

/// A response that is ready to be sent.
pub(crate) fn to_http_response(response: HttpResponse) -> Response<Body> {
    let (response, trailers) = split_trailers(response);
    let response = response.map(full);
    if trailers.is_empty() {
        return response;
    }
    let trailers = std::future::ready(Some(Ok(trailers)));
    response.map(|body| body.with_trailers(trailers).boxed_unsync())
}
