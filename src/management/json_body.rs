//! Request bodies: read within limits and parsed as unambiguous JSON. No value from a body is repeated in an error, as it may be
//! a key in the wrong place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::time::timeout;

use super::problem::{Code, Problem};
use crate::body::Body;

/// In bytes. Twenty claims of 256 characters, every one of them escaped, take half of it.
const MAX_BODY: usize = 128 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that is read and discarded of a body, in bytes.
const MAX_DRAINED: usize = 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest field name that an error repeats, in bytes. Keys are longer.
const MAX_SHOWN_NAME: usize = 30;

/// A JSON object without duplicate names: parsers differ on which of two values counts.
#[derive(Clone, Debug)]
pub(super) struct UniqueKeys<V>(pub(super) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueKeys<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct UniqueKeysVisitor<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueKeysVisitor<V> {
            type Value = UniqueKeys<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<UniqueKeys<V>, A::Error> {
                let mut values = BTreeMap::new();
                while let Some((name, value)) = from.next_entry()? {
                    match values.entry(name) {
                        Entry::Vacant(entry) => entry.insert(value),
                        Entry::Occupied(_) => return Err(A::Error::custom("a duplicate name")),
                    };
                }
                Ok(UniqueKeys(values))
            }
        }
        from.deserialize_map(UniqueKeysVisitor(PhantomData))
    }
}

/// # Errors
/// When the body is too long, too slow or incomplete.
pub(super) async fn read_body(body: &mut Body) -> Result<Bytes, Problem> {
    let read = async {
        let mut content = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::invalid("The body is incomplete."))?;
            content.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if content.len() > MAX_BODY {
                return Err(Problem::new(Code::BodyTooLarge, "The body is longer than 128 KiB."));
            }
        }
        Ok(content.freeze())
    };
    timeout(BODY_TIMEOUT, read)
        .await
        .unwrap_or_else(|_| Err(Problem::new(Code::BodyTimeout, "The body did not arrive within 10 s.")))
}

/// Discards the rest of a body, within limits. A client that writes its whole request before it reads would lose the response to
/// a connection reset if Keyward closed the connection earlier.
pub(super) async fn drain_body(body: &mut Body) {
    let rest = async {
        let mut drained = 0;
        while let Some(Ok(frame)) = body.frame().await {
            drained += frame.data_ref().map_or(0, Bytes::len);
            if drained > MAX_DRAINED {
                break;
            }
        }
    };
    // Past the time limit the connection is closed all the same.
    let _ = timeout(DRAIN_TIMEOUT, rest).await;
}

/// Parses a body of a JSON media type. SECURITY: a web page cannot send such a type to another origin without a CORS preflight.
pub(super) fn parse_json<'b, T: Deserialize<'b>>(
    headers: &HeaderMap,
    content: &'b Bytes,
) -> Result<T, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !matches!(kind.as_str(), "application/json" | "application/merge-patch+json") {
        let detail = "Content-Type should be application/json.";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    // serde would read a struct from a JSON array, too.
    if content.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::invalid("The body should be a JSON object."));
    }
    serde_json::from_slice(content)
        .map_err(|error| Problem::invalid(format!("The body: {}.", remove_values(&error.to_string()))))
}

/// Removes the values that serde quotes in its messages.
fn remove_values(message: &str) -> String {
    let (found, expected) = match message.rsplit_once(", expected ") {
        Some((found, expected)) => (found, Some(expected)),
        None => (message, None),
    };
    let quotes = ['"', '`'];
    let kind = found.split(quotes).next().unwrap_or_default().trim_end();
    let named = found.split(quotes).nth(1).filter(|name| {
        kind.ends_with("field")
            && name.len() <= MAX_SHOWN_NAME
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    let named = named.map(|name| format!(" `{name}`")).unwrap_or_default();
    let rest = match expected {
        Some(expected) => format!(", expected {expected}"),
        // Without an expectation, serde's message ends with the line and column.
        None => found
            .rfind(" at line ")
            .filter(|at| *at >= kind.len())
            .map_or(String::new(), |at| found[at..].to_owned()),
    };
    format!("{kind}{named}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(content: &'static str, expected: &str) {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code)]
        struct Body {
            user_id: Option<String>,
            custom_claims: Option<UniqueKeys<String>>,
            #[serde(default)]
            keep_old: bool,
        }
        let headers = [(CONTENT_TYPE, "application/json".parse().unwrap())].into_iter().collect();
        let problem = parse_json::<Body>(&headers, &Bytes::from(content)).unwrap_err();
        assert_eq!(problem.detail, expected);
    }

    #[test]
    fn json_errors_name_the_field_without_the_value() {
        check(
            r#"{"user_id": 12345}"#,
            "The body: invalid type: integer, expected a string at line 1 column 17.",
        );
        check(
            r#"{"custom_claims": "SECRET, expected `x`"}"#,
            "The body: invalid type: string, expected an object at line 1 column 40.",
        );
        check(
            r#"{"keep_old": "SECRET at line 1"}"#,
            "The body: invalid type: string, expected a boolean at line 1 column 31.",
        );
        check(
            r#"{"claims": {}}"#,
            "The body: unknown field `claims`, expected one of `user_id`, `custom_claims`, `keep_old` at line 1 column 9.",
        );
        check(
            r#"{"SECRETSECRETSECRETSECRETSECRETSECRET": 1}"#,
            "The body: unknown field, expected one of `user_id`, `custom_claims`, `keep_old` at line 1 column 39.",
        );
        check(
            r#"{"user_id": "a", "user_id": "b"}"#,
            "The body: duplicate field `user_id` at line 1 column 26.",
        );
        check(
            r#"{"custom_claims": {"a": "1", "a": "2"}}"#,
            "The body: a duplicate name at line 1 column 38.",
        );
        check(
            r#"{"custom_claims": {"a": null}}"#,
            "The body: invalid type: null, expected a string at line 1 column 28.",
        );
        check(r#"{"user_id": "a"} x"#, "The body: trailing characters at line 1 column 18.");
        check(r#"{"user_id": "a"#, "The body: EOF while parsing a string at line 1 column 14.");
        for other in ["", "null", "[\"usr_1\", {}]", "[true]", "\"SECRET\"", "1"] {
            check(other, "The body should be a JSON object.");
        }
    }
}
