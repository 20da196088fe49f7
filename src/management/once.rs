//! `Idempotency-Key`: a creation that is asked for twice is done once. What is kept is the id of the key that was made, never
//! the key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use ring::digest::{SHA256, digest};

use super::problem::{Code, Problem};

/// How long a creation is remembered.
pub(super) const KEPT: Duration = Duration::from_secs(600);
/// And how many are.
const MOST: usize = 10_000;

/// What was asked for lately.
#[derive(Clone, Default)]
pub(super) struct Once(Arc<Mutex<HashMap<String, Kept>>>);

struct Kept {
    began: Instant,
    /// Of what was asked for.
    fingerprint: [u8; 32],
    outcome: Outcome,
}

enum Outcome {
    /// It is being done.
    Running,
    /// A key was made, of this id.
    Made(String),
    /// A key may have been made, or several look as if.
    Unknown(Vec<String>),
}

/// The right to do something once. Dropped without a word, nothing is known of how it went.
pub(super) struct Turn {
    once: Once,
    name: String,
    done: bool,
}

impl Once {
    /// Takes the turn for what is asked for, by the scope (path) and name (`Idempotency-Key`) that it has.
    pub(super) fn begin(&self, scope: &str, name: &str, asked: &[u8], now: Instant) -> Result<Turn, Problem> {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, asked).as_ref());
        let name = format!("{scope} {name}");
        let mut kept = self.lock();
        if kept.len() >= MOST {
            kept.retain(|_, kept| !kept.is_over(now));
        }
        let full = kept.len() >= MOST;
        match kept.entry(name.clone()) {
            Entry::Occupied(entry) if !entry.get().is_over(now) => {
                return Err(entry.get().again(&fingerprint));
            }
            Entry::Vacant(_) if full => {
                let detail = "Too many keys were created within ten minutes; try again later.";
                return Err(Problem::overloaded(detail));
            }
            entry => drop(entry.insert_entry(Kept { began: now, fingerprint, outcome: Outcome::Running })),
        }
        Ok(Turn { once: self.clone(), name, done: false })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn is_over(&self, now: Instant) -> bool {
        !matches!(self.outcome, Outcome::Running) && now.saturating_duration_since(self.began) >= KEPT
    }

    /// The answer to the same name once more.
    fn again(&self, fingerprint: &[u8; 32]) -> Problem {
        if self.fingerprint != *fingerprint {
            let detail = "This Idempotency-Key was used for another request; take a new one for each.";
            return Problem::new(Code::IdempotencyKeyReused, detail);
        }
        match &self.outcome {
            Outcome::Running => {
                let detail = "The first request of this Idempotency-Key runs still.";
                Problem::new(Code::RequestInProgress, detail)
            }
            Outcome::Made(id) => Problem {
                token_id: Some(id.as_str().into()),
                ..Problem::new(
                    Code::AlreadyCreated,
                    "The key was created already, and is shown once only. Where its answer was lost, revoke it and create \
                     another with a new Idempotency-Key.",
                )
            },
            Outcome::Unknown(suspects) => Problem {
                // The first answer said 503. Asking again does not help, and this one says so.
                status: StatusCode::CONFLICT,
                suspects: suspects.clone(),
                ..Problem::new(
                    Code::OutcomeUnknown,
                    "Whether the first request of this Idempotency-Key created a key is not known. Look through the \
                     organization's keys, and use a new Idempotency-Key.",
                )
            },
        }
    }
}

impl Turn {
    /// A key was made.
    pub(super) fn made(self, token_id: String) {
        self.end(Some(Outcome::Made(token_id)));
    }

    /// Nothing was made: it may be asked for again.
    pub(super) fn undone(self) {
        self.end(None);
    }

    /// Nobody knows.
    pub(super) fn unknown(self, suspects: Vec<String>) {
        self.end(Some(Outcome::Unknown(suspects)));
    }

    fn end(mut self, outcome: Option<Outcome>) {
        self.done = true;
        self.set(outcome);
    }

    fn set(&self, outcome: Option<Outcome>) {
        let mut kept = self.once.lock();
        match outcome {
            Some(outcome) => {
                if let Some(kept) = kept.get_mut(&self.name) {
                    kept.outcome = outcome;
                }
            }
            None => drop(kept.remove(&self.name)),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.done {
            self.set(Some(Outcome::Unknown(Vec::new())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(begun: Result<Turn, Problem>) -> (&'static str, Option<Box<str>>) {
        begun.map_or_else(|problem| (problem.code.name(), problem.token_id), |_| ("begun", None))
    }

    #[test]
    fn the_same_name_is_served_once_for_ten_minutes() {
        let (once, now) = (Once::default(), Instant::now());
        let turn = once.begin("/a", "n", b"x", now).unwrap();
        assert_eq!(code(once.begin("/a", "n", b"x", now)).0, "request_in_progress");
        // However long it takes.
        assert_eq!(code(once.begin("/a", "n", b"x", now + 2 * KEPT)).0, "request_in_progress");
        turn.made("apit_1".into());
        let late = now + KEPT - Duration::from_millis(1);
        assert_eq!(code(once.begin("/a", "n", b"x", late)), ("already_created", Some("apit_1".into())));
        assert_eq!(code(once.begin("/a", "n", b"y", late)), ("idempotency_key_reused", None));
        assert_eq!(code(once.begin("/b", "n", b"x", late)).0, "begun");
        assert_eq!(code(once.begin("/a", "m", b"x", late)).0, "begun");
        assert_eq!(code(once.begin("/a", "n", b"x", now + KEPT)).0, "begun");
    }

    #[test]
    fn what_was_not_done_may_be_asked_for_again_and_what_is_unknown_may_not() {
        let (once, now) = (Once::default(), Instant::now());
        once.begin("/a", "n", b"x", now).unwrap().undone();
        once.begin("/a", "n", b"x", now).unwrap().unknown(vec!["apit_1".into()]);
        let problem = once.begin("/a", "n", b"x", now).err().unwrap();
        assert_eq!((problem.code, problem.suspects), (Code::OutcomeUnknown, vec!["apit_1".to_owned()]));
        drop(once.begin("/a", "dropped", b"x", now).unwrap());
        assert_eq!(code(once.begin("/a", "dropped", b"x", now)).0, "outcome_unknown");
    }

    #[test]
    fn memory_is_bounded_and_nothing_kept_is_forgotten_for_it() {
        let (once, now) = (Once::default(), Instant::now());
        for number in 0..MOST {
            once.begin("/a", &number.to_string(), b"x", now).unwrap().made("apit_1".into());
        }
        assert_eq!(code(once.begin("/a", "more", b"x", now)).0, "overloaded");
        assert_eq!(code(once.begin("/a", "0", b"x", now)).0, "already_created");
        assert_eq!(code(once.begin("/a", "more", b"x", now + KEPT)).0, "begun");
    }
}
