//! SIGTERM and SIGINT: the first drains, the second ends at once. SIGHUP reloads.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What the first and the second signal cancel. Must be called within a runtime.
pub(super) fn watch() -> Result<(CancellationToken, CancellationToken)> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
    let both = (stop.clone(), kill.clone());
    tokio::spawn(async move {
        for token in [stop, kill] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(both)
}

/// What SIGHUP notifies. Must be called within a runtime.
pub(super) fn hangup() -> Result<Arc<Notify>> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot wait for signals")?;
    let notify = Arc::new(Notify::new());
    let notified = Arc::clone(&notify);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            notified.notify_one();
        }
    });
    Ok(notify)
}
