//! Limits concurrent requests to an upstream. A quarter of the places is reserved for requests with a key, so that clients of
//! public routes cannot take all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::rejection::Rejection;

/// The share of `max_requests` that public routes may use, in quarters.
const PUBLIC_QUARTERS: usize = 3;
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Capacity {
    max: usize,
    public_max: usize,
    all: AtomicUsize,
    public: AtomicUsize,
}

impl Capacity {
    pub(super) fn new(max: usize) -> Arc<Self> {
        // Rounded up, so that public routes can use the only place of one.
        let public_max = (max * PUBLIC_QUARTERS).div_ceil(4).max(1);
        Arc::new(Self { max, public_max, all: AtomicUsize::new(0), public: AtomicUsize::new(0) })
    }

    /// Takes a place.
    ///
    /// # Errors
    /// `Overloaded` when none is free.
    pub(super) fn reserve_place(self: &Arc<Self>, is_public: bool) -> Result<Place, Rejection> {
        // The public count first, so that a request which it refuses is never counted in `all`.
        if is_public && self.public.fetch_add(1, Ordering::Relaxed) >= self.public_max {
            self.public.fetch_sub(1, Ordering::Relaxed);
            return Err(Rejection::Overloaded(RETRY_AFTER));
        }
        let before = self.all.fetch_add(1, Ordering::Relaxed);
        // Dropping it decrements both counts, also when the request is refused below.
        let place = Place { capacity: Arc::clone(self), is_public };
        if before < self.max { Ok(place) } else { Err(Rejection::Overloaded(RETRY_AFTER)) }
    }
}

/// The place of one request, released on drop.
pub(super) struct Place {
    capacity: Arc<Capacity>,
    is_public: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.capacity.all.fetch_sub(1, Ordering::Relaxed);
        if self.is_public {
            self.capacity.public.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_requests_leave_quarter_of_upstream_requests() {
        let capacity = Capacity::new(8);
        let public: Vec<_> = (0..9).map_while(|_| capacity.reserve_place(true).ok()).collect();
        assert_eq!(public.len(), 6);
        let keyed: Vec<_> = (0..9).map_while(|_| capacity.reserve_place(false).ok()).collect();
        assert_eq!(keyed.len(), 2);
        drop(public);
        assert!(capacity.reserve_place(true).is_ok());
        drop(keyed);
        assert_eq!(capacity.all.load(Ordering::Relaxed), 0);
        assert_eq!(capacity.public.load(Ordering::Relaxed), 0);
    }
}
