//! A WebSocket through Keyward: bytes both ways, after the upstream's 101 and the caller's. When Keyward ends it, the caller
//! is told why, if the upstream's last frame is whole.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::websocket::{CloseCode, Frames};

/// For the caller to take the Close and to close as well.
const GOODBYE: Duration = Duration::from_secs(1);
/// For what still comes from one side after the other has ended: so much silence ends the tunnel.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Carries bytes until both sides have ended, one breaks, one ignores the other's end, or `cut` completes, whose outcome it
/// gives then.
pub async fn run<T>(
    caller: OnUpgrade,
    upstream: OnUpgrade,
    cut: impl Future<Output = (CloseCode, T)>,
) -> Option<T> {
    let mut cut = std::pin::pin!(cut);
    let both = async { tokio::join!(caller, upstream) };
    let (caller, upstream) = tokio::select! {
        both = both => match both {
            (Ok(caller), Ok(upstream)) => (caller, upstream),
            _ => return None,
        },
        (_, outcome) = &mut cut => return Some(outcome),
    };
    let traffic = Arc::<Traffic>::default();
    let mut caller =
        Caller { io: TokioIo::new(caller), frames: Frames::default(), traffic: Arc::clone(&traffic) };
    let mut upstream = TokioIo::new(upstream);
    let (code, outcome) = tokio::select! {
        // Either end may break at any time; that is how tunnels end.
        _ = copy_bidirectional(&mut caller, &mut upstream) => return None,
        () = traffic.over() => return None,
        cut = cut => cut,
    };
    drop(upstream);
    // A caller who does not listen is closed all the same.
    let _ = timeout(GOODBYE, caller.close(code)).await;
    Some(outcome)
}

/// What passed, as seen at the caller's end.
#[derive(Default)]
struct Traffic {
    ended: Notify,
    reads_and_writes: AtomicU64,
}

impl Traffic {
    /// Completes when one side has ended and the other says nothing more, and does not end.
    async fn over(&self) {
        self.ended.notified().await;
        let mut before = None;
        loop {
            let now = self.reads_and_writes.load(Ordering::Relaxed);
            if before == Some(now) {
                return;
            }
            before = Some(now);
            sleep(LAST_WORDS).await;
        }
    }

    fn moved(&self) {
        self.reads_and_writes.fetch_add(1, Ordering::Relaxed);
    }
}

/// The caller's end, which knows where the frames that went to it stand.
struct Caller {
    io: TokioIo<Upgraded>,
    frames: Frames,
    traffic: Arc<Traffic>,
}

impl Caller {
    async fn close(&mut self, code: CloseCode) -> io::Result<()> {
        if self.frames.may_close() {
            self.io.write_all(&code.frame()).await?;
        }
        self.io.shutdown().await?;
        // Until the caller has closed too: what it still sends would otherwise reset the connection under the Close.
        let mut unread = [0; 4096];
        while self.io.read(&mut unread).await? > 0 {}
        Ok(())
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if polled.is_ready() {
            self.traffic.moved();
            if buffer.filled().len() == before {
                self.traffic.ended.notify_one();
            }
        }
        polled
    }
}

impl AsyncWrite for Caller {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.frames.pass(&bytes[..written]);
            self.traffic.moved();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.traffic.ended.notify_one();
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
