//! Converts `[rate_limits.NAME]`, and the names in routes.

use std::sync::Arc;

use super::diagnostics::{did_you_mean, quote_text};
use super::document::Place;
use super::file;
use super::upstreams::check_name;
use super::values::tables::{Named, Table};
use crate::gcra::Quota;
use crate::rate_limit::Settings;

/// The limits, and the names of those that count the requests of all routes.
pub(super) struct RateLimits {
    pub(super) limits: Vec<Settings>,
    defaults: Vec<Arc<str>>,
}

pub(super) fn convert_rate_limits(file: Named<Table<file::RateLimit>>, place: &Place<'_>) -> RateLimits {
    let mut converted = RateLimits { limits: Vec::new(), defaults: Vec::new() };
    for (name, Table(limit)) in file.0 {
        let place = place.child(&name);
        check_name(&name, &place);
        let name: Arc<str> = name.into();
        if limit.default {
            converted.defaults.push(Arc::clone(&name));
        }
        converted.limits.extend(convert_rate_limit(name, limit, &place));
    }
    converted
}

fn convert_rate_limit(name: Arc<str>, file: file::RateLimit, place: &Place<'_>) -> Option<Settings> {
    let requests = place.require_key("requests", file.requests, "600")?.to_u32();
    let burst = file.burst.map_or(requests, |burst| burst.to_u32());
    if burst > requests {
        place.child("burst").add_problem(format!("should be at most requests, {requests}"));
    }
    if place.has_key("max") && !place.has_key("claim") {
        place.child("max").add_problem("has no effect without claim");
    }
    if file.claim.as_ref().is_some_and(String::is_empty) {
        place.child("claim").add_problem("is empty; omit it, or name a claim");
    }
    if file.claim.is_some() && file.max.is_none() {
        place.add_warning(format!(
            "rate_limits.{name}.claim can only lower the number of requests, as max is not set"
        ));
    }
    Some(Settings {
        name,
        by: file.by.0,
        quota: Quota { requests, per: file.per.0, burst },
        claim: file.claim,
        max: file.max.map_or(requests, |max| max.to_u32()),
        headers: file.headers,
        max_entries: file.max_entries.0,
    })
}

impl RateLimits {
    /// The limits of a route, by the names in it. `place` is that of its `rate_limits`.
    pub(super) fn of_route(
        &self,
        given: Option<Vec<String>>,
        is_public: bool,
        place: &Place<'_>,
    ) -> Vec<Arc<str>> {
        let Some(given) = given else {
            return if is_public { Vec::new() } else { self.defaults.clone() };
        };
        if is_public && !given.is_empty() {
            place.add_problem("counts by identity, which a route with auth = \"none\" does not have");
        }
        let mut names: Vec<Arc<str>> = Vec::new();
        for name in given {
            match self.limits.iter().find(|limit| *limit.name == *name) {
                Some(limit) if !names.contains(&limit.name) => names.push(Arc::clone(&limit.name)),
                Some(_) => place.add_problem(format!("lists {} twice", quote_text(&name))),
                None => {
                    let known = self.limits.iter().map(|limit| &*limit.name);
                    let hint = did_you_mean(&name, known);
                    let hint = if hint.is_empty() {
                        format!("; add [rate_limits.{name}] with requests = 600 and per = \"1m\"")
                    } else {
                        hint
                    };
                    place.add_problem(format!("there is no rate limit named {}{hint}", quote_text(&name)));
                }
            }
        }
        names
    }
}
