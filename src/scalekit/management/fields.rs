//! Fields of Scalekit's JSON, as they may come.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::Claims;
use crate::scalekit::moment;

/// Absent, null and "" mean the same (contract section 3).
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()))
}

pub(super) fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let moment = |text: String| moment::of_text(&text).ok_or_else(|| D::Error::custom("no moment"));
    text(from)?.map(moment).transpose()
}

pub(super) fn absent_or<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A claim that is not a string is taken as its JSON text (contract section 5).
pub(in crate::scalekit) fn claims<'de, D: Deserializer<'de>>(from: D) -> Result<Claims, D::Error> {
    let claims = Option::<BTreeMap<String, serde_json::Value>>::deserialize(from)?.unwrap_or_default();
    let text = |value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(claims.into_iter().map(|(name, value)| (name, text(value))).collect())
}
