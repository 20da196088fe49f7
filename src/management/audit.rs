//! The record of what was asked for, by whom, and what became of it; never a key. A change that is cut in the middle, by the end
//! of the process or by a defect, is recorded too.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::problem::{Code, Problem};
use super::request::Call;
use super::{Done, TokenId};
use crate::access_log::output::{AUDIT, AuditSlot};
use crate::metrics::{self, Metrics};

/// Those who were not let in share this many lines: they must not push out the others'.
const STRANGERS_EVERY: Duration = Duration::from_millis(100);
/// And may have this many of them at once.
const STRANGERS_AT_ONCE: u32 = 10;

/// Counts everything.
pub(super) struct Audit {
    metrics: Arc<Metrics>,
    strangers: Mutex<Strangers>,
}

#[derive(Default)]
struct Strangers {
    /// Until when the lines that were written are paid for.
    paid: Option<Instant>,
    unwritten: u64,
}

/// What is known of a request. Dropped, it is written and counted.
pub(super) struct Entry<'a> {
    audit: &'a Audit,
    client: String,
    operation: &'static str,
    organization: Option<String>,
    /// The key that it is about.
    token_id: Option<String>,
    /// The key that it made.
    new_token_id: Option<String>,
    /// Keys that it may have made.
    possible: String,
    outcome: &'static str,
    /// Where it is not the caller's fault.
    reason: Option<String>,
    /// The room for the line.
    slot: Option<AuditSlot>,
}

impl Audit {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, strangers: Mutex::default() }
    }

    /// Nothing is looked at, as no line could be written of it.
    pub(super) fn count_refusal_without_line(&self) {
        let labels = metrics::Management { operation: "none", outcome: Code::Overloaded.name() };
        self.metrics.management.get_or_create(&labels).inc();
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner).unwritten += 1;
    }

    /// Somebody asks for something, and there is room for a line of it.
    pub(super) fn begin(&self, client: String, slot: AuditSlot) -> Entry<'_> {
        Entry {
            audit: self,
            client,
            operation: "none",
            organization: None,
            token_id: None,
            new_token_id: None,
            possible: String::new(),
            outcome: "cut",
            reason: None,
            slot: Some(slot),
        }
    }
}

impl Entry<'_> {
    /// It is known what is asked for.
    pub(super) fn asked(&mut self, call: &Call) {
        self.operation = call.operation.name();
        self.organization = Some(call.organization.clone());
        self.token_id = call.operation.token_id().map(TokenId::to_string);
    }

    /// It is known what became of it.
    pub(super) fn ended(&mut self, done: &Result<Done, Problem>) {
        match done {
            Ok(done) => {
                self.outcome = "done";
                self.new_token_id = done.token_id.as_deref().map(str::to_owned);
                self.reason.clone_from(&done.warning);
            }
            Err(problem) => {
                self.outcome = problem.code.name();
                self.new_token_id = problem.token_id.as_deref().map(str::to_owned);
                self.possible = problem.suspects.join(" ");
                self.reason = problem.status.is_server_error().then(|| problem.detail.clone());
            }
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let Self { operation, outcome, .. } = *self;
        self.audit.metrics.management.get_or_create(&metrics::Management { operation, outcome }).inc();
        let is_reading = matches!(operation, "list" | "show");
        if is_reading && outcome == "done" {
            return;
        }
        let mut strangers = self.audit.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if operation == "none" {
            let now = Instant::now();
            let paid = strangers.paid.map_or(now, |paid| paid.max(now)) + STRANGERS_EVERY;
            if paid > now + STRANGERS_EVERY * STRANGERS_AT_ONCE {
                strangers.unwritten += 1;
                return;
            }
            strangers.paid = Some(paid);
        }
        let unwritten = Some(std::mem::take(&mut strangers.unwritten)).filter(|count| *count > 0);
        drop(strangers);
        tracing::event!(
            target: AUDIT,
            tracing::Level::INFO,
            keyward.audit.client = self.client,
            keyward.audit.action = operation,
            keyward.audit.outcome = outcome,
            keyward.audit.reason = self.reason,
            keyward.audit.unwritten = unwritten,
            keyward.org.id = self.organization,
            keyward.token.id = self.token_id,
            keyward.new_token.id = self.new_token_id,
            keyward.possible_token.ids = Some(self.possible.as_str()).filter(|ids| !ids.is_empty()),
            "key management"
        );
        if let Some(slot) = self.slot.take() {
            slot.spend();
        }
    }
}
