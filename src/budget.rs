//! The memory that requests and bodies of all connections may hold together. Up to half of it no connection is limited; beyond
//! that each keeps to an equal share of the other half, so that a flood is refused and a client beside it is served.
//!
//! What connections take for themselves is not counted here, but bounded by their number: see `memory_plan`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::memory_plan::{REQUEST, SHARE};

/// How long a connection counts as one of a good key after its last request that was admitted with a key.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// The bytes that requests and bodies of one listener hold.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: AtomicUsize,
    held: AtomicUsize,
    connections: AtomicUsize,
    /// Connections with requests on public routes in progress.
    public: AtomicUsize,
    max_public: AtomicUsize,
    /// Connections with bodies that wait for memory.
    waiting: Mutex<Vec<Weak<Account>>>,
}

impl MemoryBudget {
    /// `limit` is in bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit),
            held: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            public: AtomicUsize::new(0),
            max_public: AtomicUsize::new(usize::MAX),
            waiting: Mutex::default(),
        })
    }

    /// Changes the limit, in bytes.
    pub fn resize(&self, limit: usize) {
        self.limit.store(limit, Ordering::SeqCst);
        self.wake_all();
    }

    /// Wakes all bodies that wait for memory, as there is more of it, or one connection less to share it.
    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for account in waiting.iter().filter_map(Weak::upgrade) {
            account.is_listed.store(false, Ordering::SeqCst);
            account.wake_waiters();
        }
    }

    fn release_bytes(&self, bytes: usize) {
        let (before, common) = (self.held.fetch_sub(bytes, Ordering::SeqCst), self.common_limit());
        if before > common && before - bytes <= common {
            self.wake_all();
        }
    }

    /// Limits connections with requests on public routes to three quarters of `connections`.
    pub fn set_max_connections(&self, connections: usize) {
        self.max_public.store(connections - connections / 4, Ordering::Relaxed);
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What all connections may hold together before each is limited to its share.
    fn common_limit(&self) -> usize {
        self.limit.load(Ordering::SeqCst) / 2
    }

    /// A connection's share of the other half, at least `SHARE`. Connections that are ending count as well.
    fn connection_share(&self) -> usize {
        (self.common_limit() / self.connections().max(1)).max(SHARE)
    }

    /// Whether so much is held that each connection is limited to its share.
    pub fn is_tight(&self) -> bool {
        self.would_exceed(0)
    }

    fn would_exceed(&self, more: usize) -> bool {
        self.held.load(Ordering::SeqCst).saturating_add(more) > self.common_limit()
    }
}

/// What one connection holds, and whether it may be closed to make room for another.
#[derive(Debug)]
pub struct Account {
    budget: Arc<MemoryBudget>,
    held: AtomicUsize,
    /// Of that, pieces of bodies that are being relayed.
    pieces: AtomicUsize,
    /// Requests in progress that were admitted with a key.
    admitted: AtomicUsize,
    /// Requests on public routes in progress. Above zero, the connection is counted in `MemoryBudget::public`.
    public: Mutex<usize>,
    /// When the last request with a key ended, unless a bad key was presented since.
    last_admitted: Mutex<Option<Instant>>,
    /// Whether this is in `MemoryBudget::waiting`.
    is_listed: AtomicBool,
    has_waiters: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
}

impl Account {
    /// For a new connection.
    pub fn open(budget: &Arc<MemoryBudget>) -> Arc<Self> {
        budget.connections.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            budget: Arc::clone(budget),
            held: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            admitted: AtomicUsize::new(0),
            public: Mutex::default(),
            last_admitted: Mutex::default(),
            is_listed: AtomicBool::new(false),
            has_waiters: AtomicBool::new(false),
            waiters: Mutex::default(),
        })
    }

    /// Counts a request that was admitted with a key, until the guard is dropped.
    pub fn admit(self: &Arc<Self>) -> Admitted {
        self.admitted.fetch_add(1, Ordering::Relaxed);
        Admitted { account: Arc::clone(self), has_key: true }
    }

    /// Counts a request on a public route, until the guard is dropped. `None` when such requests already use all the connections
    /// that they may.
    ///
    /// SECURITY: requests that never end need no key here, and could hold every connection.
    pub fn admit_public(self: &Arc<Self>) -> Option<Admitted> {
        let budget = &self.budget;
        // Locked to the end, so that no second request sees the first as admitted while it is being refused.
        let mut public = self.public.lock().unwrap_or_else(PoisonError::into_inner);
        if *public == 0 {
            let before = budget.public.fetch_add(1, Ordering::Relaxed);
            if before >= budget.max_public.load(Ordering::Relaxed) && !self.is_of_good_key() {
                budget.public.fetch_sub(1, Ordering::Relaxed);
                return None;
            }
        }
        *public += 1;
        drop(public);
        Some(Admitted { account: Arc::clone(self), has_key: false })
    }

    fn end_public(&self) {
        let mut public = self.public.lock().unwrap_or_else(PoisonError::into_inner);
        *public -= 1;
        if *public == 0 {
            self.budget.public.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether an admitted request is in progress.
    pub fn has_admitted_work(&self) -> bool {
        self.admitted.load(Ordering::Relaxed) > 0
            || *self.public.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }

    /// Whether a request was ever admitted with a key, and no bad key was presented since.
    pub fn was_of_good_key(&self) -> bool {
        self.last_admitted.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// A bad key was presented.
    ///
    /// SECURITY: otherwise the holder of a revoked key would keep the places that it got with the key.
    pub fn record_bad_key(&self) {
        *self.last_admitted.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a request that was admitted with a key is in progress, or was within `GOOD_FOR`.
    pub fn is_of_good_key(&self) -> bool {
        let last = || *self.last_admitted.lock().unwrap_or_else(PoisonError::into_inner);
        self.admitted.load(Ordering::Relaxed) > 0 || last().is_some_and(|last| last.elapsed() < GOOD_FOR)
    }

    /// Whether memory is tight, and this connection holds more than was planned for it.
    pub fn is_over_share(&self) -> bool {
        self.budget.is_tight()
            && self.held.load(Ordering::Relaxed) > self.budget.connection_share().max(2 * SHARE)
    }

    /// Holds bytes for a request. `None` when memory is tight and they exceed the connection's share.
    pub fn hold_request(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let own = self.held.load(Ordering::Relaxed).saturating_add(bytes);
        if self.budget.would_exceed(bytes) && own > self.budget.connection_share() {
            return None;
        }
        Some(self.hold_bytes(bytes, false))
    }

    /// Holds bytes of a body, which have been received already and so are never refused.
    pub fn hold_piece(self: &Arc<Self>, bytes: usize) -> Held {
        self.hold_bytes(bytes, true)
    }

    /// Ready when more of a body may be read: one piece at a time when memory is tight.
    pub fn poll_room(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        {
            let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
            // A task that is polled again is stored once.
            if !waiters.iter().any(|waiter| waiter.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
        }
        self.has_waiters.store(true, Ordering::SeqCst);
        if !self.is_listed.swap(true, Ordering::SeqCst) {
            let mut waiting = self.budget.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(Arc::downgrade(self));
        }
        // Memory released before this was listed has woken no task.
        if self.has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn has_room(&self) -> bool {
        let pieces = self.pieces.load(Ordering::SeqCst);
        pieces == 0
            || !self.budget.is_tight()
            || pieces < self.budget.connection_share().saturating_sub(REQUEST)
    }

    fn hold_bytes(self: &Arc<Self>, bytes: usize, is_piece: bool) -> Held {
        self.budget.held.fetch_add(bytes, Ordering::SeqCst);
        self.held.fetch_add(bytes, Ordering::Relaxed);
        if is_piece {
            self.pieces.fetch_add(bytes, Ordering::Relaxed);
        }
        Held { account: Arc::clone(self), bytes, is_piece }
    }

    fn wake_waiters(&self) {
        if self.has_waiters.swap(false, Ordering::SeqCst) {
            let waiters = std::mem::take(&mut *self.waiters.lock().unwrap_or_else(PoisonError::into_inner));
            waiters.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.connections.fetch_sub(1, Ordering::SeqCst);
        self.budget.wake_all();
    }
}

/// An admitted request.
#[derive(Debug)]
pub struct Admitted {
    account: Arc<Account>,
    has_key: bool,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let account = &self.account;
        if self.has_key {
            *account.last_admitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            account.admitted.fetch_sub(1, Ordering::Relaxed);
        } else {
            account.end_public();
        }
    }
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub struct Held {
    account: Arc<Account>,
    bytes: usize,
    is_piece: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        let account = &self.account;
        account.held.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.is_piece {
            account.pieces.fetch_sub(self.bytes, Ordering::SeqCst);
            account.wake_waiters();
        }
        account.budget.release_bytes(self.bytes);
    }
}

/// The same bytes, counted until their last reference is dropped.
pub fn count_bytes(bytes: Bytes, account: &Arc<Account>) -> Bytes {
    struct Counted(Bytes, #[expect(dead_code, reason = "counts the bytes until it is dropped")] Held);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let held = account.hold_piece(bytes.len());
    Bytes::from_owner(Counted(bytes, held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_share_applies_beyond_half_the_budget() {
        let budget = MemoryBudget::new(20 * REQUEST);
        let (greedy, modest) = (Account::open(&budget), Account::open(&budget));
        let mut held: Vec<_> = (0..10).map_while(|_| greedy.hold_request(REQUEST)).collect();
        assert_eq!(held.len(), 10, "the common half");
        assert!(greedy.hold_request(REQUEST).is_none());
        held.extend((0..10).map_while(|_| modest.hold_request(REQUEST)));
        assert_eq!(held.len(), 15, "half of the other half");
        drop(greedy);
        held.clear();
        assert_eq!(budget.held(), 0);
        assert_eq!(budget.connections.load(Ordering::Relaxed), 1);
        assert!(modest.hold_request(REQUEST).is_some());
    }

    #[test]
    fn body_waits_for_its_own_connection_when_tight() {
        let budget = MemoryBudget::new(8 * REQUEST);
        let (account, _other) = (Account::open(&budget), Account::open(&budget));
        let mut cx = Context::from_waker(Waker::noop());
        let first = account.hold_piece(4 * REQUEST);
        assert!(account.poll_room(&mut cx).is_ready());
        let second = account.hold_request(1).map_or_else(|| account.hold_piece(1), |_| account.hold_piece(1));
        assert!(account.poll_room(&mut cx).is_pending());
        drop((first, second));
        assert!(account.poll_room(&mut cx).is_ready());
        assert!(!account.has_waiters.load(Ordering::Relaxed));
    }

    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn waiting_body_wakes_when_others_release_memory() {
        let budget = MemoryBudget::new(8 * REQUEST);
        let (account, flood) = (Account::open(&budget), Account::open(&budget));
        // A piece that its reader does not take, as of an upload or of another stream.
        let _stuck = account.hold_piece(REQUEST);
        let others = flood.hold_piece(8 * REQUEST);
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert!(account.poll_room(&mut cx).is_pending());
        drop(others);
        assert!(!budget.is_tight(), "there is room for everybody again");
        assert_eq!(woken.0.load(Ordering::SeqCst), 1, "nobody tells the body that waits");
    }

    #[test]
    fn waiting_body_stores_one_waker_per_task() {
        let budget = MemoryBudget::new(8 * REQUEST);
        let account = Account::open(&budget);
        let _stuck = account.hold_piece(8 * REQUEST);
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        for _ in 0..1000 {
            assert!(account.poll_room(&mut Context::from_waker(&waker)).is_pending());
        }
        drop(waker);
        // Each clone of the waker is a reference.
        assert!(Arc::strong_count(&woken) <= 2, "{} wakers are kept", Arc::strong_count(&woken) - 1);
    }

    #[test]
    fn public_requests_leave_a_quarter_of_connections() {
        let budget = MemoryBudget::new(100 * REQUEST);
        budget.set_max_connections(4);
        let accounts: Vec<_> = (0..4).map(|_| Account::open(&budget)).collect();
        let held: Vec<_> = accounts[..3].iter().filter_map(Account::admit_public).collect();
        assert_eq!(held.len(), 3);
        let (others, last) = (&accounts[0], &accounts[3]);
        assert!(others.admit_public().is_some(), "the connection has its place");
        assert!(last.admit_public().is_none() && last.admit_public().is_none());
        assert!(!last.has_admitted_work(), "what was refused is nobody's work");
        drop(held);
        assert!(last.admit_public().is_some());
        assert!(!last.has_admitted_work());
    }
}
