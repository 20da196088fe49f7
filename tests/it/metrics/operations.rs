//! Alert rules, their runbook and the dashboard agree with what Keyward serves. promtool checks the syntax where it is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::reference::documented_values;
use super::{Family, parse_labels, read, serve_all_families};

const ALERTS: &str = "deploy/prometheus/alerts.yaml";
const DASHBOARD: &str = "deploy/grafana/keyward.json";

/// The metrics that a text names, each with the text of its selector.
fn named_metrics(text: &str) -> Vec<(&str, &str)> {
    let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let mut named = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(|char: char| char.is_ascii_alphabetic()) {
        rest = &rest[start..];
        let end = rest.find(|char| !is_name(char)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.starts_with("keyward_") || name.starts_with("process_") {
            let selector = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            named.push((name, selector.map_or("", |(selector, _)| selector)));
        }
        rest = after;
    }
    named
}

/// Checks names and labels of PromQL against what is served.
#[track_caller]
fn check_names(text: &str, families: &BTreeMap<String, Family>) -> usize {
    let (named, page) = (named_metrics(text), read("docs/metrics.md"));
    for (name, selector) in &named {
        let family = families.iter().find(|(_, family)| family.samples.contains(*name));
        let (family_name, family) = family.unwrap_or_else(|| panic!("{name} does not exist: {text}"));
        for (label, values) in
            parse_labels(&selector.replace("=~", "=").replace("!~", "=").replace("!=", "="))
        {
            let is_known = ["job", "instance"].contains(&&*label) || family.labels().contains(&*label);
            assert!(
                is_known || (label == "le" && name.ends_with("_bucket")),
                "{name} has no {label}: {text}"
            );
            if ["outcome", "reason", "class", "kind"].contains(&&*label) {
                let documented = documented_values(&page, family_name, &label);
                for value in values.split('|') {
                    assert!(documented.contains(value), "{label} of {name} is never {value}: {text}");
                }
            }
        }
    }
    named.len()
}

/// Every text of this key, at any depth.
fn texts<'v>(value: &'v Value, key: &str) -> Vec<&'v str> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| match value {
                Value::String(text) if name == key => vec![text.as_str()],
                _ => texts(value, key),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(|item| texts(item, key)).collect(),
        _ => Vec::new(),
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap()
}

/// The names of the alerts.
fn alerts(rules: &str) -> Vec<&str> {
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

#[tokio::test]
async fn alerts_and_dashboard_name_existing_metrics() {
    let families = serve_all_families().await;
    assert!(check_names(&read(ALERTS), &families) > 20);
    assert!(check_names(&read("deploy/prometheus/alerts_test.yaml"), &families) > 20);
    let dashboard = dashboard();
    let queries = [texts(&dashboard, "expr"), texts(&dashboard, "definition")].concat();
    let found: usize = queries.iter().map(|query| check_names(query, &families)).sum();
    assert!(found > 40, "{found}");
}

#[test]
fn each_alert_has_test_and_runbook_entry() {
    let (rules, tests, runbook) =
        (read(ALERTS), read("deploy/prometheus/alerts_test.yaml"), read("docs/operations.md"));
    let alerts = alerts(&rules);
    for alert in &alerts {
        assert!(
            tests.contains(&format!("alertname=\"{alert}\", alertstate=\"firing\"")),
            "{alert} has no test"
        );
        assert!(
            rules.contains(&format!("runbook: docs/operations.md#{}\n", alert.to_lowercase())),
            "{alert}"
        );
        assert!(runbook.contains(&format!("\n### {alert}\n")), "{alert} has no runbook entry");
    }
    let entries: Vec<&str> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("### ").filter(|name| name.starts_with("Keyward")))
        .collect();
    assert_eq!(entries, alerts, "in the same order, and none without a rule");
}

/// Runs promtool in this folder; `None` if it is not installed.
fn promtool(folder: &Path, arguments: &[&str]) -> Option<(bool, String)> {
    let Ok(output) = Command::new("promtool").args(arguments).current_dir(folder).output() else {
        eprintln!("skipped: there is no promtool here (.ci/install-tools installs it)");
        return None;
    };
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn promtool_accepts_alert_rules_and_their_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        let Some((is_accepted, said)) = promtool(&folder, &arguments) else { return };
        assert!(is_accepted, "{said}");
    }
}

#[test]
fn promtool_accepts_queries_of_dashboard() {
    let dashboard = dashboard();
    let rules = texts(&dashboard, "expr").into_iter().enumerate().map(|(number, query)| {
        let query = query.replace("$__rate_interval", "5m");
        serde_json::json!({"record": format!("query_{number}"), "expr": query})
    });
    // JSON is YAML.
    let rules = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    let folder = crate::support::tls::Folder::new();
    folder.write("rules.yaml", &rules.to_string());
    let folder = folder.file("");
    let Some((is_accepted, said)) = promtool(&folder, &["check", "rules", "rules.yaml"]) else { return };
    assert!(is_accepted, "{said}");
}

#[test]
fn dashboard_can_be_imported_with_any_datasource() {
    let dashboard = dashboard();
    assert_eq!((&dashboard["id"], &dashboard["uid"]), (&Value::Null, &"keyward".into()));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!((&variables[0]["name"], &variables[0]["type"]), (&"datasource".into(), &"datasource".into()));
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 20);
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let [x, y, width, height] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + width <= 24, "{panel}");
        for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{} lies over another panel", panel["title"]);
        }
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && !panel["title"].as_str().unwrap().is_empty(), "{panel}");
        for part in targets.iter().chain([panel]) {
            assert_eq!(part["datasource"], serde_json::json!({"type": "prometheus", "uid": "${datasource}"}));
        }
    }
}
