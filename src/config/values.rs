//! Single values of the route file: what is accepted, and what is said of the rest.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Value, did_you_mean};
use crate::tls::{self, KeyPair, ServerCertificate};

/// `should be …, not a string`.
pub(super) fn expected(what: impl fmt::Display, found: &Value<'_>) -> String {
    let kind = found.type_str();
    let article = if kind.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("should be {what}, not {article} {kind}")
}

/// A text of the file's within a message: on one line, and not all of it if it is long.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}", format!("{}…", &text[..end])),
    }
}

pub(super) fn text(value: &Value<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| expected("a string in quotes", value))
}

pub(super) fn boolean(value: &Value<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| match value.as_str() {
        Some("true" | "false") => "should be true or false, without quotes".to_owned(),
        _ => expected("true or false", value),
    })
}

pub(super) fn integer(least: u64, most: u64) -> impl FnOnce(&Value<'_>) -> Result<u64, String> {
    move |value| {
        let number = value.as_integer().ok_or_else(|| match value.as_str().map(str::parse::<u64>) {
            Some(Ok(_)) => "should be a whole number, without quotes".to_owned(),
            _ => expected("a whole number", value),
        })?;
        let number = u64::from_str_radix(number.as_str(), number.radix()).ok();
        number
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("should be from {least} to {most}"))
    }
}

/// A duration of at least `least` and at most a day.
pub(super) fn duration(least: Duration) -> impl FnOnce(&Value<'_>) -> Result<Duration, String> {
    const EXAMPLE: &str = "a duration in quotes, such as \"2s\", \"250ms\" or \"1m 30s\"";
    move |value| {
        let bare = value.as_integer().map(|number| number.as_str().to_owned());
        let bare = bare.or_else(|| value.as_str().map(|text| text.trim().to_owned()));
        if let Some(number) = bare.and_then(|text| text.parse::<u64>().ok())
            && number > 0
        {
            return Err(format!("has no unit; write \"{number}s\" for seconds, or \"{number}ms\""));
        }
        let given = value.as_str().ok_or_else(|| expected(EXAMPLE, value))?;
        let given = super::parse_duration(given);
        let given = given.ok_or_else(|| format!("should be {EXAMPLE}"))?;
        let range = least..=Duration::from_secs(86_400);
        let limit = |limit: &Duration| humantime::format_duration(*limit);
        range.contains(&given).then_some(given).ok_or_else(|| {
            format!("should be from \"{}\" to \"{}\"", limit(range.start()), limit(range.end()))
        })
    }
}

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A size in bytes, as a number or with a unit of 1,024.
pub(super) fn size(least: u64, most: u64) -> impl FnOnce(&Value<'_>) -> Result<usize, String> {
    const EXAMPLE: &str = "a size in quotes, such as \"64KiB\" or \"1MiB\"";
    move |value| {
        let out_of_range = || format!("should be from \"{}\" to \"{}\"", in_units(least), in_units(most));
        let bytes = match (value.as_integer(), value.as_str()) {
            (Some(number), _) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            (None, Some(given)) => {
                let digits = given.trim_end_matches(|char: char| char.is_ascii_alphabetic());
                let (number, unit) = (digits.trim(), &given[digits.len()..]);
                if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(format!("should be {EXAMPLE}"));
                }
                let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
                let factor = match factor {
                    Some(factor) => *factor,
                    None if unit.is_empty() => 1,
                    None => return Err(unknown(number, unit)),
                };
                number.parse().ok().and_then(|number: u64| number.checked_mul(factor))
            }
            (None, None) => return Err(expected(EXAMPLE, value)),
        };
        let bytes = bytes.filter(|bytes| (least..=most).contains(bytes)).ok_or_else(out_of_range)?;
        usize::try_from(bytes).map_err(|_| out_of_range())
    }
}

fn in_units(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// `64k`, `64KB` and the like are meant as 64 KiB, but that is not for Keyward to decide.
fn unknown(number: &str, unit: &str) -> String {
    let first = unit.get(..1).unwrap_or_default().to_ascii_uppercase();
    let near = UNITS.iter().find(|(name, _)| name.starts_with(&first) && unit.len() <= 3);
    let hint = near.map_or_else(String::new, |(name, _)| format!("; did you mean \"{number}{name}\"?"));
    format!("has an unknown unit {}; known are B, KiB, MiB and GiB{hint}", shown(unit))
}

/// One of a few words.
pub(super) fn choice<T: Copy>(choices: &[(&str, T)]) -> impl FnOnce(&Value<'_>) -> Result<T, String> {
    move |value| {
        let known = || choices.iter().map(|(word, _)| *word);
        let words = || {
            let quoted: Vec<String> = known().map(|word| format!("\"{word}\"")).collect();
            quoted.split_last().map_or_else(String::new, |(last, rest)| match rest {
                [] => last.clone(),
                rest => format!("{} or {last}", rest.join(", ")),
            })
        };
        let given = value.as_str().ok_or_else(|| expected(words(), value))?;
        let chosen = choices.iter().find(|(word, _)| *word == given).map(|(_, choice)| *choice);
        chosen.ok_or_else(|| format!("should be {}{}", words(), did_you_mean(given, known())))
    }
}

/// The path of a file that can be read.
pub(super) fn file(value: &Value<'_>) -> Result<PathBuf, String> {
    let given = text(value)?;
    if given.contains("-----BEGIN") {
        return Err("should be the path of a PEM file, not what is in one".to_owned());
    }
    // SECURITY: a key that stands here in base64 is no path, and is not repeated.
    let is_path = given.starts_with('/') || given.contains('.');
    let name = if is_path { shown(&given) } else { "the file".to_owned() };
    let path = PathBuf::from(given);
    let fail = |error: &dyn fmt::Display| format!("{name} cannot be read: {error}");
    // A pipe would wait for somebody to write; a directory can be opened, and not read.
    let metadata = std::fs::metadata(&path).map_err(|error| fail(&error))?;
    if !metadata.is_file() {
        return Err(fail(&"it is not a file"));
    }
    std::fs::File::open(&path).map_err(|error| fail(&error))?;
    Ok(path)
}

/// The path of a file with root certificates that can be used.
pub(super) fn roots(value: &Value<'_>) -> Result<PathBuf, String> {
    let path = file(value)?;
    tls::client(Some(&path), None, &[]).map_err(|error| error.to_string())?;
    Ok(path)
}

/// Whether a certificate and its key can be used together.
pub(super) fn usable(pair: &KeyPair) -> Result<(), String> {
    ServerCertificate::read(pair).map(|_| ()).map_err(|error| error.to_string())
}
