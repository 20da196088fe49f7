//! SIGTERM and SIGINT: the first starts the drain, the second ends it at once. SIGHUP reloads.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Returns the tokens that the first and the second signal cancel. SIGHUP notifies `hup`, or without one ends the process as usual.
/// Must be called within a runtime.
pub(super) fn watch_signals(hup: Option<Arc<Notify>>) -> Result<(CancellationToken, CancellationToken)> {
    let wait = |kind| signal(kind).context("cannot wait for signals");
    let (mut terminate, mut interrupt) = (wait(SignalKind::terminate())?, wait(SignalKind::interrupt())?);
    let mut hangup = hup.as_ref().map(|_| wait(SignalKind::hangup())).transpose()?;
    let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
    let both = (stop.clone(), kill.clone());
    tokio::spawn(async move {
        for token in [stop, kill] {
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    () = receive_signal(hangup.as_mut()) => hup.iter().for_each(|hup| hup.notify_one()),
                }
            }
            token.cancel();
        }
    });
    Ok(both)
}

async fn receive_signal(signal: Option<&mut tokio::signal::unix::Signal>) {
    match signal {
        // The stream of a signal never ends.
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
