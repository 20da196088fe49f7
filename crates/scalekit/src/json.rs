//! Deserializes fields of the API's JSON: absent, `null` and `""` are equivalent, and a struct must be an object.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serializer};
use serde_json::Value;

use crate::timestamp;
use crate::token::Claims;

/// A struct that must be a JSON object. serde's derived structs would also accept an array, field by field.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// A string; `""` for `null`.
pub(crate) fn read_string<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    read_or_default(from)
}

/// A string; `None` if it is empty.
pub(crate) fn read_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()))
}

/// A string, for an informational field: `None` for a value of another type.
pub(crate) fn read_lenient_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::String(text) if !text.is_empty() => Some(text),
        _ => None,
    })
}

/// Serializes an absent string as `""`.
pub(crate) fn write_text<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text.as_deref().unwrap_or_default())
}

/// A timestamp in RFC 3339.
pub(crate) fn read_timestamp<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let parse =
        |text: String| timestamp::parse_rfc3339(&text).ok_or_else(|| D::Error::custom("not a timestamp"));
    read_text(from)?.map(parse).transpose()
}

/// A timestamp in RFC 3339, for an informational field: `None` for any other value.
pub(crate) fn read_lenient_timestamp<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Timestamp>, D::Error> {
    Ok(read_lenient_text(from)?.and_then(|text| timestamp::parse_rfc3339(&text)))
}

/// Any value; its default for `null`.
pub(crate) fn read_or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A list of objects.
pub(crate) fn read_objects<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects: Vec<Object<T>> = read_or_default(from)?;
    Ok(objects.into_iter().map(|Object(object)| object).collect())
}

/// Claims. A value that is not a string is converted to its JSON text.
pub(crate) fn read_claims<'de, D: Deserializer<'de>>(from: D) -> Result<Claims, D::Error> {
    let claims: BTreeMap<String, Value> = read_or_default(from)?;
    let text = |value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(claims.into_iter().map(|(name, value)| (name, text(value))).collect())
}
