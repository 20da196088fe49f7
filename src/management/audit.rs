//! The audit log: which client requested what, and with which outcome; never a key. A change that is interrupted, by a shutdown or
//! a panic, is logged too.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::problem::{Code, Problem};
use super::request::Call;
use super::{Outcome, TokenId};
use crate::logging::output::{AUDIT, AuditSlot};
use crate::metrics::{self, Metrics};

/// Requests that were refused before their operation was known share one line per interval, so that they cannot crowd out the
/// lines of others.
const REFUSED_LINE_INTERVAL: Duration = Duration::from_millis(100);
/// How many such lines may be written in a burst.
const REFUSED_LINE_BURST: u32 = 10;

pub(super) struct Audit {
    metrics: Arc<Metrics>,
    refused: Mutex<RefusedLines>,
}

#[derive(Default)]
struct RefusedLines {
    /// A token bucket in virtual time: each line moves this ahead by one interval.
    paid_until: Option<Instant>,
    unwritten: u64,
}

/// The audit line of one request. It is written and counted on drop, so that an interrupted request has one, too.
pub(super) struct AuditEntry<'a> {
    audit: &'a Audit,
    client: String,
    operation: &'static str,
    organization: Option<String>,
    token_id: Option<String>,
    new_token_id: Option<String>,
    /// Ids of keys that may have been created by this request, separated by spaces.
    possible: String,
    outcome: &'static str,
    /// Only for failures that are not the client's fault.
    reason: Option<String>,
    slot: Option<AuditSlot>,
}

impl Audit {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, refused: Mutex::default() }
    }

    /// Counts a request that was refused because the log had no room for its line.
    pub(super) fn count_refusal_without_line(&self) {
        let labels = metrics::Management { operation: "none", outcome: Code::Overloaded.name() };
        self.metrics.management.get_or_create(&labels).inc();
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).unwritten += 1;
    }

    pub(super) fn begin_entry(&self, client: String, slot: AuditSlot) -> AuditEntry<'_> {
        AuditEntry {
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

impl AuditEntry<'_> {
    pub(super) fn set_call(&mut self, call: &Call) {
        self.operation = call.operation.name();
        self.organization = Some(call.organization.clone()).filter(|organization| !organization.is_empty());
        self.token_id = call.operation.token_id().map(TokenId::to_string);
    }

    pub(super) fn set_outcome(&mut self, outcome: &Result<Outcome, Problem>) {
        match outcome {
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

impl Drop for AuditEntry<'_> {
    fn drop(&mut self) {
        let Self { operation, outcome, .. } = *self;
        self.audit.metrics.management.get_or_create(&metrics::Management { operation, outcome }).inc();
        let is_read_only = matches!(operation, "list" | "show" | "usage");
        if is_read_only && outcome == "done" {
            return;
        }
        let mut refused = self.audit.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if operation == "none" {
            let now = Instant::now();
            let paid_until = refused.paid_until.map_or(now, |until| until.max(now)) + REFUSED_LINE_INTERVAL;
            if paid_until > now + REFUSED_LINE_INTERVAL * REFUSED_LINE_BURST {
                refused.unwritten += 1;
                return;
            }
            refused.paid_until = Some(paid_until);
        }
        let unwritten = Some(std::mem::take(&mut refused.unwritten)).filter(|count| *count > 0);
        drop(refused);
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
