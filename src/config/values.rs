//! The types of values in the route file: what each accepts, the messages for everything else, and its JSON Schema.

pub(super) mod special;
pub(super) mod tables;

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use self::special::{BadKeys, Lifetime, SocketMode, Version};

use super::diagnostics::{did_you_mean, quote_text};

/// A value that is written as a string or an integer. `from_text` and `from_integer` return `None` if it is never of that type.
pub(super) trait Scalar: Sized {
    /// The expected value, as the end of "should be …".
    fn describe_type() -> String;
    fn from_text(_: &str) -> Option<Result<Self, String>> {
        None
    }
    fn from_integer(_: i128) -> Option<Result<Self, String>> {
        None
    }
    fn make_schema() -> Schema;
    /// The value as a default in the schema; null if it never is a default.
    fn to_json(&self) -> Json {
        Json::Null
    }
}

struct ScalarVisitor<T>(PhantomData<T>);

impl<T: Scalar> ScalarVisitor<T> {
    fn read_integer<E: Error>(self, number: i128) -> Result<T, E> {
        let read = T::from_integer(number);
        read.map_or_else(
            || Err(E::invalid_type(Unexpected::Other("integer"), &self)),
            |read| read.map_err(E::custom),
        )
    }
}

impl<T: Scalar> Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&T::describe_type())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        let read = T::from_text(text);
        read.map_or_else(
            || Err(E::invalid_type(Unexpected::Other("string"), &self)),
            |read| read.map_err(E::custom),
        )
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.read_integer(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.read_integer(number.into())
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<T, E> {
        self.read_integer(number)
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<T, E> {
        self.read_integer(i128::try_from(number).unwrap_or(i128::MAX))
    }
}

/// Implements the traits of serde and schemars for a scalar.
macro_rules! implement_scalar {
    ([$($generics:tt)*] $type:ty) => {
        impl<'de, $($generics)*> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(ScalarVisitor(PhantomData))
            }
        }

        impl<$($generics)*> Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.to_json().serialize(serializer)
            }
        }

        impl<$($generics)*> JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                Self::make_schema()
            }
        }
    };
}

implement_scalar!([const LEAST: u64] Time<LEAST>);
implement_scalar!([const LEAST: u64, const MOST: u64] Size<LEAST, MOST>);
implement_scalar!([const LEAST: u64, const MOST: u64] Number<LEAST, MOST>);
implement_scalar!([T: Choices] Choice<T>);
implement_scalar!([T: FromText] Text<T>);
implement_scalar!([] Version);
implement_scalar!([] BadKeys);
implement_scalar!([] Lifetime);
implement_scalar!([] SocketMode);

/// A duration of at least `LEAST` milliseconds and at most a day.
#[derive(Clone, Copy)]
pub(super) struct Time<const LEAST: u64>(pub(super) Duration);

const DAY: Duration = Duration::from_secs(86_400);
const DURATION_PATTERN: &str = r"^\s*(\d+(\.\d+)?\s*[a-zA-Zµ]+\s*)+$|^\s*0\s*$";

impl<const LEAST: u64> Time<LEAST> {
    pub(super) const fn from_seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

fn lacks_unit(number: impl Display) -> String {
    format!("has no unit; write \"{number}s\" for seconds, or \"{number}ms\"")
}

impl<const LEAST: u64> Scalar for Time<LEAST> {
    fn describe_type() -> String {
        "a duration in quotes, such as \"2s\", \"250ms\" or \"1m 30s\"".to_owned()
    }

    fn from_integer(number: i128) -> Option<Result<Self, String>> {
        (number > 0).then(|| Err(lacks_unit(number)))
    }

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        if let Some(number) = text.trim().parse::<u64>().ok().filter(|number| *number > 0) {
            return Some(Err(lacks_unit(number)));
        }
        let range = Duration::from_millis(LEAST)..=DAY;
        Some(match super::parse_duration(text) {
            None => Err(format!("should be {}", Self::describe_type())),
            Some(given) if range.contains(&given) => Ok(Self(given)),
            Some(_) => {
                let limit = |limit: &Duration| humantime::format_duration(*limit);
                Err(format!("should be from \"{}\" to \"{}\"", limit(range.start()), limit(range.end())))
            }
        })
    }

    fn make_schema() -> Schema {
        json_schema!({ "type": "string", "pattern": DURATION_PATTERN })
    }

    fn to_json(&self) -> Json {
        json!(humantime::format_duration(self.0).to_string())
    }
}

/// A size in bytes, written as a number or with a unit such as KiB.
#[derive(Clone, Copy)]
pub(super) struct Size<const LEAST: u64, const MOST: u64>(pub(super) usize);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl<const LEAST: u64, const MOST: u64> Size<LEAST, MOST> {
    fn new(bytes: Option<u64>) -> Result<Self, String> {
        let bytes = bytes.filter(|bytes| (LEAST..=MOST).contains(bytes));
        bytes
            .and_then(|bytes| usize::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| format!("should be from \"{}\" to \"{}\"", format_size(LEAST), format_size(MOST)))
    }
}

impl<const LEAST: u64, const MOST: u64> Scalar for Size<LEAST, MOST> {
    fn describe_type() -> String {
        "a size in quotes, such as \"64KiB\" or \"1MiB\"".to_owned()
    }

    fn from_integer(number: i128) -> Option<Result<Self, String>> {
        Some(Self::new(number.try_into().ok()))
    }

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
        let (number, unit) = (digits.trim(), &text[digits.len()..]);
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some(Err(format!("should be {}", Self::describe_type())));
        }
        let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        Some(match factor.or_else(|| unit.is_empty().then_some(1)) {
            Some(factor) => Self::new(number.parse().ok().and_then(|number: u64| number.checked_mul(factor))),
            None => Err(unknown_unit(number, unit)),
        })
    }

    fn make_schema() -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "pattern": r"^\s*\d+\s*(B|KiB|MiB|GiB)?$" },
                { "type": "integer", "minimum": LEAST, "maximum": MOST },
            ],
        })
    }

    fn to_json(&self) -> Json {
        json!(format_size(self.0 as u64))
    }
}

fn format_size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// `64k` or `64KB` may mean 64 KiB or 64,000 bytes, so it is refused with a hint.
fn unknown_unit(number: &str, unit: &str) -> String {
    let first = unit.get(..1).unwrap_or_default().to_ascii_uppercase();
    let near = UNITS.iter().find(|(name, _)| name.starts_with(&first) && unit.len() <= 3);
    let hint = near.map_or_else(String::new, |(name, _)| format!("; did you mean \"{number}{name}\"?"));
    format!("has an unknown unit {}; known units are B, KiB, MiB and GiB{hint}", quote_text(unit))
}

/// A whole number.
#[derive(Clone, Copy)]
pub(super) struct Number<const LEAST: u64, const MOST: u64>(pub(super) u64);

impl<const LEAST: u64, const MOST: u64> Number<LEAST, MOST> {
    pub(super) fn to_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    pub(super) fn to_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

impl<const LEAST: u64, const MOST: u64> Scalar for Number<LEAST, MOST> {
    fn describe_type() -> String {
        "a whole number".to_owned()
    }

    fn from_integer(number: i128) -> Option<Result<Self, String>> {
        let number = u64::try_from(number).ok().filter(|number| (LEAST..=MOST).contains(number));
        Some(number.map(Self).ok_or_else(|| format!("should be from {LEAST} to {MOST}")))
    }

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        text.parse::<u64>().ok().map(|_| Err("should be a whole number, without quotes".to_owned()))
    }

    fn make_schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": LEAST, "maximum": MOST })
    }

    fn to_json(&self) -> Json {
        json!(self.0)
    }
}

/// A type whose values are written as fixed words.
pub(super) trait Choices: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

#[derive(Clone, Copy, Default)]
pub(super) struct Choice<T>(pub(super) T);

fn choice_words<T: Choices>() -> impl Iterator<Item = &'static str> {
    T::WORDS.iter().map(|(word, _)| *word)
}

impl<T: Choices> Scalar for Choice<T> {
    fn describe_type() -> String {
        let quoted: Vec<String> = choice_words::<T>().map(|word| format!("\"{word}\"")).collect();
        let (last, rest) = quoted.split_last().map_or(("", &[][..]), |(last, rest)| (last.as_str(), rest));
        format!("{} or {last}", rest.join(", "))
    }

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let chosen = T::WORDS.iter().find(|(word, _)| *word == text).map(|(_, choice)| Self(*choice));
        let problem =
            || format!("should be {}{}", Self::describe_type(), did_you_mean(text, choice_words::<T>()));
        Some(chosen.ok_or_else(problem))
    }

    fn make_schema() -> Schema {
        json_schema!({ "type": "string", "enum": choice_words::<T>().collect::<Vec<_>>() })
    }

    fn to_json(&self) -> Json {
        json!(T::WORDS.iter().find(|(_, choice)| *choice == self.0).map(|(word, _)| *word))
    }
}

/// A type that is parsed from a string.
pub(super) trait FromText: Sized {
    fn parse_text(text: &str) -> Result<Self, String>;
    /// The value as a default in the schema.
    fn format_text(&self) -> Option<String> {
        None
    }
}

#[derive(Clone)]
pub(super) struct Text<T>(pub(super) T);

impl<T: FromText> Scalar for Text<T> {
    fn describe_type() -> String {
        "a string in quotes".to_owned()
    }

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(T::parse_text(text).map(Self))
    }

    fn make_schema() -> Schema {
        json_schema!({ "type": "string" })
    }

    fn to_json(&self) -> Json {
        json!(self.0.format_text())
    }
}
