//! The requests of organizations by day (UTC), of a bounded number of organizations and days.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{CLASSES, End, Settings, class_index, to_timestamp};
use crate::metrics::{self, Metrics};

/// An organization on one day, in bytes.
pub const ROW_BYTES: usize = 256;

/// Days since 1970.
pub type Day = u64;

const DAY_MILLIS: u64 = 86_400_000;
/// The outcomes of requests, as the access log names them.
const OUTCOMES: [&str; 3] = ["allow", "deny", "error"];
/// In place of an organization: those beyond the limit, together. No id is empty.
const OTHERS: &str = "";
/// The same in metrics.
const OTHERS_LABEL: &str = "other";

pub(super) struct Organizations {
    tables: Mutex<Tables>,
    max_organizations: usize,
    max_days: usize,
    metrics_organizations: Option<usize>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Tables {
    days: BTreeMap<Day, HashMap<Arc<str>, Arc<Row>>>,
    /// The organizations that have metrics of their own.
    labels: HashSet<Arc<str>>,
}

/// The requests of an organization on one day.
pub(super) struct Row {
    organization: Arc<str>,
    pub(super) day: Day,
    classes: [AtomicU64; CLASSES.len()],
    outcomes: [AtomicU64; OUTCOMES.len()],
    counters: Option<[Counter; CLASSES.len()]>,
}

/// A row in the file. The counts are in the order of `CLASSES` and `OUTCOMES`.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedRow {
    organization: Option<String>,
    day: Day,
    classes: [u64; CLASSES.len()],
    outcomes: [u64; OUTCOMES.len()],
}

impl Organizations {
    pub(super) fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        Self {
            tables: Mutex::default(),
            max_organizations: settings.max_organizations,
            max_days: settings.days,
            metrics_organizations: settings.metrics_organizations,
            metrics,
        }
    }

    /// The row of an organization, or of all those beyond the limit.
    pub(super) fn row(&self, day: Day, organization: &str) -> Arc<Row> {
        let mut tables = self.lock();
        let Tables { days, labels } = &mut *tables;
        let rows = days.entry(day).or_default();
        let found = rows.get(organization).or_else(|| {
            let is_full = rows.len() >= self.max_organizations;
            rows.get(OTHERS).filter(|_| is_full)
        });
        let row = match found {
            Some(row) => Arc::clone(row),
            None => {
                let organization = if rows.len() >= self.max_organizations { OTHERS } else { organization };
                let organization: Arc<str> = organization.into();
                let counters = self.counters_of(&organization, labels);
                let row = Arc::new(Row::new(Arc::clone(&organization), day, counters));
                rows.insert(organization, Arc::clone(&row));
                row
            }
        };
        self.drop_old_days(days);
        row
    }

    /// Those of the organization, or of all others, if metrics are on.
    fn counters_of(
        &self,
        organization: &Arc<str>,
        labels: &mut HashSet<Arc<str>>,
    ) -> Option<[Counter; CLASSES.len()]> {
        let max = self.metrics_organizations?;
        let is_labelled = !organization.is_empty()
            && (labels.contains(organization)
                || labels.len() < max && labels.insert(Arc::clone(organization)));
        let label = if is_labelled { Arc::clone(organization) } else { OTHERS_LABEL.into() };
        Some(CLASSES.map(|class| {
            let labels = metrics::OrganizationClass { organization: Arc::clone(&label), class };
            self.metrics.organization_requests.get_or_create(&labels).clone()
        }))
    }

    fn drop_old_days(&self, days: &mut BTreeMap<Day, HashMap<Arc<str>, Arc<Row>>>) {
        while days.len() > self.max_days {
            days.pop_first();
        }
    }

    /// The rows of these days, by day and organization.
    pub(super) fn list(&self, from: Day, to: Day) -> Vec<Arc<Row>> {
        let tables = self.lock();
        let days = if from <= to { Some(tables.days.range(from..=to)) } else { None };
        let rows = days.into_iter().flatten().flat_map(|(_, rows)| rows.values());
        let mut rows: Vec<_> = rows.cloned().collect();
        drop(tables);
        // Those beyond the limit last.
        rows.sort_by(|a, b| {
            let key = |row: &Row| (row.day, row.organization.is_empty());
            key(a).cmp(&key(b)).then_with(|| a.organization.cmp(&b.organization))
        });
        rows
    }

    pub(super) fn restore(&self, saved: Vec<SavedRow>) {
        for saved in saved {
            let row = self.row(saved.day, saved.organization.as_deref().unwrap_or(OTHERS));
            for (count, saved) in row.classes.iter().zip(saved.classes) {
                count.fetch_add(saved, Ordering::Relaxed);
            }
            for (count, saved) in row.outcomes.iter().zip(saved.outcomes) {
                count.fetch_add(saved, Ordering::Relaxed);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn new(organization: Arc<str>, day: Day, counters: Option<[Counter; CLASSES.len()]>) -> Self {
        Self { organization, day, classes: Default::default(), outcomes: Default::default(), counters }
    }

    pub(super) fn count(&self, end: End) {
        let class = class_index(end.status);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        let outcome = OUTCOMES.iter().position(|outcome| *outcome == end.outcome);
        self.outcomes[outcome.unwrap_or(OUTCOMES.len() - 1)].fetch_add(1, Ordering::Relaxed);
        if let Some(counters) = &self.counters {
            counters[class].inc();
        }
    }

    /// The row as `/v1/usage` shows it. A request that ends meanwhile may be in one of the counts only.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let saved = self.to_saved();
        let requests: u64 = saved.classes.iter().sum();
        let named = |names: &[&str], counts: &[u64]| {
            names.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), json!(count))).collect()
        };
        let classes: serde_json::Map<_, _> = named(&CLASSES, &saved.classes);
        let outcomes: serde_json::Map<_, _> = named(&OUTCOMES, &saved.outcomes);
        json!({
            "day": format_day(self.day),
            "organization_id": saved.organization,
            "requests": requests,
            "by_status": classes,
            "by_outcome": outcomes,
        })
    }

    pub(super) fn to_saved(&self) -> SavedRow {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SavedRow {
            organization: Some(self.organization.to_string()).filter(|organization| organization != OTHERS),
            day: self.day,
            classes: self.classes.each_ref().map(load),
            outcomes: self.outcomes.each_ref().map(load),
        }
    }
}

pub(super) fn day_of(millis: u64) -> Day {
    millis / DAY_MILLIS
}

/// Parses a day such as `2026-11-25`.
pub fn parse_day(text: &str) -> Option<Day> {
    // jiff also takes other forms.
    let date: Date = text.parse().ok().filter(|date: &Date| date.to_string() == text)?;
    let midnight = TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
    u64::try_from(midnight.as_millisecond()).ok().map(day_of)
}

fn format_day(day: Day) -> String {
    TimeZone::UTC.to_datetime(to_timestamp(day.saturating_mul(DAY_MILLIS))).date().to_string()
}
