//! Unary calls over gRPC: a frame out, a frame and a status in. What a status means is said where REST's answers are read, by
//! the same table (contract section 5).

use bytes::{BufMut, Bytes};
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use prost::Message;
use tokio::time::Instant;

use super::{Answer, Content, Fault, Scalekit};
use crate::secret::wiped;

const SERVICE: &str = "/scalekit.v1.tokens.ApiTokenService/";

/// Compression flag and length.
const FRAME_HEAD: usize = 5;

pub(super) const UNAUTHENTICATED: i64 = 16;

/// What a call gave that is no message: gRPC's code, and the words that go with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) code: i64,
    pub(super) message: String,
}

impl Scalekit {
    /// One call as Keyward's own client.
    pub(super) async fn unary<M: Message + Default>(
        &self,
        name: &str,
        message: &impl Message,
        deadline: Instant,
    ) -> Result<Result<M, Status>, Fault> {
        let (path, content) = (format!("{SERVICE}{name}"), Content::Grpc(frame(message)));
        let answer = self.call_as_client(Method::POST, &path, content, deadline).await?;
        answer.message()
    }
}

impl Answer {
    /// The status of a gRPC answer, in its trailers or, where there is nothing else, in its headers.
    pub(super) fn grpc_status(&self) -> Option<i64> {
        let status = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"))?;
        status.to_str().ok()?.parse().ok()
    }

    fn message<M: Message + Default>(&self) -> Result<Result<M, Status>, Fault> {
        let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
        if self.status != hyper::StatusCode::OK {
            return Err(self.fault());
        }
        if !self.headers.get(CONTENT_TYPE).is_some_and(is_grpc) {
            return Err(Fault::WrongEndpoint("its answer is not gRPC".into()));
        }
        match self.grpc_status() {
            None => Err(Fault::BrokeOff("its answer has no grpc-status".into())),
            Some(0) => {
                let message = unframed(&self.body).and_then(|message| M::decode(message).ok());
                message.map(Ok).ok_or(Fault::Broken("an answer that is not the message expected"))
            }
            Some(code) => {
                let said = self.trailers.get("grpc-message").or_else(|| self.headers.get("grpc-message"));
                let said = said.map(HeaderValue::as_bytes).unwrap_or_default();
                let message = percent_encoding::percent_decode(said).decode_utf8_lossy().into_owned();
                Ok(Err(Status { code, message }))
            }
        }
    }
}

impl Status {
    /// What it means whatever was asked, as `Answer::fault` says of an HTTP status.
    pub(super) fn fault(&self) -> Fault {
        match self.code {
            UNAUTHENTICATED => Fault::Credentials,
            7 => Fault::Permission,
            8 => Fault::Throttled(None),
            4 => Fault::Down(504),
            14 => Fault::Down(503),
            1 | 2 | 13 | 15 => Fault::Down(500),
            code => Fault::WrongEndpoint(format!("gRPC code {code}")),
        }
    }
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(FRAME_HEAD + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A `Vec` grows as it has to.
    let _ = message.encode(&mut frame);
    wiped(frame)
}

/// The one message, which is not compressed, as nobody asked for that.
fn unframed(body: &[u8]) -> Option<&[u8]> {
    let (head, message) = body.split_at_checked(FRAME_HEAD)?;
    let length = head[1..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    (head[0] == 0 && length == message.len()).then_some(message)
}
