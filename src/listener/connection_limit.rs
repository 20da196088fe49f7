//! The number of connections that may be open at once. It may change while they are.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) struct ConnectionLimit {
    free: Arc<Semaphore>,
    /// Permits that exist, free and taken.
    count: usize,
    /// Permits that should exist.
    wanted: usize,
}

impl ConnectionLimit {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), count, wanted: count }
    }

    /// Nobody loses a permit: of those that are too many, the taken ones are withdrawn when they are given back.
    pub(super) fn resize(&mut self, wanted: usize) {
        self.wanted = wanted;
        if wanted > self.count {
            self.free.add_permits(wanted - self.count);
            self.count = wanted;
        } else {
            self.count -= self.free.forget_permits(self.count - wanted);
        }
    }

    /// Waits for a permit. The future may be dropped at any time. There is always a permit in the end, as the semaphore is
    /// never closed.
    pub(super) async fn take(&mut self) -> Option<OwnedSemaphorePermit> {
        while self.count > self.wanted {
            self.free.acquire().await.ok()?.forget();
            self.count -= 1;
        }
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Whether a connection has to end before another can be served.
    pub(super) fn is_full(&self) -> bool {
        self.count > self.wanted || self.free.available_permits() == 0
    }

    /// A permit, if one is free now.
    pub(super) fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn take(slots: &mut ConnectionLimit) -> Option<OwnedSemaphorePermit> {
        slots.take().now_or_never().flatten()
    }

    #[test]
    fn connection_limit_is_raised_and_lowered() {
        let mut slots = ConnectionLimit::new(2);
        let (one, two) = (take(&mut slots), take(&mut slots));
        assert!(one.is_some() && two.is_some() && take(&mut slots).is_none());
        slots.resize(3);
        let three = take(&mut slots);
        assert!(three.is_some() && take(&mut slots).is_none());
        slots.resize(1);
        drop((one, two));
        assert!(take(&mut slots).is_none(), "one is still taken");
        drop(three);
        let last = take(&mut slots);
        assert!(last.is_some() && take(&mut slots).is_none());
        // Back and forth while all are taken leaves what was asked for last.
        slots.resize(5);
        slots.resize(2);
        let other = take(&mut slots);
        assert!(other.is_some() && take(&mut slots).is_none());
    }
}
