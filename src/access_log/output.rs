//! Standard output, where the log goes, by two ways: requests and events by a queue that drops lines when its reader is slow, audit
//! lines by one that does not. Audit lines are written first and in order.

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

/// Audit lines that are written later or will come of requests under way; the next request waits.
const SLOTS: usize = 512;
/// Between two tries to write where standard output takes nothing.
const RETRY: Duration = Duration::from_secs(1);

/// Audit lines that wait to be written. There is one in a process, as there is one log.
pub(super) struct AuditQueue {
    lines: Mutex<VecDeque<Vec<u8>>>,
    changed: Condvar,
    slots: Semaphore,
    kept: &'static [char],
}

static QUEUE: OnceLock<Arc<AuditQueue>> = OnceLock::new();

/// Room for one audit line.
pub struct AuditSlot(Option<SemaphorePermit<'static>>);

impl AuditSlot {
    /// Room for one line, waited for at most this long. `None` when there is still none, because standard output is not read.
    pub async fn reserve(within: Duration) -> Option<Self> {
        // Without a log there is nothing to wait for.
        let Some(queue) = QUEUE.get() else { return Some(Self(None)) };
        let permit = tokio::time::timeout(within, queue.slots.acquire()).await.ok()?.ok()?;
        Some(Self(Some(permit)))
    }

    /// A line was emitted with the target `AUDIT`: it has this room until it is written.
    pub fn spend(self) {
        if let Some(permit) = self.0 {
            permit.forget();
        }
    }
}

impl AuditQueue {
    /// The queue of this process, and a thread that writes what is in it. `kept` are characters that are not escaped.
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
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Writes every line that waits. Whoever calls it holds standard output, so that lines keep their order.
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

    /// Waits until every line is written, at most this long. Whether that was so.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let waiting = self.changed.wait_timeout_while(self.lock(), within, |lines| !lines.is_empty());
        waiting.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }
}

/// What the thread of other lines writes to: audit lines come before them, however many those are.
pub(super) struct Output(pub(super) Arc<AuditQueue>);

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut out = io::stdout().lock();
        // What cannot be written stays in the queue.
        let _ = self.0.write_waiting(&mut out);
        out.write_all(&escape_line(line, self.0.kept)).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// SECURITY: a caller's User-Agent, path or claim, or a message of Scalekit's, must not act on the terminal that shows the log, nor
/// forge a line.
fn escape_line<'l>(line: &'l [u8], kept: &[char]) -> Cow<'l, [u8]> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    // The first bytes in UTF-8 of everything that is escaped; most lines have none.
    let may_be_obeyed = |byte: &u8| matches!(byte, 0..0x20 | 0x7f | 0xc2 | 0xd8 | 0xe2);
    if text.len() < line.len() && !text.iter().any(may_be_obeyed) {
        return Cow::Borrowed(line);
    }
    let mut out = terminal::escape_controls(&String::from_utf8_lossy(text), kept).into_owned().into_bytes();
    out.push(b'\n');
    Cow::Owned(out)
}

/// Sends each event by its way.
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
    /// A whole line, as the formatter writes each event at once.
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
