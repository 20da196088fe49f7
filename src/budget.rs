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

/// How long a connection counts as a good caller's after its last request that was admitted with a key.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// The bytes that the requests and bodies of one listener hold.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    held: AtomicUsize,
    connections: AtomicUsize,
    /// Connections with requests on public routes under way and no good key, and how many there may be.
    public: AtomicUsize,
    max_public: AtomicUsize,
    /// Connections with bodies that wait for room.
    waiting: Mutex<Vec<Weak<Account>>>,
}

impl Budget {
    /// Of so many bytes.
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

    /// Another limit, from now on.
    pub fn resize(&self, limit: usize) {
        self.limit.store(limit, Ordering::SeqCst);
        self.wake_all();
    }

    /// Has every body that waits for room look again: there is more, or a connection less to share it.
    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for account in waiting.iter().filter_map(Weak::upgrade) {
            account.is_listed.store(false, Ordering::SeqCst);
            account.wake_waiters();
        }
    }

    fn give_back(&self, bytes: usize) {
        let (before, common) = (self.held.fetch_sub(bytes, Ordering::SeqCst), self.common_limit());
        if before > common && before - bytes <= common {
            self.wake_all();
        }
    }

    /// Has requests on public routes leave a quarter of so many connections to others.
    pub fn set_max_connections(&self, connections: usize) {
        self.max_public.store(connections - connections / 4, Ordering::Relaxed);
    }

    /// What is held, in bytes.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What all may hold before shares count.
    fn common_limit(&self) -> usize {
        self.limit.load(Ordering::SeqCst) / 2
    }

    /// A connection's share of the other half. Connections that are ending count, and take nobody's least share.
    fn connection_share(&self) -> usize {
        (self.common_limit() / self.connections().max(1)).max(SHARE)
    }

    /// Whether all connections together hold so much that each must keep to its share.
    pub fn is_tight(&self) -> bool {
        self.would_exceed(0)
    }

    fn would_exceed(&self, more: usize) -> bool {
        self.held.load(Ordering::SeqCst).saturating_add(more) > self.common_limit()
    }
}

/// What one connection holds, and whether it may have to make room for another.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Budget>,
    held: AtomicUsize,
    /// Of that, pieces of bodies on their way to somebody.
    pieces: AtomicUsize,
    /// Requests under way that were admitted with a key.
    admitted: AtomicUsize,
    /// Requests on public routes under way. Above zero, the connection has a place among those of public requests.
    public: Mutex<usize>,
    /// When the last admitted one ended, unless the key shown since was bad.
    last_admitted: Mutex<Option<Instant>>,
    /// Whether the budget tells this one when there is room again.
    is_listed: AtomicBool,
    has_waiters: AtomicBool,
    waiters: Mutex<Vec<Waker>>,
}

impl Account {
    /// Of a new connection.
    pub fn open(budget: &Arc<Budget>) -> Arc<Self> {
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

    /// A request of this connection was admitted with a key, until the guard is dropped.
    pub fn admit(self: &Arc<Self>) -> Admitted {
        self.admitted.fetch_add(1, Ordering::Relaxed);
        Admitted { account: Arc::clone(self), has_key: true }
    }

    /// A request of this connection is admitted on a public route, until the guard is dropped; none, where such requests
    /// have as many connections as they may.
    ///
    /// SECURITY: whoever sends work that does not end needs no key for it here, and would hold every connection.
    pub fn admit_public(self: &Arc<Self>) -> Option<Admitted> {
        let budget = &self.budget;
        // Locked to the end, so that no second request takes the first one for admitted while it is being refused.
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

    /// Whether a request of this connection that was admitted is under way.
    pub fn has_admitted_work(&self) -> bool {
        self.admitted.load(Ordering::Relaxed) > 0
            || *self.public.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }

    /// Whether a request of this connection was ever admitted with a key, and no bad key was shown since.
    pub fn was_of_good_key(&self) -> bool {
        self.last_admitted.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// A request of this connection came with a bad key.
    ///
    /// SECURITY: or the holder of a revoked key would keep places that were given to it while it was good.
    pub fn record_bad_key(&self) {
        *self.last_admitted.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a request that was admitted with a key is under way here, or was lately.
    pub fn is_of_good_key(&self) -> bool {
        let last = || *self.last_admitted.lock().unwrap_or_else(PoisonError::into_inner);
        self.admitted.load(Ordering::Relaxed) > 0 || last().is_some_and(|last| last.elapsed() < GOOD_FOR)
    }

    /// Whether memory is tight, and this connection holds more of it than was planned for it.
    pub fn is_over_share(&self) -> bool {
        self.budget.is_tight()
            && self.held.load(Ordering::Relaxed) > self.budget.connection_share().max(2 * SHARE)
    }

    /// Bytes for a request, unless this connection has too many.
    pub fn request(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let own = self.held.load(Ordering::Relaxed).saturating_add(bytes);
        if self.budget.would_exceed(bytes) && own > self.budget.connection_share() {
            return None;
        }
        Some(self.hold_bytes(bytes, false))
    }

    /// Bytes of a body, which are there already.
    pub fn piece(self: &Arc<Self>, bytes: usize) -> Held {
        self.hold_bytes(bytes, true)
    }

    /// Ready when more of a body may be asked for: one piece at a time where memory is tight.
    pub fn poll_room(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        {
            let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
            // However often one is polled, it waits once.
            if !waiters.iter().any(|waiter| waiter.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
        }
        self.has_waiters.store(true, Ordering::SeqCst);
        if !self.is_listed.swap(true, Ordering::SeqCst) {
            let mut waiting = self.budget.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(Arc::downgrade(self));
        }
        // What was given back meanwhile woke nobody.
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

/// One request that was admitted.
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
        account.budget.give_back(self.bytes);
    }
}

/// Bytes that are counted as long as anybody has them.
pub fn counted(bytes: Bytes, account: &Arc<Account>) -> Bytes {
    struct Counted(Bytes, #[expect(dead_code, reason = "it counts the bytes as long as it lives")] Held);
    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let held = account.piece(bytes.len());
    Bytes::from_owner(Counted(bytes, held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_share_applies_beyond_half_the_budget() {
        let budget = Budget::new(20 * REQUEST);
        let (greedy, modest) = (Account::open(&budget), Account::open(&budget));
        let mut held: Vec<_> = (0..10).map_while(|_| greedy.request(REQUEST)).collect();
        assert_eq!(held.len(), 10, "the common half");
        assert!(greedy.request(REQUEST).is_none());
        held.extend((0..10).map_while(|_| modest.request(REQUEST)));
        assert_eq!(held.len(), 15, "half of the other half");
        drop(greedy);
        held.clear();
        assert_eq!(budget.held(), 0);
        assert_eq!(budget.connections.load(Ordering::Relaxed), 1);
        assert!(modest.request(REQUEST).is_some());
    }

    #[test]
    fn body_waits_for_its_own_connection_when_tight() {
        let budget = Budget::new(8 * REQUEST);
        let (account, _other) = (Account::open(&budget), Account::open(&budget));
        let mut cx = Context::from_waker(Waker::noop());
        let first = account.piece(4 * REQUEST);
        assert!(account.poll_room(&mut cx).is_ready());
        let second = account.request(1).map_or_else(|| account.piece(1), |_| account.piece(1));
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
        let budget = Budget::new(8 * REQUEST);
        let (account, flood) = (Account::open(&budget), Account::open(&budget));
        // A piece that its reader does not take, as of an upload or of another stream.
        let _stuck = account.piece(REQUEST);
        let others = flood.piece(8 * REQUEST);
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
        let budget = Budget::new(8 * REQUEST);
        let account = Account::open(&budget);
        let _stuck = account.piece(8 * REQUEST);
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
        let budget = Budget::new(100 * REQUEST);
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
