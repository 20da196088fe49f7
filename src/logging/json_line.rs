//! A line of the log as a JSON object, written by hand: through the formatter of `tracing-subscriber` the line of a request takes
//! four times as long. Names and order are those of its other lines.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use crate::terminal;

/// Characters of a text that are written at most: clients choose some of them.
const MAX_TEXT: usize = 512;

/// A line that is being written.
pub struct JsonLine<'b>(&'b mut Vec<u8>);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The last second that was written, as text: most lines share it with the one before.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// Writes a line with the present time, the level INFO and a message, and gives it to `take`.
pub fn write_line(
    message: &str,
    target: &str,
    fields: impl FnOnce(&mut JsonLine<'_>),
    take: impl FnOnce(&[u8]),
) {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.clear();
        let mut line = JsonLine(buffer);
        line.raw("{\"timestamp\":\"");
        line.time(SystemTime::now());
        line.raw("\",\"level\":\"INFO\"");
        line.text("message", message);
        fields(&mut line);
        line.text("target", target);
        line.raw("}\n");
        take(buffer);
    });
}

impl JsonLine<'_> {
    /// Writes a text, shortened to 512 characters.
    ///
    /// SECURITY: what a terminal acts on is escaped, as clients choose some of the texts.
    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.raw("\"");
        self.escaped(&truncate_text(value));
        self.raw("\"");
    }

    /// Writes bytes as text. What is not UTF-8 becomes U+FFFD.
    pub fn bytes(&mut self, name: &str, value: &[u8]) {
        self.text(name, &String::from_utf8_lossy(value));
    }

    /// Writes a number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        self.digits(value, 1);
    }

    /// Writes a duration, in seconds.
    pub fn seconds(&mut self, name: &str, value: Duration) {
        self.name(name);
        self.digits(value.as_secs(), 1);
        self.raw(".");
        self.digits(u64::from(value.subsec_nanos()), 9);
    }

    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Names are plain ASCII.
    fn name(&mut self, name: &str) {
        self.raw(",\"");
        self.raw(name);
        self.raw("\":");
    }

    /// Writes at least `width` digits.
    fn digits(&mut self, mut value: u64, width: usize) {
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        while value > 0 || digits.len() - at < width {
            at -= 1;
            // A remainder of ten fits.
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
        }
        self.0.extend_from_slice(&digits[at..]);
    }

    fn escaped(&mut self, text: &str) {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
            return self.raw(text);
        }
        for char in text.chars() {
            match char {
                '"' => self.raw("\\\""),
                '\\' => self.raw("\\\\"),
                char if terminal::is_terminal_control(char) => {
                    self.raw(&terminal::escape_controls(char.encode_utf8(&mut [0; 4]), &[]));
                }
                char => self.raw(char.encode_utf8(&mut [0; 4])),
            }
        }
    }

    fn time(&mut self, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        SECOND.with_borrow_mut(|(second, text)| {
            if *second != now.as_secs() {
                let seconds = i64::try_from(now.as_secs()).unwrap_or_default();
                let timestamp = Timestamp::from_second(seconds).unwrap_or_default();
                (*second, *text) = (now.as_secs(), timestamp.strftime("%Y-%m-%dT%H:%M:%S").to_string());
            }
            self.raw(text);
        });
        self.raw(".");
        self.digits(u64::from(now.subsec_micros()), 6);
        self.raw("Z");
    }
}

/// The text, shortened to 512 characters.
pub fn truncate_text(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(fields: impl FnOnce(&mut JsonLine<'_>)) -> String {
        let mut text = Vec::new();
        write_line("request", "access", fields, |line| text = line.to_vec());
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn log_line_is_json_object_in_field_order() {
        let text = line(|line| {
            line.text("a.b", "x");
            line.number("zero", 0);
            line.number("max", u64::MAX);
            line.seconds("time", Duration::new(12, 3_000_045));
        });
        let (time, rest) = text.split_at(r#"{"timestamp":"2026-11-24T20:31:31.420815Z"#.len());
        assert!(time.parse::<Timestamp>().is_err() && time[14..].parse::<Timestamp>().is_ok(), "{time}");
        assert_eq!(
            rest,
            "\",\"level\":\"INFO\",\"message\":\"request\",\"a.b\":\"x\",\"zero\":0,\
             \"max\":18446744073709551615,\"time\":12.003000045,\"target\":\"access\"}\n"
        );
    }

    #[test]
    fn client_text_cannot_forge_log_line_or_control_terminal() {
        let hostile = "\"},{\\\n\u{1b}[2J\u{7f}\u{9b}\u{202e}é東🔑";
        let text = line(|line| line.text("a", hostile));
        assert!(text.trim_end().chars().all(|char| !terminal::is_terminal_control(char)), "{text}");
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["a"], hostile);
        let text = line(|line| line.bytes("a", b"\xff\""));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["a"], "\u{fffd}\"");
    }

    #[test]
    fn text_is_shortened_to_512_characters() {
        let text = line(|line| line.text("a", &"é".repeat(600)));
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["a"], format!("{}…", "é".repeat(512)));
    }
}
