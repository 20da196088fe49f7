//! The drain as the admin port begins and shows it. It is the same drain as that of SIGTERM, but Keyward stays until SIGTERM comes.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How far the drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has not begun.
    Serving,
    /// It is under way, and ends at this time at the latest.
    Draining {
        /// When what is still open is closed.
        deadline: Instant,
    },
    /// It has ended.
    Drained,
}

/// Between the admin port, which may request the drain, and the process, which carries it out.
#[derive(Debug)]
pub struct Drain {
    requested: CancellationToken,
    progress: watch::Sender<Progress>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { requested: CancellationToken::new(), progress: watch::Sender::new(Progress::Serving) }
    }
}

impl Drain {
    /// Requests the drain and waits until it has begun, for whatever reason. Gives its progress.
    pub async fn request(&self) -> Progress {
        self.requested.cancel();
        let mut changes = self.progress.subscribe();
        // The sender lives as long as `self`, so that this is never an error.
        match changes.wait_for(|progress| *progress != Progress::Serving).await {
            Ok(progress) => *progress,
            Err(_) => Progress::Drained,
        }
    }

    /// Waits until the drain is requested.
    pub async fn requested(&self) {
        self.requested.cancelled().await;
    }

    /// Records that the drain has begun, and takes this long at most.
    pub fn begin(&self, longest: Duration) {
        let now = Instant::now();
        let deadline = now.checked_add(longest).unwrap_or(now);
        self.progress.send_replace(Progress::Draining { deadline });
    }

    /// Records that the drain has ended.
    pub fn end(&self) {
        self.progress.send_replace(Progress::Drained);
    }
}

impl Progress {
    /// The state as `/drain` shows it, with the seconds until the drain ends at the latest.
    pub fn to_json(self) -> serde_json::Value {
        match self {
            Self::Serving => serde_json::json!({ "state": "serving" }),
            Self::Draining { deadline } => {
                let rest = deadline.saturating_duration_since(Instant::now());
                serde_json::json!({ "state": "draining", "seconds_left": rest.as_secs_f64() })
            }
            Self::Drained => serde_json::json!({ "state": "drained" }),
        }
    }
}
