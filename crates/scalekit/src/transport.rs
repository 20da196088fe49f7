//! REST or gRPC, chosen at run time, for the same calls.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};

use crate::call::{Call, Operation, Reply};
use crate::error::Error;
use crate::response::HttpResponse;
use crate::status::Status;
use crate::{grpc, rest};

/// The protocol for the token API. Access tokens are always fetched over REST.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// JSON over HTTP/1.1 or HTTP/2. It is described by annotations in Scalekit's descriptors, but not documented.
    #[default]
    Rest,
    /// gRPC, which Scalekit's own SDKs use; requires HTTP/2.
    Grpc,
}

impl Transport {
    /// Encodes a call as a request, without authority and `Authorization`.
    pub fn encode_request(self, call: &Call) -> Request<Bytes> {
        match self {
            Self::Rest => rest::encode_request(call),
            Self::Grpc => grpc::encode_request(call),
        }
    }

    /// Decodes the response to a call.
    ///
    /// # Errors
    /// As [`rest::decode_response`] and [`grpc::decode_response`].
    pub fn decode_response(self, operation: Operation, response: &HttpResponse) -> Result<Reply, Error> {
        match self {
            Self::Rest => rest::decode_response(operation, response),
            Self::Grpc => grpc::decode_response(operation, response),
        }
    }

    /// For servers: the transport of a request.
    pub fn of_request(headers: &HeaderMap) -> Self {
        if grpc::is_grpc(headers) { Self::Grpc } else { Self::Rest }
    }

    /// For servers: determines the operation of a request.
    ///
    /// # Errors
    /// As [`rest::route_request`] and [`grpc::route_request`].
    pub fn route_request(self, head: &Parts) -> Result<Operation, Status> {
        match self {
            Self::Rest => rest::route_request(&head.method, head.uri.path()),
            Self::Grpc => grpc::route_request(&head.method, head.uri.path(), &head.headers),
        }
    }

    /// For servers: decodes the call of a request.
    ///
    /// # Errors
    /// As [`rest::decode_request`] and [`grpc::decode_request`].
    pub fn decode_request(self, operation: Operation, head: &Parts, body: &[u8]) -> Result<Call, Status> {
        match self {
            Self::Rest => rest::decode_request(operation, head.uri.query(), body),
            Self::Grpc => grpc::decode_request(operation, body),
        }
    }

    /// For servers: encodes the response to a call.
    pub fn encode_response(self, outcome: Result<&Reply, &Status>) -> HttpResponse {
        match self {
            Self::Rest => rest::encode_response(outcome),
            Self::Grpc => grpc::encode_response(outcome),
        }
    }
}
