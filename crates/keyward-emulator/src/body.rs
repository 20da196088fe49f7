//! The one body type of the crate: a boxed stream of frames. Nothing here ever collects a body that is forwarded.

use std::error::Error;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};

/// Why a body ended before its end.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;

/// A request's or a response's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body of no bytes.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of these bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
