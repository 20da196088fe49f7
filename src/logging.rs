//! The log: its format and where it goes, and limits on lines that repeat.

pub mod outage_tracker;
pub mod json_line;
pub mod line_limit;
pub mod output;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use self::output::{AUDIT, EventWriter, OutputQueue};
use crate::metrics::Metrics;

/// `[log]` of the route file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `log.format`.
    pub format: Format,
    /// Whether requests are logged, in addition to events.
    pub access: bool,
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One object a line.
    Json,
    /// Sentences for a terminal, with the time of day.
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

/// How long the end of the process waits for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The running log. On drop it writes the lines that still wait.
pub struct Log(Arc<OutputQueue>);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush(FLUSH_TIMEOUT);
    }
}

/// Sends the log to standard output. No request waits for its reader, but for those of key management; see
/// `output::AuditSlot`.
pub fn start(settings: Settings, metrics: &Metrics) -> Log {
    let has_colors =
        !settings.is_json() && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // What colors the lines stays; the formatter has escaped what came from elsewhere.
    let queue = OutputQueue::start(if has_colors { &['\u{1b}'] } else { &[] });
    let counted = Arc::clone(&queue);
    metrics.count_dropped_lines(move || counted.dropped_lines());
    let writer = EventWriter(Arc::clone(&queue));
    let log = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_writer(writer);
    // SECURITY: h2 warns of each PING that nobody asked for, so that clients could fill the log.
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
    Log(queue)
}

/// The time of day in UTC, which is enough for people who watch.
struct Clock;

impl tracing_subscriber::fmt::time::FormatTime for Clock {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", jiff::Timestamp::now().strftime("%H:%M:%S%.3f"))
    }
}
