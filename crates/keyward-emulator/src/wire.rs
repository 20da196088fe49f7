//! The protocol of a request, REST or gRPC, and the encoding of its response.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Response};

use crate::body::{Body, full};
use crate::call::{Call, Endpoint, Reply};
use crate::status::{Code, Status};
use crate::{grpc, rest};

#[derive(Clone, Copy)]
pub(crate) enum Wire {
    Rest,
    Grpc,
}

/// An encoded response.
pub(crate) struct Encoded {
    pub(crate) response: Response<Bytes>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Wire {
    pub(crate) fn detect(head: &Parts) -> Self {
        if grpc::is_grpc(&head.headers) { Self::Grpc } else { Self::Rest }
    }

    pub(crate) fn find_endpoint(self, head: &Parts) -> Result<Endpoint, Status> {
        match self {
            Self::Rest => rest::find_endpoint(&head.method, head.uri.path()),
            Self::Grpc => grpc::find_endpoint(&head.method, head.uri.path(), &head.headers),
        }
    }

    pub(crate) fn decode_call(self, endpoint: Endpoint, head: &Parts, body: &[u8]) -> Result<Call, Status> {
        match self {
            Self::Rest => rest::decode_call(endpoint, head.uri.query(), body),
            Self::Grpc => grpc::decode_call(endpoint, body),
        }
    }

    pub(crate) fn encode_outcome(self, outcome: Result<Reply, Status>) -> Encoded {
        match self {
            Self::Rest => rest::encode_outcome(outcome).into(),
            Self::Grpc => grpc::encode_outcome(outcome).into(),
        }
    }

    pub(crate) fn body_too_large(self) -> Encoded {
        let status = Status::from_gateway(Code::ResourceExhausted, "request body too large");
        match self {
            Self::Rest => rest::error_response(413, &status).into(),
            Self::Grpc => grpc::encode_outcome(Err(status)).into(),
        }
    }

    /// The response for the HTTP status of a fault.
    pub(crate) fn encode_status(self, endpoint: Endpoint, http: u16) -> Encoded {
        match self {
            Self::Rest => rest::encode_status(endpoint, http).into(),
            Self::Grpc => grpc::encode_status(http).into(),
        }
    }
}

impl Encoded {
    pub(crate) fn into_response(self) -> Response<Body> {
        let response = self.response.map(full);
        match self.trailers {
            None => response,
            Some(trailers) => {
                let trailers = std::future::ready(Some(Ok(trailers)));
                response.map(|body| body.with_trailers(trailers).boxed_unsync())
            }
        }
    }
}

impl From<Response<Bytes>> for Encoded {
    fn from(response: Response<Bytes>) -> Self {
        Self { response, trailers: None }
    }
}

impl From<(Response<Bytes>, Option<HeaderMap>)> for Encoded {
    fn from((response, trailers): (Response<Bytes>, Option<HeaderMap>)) -> Self {
        Self { response, trailers }
    }
}
