//! The use of keys in their objects, and the use by organizations and days.

use ::scalekit::token::{Page, Token};
use hyper::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use super::problem::{Code, Problem};
use super::{Content, Outcome};
use crate::body;
use crate::usage::{Day, Usage};

/// The first and the last day to list.
pub(super) struct Days {
    pub(super) from: Day,
    pub(super) to: Day,
}

pub(super) fn token_with_usage(token: &Token, usage: Option<&Usage>) -> Result<Value, Problem> {
    let mut json = to_json(token)?;
    add_usage(&mut json, usage);
    Ok(json)
}

pub(super) fn page_with_usage(page: &Page, usage: Option<&Usage>) -> Result<Value, Problem> {
    let mut json = to_json(page)?;
    if let Some(tokens) = json["tokens"].as_array_mut() {
        tokens.iter_mut().for_each(|token| add_usage(token, usage));
    }
    Ok(json)
}

/// Streams the rows, of which there may be many.
pub(super) fn list_usage(usage: Option<&Usage>, days: &Days) -> Result<Outcome, Problem> {
    let usage = usage.ok_or_else(|| {
        Problem::new(Code::NotFound, "Usage is not counted, as the route file has usage.enabled = false.")
    })?;
    let lines = body::json_lines(usage.list_rows(days.from, days.to));
    Ok(Outcome { content: Content::Lines(lines), ..Outcome::of_json(StatusCode::OK, Value::Null) })
}

fn to_json(value: &impl Serialize) -> Result<Value, Problem> {
    serde_json::to_value(value).map_err(|_| Problem::internal())
}

/// Null if it is not counted. A key that was not used has no times, and says since when.
fn add_usage(token: &mut Value, usage: Option<&Usage>) {
    token["usage"] = usage.map_or(Value::Null, |usage| {
        let coverage = usage.coverage();
        let found = token["token_id"].as_str().and_then(|id| usage.find_key(id));
        let found = found.as_ref();
        json!({
            "first_used": found.map(|found| found.first_used),
            "last_used": found.map(|found| found.last_used),
            "requests": found.map_or(0, |found| found.requests),
            "open_requests": found.map_or(0, |found| found.open_requests),
            "last_status": found.and_then(|found| found.last_status.as_ref()),
            "last_route": found.map(|found| &found.last_route),
            "last_network": found.and_then(|found| found.last_network),
            "counted_since": coverage.counted_since,
            "complete_since": coverage.complete_since,
        })
    });
}
