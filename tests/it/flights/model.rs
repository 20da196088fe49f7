//! The bookkeeping of flights, checked in every interleaving of a few requests and a revocation. The same check must fail
//! for plain join-in-flight sharing.

use std::sync::Arc as StdArc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keyward::validator::flights::{Arrival, Board};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// The model's interface: arrivals and landings of one key.
trait Sharing: Send {
    fn arrive(&mut self, flight: usize) -> Arrival<usize>;
    fn land(&mut self) -> Option<usize>;
}

impl Sharing for Board<(), usize> {
    fn arrive(&mut self, flight: usize) -> Arrival<usize> {
        Board::arrive(self, (), || flight)
    }

    fn land(&mut self) -> Option<usize> {
        Board::land(self, &())
    }
}

/// Plain join-in-flight sharing: a request that arrives during a call uses its response.
#[derive(Default)]
struct JoinInFlight(Option<usize>);

impl Sharing for JoinInFlight {
    fn arrive(&mut self, flight: usize) -> Arrival<usize> {
        match self.0 {
            Some(flight) => Arrival::Boards(flight),
            None => {
                self.0 = Some(flight);
                Arrival::Departs(flight)
            }
        }
    }

    fn land(&mut self) -> Option<usize> {
        self.0 = None;
        None
    }
}

/// The events of a run, in their order.
#[derive(Default)]
struct History {
    now: usize,
    revoked: Option<usize>,
    /// By flight: when its call began.
    began: Vec<Option<usize>>,
    /// By flight: the verdict, once it has landed.
    verdict: Vec<Option<bool>>,
    in_the_air: usize,
    most_in_the_air: usize,
    left_twice: bool,
}

impl History {
    fn tick(&mut self) -> usize {
        self.now += 1;
        self.now
    }
}

struct World {
    sharing: Mutex<Box<dyn Sharing>>,
    history: Mutex<History>,
    landed: Condvar,
}

impl World {
    fn request(&self, number: usize) -> bool {
        let arrived = self.history.lock().unwrap().tick();
        let arrival = self.sharing.lock().unwrap().arrive(number);
        let (Arrival::Departs(flight) | Arrival::Boards(flight)) = arrival;
        if let Arrival::Departs(flight) = arrival {
            self.fly(flight);
        }
        let mut history = self.history.lock().unwrap();
        while history.verdict[flight].is_none() {
            history = self.landed.wait(history).unwrap();
        }
        let fresh = history.began[flight].is_some_and(|began| began > arrived);
        // Visible to a client: a revocation that had completed before the request arrived.
        let served_late =
            history.verdict[flight] == Some(true) && history.revoked.is_some_and(|at| at < arrived);
        fresh && !served_late
    }

    /// Runs this flight, and those that leave when it lands.
    fn fly(&self, first: usize) {
        let mut next = Some(first);
        while let Some(flight) = next {
            {
                let mut history = self.history.lock().unwrap();
                let began = history.tick();
                if history.began[flight].replace(began).is_some() {
                    history.left_twice = true;
                    return;
                }
                history.in_the_air += 1;
                history.most_in_the_air = history.most_in_the_air.max(history.in_the_air);
            }
            // Scalekit decides some time after the call began, and responds later.
            let verdict = self.history.lock().unwrap().revoked.is_none();
            {
                let mut history = self.history.lock().unwrap();
                history.in_the_air -= 1;
                history.verdict[flight] = Some(verdict);
            }
            self.landed.notify_all();
            next = self.sharing.lock().unwrap().land();
        }
    }

    fn revoke(&self) {
        let mut history = self.history.lock().unwrap();
        history.revoked = Some(history.tick());
    }
}

/// The number of runs, and of violations: a request that used a call from before its arrival, a flight that left twice, or
/// too many flights at once.
fn explore(
    requests: usize,
    at_once: usize,
    switches: usize,
    sharing: impl Fn() -> Box<dyn Sharing> + Send + Sync + 'static,
) -> (usize, usize) {
    let (runs, wrong) = (StdArc::new(AtomicUsize::new(0)), StdArc::new(AtomicUsize::new(0)));
    let (counted, counted_wrong) = (StdArc::clone(&runs), StdArc::clone(&wrong));
    let mut builder = loom::model::Builder::new();
    // Forced context switches in a run; waiting for a lock or a response is not one. A stale response needs one.
    builder.preemption_bound = Some(switches);
    builder.check(move || {
        let world = Arc::new(World {
            sharing: Mutex::new(sharing()),
            history: Mutex::new(History {
                began: vec![None; requests],
                verdict: vec![None; requests],
                ..History::default()
            }),
            landed: Condvar::new(),
        });
        let others: Vec<_> = (1..requests)
            .map(|number| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.request(number))
            })
            .collect();
        let revoker = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.revoke())
        };
        let mut answers = vec![world.request(0)];
        answers.extend(others.into_iter().map(|request| request.join().unwrap()));
        revoker.join().unwrap();
        counted.fetch_add(1, Ordering::Relaxed);
        // Counted, not asserted: a panic in the model's threads aborts the process.
        let history = world.history.lock().unwrap();
        let broken = usize::from(history.left_twice || history.most_in_the_air > at_once);
        let stale = answers.iter().filter(|fresh| !**fresh).count();
        counted_wrong.fetch_add(stale + broken, Ordering::Relaxed);
    });
    (runs.load(Ordering::Relaxed), wrong.load(Ordering::Relaxed))
}

#[test]
fn every_interleaving_uses_call_begun_after_request() {
    for (requests, at_once, switches) in [(2, 1, 3), (3, 1, 2), (3, 2, 2)] {
        let (runs, wrong) = explore(requests, at_once, switches, move || Box::new(Board::new(at_once)));
        assert!(runs > 50, "{runs} interleavings of {requests} requests were tried");
        assert_eq!(wrong, 0, "{requests} requests, {at_once} at once");
        eprintln!("{requests} requests, {at_once} at once: {runs} interleavings");
    }
}

#[test]
fn model_rejects_joining_a_departed_flight() {
    let (runs, wrong) = explore(2, 1, 1, || Box::<JoinInFlight>::default());
    assert!(wrong > 0, "in {runs} interleavings no request was served on an older call");
}
