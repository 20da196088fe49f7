//! Escapes characters that a terminal interprets instead of displaying.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal or log viewer interprets the character instead of displaying it: control characters (C0, DEL, C1), line and
/// paragraph separators, and marks that change the direction of text, which could make one id look like another.
pub fn is_terminal_control(char: char) -> bool {
    let is_mark = matches!(
        char,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    char.is_control() || is_mark
}

/// Writes each such character as in JSON (`\u001b`), except those in `kept`.
pub fn escape_controls<'t>(text: &'t str, kept: &[char]) -> Cow<'t, str> {
    let is_escaped = |char: char| is_terminal_control(char) && !kept.contains(&char);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_escaped(char) {
            // Four hexadecimal digits are enough for all of them. Writing to a String cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(char));
        } else {
            out.push(char);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_controls_and_direction_marks_are_escaped() {
        let controls = (0..=0x1f_u32).chain(0x7f..=0x9f);
        let marks = [0x061c, 0x200e, 0x200f].into_iter().chain(0x2028..=0x202e).chain(0x2066..=0x2069);
        for number in controls.chain(marks) {
            let char = char::from_u32(number).unwrap();
            assert_eq!(escape_controls(&format!("a{char}b"), &[]), format!("a\\u{number:04x}b"));
        }
        assert_eq!(escape_controls("a\u{1b}[1m\u{9b}b", &['\u{1b}']), "a\u{1b}[1m\\u009bb");
    }

    #[test]
    fn text_without_controls_is_unchanged() {
        for text in ["", "plain", "zürich 東京 🔑 \"\\u0000\"", "\u{200b}\u{2027}\u{2070}"] {
            assert!(matches!(escape_controls(text, &[]), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
