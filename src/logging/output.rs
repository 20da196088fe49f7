//! Standard output, where the log goes. No request writes to it: lines are appended to a buffer in memory, which one thread
//! writes. Lines of requests and events are dropped when standard output is not read; audit lines wait for room instead.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use crate::terminal;

/// The target of audit lines.
pub const AUDIT: &str = "audit";

/// Audit lines that are written later or will come of requests under way; the next request waits.
const AUDIT_SLOTS: usize = 512;
/// Lines that wait for a slow reader of standard output, in bytes; more are dropped and counted. As much again may be in the
/// hands of the thread that writes.
const MAX_WAITING: usize = 4 * 1024 * 1024;
/// How long lines are collected, so that one write(2) and one wake-up serve many of them: together they took 6 of 30 µs of a
/// request when each line had its own.
const COLLECT_FOR: Duration = Duration::from_millis(10);
/// How many bytes are collected at most, if they come sooner.
const COLLECT_BYTES: usize = 128 * 1024;
/// Bytes written before audit lines have their turn.
const WRITE_AT_ONCE: usize = 64 * 1024;
/// Between two attempts to write where standard output takes nothing.
const RETRY: Duration = Duration::from_secs(1);

/// What waits to be written. There is one in a process, as there is one log.
pub(super) struct OutputQueue {
    waiting: Mutex<Waiting>,
    /// Notified when there is something to write, and when all is written.
    changed: Condvar,
    audit_slots: Semaphore,
    /// Characters that are not escaped.
    kept: &'static [char],
}

#[derive(Default)]
struct Waiting {
    /// Whole lines of requests and events.
    lines: Vec<u8>,
    audit: VecDeque<Vec<u8>>,
    dropped: u64,
    /// Whether the thread sleeps until there is something to write.
    is_idle: bool,
    /// Whether the thread writes lines that it has taken.
    is_writing: bool,
    /// How much of the first audit line is written.
    audit_written: usize,
    /// Whether lines are written at once, since the process ends.
    is_ending: bool,
}

static QUEUE: OnceLock<Arc<OutputQueue>> = OnceLock::new();

/// Appends a line of a request, with its end, to the log of this process, if it has been started.
pub fn append_line(line: &[u8]) {
    if let Some(queue) = QUEUE.get() {
        queue.append(line);
    }
}

/// Room for one audit line.
pub struct AuditSlot(Option<SemaphorePermit<'static>>);

impl AuditSlot {
    /// Room for one line, waited for at most this long. `None` when there is still none, because standard output is not read.
    pub async fn reserve(within: Duration) -> Option<Self> {
        // Without a log there is nothing to wait for.
        let Some(queue) = QUEUE.get() else { return Some(Self(None)) };
        let permit = tokio::time::timeout(within, queue.audit_slots.acquire()).await.ok()?.ok()?;
        Some(Self(Some(permit)))
    }

    /// A line was emitted with the target `AUDIT`: it has this room until it is written.
    pub fn spend(self) {
        if let Some(permit) = self.0 {
            permit.forget();
        }
    }
}

impl OutputQueue {
    /// The queue of this process, and the thread that writes what is in it.
    pub(super) fn start(kept: &'static [char]) -> Arc<Self> {
        let queue = QUEUE.get_or_init(|| {
            let queue = Arc::new(Self {
                waiting: Mutex::default(),
                changed: Condvar::new(),
                audit_slots: Semaphore::new(AUDIT_SLOTS),
                kept,
            });
            let own = Arc::clone(&queue);
            std::thread::spawn(move || own.write_forever());
            queue
        });
        Arc::clone(queue)
    }

    /// Lines that were dropped, as standard output was not read.
    pub(super) fn dropped_lines(&self) -> u64 {
        self.lock().dropped
    }

    /// Waits until everything is written, at most this long.
    pub(super) fn flush(&self, within: Duration) {
        let mut waiting = self.lock();
        waiting.is_ending = true;
        self.changed.notify_all();
        // Where standard output is blocked, the lines are lost.
        drop(self.changed.wait_timeout_while(waiting, within, |waiting| {
            waiting.is_writing || !waiting.lines.is_empty() || !waiting.audit.is_empty()
        }));
    }

    fn append(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.lines.len() + line.len() > MAX_WAITING {
            waiting.dropped += 1;
            return;
        }
        let before = waiting.lines.len();
        waiting.lines.extend_from_slice(line);
        let is_due = waiting.is_idle || (before < COLLECT_BYTES && waiting.lines.len() >= COLLECT_BYTES);
        drop(waiting);
        if is_due {
            self.changed.notify_all();
        }
    }

    fn append_audit(&self, line: &[u8]) {
        self.lock().audit.push_back(line.to_vec());
        self.changed.notify_all();
    }

    /// Nothing panics while it is held, so a poisoned lock can be used.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_forever(&self) {
        let mut taken = Vec::new();
        loop {
            self.wait_for_lines();
            std::mem::swap(&mut self.lock().lines, &mut taken);
            let mut written = 0;
            while let Err(error) = self.write_all(&mut io::stdout().lock(), &taken, &mut written) {
                if error.kind() == io::ErrorKind::BrokenPipe && self.lock().is_ending {
                    // Nobody will read the rest, and the end of the process does not wait for it.
                    let mut waiting = self.lock();
                    waiting.audit.clear();
                    waiting.audit_written = 0;
                    break;
                }
                std::thread::sleep(RETRY);
            }
            taken.clear();
            // What an outburst took is given back.
            taken.shrink_to(2 * COLLECT_BYTES);
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    /// Waits for something to write, and then, unless it is an audit line, for more of it.
    fn wait_for_lines(&self) {
        let is_empty = |waiting: &mut Waiting| waiting.lines.is_empty() && waiting.audit.is_empty();
        let wait = |waiting, until: &dyn Fn(&mut Waiting) -> bool| {
            self.changed.wait_while(waiting, |waiting| until(waiting)).unwrap_or_else(PoisonError::into_inner)
        };
        let mut waiting = self.lock();
        waiting.is_idle = true;
        waiting = wait(waiting, &is_empty);
        (waiting.is_idle, waiting.is_writing) = (false, true);
        let is_early = |waiting: &mut Waiting| {
            waiting.audit.is_empty() && waiting.lines.len() < COLLECT_BYTES && !waiting.is_ending
        };
        drop(self.changed.wait_timeout_while(waiting, COLLECT_FOR, is_early));
    }

    /// Writes what waits, audit lines first. After an error the next call goes on where this one ended: a line is written to its
    /// end before another begins.
    fn write_all(&self, out: &mut impl Write, lines: &[u8], written: &mut usize) -> io::Result<()> {
        loop {
            if *written == 0 || lines[*written - 1] == b'\n' {
                self.write_audit(out)?;
            }
            let rest = &lines[*written..];
            let window = &rest[..rest.len().min(WRITE_AT_ONCE)];
            let is_end = |byte: &u8| *byte == b'\n';
            // A line that is longer than the window is written in parts.
            let end = window.iter().rposition(is_end).map_or(window.len(), |at| at + 1);
            if end == 0 {
                return out.flush();
            }
            *written += out.write(&rest[..end])?;
        }
    }

    fn write_audit(&self, out: &mut impl Write) -> io::Result<()> {
        loop {
            let waiting = self.lock();
            let Some(line) = waiting.audit.front().cloned() else { return Ok(()) };
            let mut written = waiting.audit_written;
            drop(waiting);
            let line = escape_line(&line, self.kept);
            while written < line.len() {
                written += out.write(&line[written..])?;
                self.lock().audit_written = written;
            }
            out.flush()?;
            let mut waiting = self.lock();
            waiting.audit.pop_front();
            waiting.audit_written = 0;
            drop(waiting);
            self.audit_slots.add_permits(1);
            self.changed.notify_all();
        }
    }
}

/// SECURITY: a client's User-Agent, path or claim, or a message of Scalekit's, must not act on the terminal that shows the log, nor
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

/// Appends each event to the queue.
pub(super) struct EventWriter(pub(super) Arc<OutputQueue>);

/// One event.
pub(super) struct Event<'q> {
    queue: &'q OutputQueue,
    is_audit: bool,
}

impl<'q> MakeWriter<'q> for EventWriter {
    type Writer = Event<'q>;

    fn make_writer(&'q self) -> Event<'q> {
        Event { queue: &self.0, is_audit: false }
    }

    fn make_writer_for(&'q self, metadata: &Metadata<'_>) -> Event<'q> {
        Event { queue: &self.0, is_audit: metadata.target() == AUDIT }
    }
}

impl Write for Event<'_> {
    /// Takes a whole line, as the formatter writes each event at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.is_audit {
            self.queue.append_audit(line);
        } else {
            self.queue.append(&escape_line(line, self.queue.kept));
        }
        Ok(line.len())
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

    /// Takes a few bytes at a time and fails in between.
    struct Reluctant(Vec<u8>, usize);

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(7);
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn queue() -> OutputQueue {
        OutputQueue {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            audit_slots: Semaphore::new(0),
            kept: &[],
        }
    }

    #[test]
    fn lines_stay_whole_when_output_fails_in_between() {
        let (queue, mut out) = (queue(), Reluctant(Vec::new(), 0));
        let long = "y".repeat(2 * WRITE_AT_ONCE);
        let lines = format!("first line\n{long}\nlast line\n");
        let mut written = 0;
        while queue.write_all(&mut out, lines.as_bytes(), &mut written).is_err() {
            // An audit line that comes now waits for the end of the line that is being written.
            if queue.audit_slots.available_permits() == 0 && queue.lock().audit.is_empty() && written > 100 {
                queue.append_audit(b"a long line, written in parts, of audit\n");
            }
        }
        let text = String::from_utf8(out.0).unwrap();
        let (audit, others): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.contains("audit"));
        assert_eq!(audit, ["a long line, written in parts, of audit"]);
        assert_eq!(others, ["first line", &long, "last line"]);
        assert_eq!(queue.audit_slots.available_permits(), 1);
    }

    #[test]
    fn lines_beyond_the_limit_are_dropped_and_counted() {
        let queue = queue();
        let line = [&b"x".repeat(1023)[..], b"\n"].concat();
        for _ in 0..MAX_WAITING / line.len() + 3 {
            queue.append(&line);
        }
        assert_eq!(queue.lock().lines.len(), MAX_WAITING);
        assert_eq!(queue.dropped_lines(), 3);
    }
}
