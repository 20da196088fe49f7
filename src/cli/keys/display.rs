//! Keys as text for people. Text that others wrote is escaped for a terminal first.

use std::fmt::Write as _;

use ::scalekit::token::{Claims, Token, TokenUpdate};
use jiff::Timestamp;

use super::usage::SeenKey;
use crate::terminal;

/// SECURITY: anybody may have written descriptions and claims. Escape sequences must not reach the terminal, and a line break must
/// not forge a row.
pub(super) fn escape_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if terminal::is_terminal_control(char) {
            out.extend(char.escape_unicode());
        } else {
            out.push(char);
        }
    }
    out
}

/// SECURITY: JSON escapes control characters below U+0020 only; terminals obey others, too.
pub(super) fn escape_json(json: &str) -> String {
    terminal::escape_controls(json, &[]).into_owned()
}

/// Escapes a cell and cuts it at the width of a column.
fn format_cell(text: &str) -> String {
    const MAX_WIDTH: usize = 40;
    let text = escape_text(text);
    match text.char_indices().nth(MAX_WIDTH) {
        None => text,
        Some(_) => text.chars().take(MAX_WIDTH - 1).chain(['…']).collect(),
    }
}

/// `org_1, user usr_1`.
pub(super) fn format_scope(organization: &str, user: Option<&str>) -> String {
    let user = user.map_or_else(String::new, |user| format!(", user {}", escape_text(user)));
    format!("{}{user}", escape_text(organization))
}

/// `in 90 days`, `never`.
pub(super) fn format_expiry(expiry: Option<Timestamp>, now: Timestamp) -> String {
    let Some(expiry) = expiry else { return "never".to_owned() };
    let seconds = expiry.as_second() - now.as_second();
    if seconds <= 0 {
        return "expired".to_owned();
    }
    format!("in {}", format_time(seconds))
}

/// `90 days`. Less than a second, also below zero, is `0 seconds`.
fn format_time(seconds: i64) -> String {
    let seconds = seconds.max(0);
    // A unit is used from two of it on (months from four), so that rounding stays below half of the value.
    let units =
        [("year", 365 * 86_400), ("month", 30 * 86_400), ("day", 86_400), ("hour", 3600), ("minute", 60)];
    let unit =
        units.into_iter().find(|(name, length)| seconds >= *length * if *name == "month" { 4 } else { 2 });
    // Rounded, so that a key created for 90 days does not show 89 a moment later.
    let (name, count) =
        unit.map_or(("second", seconds), |(name, length)| (name, (seconds + length / 2) / length));
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

fn format_date(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%d").to_string()
}

pub(super) fn expiry_sentence(expiry: Option<Timestamp>, now: Timestamp) -> String {
    match expiry {
        Some(expiry) => format!("It expires {}, on {expiry}.", format_expiry(Some(expiry), now)),
        None => "It never expires.".to_owned(),
    }
}

fn format_claims(claims: &Claims) -> String {
    claims.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// A table whose rows arrive page by page.
pub(super) struct Table {
    widths: Vec<usize>,
    now: Timestamp,
    has_header: bool,
}

const COLUMNS: [&str; 7] = ["ID", "SUFFIX", "USER", "DESCRIPTION", "CREATED", "EXPIRES", "CLAIMS"];
/// Where the use of keys is known. They stand before the claims, whose width varies most.
const USAGE_COLUMNS: [&str; 2] = ["LAST USED", "REQUESTS"];

impl Table {
    /// With the columns of the use of keys, or without.
    pub(super) fn new(now: Timestamp, has_usage: bool) -> Self {
        let count = COLUMNS.len() + if has_usage { USAGE_COLUMNS.len() } else { 0 };
        Self { widths: vec![0; count], now, has_header: false }
    }

    /// Columns never get narrower than on the pages before, so that rows stay aligned. `usage` has that of each key, or is empty.
    pub(super) fn format_page(&mut self, tokens: &[Token], usage: &[SeenKey]) -> String {
        let mut rows = Vec::new();
        if !self.has_header {
            self.has_header = true;
            let mut header: Vec<String> = COLUMNS.map(str::to_owned).into();
            if self.widths.len() > COLUMNS.len() {
                header.splice(COLUMNS.len() - 1..COLUMNS.len() - 1, USAGE_COLUMNS.map(str::to_owned));
            }
            rows.push(header);
        }
        rows.extend(tokens.iter().enumerate().map(|(index, token)| self.to_cells(token, usage.get(index))));
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        rows.iter().for_each(|row| self.push_line(&mut text, row));
        text
    }

    fn to_cells(&self, token: &Token, usage: Option<&SeenKey>) -> Vec<String> {
        let text = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), format_cell);
        let mut cells = vec![
            escape_text(&token.token_id),
            text(&token.token_suffix),
            text(&token.user_id),
            text(&token.description),
            token.created_at.map_or_else(|| "-".to_owned(), format_date),
            format_expiry(token.expiry, self.now),
        ];
        if let Some(usage) = usage {
            cells.push(format_last_use(usage, self.now));
            cells.push(usage.usage.as_ref().map_or(0, |usage| usage.requests).to_string());
        }
        cells.push(format_cell(&format_claims(&token.custom_claims)));
        cells
    }

    fn push_line(&self, text: &mut String, cells: &[String]) {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&self.widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// `3 hours ago`, `now`, or since when it was not used.
fn format_last_use(seen: &SeenKey, now: Timestamp) -> String {
    match &seen.usage {
        Some(usage) if usage.open_requests > 0 => "now".to_owned(),
        Some(usage) => format!("{} ago", format_time(now.as_second() - usage.last_used.as_second())),
        None => format!("not in {}", format_time(now.as_second() - seen.complete_since.as_second())),
    }
}

/// What is known of the use of a key, a line each.
pub(super) fn describe_usage(seen: &SeenKey, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:13} {value}");
    };
    let last = format_last_use(seen, now);
    match &seen.usage {
        None => line("last used", format!("{last} (counted since {:.0})", seen.complete_since)),
        Some(usage) => {
            line("last used", format!("{last} ({:.0})", usage.last_used));
            line("  route", escape_text(&usage.last_route));
            usage.last_network.iter().for_each(|network| line("  from", network.to_string()));
            usage.last_status.iter().for_each(|status| line("  status", escape_text(status)));
            line("first used", format!("{:.0}", usage.first_used));
            let open = match usage.open_requests {
                0 => String::new(),
                open => format!(", and {open} in progress"),
            };
            line("requests", format!("{}{open}", usage.requests));
        }
    }
    text
}

/// One line for each known fact of a key.
pub(super) fn describe_token(token: &Token, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:13} {value}");
        }
    };
    let known = |text: &Option<String>| text.as_deref().map(escape_text);
    line("id", Some(escape_text(&token.token_id)));
    line("organization", Some(escape_text(&token.organization_id)));
    line("  your id", known(&token.organization_external_id));
    line("user", Some(known(&token.user_id).unwrap_or_else(|| "- (an organization's key)".to_owned())));
    line("  your id", known(&token.user_external_id));
    line("  email", known(&token.email));
    line("  roles", (!token.roles.is_empty()).then(|| escape_text(&token.roles.join(", "))));
    line("description", known(&token.description));
    line("suffix", known(&token.token_suffix));
    line("created", token.created_at.map(|at| at.to_string()));
    let end = token.expiry.map_or_else(String::new, |expiry| format!(" ({expiry})"));
    line("expires", Some(format_expiry(token.expiry, now) + &end));
    for (name, value) in &token.custom_claims {
        line("claim", Some(format!("{} = {}", escape_text(name), escape_text(value))));
    }
    text
}

/// One line for each claim or description that changes; empty if none does.
pub(super) fn format_difference(before: &Token, change: &TokenUpdate) -> String {
    let mut text = String::new();
    if let Some(after) = &change.custom_claims {
        let before = &before.custom_claims;
        for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
            let (sign, value) = match (before.get(name), after.get(name)) {
                (Some(old), Some(new)) if old == new => continue,
                (Some(old), Some(new)) => ('~', format!("{} -> {}", escape_text(old), escape_text(new))),
                (Some(old), None) => ('-', escape_text(old)),
                (None, new) => ('+', new.map_or_else(String::new, |new| escape_text(new))),
            };
            let _ = writeln!(text, "  {sign} claim {} = {value}", escape_text(name));
        }
    }
    if let Some(after) = &change.description {
        let before = before.description.as_deref().unwrap_or_default();
        if before != after {
            let shown = |text: &str| if text.is_empty() { "none".to_owned() } else { escape_text(text) };
            let _ = writeln!(text, "  ~ description {} -> {}", shown(before), shown(after));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_shown_in_fitting_unit() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for (seconds, expected) in [
            (-1, "expired"),
            (0, "expired"),
            (1, "in 1 second"),
            (119, "in 119 seconds"),
            (120, "in 2 minutes"),
            (7199, "in 120 minutes"),
            (7200, "in 2 hours"),
            (2 * 86_400, "in 2 days"),
            (90 * 86_400 - 1, "in 90 days"),
            (90 * 86_400, "in 90 days"),
            (120 * 86_400, "in 4 months"),
            (800 * 86_400, "in 2 years"),
        ] {
            let expiry = Timestamp::from_second(now.as_second() + seconds).unwrap();
            assert_eq!(format_expiry(Some(expiry), now), expected);
        }
        assert_eq!(format_expiry(None, now), "never");
    }

    #[test]
    fn output_escapes_terminal_control_characters() {
        assert_eq!(escape_text("a\u{1b}[31mb\r\nc\u{202e}d ü"), "a\\u{1b}[31mb\\u{d}\\u{a}c\\u{202e}d ü");
        let token = Token {
            token_id: "apit_1".into(),
            organization_id: "org_1".into(),
            description: Some(format!("x\n\u{1b}]0;t\u{7}{}", "ä".repeat(80))),
            organization_external_id: None,
            user_id: None,
            user_external_id: None,
            email: None,
            roles: vec!["a\u{9b}m".into()],
            custom_claims: Claims::from([("n\n".to_owned(), "v\u{1b}".to_owned())]),
            token_suffix: None,
            created_at: None,
            expiry: None,
        };
        let now = Timestamp::now();
        let change = TokenUpdate {
            custom_claims: Some(Claims::from([("m\r".to_owned(), "\u{1b}".to_owned())])),
            description: None,
        };
        for text in [
            Table::new(now, false).format_page(std::slice::from_ref(&token), &[]),
            describe_token(&token, now),
            format_difference(&token, &change),
        ] {
            assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "{text:?}");
        }
        assert_eq!(Table::new(now, false).format_page(std::slice::from_ref(&token), &[]).lines().count(), 2);
    }
}
