//! `Idempotency-Key`: a repeated creation is not performed again. The id of the created key is remembered, never the key itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use ring::digest::{SHA256, digest};

use super::problem::{Code, Problem};

/// How long a creation is remembered.
pub(super) const RETENTION: Duration = Duration::from_secs(600);
/// How many creations are remembered at most.
const MAX_RECORDS: usize = 10_000;

/// The creations of the last ten minutes, by path and `Idempotency-Key`.
#[derive(Clone, Default)]
pub(super) struct Idempotency(Arc<Mutex<HashMap<String, Record>>>);

struct Record {
    began: Instant,
    /// SHA-256 of the body.
    fingerprint: [u8; 32],
    state: State,
}

enum State {
    Running,
    /// With the id of the new key.
    Created(String),
    /// A key may have been created; these ids are candidates.
    Unknown(Vec<String>),
}

/// The right to perform one creation. If it is dropped before an outcome is recorded, the outcome is unknown.
pub(super) struct Reservation {
    records: Idempotency,
    name: String,
    is_settled: bool,
}

impl Idempotency {
    /// `scope` is the path and `key` the `Idempotency-Key`.
    ///
    /// # Errors
    /// The response to a repeated request.
    pub(super) fn reserve(
        &self,
        scope: &str,
        key: &str,
        body: &[u8],
        now: Instant,
    ) -> Result<Reservation, Problem> {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, body).as_ref());
        let name = format!("{scope} {key}");
        let mut records = self.lock_records();
        if records.len() >= MAX_RECORDS {
            records.retain(|_, record| !record.is_expired(now));
        }
        let is_full = records.len() >= MAX_RECORDS;
        match records.entry(name.clone()) {
            Entry::Occupied(entry) if !entry.get().is_expired(now) => {
                return Err(entry.get().answer_repeat(&fingerprint));
            }
            Entry::Vacant(_) if is_full => {
                let detail = "Too many keys were created within ten minutes; try again later.";
                return Err(Problem::overloaded(detail));
            }
            entry => drop(entry.insert_entry(Record { began: now, fingerprint, state: State::Running })),
        }
        Ok(Reservation { records: self.clone(), name, is_settled: false })
    }

    fn lock_records(&self) -> MutexGuard<'_, HashMap<String, Record>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn is_expired(&self, now: Instant) -> bool {
        !matches!(self.state, State::Running) && now.saturating_duration_since(self.began) >= RETENTION
    }

    fn answer_repeat(&self, fingerprint: &[u8; 32]) -> Problem {
        if self.fingerprint != *fingerprint {
            let detail = "This Idempotency-Key was used for another request; use a new one for each key.";
            return Problem::new(Code::IdempotencyKeyReused, detail);
        }
        match &self.state {
            State::Running => {
                let detail = "The first request with this Idempotency-Key is still in progress.";
                Problem::new(Code::RequestInProgress, detail)
            }
            State::Created(id) => Problem {
                token_id: Some(id.as_str().into()),
                ..Problem::new(
                    Code::AlreadyCreated,
                    "The key was created already, and is shown only once. If the response was lost, revoke the key and \
                     create another with a new Idempotency-Key.",
                )
            },
            State::Unknown(suspects) => Problem {
                // The first response was 503, which invites a retry. A retry cannot help any more.
                status: StatusCode::CONFLICT,
                suspects: suspects.clone(),
                ..Problem::new(
                    Code::OutcomeUnknown,
                    "It is unknown whether the first request with this Idempotency-Key created a key. Look through the \
                     organization's keys, and use a new Idempotency-Key.",
                )
            },
        }
    }
}

impl Reservation {
    pub(super) fn record_created(self, token_id: String) {
        self.settle(Some(State::Created(token_id)));
    }

    /// Nothing was created, so the same request may be sent again.
    pub(super) fn release(self) {
        self.settle(None);
    }

    pub(super) fn record_unknown(self, suspects: Vec<String>) {
        self.settle(Some(State::Unknown(suspects)));
    }

    fn settle(mut self, state: Option<State>) {
        self.is_settled = true;
        self.store_state(state);
    }

    fn store_state(&self, state: Option<State>) {
        let mut records = self.records.lock_records();
        match state {
            Some(state) => {
                if let Some(record) = records.get_mut(&self.name) {
                    record.state = state;
                }
            }
            None => drop(records.remove(&self.name)),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_settled {
            self.store_state(Some(State::Unknown(Vec::new())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(reserved: Result<Reservation, Problem>) -> (&'static str, Option<Box<str>>) {
        reserved.map_or_else(|problem| (problem.code.name(), problem.token_id), |_| ("reserved", None))
    }

    #[test]
    fn idempotency_key_is_remembered_for_ten_minutes() {
        let (records, now) = (Idempotency::default(), Instant::now());
        let reservation = records.reserve("/a", "n", b"x", now).unwrap();
        assert_eq!(code(records.reserve("/a", "n", b"x", now)).0, "request_in_progress");
        // A running request is never forgotten, however long it takes.
        assert_eq!(code(records.reserve("/a", "n", b"x", now + 2 * RETENTION)).0, "request_in_progress");
        reservation.record_created("apit_1".into());
        let late = now + RETENTION - Duration::from_millis(1);
        assert_eq!(code(records.reserve("/a", "n", b"x", late)), ("already_created", Some("apit_1".into())));
        assert_eq!(code(records.reserve("/a", "n", b"y", late)), ("idempotency_key_reused", None));
        assert_eq!(code(records.reserve("/b", "n", b"x", late)).0, "reserved");
        assert_eq!(code(records.reserve("/a", "m", b"x", late)).0, "reserved");
        assert_eq!(code(records.reserve("/a", "n", b"x", now + RETENTION)).0, "reserved");
    }

    #[test]
    fn only_released_reservation_may_be_repeated() {
        let (records, now) = (Idempotency::default(), Instant::now());
        records.reserve("/a", "n", b"x", now).unwrap().release();
        records.reserve("/a", "n", b"x", now).unwrap().record_unknown(vec!["apit_1".into()]);
        let problem = records.reserve("/a", "n", b"x", now).err().unwrap();
        assert_eq!((problem.code, problem.suspects), (Code::OutcomeUnknown, vec!["apit_1".to_owned()]));
        drop(records.reserve("/a", "dropped", b"x", now).unwrap());
        assert_eq!(code(records.reserve("/a", "dropped", b"x", now)).0, "outcome_unknown");
    }

    #[test]
    fn full_store_refuses_new_keys_keeps_old() {
        let (records, now) = (Idempotency::default(), Instant::now());
        for number in 0..MAX_RECORDS {
            records.reserve("/a", &number.to_string(), b"x", now).unwrap().record_created("apit_1".into());
        }
        assert_eq!(code(records.reserve("/a", "more", b"x", now)).0, "overloaded");
        assert_eq!(code(records.reserve("/a", "0", b"x", now)).0, "already_created");
        assert_eq!(code(records.reserve("/a", "more", b"x", now + RETENTION)).0, "reserved");
    }
}
