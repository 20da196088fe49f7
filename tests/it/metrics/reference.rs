//! `docs/metrics.md` and what is served are the same.

use std::collections::{BTreeMap, BTreeSet};

use keyward::metrics::Metrics;

use super::{read, serve_all_families};

/// The texts in backticks.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The rows of tables with this many columns, as cells.
fn rows(text: &str, columns: usize) -> Vec<Vec<&str>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'))
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == columns && !cells[0].starts_with("---"))
        .collect()
}

#[tokio::test]
async fn every_metric_is_documented_with_its_labels() {
    let (page, families) = (read("docs/metrics.md"), serve_all_families().await);
    let own = families.keys().filter(|name| name.starts_with("keyward_")).count();
    assert_eq!(own, Metrics::FAMILIES, "a family has no series here: {:?}", families.keys());
    let documented: BTreeMap<&str, (&str, BTreeSet<&str>)> = rows(&page, 5)
        .into_iter()
        .filter(|row| row[0] != "name")
        .map(|row| {
            assert!(!row[3].is_empty() && !row[4].is_empty(), "{row:?}");
            (row[0].trim_matches('`'), (row[1], quoted(row[2])))
        })
        .collect();
    let served =
        families.iter().map(|(name, family)| (name.as_str(), (family.kind.as_str(), family.labels())));
    for (name, served) in served {
        assert_eq!(documented.get(name), Some(&served), "{name}");
    }
    for name in documented.keys() {
        assert!(families.contains_key(*name), "{name} is not served");
    }
}

/// The documented values of a label of a family.
pub(super) fn documented_values<'p>(page: &'p str, family: &str, label: &str) -> BTreeSet<&'p str> {
    match label {
        "outcome" => {
            let row = rows(page, 2).into_iter().find(|row| row[0].trim_matches('`') == family);
            quoted(row.unwrap_or_else(|| panic!("no outcomes of {family}"))[1])
        }
        "reason" => {
            let (_, table) = page.split_once("| `reason` |").unwrap();
            let (table, _) = table.split_once("\n\n").unwrap();
            rows(table, 2).into_iter().flat_map(|row| quoted(row[0])).chain([""]).collect()
        }
        _ => {
            let row = rows(page, 2).into_iter().find(|row| row[0].trim_matches('`') == label);
            quoted(row.unwrap_or_else(|| panic!("no values of {label}"))[1])
        }
    }
}

#[tokio::test]
async fn served_label_values_are_documented() {
    let (page, families) = (read("docs/metrics.md"), serve_all_families().await);
    for (name, family) in &families {
        for (label, value) in family.series.iter().flatten() {
            if !["route", "code", "limit", "organization", "version"].contains(&label.as_str()) {
                assert!(documented_values(&page, name, label).contains(&**value), "{name} {label}={value}");
            }
        }
    }
}

#[test]
fn every_rejection_code_is_documented_as_reason() {
    let (page, table) = (read("docs/metrics.md"), read("src/rejection.rs"));
    let codes =
        table.lines().filter(|line| line.contains("=> row(Http::")).filter_map(|line| line.split('"').nth(1));
    let codes: BTreeSet<&str> = codes.collect();
    assert!(codes.len() > 15, "{codes:?}");
    let reasons = documented_values(&page, "", "reason");
    for code in codes.iter().filter(|code| **code != "not_permitted") {
        assert!(reasons.contains(code), "{code}");
    }
}

#[test]
fn documented_label_values_exist_in_source() {
    let page = read("docs/metrics.md");
    let mut source = String::new();
    let mut folders = vec!["src".into(), "crates/scalekit/src".into()];
    while let Some(folder) = folders.pop() {
        let folder: std::path::PathBuf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => folders.push(entry),
                false => source.push_str(&std::fs::read_to_string(entry).unwrap()),
            }
        }
    }
    let outcomes =
        ["keyward_validations_total", "keyward_streams_closed_total", "keyward_connection_errors_total"];
    let values = outcomes.iter().flat_map(|family| documented_values(&page, family, "outcome"));
    let labels = ["reason", "class", "kind", "listener", "operation", "method"];
    for value in values.chain(labels.iter().flat_map(|label| documented_values(&page, "", label))) {
        assert!(value == "code" || source.contains(&format!("\"{value}\"")), "{value} is invented");
    }
}
