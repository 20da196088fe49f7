//! SIGTERM and SIGINT: the first drains, the second ends at once.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
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
