//! `keyward shadow-report`: what routes in shadow mode would have refused, from the lines of the log.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Deserialize;

use crate::terminal;

pub(super) const HELP: &str = include_str!("help/shadow_report.txt").trim_ascii_end();

#[derive(Args)]
pub(super) struct ShadowReportArgs {
    /// Files with the log, as JSON; standard input by default
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print one JSON object per line: one for each reason and organization, and at last the totals
    #[arg(long)]
    json: bool,
}

/// A longer line is not one of the access log.
const MAX_LINE: u64 = 256 * 1024;
/// Clients and keys that are told apart for each reason and organization.
const MAX_DISTINCT: usize = 10_000;
/// Pairs of a reason and an organization that are told apart; further organizations are counted together.
const MAX_PAIRS: usize = 10_000;
const OTHERS: &str = "(others)";

/// The fields of a line that count here.
#[derive(Deserialize)]
struct Line<'l> {
    #[serde(borrow)]
    timestamp: Option<Cow<'l, str>>,
    #[serde(borrow, rename = "keyward.mode")]
    mode: Option<Cow<'l, str>>,
    #[serde(borrow, rename = "keyward.shadow.reason")]
    reason: Option<Cow<'l, str>>,
    #[serde(borrow, rename = "keyward.requirement.kind")]
    requirement: Option<Cow<'l, str>>,
    #[serde(borrow, rename = "keyward.requirement.name")]
    required: Option<Cow<'l, str>>,
    #[serde(borrow, rename = "keyward.org.id")]
    organization: Option<Cow<'l, str>>,
    #[serde(borrow, rename = "keyward.token.id")]
    token: Option<Cow<'l, str>>,
    #[serde(borrow, rename = "keyward.route")]
    route: Option<Cow<'l, str>>,
    #[serde(borrow, rename = "client.address")]
    client: Option<Cow<'l, str>>,
}

/// Requests with one reason and organization.
#[derive(Default)]
struct Group {
    requests: u64,
    routes: BTreeMap<String, u64>,
    keys: HashSet<String>,
    clients: HashMap<String, u64>,
}

#[derive(Default)]
struct Report {
    /// By reason and organization; no organization is known of a request without a valid key.
    groups: BTreeMap<(String, String), Group>,
    requests: u64,
    unreadable: u64,
    first: Option<String>,
    last: Option<String>,
}

pub(super) fn report_shadow(args: &ShadowReportArgs) -> Result<()> {
    let mut report = Report::default();
    if args.files.is_empty() {
        report.read(std::io::stdin().lock()).context("cannot read standard input")?;
    }
    for path in &args.files {
        let context = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(context)?;
        report.read(BufReader::new(file)).with_context(context)?;
    }
    ensure!(
        report.requests > 0,
        "no line is of a request on a route in shadow mode; the log must be JSON, with log.access = true"
    );
    let text = if args.json { report.format_json() } else { report.format_text() };
    super::write_stdout(&text)?;
    Ok(())
}

impl Report {
    fn read(&mut self, mut source: impl BufRead) -> std::io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if source.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            match serde_json::from_slice::<Line<'_>>(line.trim_ascii()) {
                Ok(fields) => self.add(&fields),
                Err(_) if line.trim_ascii().is_empty() => {}
                Err(_) => self.unreadable += 1,
            }
        }
    }

    fn add(&mut self, line: &Line<'_>) {
        if line.mode.as_deref() != Some("shadow") {
            return;
        }
        self.requests += 1;
        if let Some(time) = line.timestamp.as_deref() {
            if self.first.as_deref().is_none_or(|first| time < first) {
                self.first = Some(time.to_owned());
            }
            if self.last.as_deref().is_none_or(|last| time > last) {
                self.last = Some(time.to_owned());
            }
        }
        let Some(reason) = line.reason.as_deref() else { return };
        let described = match (&line.requirement, &line.required) {
            (Some(kind), Some(name)) => format!("{reason} ({kind} {name})"),
            _ => reason.to_owned(),
        };
        let organization = line.organization.as_deref().unwrap_or_default();
        let mut pair = (described, organization.to_owned());
        if self.groups.len() >= MAX_PAIRS && !self.groups.contains_key(&pair) {
            pair = (reason.to_owned(), OTHERS.to_owned());
        }
        let group = self.groups.entry(pair).or_default();
        group.requests += 1;
        *group.routes.entry(line.route.as_deref().unwrap_or_default().to_owned()).or_default() += 1;
        if let Some(key) = line.token.as_deref()
            && group.keys.len() < MAX_DISTINCT
        {
            group.keys.insert(key.to_owned());
        }
        if let Some(client) = line.client.as_deref()
            && (group.clients.len() < MAX_DISTINCT || group.clients.contains_key(client))
        {
            *group.clients.entry(client.to_owned()).or_default() += 1;
        }
    }

    fn refused(&self) -> u64 {
        self.groups.values().map(|group| group.requests).sum()
    }

    /// The groups, those with most requests first.
    fn sorted(&self) -> Vec<(&(String, String), &Group)> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.requests));
        groups
    }

    fn format_text(&self) -> String {
        let refused = self.refused();
        let mut text = format!(
            "{} requests on routes in shadow mode, from {} to {}.\n",
            self.requests,
            escape(self.first.as_deref().unwrap_or("?")),
            escape(self.last.as_deref().unwrap_or("?"))
        );
        let percent = refused as f64 * 100.0 / self.requests as f64;
        let _ = writeln!(text, "{refused} of them ({percent:.2} %) would have been refused.");
        if self.unreadable > 0 {
            let _ = writeln!(text, "{} lines are not JSON and were not counted.", self.unreadable);
        }
        if refused == 0 {
            return text;
        }
        let head = ["REASON", "ORGANIZATION", "REQUESTS", "KEYS", "CLIENTS", "MOST FROM", "ROUTES"];
        let mut rows = vec![head.map(str::to_owned)];
        for ((reason, organization), group) in self.sorted() {
            let routes: Vec<&str> = group.routes.keys().map(String::as_str).collect();
            rows.push([
                escape(reason),
                if organization.is_empty() { "-".to_owned() } else { escape(organization) },
                group.requests.to_string(),
                group.keys.len().to_string(),
                group.clients.len().to_string(),
                group.busiest_client().map_or_else(|| "-".to_owned(), escape),
                escape(routes.join(" ")),
            ]);
        }
        let widths: Vec<usize> = (0..head.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        text.push('\n');
        for row in &rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        }
        text
    }

    fn format_json(&self) -> String {
        let mut text = String::new();
        for ((reason, organization), group) in self.sorted() {
            let organization = (!organization.is_empty()).then_some(organization);
            let row = serde_json::json!({
                "reason": reason,
                "organization_id": organization,
                "requests": group.requests,
                "keys": group.keys.len(),
                "clients": group.clients.len(),
                "most_from": group.busiest_client(),
                "routes": group.routes,
            });
            let _ = writeln!(text, "{row}");
        }
        let totals = serde_json::json!({
            "requests": self.requests,
            "refused": self.refused(),
            "unreadable_lines": self.unreadable,
            "first": self.first,
            "last": self.last,
        });
        let _ = writeln!(text, "{totals}");
        text
    }
}

impl Group {
    fn busiest_client(&self) -> Option<&str> {
        let busiest = self.clients.iter().max_by_key(|(client, requests)| (**requests, *client));
        busiest.map(|(client, _)| client.as_str())
    }
}

/// SECURITY: a log can have control characters, which a terminal would obey.
fn escape(text: impl AsRef<str>) -> String {
    terminal::escape_controls(text.as_ref(), &[]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(log: &str) -> Report {
        let mut report = Report::default();
        report.read(log.as_bytes()).unwrap();
        report
    }

    const LOG: &str = r#"{"timestamp":"2026-11-24T01:00:00Z","keyward.mode":"shadow","keyward.route":"/*","client.address":"192.0.2.1","keyward.org.id":"org_1"}
{"timestamp":"2026-11-24T03:00:00Z","keyward.mode":"shadow","keyward.route":"/*","client.address":"192.0.2.1","keyward.shadow.reason":"missing_credential"}
{"timestamp":"2026-11-24T02:00:00Z","keyward.mode":"shadow","keyward.route":"/a/*","client.address":"192.0.2.2","keyward.shadow.reason":"missing_credential"}
{"timestamp":"2026-11-24T02:00:00Z","keyward.mode":"shadow","keyward.route":"/*","client.address":"192.0.2.2","keyward.shadow.reason":"missing_credential"}
{"timestamp":"2026-11-24T02:00:00Z","keyward.mode":"shadow","keyward.route":"/*","keyward.shadow.reason":"not_permitted","keyward.requirement.kind":"role","keyward.requirement.name":"admin\u001b[2J","keyward.org.id":"org_1","keyward.token.id":"apit_1"}
{"timestamp":"2026-11-24T09:00:00Z","keyward.route":"/*","keyward.reason":"invalid_key"}

reloaded
"#;

    #[test]
    fn report_groups_refusals_by_reason_and_organization() {
        let text = report(LOG).format_text();
        assert!(text.starts_with("5 requests on routes in shadow mode, from 2026-11-24T01:00:00Z to 2026-11-24T03:00:00Z.\n4 of them (80.00 %)"), "{text}");
        let rows: Vec<String> =
            text.lines().skip(5).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows[0], "missing_credential - 3 0 2 192.0.2.2 /* /a/*", "{text}");
        assert!(
            rows[1].starts_with("not_permitted (role admin") && rows[1].contains("org_1 1 1 0 - /*"),
            "{text}"
        );
        assert!(text.contains("1 lines are not JSON") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn organizations_beyond_limit_are_counted_together() {
        let line = |number| {
            format!(
                "{{\"keyward.mode\":\"shadow\",\"keyward.shadow.reason\":\"rate_limited\",\"keyward.org.id\":\"org_{number}\"}}\n"
            )
        };
        let report = report(&(0..MAX_PAIRS + 5).map(line).collect::<String>());
        assert_eq!((report.groups.len(), report.refused()), (MAX_PAIRS + 1, MAX_PAIRS as u64 + 5));
    }

    #[test]
    fn report_as_json_ends_with_totals() {
        let json = report(LOG).format_json();
        let rows: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((rows.len(), &rows[0]["routes"]["/a/*"]), (3, &1.into()));
        assert_eq!((&rows[2]["requests"], &rows[2]["refused"]), (&5.into(), &4.into()));
    }
}
