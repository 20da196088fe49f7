//! `GET /usage`: when keys were last used, as JSON lines. The first line is what the counts cover; each other line is a key that was
//! used, of those that `?id=` names, or of all.

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::text_response;
use crate::body::{self, Body};
use crate::usage::{KeyLine, Usage};

/// How many keys one request may name.
pub(crate) const MAX_IDS: usize = 100;

/// SECURITY: ids of keys and organizations are not secret, but tell who the customers are; the caller checks that the request comes from
/// this machine.
pub(super) fn answer_usage(usage: Option<&Usage>, query: &str) -> Response<Body> {
    let Some(usage) = usage else {
        return text_response(StatusCode::NOT_FOUND, "usage is not counted: usage.enabled is false\n");
    };
    let mut ids = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "id" || ids.len() == MAX_IDS {
            let text =
                format!("use ?id=apit_…&id=…, with up to {MAX_IDS} ids of keys, or no query for all keys\n");
            return text_response(StatusCode::BAD_REQUEST, text);
        }
        ids.push(value.into_owned());
    }
    let first = serde_json::to_value(usage.coverage()).into_iter();
    let lines = match ids.is_empty() {
        true => body::json_lines(first.chain(usage.list_keys().flat_map(serde_json::to_value))),
        false => {
            let find = |token_id: String| {
                let usage = usage.find_key(&token_id)?;
                Some(KeyLine { token_id, usage })
            };
            let found: Vec<_> = ids.into_iter().filter_map(find).collect();
            body::json_lines(first.chain(found.into_iter().flat_map(serde_json::to_value)))
        }
    };
    let mut response = Response::new(lines);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jsonl"));
    response
}
