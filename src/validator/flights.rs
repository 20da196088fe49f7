//! Shares one validation among requests with the same key. A request that arrives while flights are in the air boards the
//! next one and never one that has left, so that no request gets a verdict of a validation that began before it arrived.
//!
//! This is the bookkeeping alone, without clock, task or lock; `tests/it/flights.rs` checks it over all interleavings.

use std::collections::HashMap;
use std::hash::Hash;

/// For each key, how many flights are in the air and which one is boarding.
#[derive(Debug)]
pub struct Board<K, F> {
    lanes: HashMap<K, Lane<F>>,
    at_once: usize,
}

#[derive(Debug)]
struct Lane<F> {
    in_the_air: usize,
    boarding: Option<F>,
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<F> {
    /// A flight of its own leaves now. The caller must run it, and call `land` after.
    Departs(F),
    /// It boards a flight that leaves when one in the air lands.
    Boards(F),
}

impl<K: Eq + Hash, F: Clone> Board<K, F> {
    /// Up to `at_once` flights of a key in the air, from 1.
    pub fn new(at_once: usize) -> Self {
        Self { lanes: HashMap::new(), at_once: at_once.max(1) }
    }

    /// Assigns an arriving request to a flight, which `flight` makes if it is a new one.
    pub fn arrive(&mut self, key: K, flight: impl FnOnce() -> F) -> Arrival<F> {
        let lane = self.lanes.entry(key).or_insert(Lane { in_the_air: 0, boarding: None });
        if lane.in_the_air < self.at_once {
            lane.in_the_air += 1;
            Arrival::Departs(flight())
        } else {
            Arrival::Boards(lane.boarding.get_or_insert_with(flight).clone())
        }
    }

    /// A flight of this key has landed. Gives the one that leaves in its place, if any: run it, and call `land` after.
    pub fn land(&mut self, key: &K) -> Option<F> {
        let lane = self.lanes.get_mut(key)?;
        let next = lane.boarding.take();
        if next.is_none() {
            lane.in_the_air -= 1;
            if lane.in_the_air == 0 {
                self.lanes.remove(key);
            }
        }
        next
    }

    /// Whether nothing is in the air.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_cannot_board_departed_flight() {
        let mut board = Board::new(2);
        assert_eq!(board.arrive("key", || 1), Arrival::Departs(1));
        assert_eq!(board.arrive("key", || 2), Arrival::Departs(2));
        assert_eq!(board.arrive("key", || 3), Arrival::Boards(3));
        assert_eq!(board.arrive("key", || 4), Arrival::Boards(3));
        assert_eq!(board.arrive("other", || 5), Arrival::Departs(5));
        assert_eq!(board.land(&"key"), Some(3));
        assert_eq!(board.arrive("key", || 6), Arrival::Boards(6));
        assert_eq!(board.land(&"key"), Some(6));
        assert_eq!(board.land(&"key"), None);
        assert_eq!(board.arrive("key", || 7), Arrival::Departs(7));
        assert_eq!(board.land(&"key"), None);
        assert_eq!(board.land(&"key"), None);
        assert_eq!(board.land(&"other"), None);
        assert!(board.is_empty(), "a key without flights leaves nothing behind");
    }
}
