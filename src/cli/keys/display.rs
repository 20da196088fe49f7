//! Keys as text for people. Text that others wrote is escaped for a terminal first.

use std::fmt::Write as _;

use ::scalekit::token::{Claims, Token, TokenUpdate};
use jiff::Timestamp;

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
    // A unit is used from two of it on (months from four), so that rounding stays below half of the value.
    let units =
        [("year", 365 * 86_400), ("month", 30 * 86_400), ("day", 86_400), ("hour", 3600), ("minute", 60)];
    let unit =
        units.into_iter().find(|(name, length)| seconds >= *length * if *name == "month" { 4 } else { 2 });
    // Rounded, so that a key created for 90 days does not show 89 a moment later.
    let (name, count) =
        unit.map_or(("second", seconds), |(name, length)| (name, (seconds + length / 2) / length));
    format!("in {count} {name}{}", if count == 1 { "" } else { "s" })
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
    widths: [usize; 7],
    now: Timestamp,
    has_header: bool,
}

const COLUMNS: [&str; 7] = ["ID", "SUFFIX", "USER", "DESCRIPTION", "CREATED", "EXPIRES", "CLAIMS"];

impl Table {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { widths: COLUMNS.map(str::len), now, has_header: false }
    }

    /// Columns never get narrower than on the pages before, so that rows stay aligned.
    pub(super) fn format_page(&mut self, tokens: &[Token]) -> String {
        let rows: Vec<[String; 7]> = tokens.iter().map(|token| self.to_cells(token)).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        if !self.has_header {
            self.has_header = true;
            self.push_line(&mut text, &COLUMNS.map(str::to_owned));
        }
        rows.iter().for_each(|row| self.push_line(&mut text, row));
        text
    }

    fn to_cells(&self, token: &Token) -> [String; 7] {
        let text = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), format_cell);
        [
            escape_text(&token.token_id),
            text(&token.token_suffix),
            text(&token.user_id),
            text(&token.description),
            token.created_at.map_or_else(|| "-".to_owned(), format_date),
            format_expiry(token.expiry, self.now),
            format_cell(&format_claims(&token.custom_claims)),
        ]
    }

    fn push_line(&self, text: &mut String, cells: &[String; 7]) {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(self.widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
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
            Table::new(now).format_page(std::slice::from_ref(&token)),
            describe_token(&token, now),
            format_difference(&token, &change),
        ] {
            assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "{text:?}");
        }
        assert_eq!(Table::new(now).format_page(std::slice::from_ref(&token)).lines().count(), 2);
    }
}
