//! REST or gRPC, chosen at run time: the same calls over either.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};

use crate::call::{Call, Operation, Reply};
use crate::error::Error;
use crate::response::HttpResponse;
use crate::status::Status;
use crate::{grpc, rest};

/// How the token API is spoken to. Access tokens are always fetched over REST.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// JSON over HTTP/1.1 or HTTP/2. Scalekit annotates it, and documents it nowhere.
    #[default]
    Rest,
    /// What Scalekit's own SDKs use; it needs HTTP/2.
    Grpc,
}

impl Transport {
    /// Writes a call as a request, without authority and `Authorization`.
    pub fn encode_request(self, call: &Call) -> Request<Bytes> {
        match self {
            Self::Rest => rest::encode_request(call),
            Self::Grpc => grpc::encode_request(call),
        }
    }

    /// Reads the response to a call.
    ///
    /// # Errors
    /// As [`rest::decode_response`] and [`grpc::decode_response`].
    pub fn decode_response(self, operation: Operation, response: &HttpResponse) -> Result<Reply, Error> {
        match self {
            Self::Rest => rest::decode_response(operation, response),
            Self::Grpc => grpc::decode_response(operation, response),
        }
    }

    /// For a server: which of the two a request uses.
    pub fn of_request(headers: &HeaderMap) -> Self {
        if grpc::is_grpc(headers) { Self::Grpc } else { Self::Rest }
    }

    /// For a server: finds the call that a request makes.
    ///
    /// # Errors
    /// As [`rest::route_request`] and [`grpc::route_request`].
    pub fn route_request(self, head: &Parts) -> Result<Operation, Status> {
        match self {
            Self::Rest => rest::route_request(&head.method, head.uri.path()),
            Self::Grpc => grpc::route_request(&head.method, head.uri.path(), &head.headers),
        }
    }

    /// For a server: reads the call of a request.
    ///
    /// # Errors
    /// As [`rest::decode_request`] and [`grpc::decode_request`].
    pub fn decode_request(self, operation: Operation, head: &Parts, body: &[u8]) -> Result<Call, Status> {
        match self {
            Self::Rest => rest::decode_request(operation, head.uri.query(), body),
            Self::Grpc => grpc::decode_request(operation, body),
        }
    }

    /// For a server: writes the response to a call.
    pub fn encode_response(self, outcome: Result<&Reply, &Status>) -> HttpResponse {
        match self {
            Self::Rest => rest::encode_response(outcome),
            Self::Grpc => grpc::encode_response(outcome),
        }
    }
}
