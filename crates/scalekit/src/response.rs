//! A whole HTTP response in memory, and how one is read from the network within a limit.

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
    /// What came after the content; gRPC has its status there. Empty: there are no trailers.
    pub trailers: HeaderMap,
}

impl HttpResponse {
    /// Reads a response to its end. There is no time limit here.
    ///
    /// # Errors
    /// `BrokenContract` as soon as the content exceeds `max_bytes`, and `ConnectionLost` when it is cut off.
    pub async fn read<B>(response: Response<B>, max_bytes: usize) -> Result<Self, Error>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        const TOO_LARGE: Error = Error::BrokenContract("the response is larger than any that it allows");
        let (head, body) = response.into_parts();
        // SECURITY: whoever answers must not fill the memory.
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

    /// A response with a content of this type, to be sent by a server.
    pub(crate) fn with_content(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]),
            body: body.into(),
            trailers: HeaderMap::new(),
        }
    }

    /// What the status alone says, whatever was asked.
    pub(crate) fn status_error(&self, needed: Permission) -> Error {
        match self.status.as_u16() {
            401 => Error::Credentials,
            403 => Error::Permission(needed),
            429 => Error::Throttled(self.retry_after()),
            // 499 is gRPC's CANCELLED, which only the server's side can have caused.
            status @ (499 | 500..) => Error::Unavailable(status),
            status => Error::WrongEndpoint(format!("HTTP {status}")),
        }
    }

    /// Whether the content says that it is JSON.
    pub(crate) fn is_json(&self) -> bool {
        let value = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
    }

    /// `Retry-After` in seconds (RFC 9110 section 10.2.3), at most a day. A date is not understood: it depends on two
    /// clocks.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        value.parse().ok().map(|seconds: u64| Duration::from_secs(seconds.min(86_400)))
    }
}

/// An error and its causes on one line. Causes that the text before already has are left out.
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
