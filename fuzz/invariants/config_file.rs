//! A route file is read, or has problems: one line each, with a place that is in the file. Nothing that is said depends on
//! a secret, which is how none can be in it.
//!
//! Input: the file.

use std::ops::Range;

use keyward::config::{Environment, parse};
use toml::de::{DeTable, DeValue};

use super::NO_INPUT;

pub fn config_file(data: &[u8]) -> &'static str {
    let Ok(text) = std::str::from_utf8(data) else { return NO_INPUT };
    let (said, outcome) = read(text, "made-up-secret-one");
    let (of_another, _) = read(text, "made-up-secret-two");
    assert!(said == of_another, "what is said tells of the secret in the environment");
    for secret in secrets(text) {
        // The same length, and the same kinds of characters, so that no place in the file moves.
        let other: String = text[secret.clone()].chars().map(other).collect();
        let changed = format!("{}{other}{}", &text[..secret.start], &text[secret.end..]);
        let (of_another, _) = read(&changed, "made-up-secret-one");
        assert!(said == of_another, "what is said tells of a secret in the file:\n{said}\n{of_another}");
    }
    outcome
}

/// All that is ever said of a file.
fn read(text: &str, secret: &str) -> (String, &'static str) {
    let environment = Environment::of([
        ("SCALEKIT_ENVIRONMENT_URL", "https://acme.scalekit.com"),
        ("SCALEKIT_CLIENT_ID", "skc_1"),
        ("SCALEKIT_CLIENT_SECRET", secret),
    ]);
    match parse(text, "f", &environment) {
        Ok(config) => (format!("{config:?}"), "read"),
        Err(problems) => {
            check_places(text, &problems.to_string());
            (format!("{problems}\n{problems:?}"), "problems")
        }
    }
}

fn check_places(text: &str, problems: &str) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.split('\n').collect();
    let mut said = problems.split('\n');
    let count = said.next().and_then(|first| first.split(' ').nth(3)).and_then(|count| count.parse().ok());
    let said: Vec<&str> = said.collect();
    assert_eq!(count, Some(said.len()), "a problem is a line: {problems}");
    for problem in said {
        let place = problem.strip_prefix("  f:").unwrap_or_else(|| panic!("no file is named: {problem}"));
        if place.starts_with(' ') {
            continue;
        }
        let mut numbers = place.split(':').map(str::parse::<usize>);
        let (Some(Ok(line)), Some(Ok(column))) = (numbers.next(), numbers.next()) else {
            panic!("no place: {problem}")
        };
        let there = line.checked_sub(1).and_then(|before| lines.get(before));
        let there = there.unwrap_or_else(|| panic!("the file has {} lines: {problem}", lines.len()));
        assert!((1..=there.chars().count() + 1).contains(&column), "the line is {there:?}: {problem}");
    }
}

/// Where the values are of all that is named `client_secret`; by the look of lines, where the whole is not TOML.
fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    match DeTable::parse(text) {
        Ok(table) => in_table(table.get_ref(), &mut found),
        Err(_) => {
            for (at, name) in text.match_indices("client_secret = \"") {
                let start = at + name.len();
                let end = text[start..].find(['"', '\n']).map_or(text.len(), |length| start + length);
                found.push(start..end);
            }
        }
    }
    // An escape, changed, may be none.
    found.retain(|secret| !text[secret.clone()].contains('\\'));
    found.truncate(4);
    found
}

fn in_table(table: &DeTable<'_>, found: &mut Vec<Range<usize>>) {
    for (name, value) in table {
        match value.get_ref() {
            DeValue::String(_) if name.get_ref() == "client_secret" => found.push(value.span()),
            // A claim may have that name, and its value is none.
            DeValue::Table(_) if matches!(name.get_ref().as_ref(), "claims" | "claim_headers") => {}
            DeValue::Table(table) => in_table(table, found),
            DeValue::Array(items) => {
                let tables = items.iter().filter_map(|item| item.get_ref().as_table());
                tables.for_each(|table| in_table(table, found));
            }
            _ => {}
        }
    }
}

fn other(char: char) -> char {
    match char {
        'a' => 'b',
        'a'..='z' => 'a',
        'A' => 'B',
        'A'..='Z' => 'A',
        '0' => '1',
        '0'..='9' => '0',
        other => other,
    }
}
