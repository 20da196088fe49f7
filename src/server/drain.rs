//! The drain: not ready at once, accepting for `drain_delay`, then `drain_timeout` for what is open.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Readiness;
use crate::admin::drain::Drain;
use crate::config::Config;
use crate::listener::Phases;
use crate::metrics::Metrics;

/// Timing of a drain.
#[derive(Clone, Copy)]
pub(super) struct Times {
    delay: Duration,
    timeout: Duration,
}

impl Times {
    pub(super) fn from_config(config: &Config) -> Self {
        Self { delay: config.drain_delay, timeout: config.drain_timeout }
    }
}

/// What a drain waits for, and where it is shown.
pub(super) struct Draining {
    pub(super) phases: Phases,
    pub(super) connections: TaskTracker,
    pub(super) tunnels: TaskTracker,
    /// Operations of key management, which are completed even if their client has closed.
    pub(super) changes: TaskTracker,
    pub(super) readiness: Arc<Readiness>,
    pub(super) shown: Arc<Drain>,
    pub(super) metrics: Arc<Metrics>,
}

impl Draining {
    /// Drains until everything has ended or was closed. `kill` ends the drain at once. `cause` is for the log.
    pub(super) async fn run(&self, times: Times, cause: &'static str, kill: &CancellationToken) {
        let Self { phases, connections, tunnels, changes, .. } = self;
        let began = Instant::now();
        // Connections first: a client that sees Keyward not ready gets `Connection: close` from then on.
        phases.draining.cancel();
        self.readiness.drain();
        self.metrics.drain_begin.set(unix_seconds());
        tracing::info!(keyward.drain.cause = cause, delay = ?times.delay, timeout = ?times.timeout, "draining");
        self.shown.begin(times.delay.saturating_add(times.timeout));
        let all_ended = async {
            sleep(times.delay).await;
            phases.stopping.cancel();
            connections.close();
            tunnels.close();
            let ended = async {
                connections.wait().await;
                tunnels.wait().await;
                changes.close();
                changes.wait().await;
            };
            timeout(times.timeout, ended).await.is_ok()
        };
        let is_complete = tokio::select! {
            is_complete = all_ended => is_complete,
            () = kill.cancelled() => false,
        };
        phases.stopping.cancel();
        phases.closing.cancel();
        if !is_complete {
            tracing::warn!(
                connections = connections.len(),
                tunnels = tunnels.len(),
                "the drain timed out; closing what is still open"
            );
            connections.close();
            connections.wait().await;
            tunnels.close();
            tunnels.wait().await;
        }
        self.metrics.drain_end.set(unix_seconds());
        tracing::info!(complete = is_complete, duration = ?began.elapsed(), "drained");
        self.shown.end();
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
