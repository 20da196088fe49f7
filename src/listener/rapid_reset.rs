//! The guard against rapid resets (CVE-2023-44487): a client that opens HTTP/2 streams and resets them makes work for nothing,
//! at whatever pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Requests that a client may reset on one connection, beyond one for each that was answered.
const MAX_RESETS: usize = 256;

#[derive(Default)]
pub(super) struct ResetCounter {
    /// Requests reset before their response began, less those that were answered.
    count: AtomicUsize,
    exceeded: Notify,
}

impl ResetCounter {
    /// Completes when the client has reset too many requests.
    pub(super) async fn exceeded(&self) {
        self.exceeded.notified().await;
    }
}

/// A request that has no response yet. If it is dropped before [`Self::answered`], its client has reset it.
pub(super) struct Unanswered(Option<Arc<ResetCounter>>);

impl Unanswered {
    pub(super) fn begin(resets: &Arc<ResetCounter>) -> Self {
        Self(Some(Arc::clone(resets)))
    }

    pub(super) fn answered(mut self) {
        if let Some(resets) = self.0.take() {
            let decrement = |count: usize| count.checked_sub(1);
            // An error means that there was no reset to make up for.
            let _ = resets.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, decrement);
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(resets) = &self.0
            && resets.count.fetch_add(1, Ordering::Relaxed) + 1 == MAX_RESETS
        {
            resets.exceeded.notify_one();
        }
    }
}
