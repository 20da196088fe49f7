//! Types of values that only one key has.

use std::time::Duration;

use schemars::{Schema, json_schema};
use serde_json::{Value as Json, json};

use super::{DAY, DURATION_PATTERN, Number, Scalar};
use crate::config::parse_duration;

/// The version of the format: 1.
pub(in crate::config) struct Version;

impl Scalar for Version {
    fn describe_type() -> String {
        "1".to_owned()
    }

    fn from_integer(number: i128) -> Option<Result<Self, String>> {
        let problem = || "is not a version that this Keyward supports; it supports 1".to_owned();
        Some((number == 1).then_some(Self).ok_or_else(problem))
    }

    fn make_schema() -> Schema {
        json_schema!({ "const": 1 })
    }
}

/// The limit of invalid keys per minute: "auto", or a number, where 0 means no limit.
#[derive(Clone, Copy, Default)]
pub(in crate::config) enum BadKeys {
    #[default]
    Auto,
    PerMinute(u32),
}

type BadKeysNumber = Number<0, 1_000_000>;

impl Scalar for BadKeys {
    fn describe_type() -> String {
        "\"auto\" or a whole number".to_owned()
    }

    fn from_integer(number: i128) -> Option<Result<Self, String>> {
        Some(BadKeysNumber::from_integer(number)?.map(|number| Self::PerMinute(number.to_u32())))
    }

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let problem = || "should be \"auto\" or a whole number without quotes".to_owned();
        Some((text == "auto").then_some(Self::Auto).ok_or_else(problem))
    }

    fn make_schema() -> Schema {
        json_schema!({ "anyOf": [{ "const": "auto" }, BadKeysNumber::make_schema()] })
    }

    fn to_json(&self) -> Json {
        match self {
            Self::Auto => json!("auto"),
            Self::PerMinute(number) => json!(number),
        }
    }
}

/// A part of the lifetime of a key, from one hour to ten years.
#[derive(Clone, Copy)]
pub(in crate::config) struct Lifetime(pub(in crate::config) Duration);

impl Scalar for Lifetime {
    fn describe_type() -> String {
        "a duration in quotes, such as \"90d\"".to_owned()
    }

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        let range = DAY / 24..=3660 * DAY;
        Some(match parse_duration(text) {
            None => Err(format!("should be {}", Self::describe_type())),
            Some(given) if range.contains(&given) => Ok(Self(given)),
            Some(_) => Err("should be from \"1h\" to \"3660d\"".to_owned()),
        })
    }

    fn make_schema() -> Schema {
        json_schema!({ "type": "string", "pattern": DURATION_PATTERN })
    }
}

/// The mode of a unix socket, as for `chmod`. Modes that admit other users are refused.
pub(in crate::config) struct SocketMode(pub(in crate::config) u32);

impl Default for SocketMode {
    fn default() -> Self {
        Self(0o660)
    }
}

impl Scalar for SocketMode {
    fn describe_type() -> String {
        "the mode of the socket in quotes, \"0600\" or \"0660\"".to_owned()
    }

    fn from_text(text: &str) -> Option<Result<Self, String>> {
        Some(match text {
            "0600" | "600" => Ok(Self(0o600)),
            "0660" | "660" => Ok(Self(0o660)),
            _ => Err(format!("should be {}: no other users may manage keys", Self::describe_type())),
        })
    }

    fn make_schema() -> Schema {
        json_schema!({ "type": "string", "enum": ["0600", "0660", "600", "660"] })
    }

    fn to_json(&self) -> Json {
        json!(format!("{:04o}", self.0))
    }
}
