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
    match DeTable::parse(text) {
        Ok(table) => {
            let mut secrets = Vec::new();
            in_table(table.get_ref(), &mut secrets);
            secrets.retain(|secret| !text[secret.clone()].contains('\\'));
            for secret in secrets.into_iter().take(4) {
                // As long, and of the same kinds of characters: no place in the file moves. An escape would be another.
                let other: String = text[secret.clone()].chars().map(other).collect();
                let (of_another, _) = read(&replaced(text, secret, &other), "made-up-secret-one");
                assert!(
                    said == of_another,
                    "what is said tells of a secret in the file:\n{said}\n{of_another}"
                );
            }
        }
        // What is a value then is a guess, and another may be another mistake.
        Err(_) => {
            for secret in in_lines(text).into_iter().take(4) {
                let changed = replaced(text, secret, MADE_UP);
                let (said, _) = read(&changed, "made-up-secret-one");
                let none = !said.contains(MADE_UP) || DeTable::parse(&changed).is_ok();
                assert!(none, "what is said has a secret of the file in it:\n{said}");
            }
        }
    }
    outcome
}

/// All that is ever said of a file.
fn read(text: &str, secret: &str) -> (String, &'static str) {
    let environment = Environment::from_pairs([
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

/// A secret that is none, and that no message has in it by itself.
const MADE_UP: &str = "zq7made0up7zq";

fn replaced(text: &str, place: Range<usize>, with: &str) -> String {
    format!("{}{with}{}", &text[..place.start], &text[place.end..])
}

/// Where there seems to be a value of `client_secret`, between quotes.
fn in_lines(text: &str) -> Vec<Range<usize>> {
    let value = |(at, name): (usize, &str)| {
        let start = at + name.len();
        let length = text[start..].find(['"', '\n']).unwrap_or(text.len() - start);
        start..start + length
    };
    text.match_indices("\nclient_secret = \"").map(value).collect()
}

/// Where the values are of all that is named `client_secret`.
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
