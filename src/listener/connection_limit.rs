//! Places for connections. Their number may change while they are taken.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(super) struct ConnectionLimit {
    free: Arc<Semaphore>,
    /// All there are, free and taken.
    count: usize,
    /// All there are to be.
    wanted: usize,
}

impl ConnectionLimit {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), count, wanted: count }
    }

    /// Nobody loses a place: of those that are too many, the taken ones go when they are given back.
    pub(super) fn resize(&mut self, wanted: usize) {
        self.wanted = wanted;
        if wanted > self.count {
            self.free.add_permits(wanted - self.count);
            self.count = wanted;
        } else {
            self.count -= self.free.forget_permits(self.count - wanted);
        }
    }

    /// Waits for a place. It may be dropped while it waits.
    pub(super) async fn take(&mut self) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        while self.count > self.wanted {
            self.free.acquire().await.ok()?.forget();
            self.count -= 1;
        }
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Whether somebody has to leave before the next one comes.
    pub(super) fn is_full(&self) -> bool {
        self.count > self.wanted || self.free.available_permits() == 0
    }

    /// A place, if one is free now.
    pub(super) fn take_now(&self) -> Option<OwnedSemaphorePermit> {
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
    fn places_are_added_and_go_when_they_are_given_back() {
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
