//! The log: its format and where it goes, and limits on lines that repeat.

pub mod failure_log;
pub mod line_limit;
pub mod output;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use self::output::{AUDIT, AuditQueue, LogWriters, Output};
use crate::metrics::Metrics;

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// JSON lines or text.
    pub format: Format,
    /// Whether requests are logged, or only events.
    pub access: bool,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// JSON, one object a line.
    Json,
    /// For people.
    Text,
}

impl Settings {
    /// Whether each line is a JSON object.
    pub fn is_json(self) -> bool {
        match self.format {
            Format::Auto => !std::io::stdout().is_terminal(),
            Format::Json => true,
            Format::Text => false,
        }
    }
}

/// Lines that wait for a slow reader of standard output; more are dropped and counted.
const LINES_WAITING: usize = 16 * 1024;
/// How long the end of the process waits for audit lines to be written.
const AUDIT_AT_EXIT: Duration = Duration::from_secs(5);

/// The running log. On drop it writes the lines that still wait.
pub struct Log {
    audit: Arc<AuditQueue>,
    lossy: Option<WorkerGuard>,
}

impl Drop for Log {
    fn drop(&mut self) {
        if !self.audit.flush(AUDIT_AT_EXIT)
            && let Some(stuck) = self.lossy.take()
        {
            // Standard output is blocked, and the guard's drop would wait for it.
            std::mem::forget(stuck);
        }
    }
}

/// Sends the log to standard output. No request waits for who reads it, but for those of key management; see
/// `output::AuditSlot`.
pub fn start(settings: Settings, metrics: Arc<Metrics>) -> Log {
    let has_colors =
        !settings.is_json() && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // What colors the lines stays; the formatter has escaped what came from elsewhere.
    let audit = AuditQueue::start(if has_colors { &['\u{1b}'] } else { &[] });
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_WAITING);
    let (lossy, guard) = builder.finish(Output(Arc::clone(&audit)));
    let dropped = lossy.error_counter();
    metrics.count_dropped_lines(move || dropped.dropped_lines() as u64);
    let writers = LogWriters { lossy, audit: Arc::clone(&audit) };
    let log = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(writers);
    // SECURITY: h2 warns of each PING that nobody asked for, so that callers could fill the log.
    let own = ["keyward", "access", AUDIT].map(|target| (target, LevelFilter::INFO));
    let own = Targets::new().with_default(LevelFilter::ERROR).with_targets(own);
    // A second start in one process, as in tests, keeps the first.
    if settings.is_json() {
        let log = log.json().flatten_event(true).with_current_span(false).with_span_list(false);
        let _ = tracing::subscriber::set_global_default(log.finish().with(own));
    } else {
        let log = log.compact().with_target(false).with_timer(Clock).with_ansi(has_colors);
        let _ = tracing::subscriber::set_global_default(log.finish().with(own));
    }
    Log { audit, lossy: Some(guard) }
}

/// The time of day in UTC, which is enough for people who watch.
struct Clock;

impl tracing_subscriber::fmt::time::FormatTime for Clock {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", jiff::Timestamp::now().strftime("%H:%M:%S%.3f"))
    }
}
