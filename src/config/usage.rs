//! Converts `[usage]`.

use std::path::PathBuf;

use super::document::Place;
use super::file;
use super::values::FromText;
use crate::usage::Settings;

/// `None` if usage is not counted.
pub(super) fn convert_usage(file: file::Usage, place: &Place<'_>) -> Option<Settings> {
    if !file.enabled {
        for key in ["max_keys", "max_organizations", "days", "metrics", "max_metrics_organizations", "file"] {
            if place.has_key(key) {
                place.child(key).add_problem("has no effect with usage.enabled = false");
            }
        }
        return None;
    }
    if !file.metrics && place.has_key("max_metrics_organizations") {
        place.child("max_metrics_organizations").add_problem("has no effect without usage.metrics = true");
    }
    Some(Settings {
        max_keys: file.max_keys.0,
        max_organizations: file.max_organizations.to_usize(),
        days: file.days.to_usize(),
        metrics_organizations: file.metrics.then(|| file.max_metrics_organizations.to_usize()),
        file: file.file.map(|path| path.0.0),
    })
}

/// The path of a file that Keyward writes.
pub(super) struct UsagePath(pub(super) PathBuf);

impl FromText for UsagePath {
    fn parse_text(text: &str) -> Result<Self, String> {
        let is_file = (text.starts_with('/') || text.starts_with("./")) && !text.ends_with('/');
        let problem = || "should be the path of a file, such as \"/var/lib/keyward/usage.jsonl\"".to_owned();
        is_file.then(|| Self(text.into())).ok_or_else(problem)
    }
}
