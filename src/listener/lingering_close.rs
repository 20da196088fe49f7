//! The end of a connection whose client still sends. What arrives is discarded for a while: closing a socket with unread bytes
//! resets it, and the reset overtakes the response on its way (RFC 9112 section 9.6).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

/// For the response to arrive, and the client to close.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes discarded at most; then nothing more is read, and the client waits.
const MAX_DISCARDED: usize = 16 * 1024 * 1024;
/// Bytes discarded by one read.
const BUFFER: usize = 16 * 1024;

pub(super) struct LingeringClose {
    left: usize,
    /// Set only where there is something to wait for.
    timeout: Option<Pin<Box<Sleep>>>,
}

impl LingeringClose {
    /// Begins when nothing more is sent.
    pub(super) fn begin() -> Self {
        Self { left: MAX_DISCARDED, timeout: None }
    }

    /// Ready when the connection may be closed. That is at once where nothing is unread, unless the client is known to be
    /// sending.
    pub(super) fn poll(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        client_is_sending: bool,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut bytes = [0; BUFFER];
        while self.left > 0 {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending if !client_is_sending && self.timeout.is_none() => return Poll::Ready(()),
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.left = self.left.saturating_sub(buffer.filled().len());
                    if self.poll_timeout(cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
                // The client has closed.
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        self.poll_timeout(cx)
    }

    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.timeout.get_or_insert_with(|| Box::pin(sleep(TIMEOUT))).as_mut().poll(cx)
    }
}
