//! The end of a connection whose caller still sends: what comes is thrown away for a while, as a close with bytes unread is a
//! reset, which overtakes the answer on its way (RFC 9112 section 9.6).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

/// For the answer to arrive, and the caller to close.
const TIME: Duration = Duration::from_secs(2);
/// The most that is thrown away, in bytes; then the caller is left waiting.
const MOST: usize = 16 * 1024 * 1024;
/// At once.
const PIECE: usize = 16 * 1024;

pub(super) struct Lingering {
    left: usize,
    /// Set only where there is something to wait for.
    end: Option<Pin<Box<Sleep>>>,
}

impl Lingering {
    /// Nothing more is sent.
    pub(super) fn begin() -> Self {
        Self { left: MOST, end: None }
    }

    /// Ready when the connection may be closed. With nothing unread it may be at once, unless the caller is known to send.
    pub(super) fn poll(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        sends: bool,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut piece = [0; PIECE];
        while self.left > 0 {
            let mut buffer = ReadBuf::new(&mut piece);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending if !sends && self.end.is_none() => return Poll::Ready(()),
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.left = self.left.saturating_sub(buffer.filled().len());
                    if self.poll_end(cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
                // It has closed.
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        self.poll_end(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.end.get_or_insert_with(|| Box::pin(sleep(TIME))).as_mut().poll(cx)
    }
}
