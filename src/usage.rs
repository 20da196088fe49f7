//! How much each key and each organization uses: for a key, when it was last used, how often and from where; for an organization,
//! the requests of each day. Only identities that Scalekit has stated are counted, in bounded memory, and never a key itself.

mod file;
mod keys;
mod network;
mod organizations;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use self::file::Store;
use self::keys::{Entry, KeyTable};
use self::organizations::{Organizations, Row};
use crate::identity::Identity;
use crate::metrics::Metrics;

pub use self::file::FileError;
pub use self::keys::{ENTRY_BYTES, Start};
pub use self::network::Network;
pub use self::organizations::{Day, ROW_BYTES, parse_day};
pub use self::report::{Coverage, KeyLine, KeyUsage};

/// `[usage]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many keys are remembered. Beyond it, the one that was used least recently is forgotten.
    pub max_keys: u64,
    /// How many organizations are told apart on one day. The requests of others are counted together.
    pub max_organizations: usize,
    /// How many days are kept, today included.
    pub days: usize,
    /// How many organizations have metrics of their own; `None` for no such metrics.
    pub metrics_organizations: Option<usize>,
    /// Where the counts are kept over restarts.
    pub file: Option<PathBuf>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The status code of the response, 499 if there was none.
    pub status: u16,
    /// The decision in the access log: `allow`, `deny` or `error`.
    pub outcome: &'static str,
}

/// The counts of a process.
pub struct Usage {
    keys: KeyTable,
    organizations: Organizations,
    /// Which counts these are: they begin at 0 with another value.
    instance: String,
    started: u64,
    /// The first of the processes whose counts these are, which a file has handed on.
    counted_since: u64,
    store: Option<Store>,
    /// Whether anything was counted since the file was written.
    is_dirty: AtomicBool,
    metrics: Arc<Metrics>,
}

/// A request under way whose key is valid.
pub struct OpenRequest {
    usage: Arc<Usage>,
    /// `None` for a key without an id.
    entry: Option<Arc<Entry>>,
}

/// Between two writes of the file, so that a process that is killed loses no more than this and the time of one write.
pub const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two writes is at least this often the time of the last one, so that a large file does not take a whole core.
const SAVE_PAUSE: u32 = 20;

impl Usage {
    /// Begins to count, with the counts of the file if there is one.
    ///
    /// # Errors
    /// When the file cannot be read or written, is not one of usage, or is in use by another process.
    pub fn open(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, FileError> {
        let started = unix_millis();
        let mut store = settings.file.as_deref().map(Store::lock).transpose()?;
        let saved = store.as_mut().map(|store| store.read()).transpose()?.flatten();
        let (instance, counted_since, complete_since) = match &saved {
            Some(saved) => {
                let complete = if saved.is_complete { saved.complete_since } else { started };
                (saved.instance.clone(), saved.counted_since, complete)
            }
            None => (format!("{:016x}", fastrand::u64(..)), started, started),
        };
        let usage = Self {
            keys: KeyTable::new(settings.max_keys, complete_since, &metrics),
            organizations: Organizations::new(settings, Arc::clone(&metrics)),
            instance,
            started,
            counted_since,
            store,
            is_dirty: AtomicBool::new(false),
            metrics,
        };
        if let Some(saved) = saved {
            usage.keys.restore(saved.keys);
            usage.organizations.restore(saved.rows);
        }
        // Until the next complete one, the file says that something may be missing.
        usage.save(false)?;
        Ok(usage)
    }

    /// Counts a request as begun by this identity. The key is in use until the request has ended.
    pub fn begin(self: &Arc<Self>, identity: &Identity, start: &Start<'_>) -> OpenRequest {
        let token_id = identity.token_id.as_ref().and_then(|id| id.to_str().ok());
        let entry = token_id.map(|id| self.keys.begin(id, identity, start, unix_millis()));
        OpenRequest { usage: Arc::clone(self), entry }
    }

    /// What the counts cover.
    pub fn coverage(&self) -> Coverage {
        let now = unix_millis();
        Coverage {
            now: to_timestamp(now),
            instance: self.instance.clone(),
            started: to_timestamp(self.started),
            counted_since: to_timestamp(self.counted_since),
            complete_since: to_timestamp(self.keys.complete_since(now)),
        }
    }

    /// What is known of a key, if it was used.
    pub fn find_key(&self, token_id: &str) -> Option<KeyUsage> {
        self.keys.find(token_id).map(|entry| entry.to_usage())
    }

    /// All keys that were used, in no order, each when the iterator gets to it.
    pub fn list_keys(&self) -> impl Iterator<Item = KeyLine> + Send + use<> {
        self.keys.list().map(|(token_id, entry)| KeyLine { token_id, usage: entry.to_usage() })
    }

    /// A JSON object for each day and organization, by day and then by organization.
    pub fn list_rows(&self, from: Day, to: Day) -> impl Iterator<Item = serde_json::Value> + Send + use<> {
        let (instance, counted_since) = (self.instance.clone(), to_timestamp(self.counted_since));
        self.organizations.list(from, to).into_iter().map(move |row| {
            let mut json = row.to_json();
            json["instance"] = instance.as_str().into();
            json["counted_since"] = counted_since.to_string().into();
            json
        })
    }

    /// Updates the gauge that is computed only when metrics are read.
    pub fn update_gauge(&self) {
        self.metrics.usage_keys.set(self.keys.count());
    }

    /// Writes the file every few seconds, if there is one. Never returns.
    pub async fn save_periodically(self: Arc<Self>) {
        let mut pause = SAVE_INTERVAL;
        loop {
            tokio::time::sleep(pause).await;
            if self.store.is_none() || !self.is_dirty.load(Ordering::Relaxed) {
                continue;
            }
            let began = std::time::Instant::now();
            self.save_in_background(false).await;
            pause = SAVE_INTERVAL.max(began.elapsed() * SAVE_PAUSE);
        }
    }

    /// Writes the file for the last time, when no request is under way.
    pub async fn save_at_end(self: Arc<Self>) {
        if self.store.is_some() {
            self.save_in_background(true).await;
        }
    }

    async fn save_in_background(self: &Arc<Self>, is_complete: bool) {
        let usage = Arc::clone(self);
        let saved = tokio::task::spawn_blocking(move || usage.save(is_complete)).await;
        let outcome = match saved {
            Ok(Ok(())) => "ok",
            Ok(Err(error)) => {
                // The next attempt writes all that is counted until then.
                self.is_dirty.store(true, Ordering::Relaxed);
                tracing::error!("usage is not kept over a restart: {error}");
                "error"
            }
            // The task has panicked, which is reported elsewhere.
            Err(_) => "error",
        };
        self.metrics.usage_file_writes.get_or_create(&crate::metrics::Outcome { outcome }).inc();
    }

    fn save(&self, is_complete: bool) -> Result<(), FileError> {
        let Some(store) = &self.store else { return Ok(()) };
        self.is_dirty.store(false, Ordering::Relaxed);
        store.write(self, is_complete)
    }

    fn count(&self, organization: &str, row: Option<Arc<Row>>, now: u64, end: End) -> Arc<Row> {
        let today = organizations::day_of(now);
        let row = row.filter(|row| row.day == today);
        let row = row.unwrap_or_else(|| self.organizations.row(today, organization));
        row.count(end);
        if !self.is_dirty.load(Ordering::Relaxed) {
            self.is_dirty.store(true, Ordering::Relaxed);
        }
        row
    }
}

impl OpenRequest {
    /// Counts the end of the request, which this identity has begun.
    pub fn finish(self, identity: &Identity, end: End) {
        let (now, usage) = (unix_millis(), &self.usage);
        match &self.entry {
            Some(entry) => usage
                .keys
                .finish(entry, end, now, |organization, row| usage.count(organization, row, now, end)),
            None => {
                let organization = identity.org_id.to_str().unwrap_or_default();
                usage.count(organization, None, now, end);
            }
        }
    }
}

/// Classes of status codes, as usage and its metrics name them.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

fn class_index(status: u16) -> usize {
    usize::from(status / 100).clamp(1, CLASSES.len()) - 1
}

/// Since 1970, by the system's clock.
fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn to_timestamp(millis: u64) -> Timestamp {
    i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or_default()
}

fn to_millis(timestamp: Timestamp) -> u64 {
    u64::try_from(timestamp.as_millisecond()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
