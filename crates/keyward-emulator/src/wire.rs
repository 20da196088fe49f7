//! Which of the two wires a request came on, and how an answer goes back on it.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Response};

use crate::body::{Body, full};
use crate::call::{Call, Endpoint, Reply};
use crate::status::{Code, Status};
use crate::{grpc, rest};

/// REST or gRPC.
#[derive(Clone, Copy)]
pub(crate) enum Wire {
    Rest,
    Grpc,
}

/// An answer that is ready to be sent.
pub(crate) struct Outgoing {
    pub(crate) response: Response<Bytes>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Wire {
    pub(crate) fn of(head: &Parts) -> Self {
        if grpc::is_grpc(&head.headers) { Self::Grpc } else { Self::Rest }
    }

    pub(crate) fn route(self, head: &Parts) -> Result<Endpoint, Status> {
        match self {
            Self::Rest => rest::route(&head.method, head.uri.path()),
            Self::Grpc => grpc::route(&head.method, head.uri.path(), &head.headers),
        }
    }

    pub(crate) fn read(self, endpoint: Endpoint, head: &Parts, body: &[u8]) -> Result<Call, Status> {
        match self {
            Self::Rest => rest::read(endpoint, head.uri.query(), body),
            Self::Grpc => grpc::read(endpoint, body),
        }
    }

    pub(crate) fn write(self, outcome: Result<Reply, Status>) -> Outgoing {
        match self {
            Self::Rest => rest::write(outcome).into(),
            Self::Grpc => grpc::write(outcome).into(),
        }
    }

    /// The answer to a request whose body is too large.
    pub(crate) fn too_large(self) -> Outgoing {
        let status = Status::gateway(Code::ResourceExhausted, "request body too large");
        match self {
            Self::Rest => rest::refusal(413, &status).into(),
            Self::Grpc => grpc::write(Err(status)).into(),
        }
    }

    /// The answer that goes with an HTTP status, for a fault.
    pub(crate) fn write_status(self, endpoint: Endpoint, http: u16) -> Outgoing {
        match self {
            Self::Rest => rest::write_status(endpoint, http).into(),
            Self::Grpc => grpc::write_status(http).into(),
        }
    }
}

impl Outgoing {
    pub(crate) fn send(self) -> Response<Body> {
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

impl From<Response<Bytes>> for Outgoing {
    fn from(response: Response<Bytes>) -> Self {
        Self { response, trailers: None }
    }
}

impl From<(Response<Bytes>, Option<HeaderMap>)> for Outgoing {
    fn from((response, trailers): (Response<Bytes>, Option<HeaderMap>)) -> Self {
        Self { response, trailers }
    }
}
