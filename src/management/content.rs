//! The body of a request: read within limits, and as JSON that can be understood in one way only. Nothing in it is repeated in
//! an answer: it may be a key, put into the wrong place.

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

/// The longest body, in bytes: twenty claims of 256 characters, escaped to the utmost, and as much again.
const MAX_BODY: usize = 128 * 1024;
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// What is taken of a body that nobody reads.
const MAX_REST: usize = 1024 * 1024;
const REST_WITHIN: Duration = Duration::from_secs(1);
/// The longest name that is repeated. Keys are longer.
const LONGEST_NAME: usize = 30;

/// An object with each name once. Readers differ on which of two values counts.
#[derive(Clone, Debug)]
pub(super) struct Unique<V>(pub(super) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Names<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Names<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Unique<V>, A::Error> {
                let mut values = BTreeMap::new();
                while let Some((name, value)) = from.next_entry()? {
                    match values.entry(name) {
                        Entry::Vacant(entry) => entry.insert(value),
                        Entry::Occupied(_) => return Err(A::Error::custom("a name that is there twice")),
                    };
                }
                Ok(Unique(values))
            }
        }
        from.deserialize_map(Names(PhantomData))
    }
}

/// All of a body.
pub(super) async fn read(body: &mut Body) -> Result<Bytes, Problem> {
    let read = async {
        let mut content = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::invalid("The body broke off."))?;
            content.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if content.len() > MAX_BODY {
                return Err(Problem::new(Code::BodyTooLarge, "The body is longer than 128 KiB."));
            }
        }
        Ok(content.freeze())
    };
    timeout(BODY_WITHIN, read)
        .await
        .unwrap_or_else(|_| Err(Problem::new(Code::BodyTimeout, "The body did not come within 10 s.")))
}

/// Takes what is left of a body, within reason. Closed before it has sent everything, a connection breaks for a client that
/// sends first and reads then, and the answer is lost.
pub(super) async fn drain(body: &mut Body) {
    let rest = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > MAX_REST {
                break;
            }
        }
    };
    // What is not there by then is not waited for.
    let _ = timeout(REST_WITHIN, rest).await;
}

/// The body of a request that says it is JSON. Pages in browsers cannot say so without asking first.
pub(super) fn parse<'b, T: Deserialize<'b>>(headers: &HeaderMap, content: &'b Bytes) -> Result<T, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !matches!(kind.as_str(), "application/json" | "application/merge-patch+json") {
        let detail = "Content-Type should be application/json.";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    // A struct would be read from a list, too.
    if content.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::invalid("The body should be a JSON object."));
    }
    serde_json::from_slice(content)
        .map_err(|error| Problem::invalid(format!("The body: {}.", without_values(&error.to_string()))))
}

/// What serde says, without the value that it says it of.
fn without_values(said: &str) -> String {
    let (found, expected) = match said.rsplit_once(", expected ") {
        Some((found, expected)) => (found, Some(expected)),
        None => (said, None),
    };
    let quotes = ['"', '`'];
    let kind = found.split(quotes).next().unwrap_or_default().trim_end();
    let named = found.split(quotes).nth(1).filter(|name| {
        kind.ends_with("field")
            && name.len() <= LONGEST_NAME
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    let named = named.map(|name| format!(" `{name}`")).unwrap_or_default();
    let rest = match expected {
        Some(expected) => format!(", expected {expected}"),
        // serde ends with the place.
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
            custom_claims: Option<Unique<String>>,
            #[serde(default)]
            keep_old: bool,
        }
        let headers = [(CONTENT_TYPE, "application/json".parse().unwrap())].into_iter().collect();
        let problem = parse::<Body>(&headers, &Bytes::from(content)).unwrap_err();
        assert_eq!(problem.detail, expected);
    }

    #[test]
    fn what_is_wrong_is_told_without_the_values() {
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
            "The body: a name that is there twice at line 1 column 38.",
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
