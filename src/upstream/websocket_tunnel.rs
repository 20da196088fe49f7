//! WebSocket tunnels: bytes in both directions, once the upstream and the client have switched protocols. When Keyward closes
//! one, it sends the client a Close frame, unless that would land inside another frame.

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

/// For the client to read the Close frame and to close its side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// After one side has ended, the other may go on sending; the tunnel ends when nothing moves for so long.
const HALF_CLOSED_IDLE: Duration = Duration::from_secs(2);

/// Relays bytes until both sides have ended, one fails, or one is idle after the other has ended; then gives `None`. If `cut`
/// completes before, closes the client's side with its code and gives its outcome.
pub async fn relay<T>(
    client: OnUpgrade,
    upstream: OnUpgrade,
    cut: impl Future<Output = (CloseCode, T)>,
) -> Option<T> {
    let mut cut = std::pin::pin!(cut);
    let both = async { tokio::join!(client, upstream) };
    let (client, upstream) = tokio::select! {
        both = both => match both {
            (Ok(client), Ok(upstream)) => (client, upstream),
            _ => return None,
        },
        (_, outcome) = &mut cut => return Some(outcome),
    };
    let traffic = Arc::<Traffic>::default();
    let mut client =
        Client { io: TokioIo::new(client), frames: Frames::default(), traffic: Arc::clone(&traffic) };
    let mut upstream = TokioIo::new(upstream);
    let (code, outcome) = tokio::select! {
        // A broken connection is an ordinary end of a tunnel.
        _ = copy_bidirectional(&mut client, &mut upstream) => return None,
        () = traffic.wait_until_idle() => return None,
        cut = cut => cut,
    };
    drop(upstream);
    // A client that does not read is closed all the same.
    let _ = timeout(CLOSE_TIMEOUT, client.close(code)).await;
    Some(outcome)
}

/// Reads and writes on the client's side, and whether a side has ended.
#[derive(Default)]
struct Traffic {
    ended: Notify,
    reads_and_writes: AtomicU64,
}

impl Traffic {
    /// Completes when one side has ended and the other neither sends nor ends.
    async fn wait_until_idle(&self) {
        self.ended.notified().await;
        let mut before = None;
        loop {
            let now = self.reads_and_writes.load(Ordering::Relaxed);
            if before == Some(now) {
                return;
            }
            before = Some(now);
            sleep(HALF_CLOSED_IDLE).await;
        }
    }

    fn count_activity(&self) {
        self.reads_and_writes.fetch_add(1, Ordering::Relaxed);
    }
}

/// The client's side, which follows the frames that are sent to it.
struct Client {
    io: TokioIo<Upgraded>,
    frames: Frames,
    traffic: Arc<Traffic>,
}

impl Client {
    async fn close(&mut self, code: CloseCode) -> io::Result<()> {
        if self.frames.may_close() {
            self.io.write_all(&code.to_frame()).await?;
        }
        self.io.shutdown().await?;
        // Until the client has closed too: data that arrives at a closed socket resets the connection, and the client could
        // lose the Close frame.
        let mut unread = [0; 4096];
        while self.io.read(&mut unread).await? > 0 {}
        Ok(())
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if polled.is_ready() {
            self.traffic.count_activity();
            if buffer.filled().len() == before {
                self.traffic.ended.notify_one();
            }
        }
        polled
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.frames.follow(&bytes[..written]);
            self.traffic.count_activity();
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
