//! Writes the log to standard output from two queues. The one of requests and events drops lines while standard output is read
//! slowly; the one of audit lines never does. Audit lines are written first and in order.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Metadata;
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::fmt::MakeWriter;

use crate::terminal;

/// The target of audit lines.
pub const AUDIT: &str = "audit";

/// Audit lines that are queued, or reserved by requests in progress; beyond that, requests wait.
const SLOTS: usize = 512;
/// Between two attempts while standard output cannot be written to.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Audit lines that wait to be written. A process has one queue, as it has one log.
pub(super) struct AuditQueue {
    lines: Mutex<VecDeque<Vec<u8>>>,
    changed: Condvar,
    slots: Semaphore,
    kept: &'static [char],
}

static QUEUE: OnceLock<Arc<AuditQueue>> = OnceLock::new();

/// A place in the queue for one audit line.
pub struct AuditSlot(Option<SemaphorePermit<'static>>);

impl AuditSlot {
    /// Waits for a place, at most for `within`. `None` if none is free by then, because standard output is not read.
    pub async fn reserve(within: Duration) -> Option<Self> {
        // No log was started, as in tests.
        let Some(queue) = QUEUE.get() else { return Some(Self(None)) };
        let permit = tokio::time::timeout(within, queue.slots.acquire()).await.ok()?.ok()?;
        Some(Self(Some(permit)))
    }

    /// Gives the place to a line that was emitted with the target `AUDIT`, which frees it when it is written.
    pub fn spend(self) {
        if let Some(permit) = self.0 {
            permit.forget();
        }
    }
}

impl AuditQueue {
    /// The queue of this process. Its lines are written by a thread. Characters in `kept` are not escaped.
    pub(super) fn start(kept: &'static [char]) -> Arc<Self> {
        let queue = QUEUE.get_or_init(|| {
            let queue = Arc::new(Self {
                lines: Mutex::default(),
                changed: Condvar::new(),
                slots: Semaphore::new(SLOTS),
                kept,
            });
            let own = Arc::clone(&queue);
            std::thread::spawn(move || own.write_forever());
            queue
        });
        Arc::clone(queue)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        self.lock().push_back(line.to_vec());
        self.changed.notify_all();
    }

    fn write_forever(&self) {
        loop {
            let lines = self.lock();
            drop(self.changed.wait_while(lines, |lines| lines.is_empty()));
            if self.write_waiting(&mut io::stdout().lock()).is_err() {
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }

    /// Writes all lines. The caller holds the lock of standard output, so that lines keep their order.
    fn write_waiting(&self, out: &mut impl Write) -> io::Result<()> {
        loop {
            let Some(line) = self.lock().front().cloned() else { return Ok(()) };
            out.write_all(&escape_line(&line, self.kept))?;
            out.flush()?;
            self.lock().pop_front();
            self.slots.add_permits(1);
            self.changed.notify_all();
        }
    }

    /// Waits until all lines are written, at most for `within`. Gives whether they are.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let waiting = self.changed.wait_timeout_while(self.lock(), within, |lines| !lines.is_empty());
        waiting.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }
}

/// Where the other queue writes to: waiting audit lines are written before each of its lines.
pub(super) struct Output(pub(super) Arc<AuditQueue>);

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut out = io::stdout().lock();
        // Audit lines that cannot be written stay in their queue.
        let _ = self.0.write_waiting(&mut out);
        out.write_all(&escape_line(line, self.0.kept)).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// SECURITY: a client's User-Agent, path or claim, or a message of Scalekit's, must neither control the terminal that shows the log
/// nor forge a line.
fn escape_line<'l>(line: &'l [u8], kept: &[char]) -> Cow<'l, [u8]> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    // The first bytes in UTF-8 of all characters that are escaped; most lines have none.
    let may_need_escape = |byte: &u8| matches!(byte, 0..0x20 | 0x7f | 0xc2 | 0xd8 | 0xe2);
    if text.len() < line.len() && !text.iter().any(may_need_escape) {
        return Cow::Borrowed(line);
    }
    let mut out = terminal::escape(&String::from_utf8_lossy(text), kept).into_owned().into_bytes();
    out.push(b'\n');
    Cow::Owned(out)
}

/// Selects the queue of an event.
pub(super) struct LogWriters {
    pub(super) lossy: NonBlocking,
    pub(super) audit: Arc<AuditQueue>,
}

pub(super) enum LineWriter<'w> {
    Lossy(NonBlocking),
    Audit(&'w AuditQueue),
}

impl<'w> MakeWriter<'w> for LogWriters {
    type Writer = LineWriter<'w>;

    fn make_writer(&'w self) -> Self::Writer {
        LineWriter::Lossy(self.lossy.clone())
    }

    fn make_writer_for(&'w self, metadata: &Metadata<'_>) -> Self::Writer {
        if metadata.target() == AUDIT { LineWriter::Audit(&self.audit) } else { self.make_writer() }
    }
}

impl Write for LineWriter<'_> {
    /// Takes a whole line: the formatter writes each event in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Lossy(lossy) => lossy.write(line),
            Self::Audit(queue) => {
                queue.push(line);
                Ok(line.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_line_escapes_newlines_and_terminal_controls() {
        for (line, expected) in [
            ("{\"a\":\"plain é\"}\n", "{\"a\":\"plain é\"}\n"),
            ("{\"a\":\"\u{9b}2J\u{85}\u{202e}\u{2028}\"}\n", "{\"a\":\"\\u009b2J\\u0085\\u202e\\u2028\"}\n"),
            ("a\nforged\r\n", "a\\u000aforged\\u000d\n"),
            ("no end", "no end\n"),
            ("£ ‐ stay\n", "£ ‐ stay\n"),
        ] {
            assert_eq!(escape_line(line.as_bytes(), &[]), expected.as_bytes());
        }
        assert_eq!(*escape_line(b"\x1b[1m\xff\x07\n", &['\u{1b}']), *"\u{1b}[1m\u{fffd}\\u0007\n".as_bytes());
    }
}
