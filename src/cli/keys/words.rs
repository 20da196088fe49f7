//! Keys in words for people: what others wrote is made safe for a terminal first.

use std::fmt::Write as _;

use ::scalekit::token::{Claims, Token, TokenUpdate};
use jiff::Timestamp;

use crate::terminal;

/// SECURITY: descriptions and claims are anybody's text; a terminal must not obey it, nor a line break forge a row.
pub(super) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if terminal::is_obeyed(char) {
            out.extend(char.escape_unicode());
        } else {
            out.push(char);
        }
    }
    out
}

/// SECURITY: JSON escapes what is below a space; a terminal obeys more than that.
pub(super) fn safe_json(json: &str) -> String {
    terminal::escape(json, &[]).into_owned()
}

/// The same, and not longer than a column.
fn column(text: &str) -> String {
    const MOST: usize = 40;
    let text = safe(text);
    match text.char_indices().nth(MOST) {
        None => text,
        Some(_) => text.chars().take(MOST - 1).chain(['…']).collect(),
    }
}

/// `org_1, user usr_1`.
pub(super) fn scope(organization: &str, user: Option<&str>) -> String {
    let user = user.map_or_else(String::new, |user| format!(", user {}", safe(user)));
    format!("{}{user}", safe(organization))
}

/// `in 90 days`, `never`.
pub(super) fn expires(expiry: Option<Timestamp>, now: Timestamp) -> String {
    let Some(expiry) = expiry else { return "never".to_owned() };
    let seconds = expiry.as_second() - now.as_second();
    if seconds <= 0 {
        return "expired".to_owned();
    }
    // From the second of a unit on, the unit says enough.
    let units =
        [("year", 365 * 86_400), ("month", 30 * 86_400), ("day", 86_400), ("hour", 3600), ("minute", 60)];
    let unit =
        units.into_iter().find(|(name, length)| seconds >= *length * if *name == "month" { 4 } else { 2 });
    // Rounded: a key made for 90 days has 90 days a moment later, too.
    let (name, count) =
        unit.map_or(("second", seconds), |(name, length)| (name, (seconds + length / 2) / length));
    format!("in {count} {name}{}", if count == 1 { "" } else { "s" })
}

fn day(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%d").to_string()
}

/// When a key ends, as a sentence goes on.
pub(super) fn end(expiry: Option<Timestamp>, now: Timestamp) -> String {
    match expiry {
        Some(expiry) => format!("It expires {}, on {expiry}.", expires(Some(expiry), now)),
        None => "It never expires.".to_owned(),
    }
}

fn claims(claims: &Claims) -> String {
    claims.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// A table that grows by pages.
pub(super) struct Table {
    widths: [usize; 7],
    now: Timestamp,
    begun: bool,
}

const HEADS: [&str; 7] = ["ID", "SUFFIX", "USER", "DESCRIPTION", "CREATED", "EXPIRES", "CLAIMS"];

impl Table {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { widths: HEADS.map(str::len), now, begun: false }
    }

    /// The lines of a page. Columns keep at least the width that they had before.
    pub(super) fn page(&mut self, tokens: &[Token]) -> String {
        let rows: Vec<[String; 7]> = tokens.iter().map(|token| self.row(token)).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        if !self.begun {
            self.begun = true;
            self.line(&mut text, &HEADS.map(str::to_owned));
        }
        rows.iter().for_each(|row| self.line(&mut text, row));
        text
    }

    fn row(&self, token: &Token) -> [String; 7] {
        let text = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), column);
        [
            safe(&token.token_id),
            text(&token.token_suffix),
            text(&token.user_id),
            text(&token.description),
            token.created_at.map_or_else(|| "-".to_owned(), day),
            expires(token.expiry, self.now),
            column(&claims(&token.custom_claims)),
        ]
    }

    fn line(&self, text: &mut String, cells: &[String; 7]) {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(self.widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// Everything that is known of a key, a line for each.
pub(super) fn description(token: &Token, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:13} {value}");
        }
    };
    let known = |text: &Option<String>| text.as_deref().map(safe);
    line("id", Some(safe(&token.token_id)));
    line("organization", Some(safe(&token.organization_id)));
    line("  your id", known(&token.organization_external_id));
    line("user", Some(known(&token.user_id).unwrap_or_else(|| "- (an organization's key)".to_owned())));
    line("  your id", known(&token.user_external_id));
    line("  email", known(&token.email));
    line("  roles", (!token.roles.is_empty()).then(|| safe(&token.roles.join(", "))));
    line("description", known(&token.description));
    line("suffix", known(&token.token_suffix));
    line("created", token.created_at.map(|at| at.to_string()));
    let end = token.expiry.map_or_else(String::new, |expiry| format!(" ({expiry})"));
    line("expires", Some(expires(token.expiry, now) + &end));
    for (name, value) in &token.custom_claims {
        line("claim", Some(format!("{} = {}", safe(name), safe(value))));
    }
    text
}

/// What a change does, a line for each; empty where it does nothing.
pub(super) fn difference(before: &Token, change: &TokenUpdate) -> String {
    let mut text = String::new();
    if let Some(after) = &change.custom_claims {
        let before = &before.custom_claims;
        for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
            let (sign, value) = match (before.get(name), after.get(name)) {
                (Some(old), Some(new)) if old == new => continue,
                (Some(old), Some(new)) => ('~', format!("{} -> {}", safe(old), safe(new))),
                (Some(old), None) => ('-', safe(old)),
                (None, new) => ('+', new.map_or_else(String::new, |new| safe(new))),
            };
            let _ = writeln!(text, "  {sign} claim {} = {value}", safe(name));
        }
    }
    if let Some(after) = &change.description {
        let before = before.description.as_deref().unwrap_or_default();
        if before != after {
            let shown = |text: &str| if text.is_empty() { "none".to_owned() } else { safe(text) };
            let _ = writeln!(text, "  ~ description {} -> {}", shown(before), shown(after));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_the_unit_that_fits() {
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
            assert_eq!(expires(Some(expiry), now), expected);
        }
        assert_eq!(expires(None, now), "never");
    }

    #[test]
    fn a_terminal_is_told_nothing_by_what_others_wrote() {
        assert_eq!(safe("a\u{1b}[31mb\r\nc\u{202e}d ü"), "a\\u{1b}[31mb\\u{d}\\u{a}c\\u{202e}d ü");
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
            Table::new(now).page(std::slice::from_ref(&token)),
            description(&token, now),
            difference(&token, &change),
        ] {
            assert!(!text.chars().any(|char| char.is_control() && char != '\n'), "{text:?}");
        }
        assert_eq!(Table::new(now).page(std::slice::from_ref(&token)).lines().count(), 2);
    }
}
