//! A whole HTTP response in memory, read within a limit.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;

use crate::call::Permission;
use crate::error::Error;

/// A whole response.
#[derive(Clone, Debug, Default)]
pub struct HttpResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The content.
    pub body: Bytes,
    /// The trailers, in which gRPC sends its status.
    pub trailers: HeaderMap,
}

impl HttpResponse {
    /// Reads a whole response, without a time limit.
    ///
    /// # Errors
    /// `BrokenContract` if the content exceeds `max_bytes`, `ConnectionLost` if it is cut off.
    pub async fn read<B>(response: Response<B>, max_bytes: usize) -> Result<Self, Error>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        const TOO_LARGE: Error = Error::BrokenContract("the response is too large");
        let (head, body) = response.into_parts();
        // SECURITY: a server must not be able to exhaust the memory.
        if body.size_hint().lower() > max_bytes as u64 {
            return Err(TOO_LARGE);
        }
        let mut body = std::pin::pin!(body);
        let (mut content, mut trailers) = (BytesMut::new(), HeaderMap::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Error::ConnectionLost(format!("the response broke off: {}", format_chain(&*error.into())))
            })?;
            match frame.into_data() {
                Ok(data) if content.len() + data.len() > max_bytes => return Err(TOO_LARGE),
                Ok(data) => content.extend_from_slice(&data),
                Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
        Ok(Self { status: head.status, headers: head.headers, body: content.freeze(), trailers })
    }

    /// A response for a server to send.
    pub fn with_content(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]),
            body: body.into(),
            trailers: HeaderMap::new(),
        }
    }

    /// The error for a status, independent of the call.
    pub(crate) fn status_error(&self, needed: Permission) -> Error {
        match self.status.as_u16() {
            401 => Error::Credentials,
            403 => Error::Permission(needed),
            429 => Error::Throttled(self.retry_after()),
            // 499 is gRPC's CANCELLED, which only the server can have caused, as this client does not cancel.
            status @ (499 | 500..) => Error::Unavailable(status),
            status => Error::WrongEndpoint(format!("HTTP {status}")),
        }
    }

    /// Whether the content type is JSON.
    pub(crate) fn is_json(&self) -> bool {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
    }

    /// `Retry-After` in seconds (RFC 9110 section 10.2.3), at most a day. Dates are ignored, as they depend on two clocks.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        value.parse().ok().map(|seconds: u64| Duration::from_secs(seconds.min(86_400)))
    }
}

/// An error and its causes on one line, without causes that are already part of the text.
pub(crate) fn format_chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}
