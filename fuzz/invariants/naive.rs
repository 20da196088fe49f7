//! The rules of routes and of names once more, slow and plain, to compare with.

use std::collections::BTreeSet;

use keyward::route::{Pattern, Route};

use super::lines::decoded;

/// The routes of the place that is most specific for a path as it stands; none when there is none.
pub fn winners<'r>(routes: &'r [Route], host: &str, path: &[u8]) -> Vec<&'r Route> {
    let best = routes.iter().filter_map(|route| specificity(route, host, path)).max();
    routes.iter().filter(|route| best.is_some() && specificity(route, host, path) == best).collect()
}

/// Host before no host, exact before prefix, longer before shorter.
fn specificity(route: &Route, host: &str, path: &[u8]) -> Option<(bool, bool, usize)> {
    if let Some(own) = &route.host
        && own.to_ascii_lowercase() != host.to_ascii_lowercase()
    {
        return None;
    }
    let segments =
        |path: &[u8]| -> Vec<Vec<u8>> { path.split(|&byte| byte == b'/').map(Vec::from).collect() };
    let path = segments(path);
    let (own, exact) = match &route.pattern {
        Pattern::Exact(own) => (own, true),
        Pattern::Prefix(own) => (own, false),
    };
    let wanted = segments(own.as_bytes());
    let taken = if exact { path == wanted } else { path.starts_with(&wanted) };
    taken.then_some((route.host.is_some(), exact, own.len()))
}

/// Every text that the rules of readings make of a path, in any order, decoding at most twice; with whether it was
/// decoded at all.
pub fn readings(path: &[u8]) -> BTreeSet<(u8, Vec<u8>)> {
    let mut all = BTreeSet::new();
    let mut open = vec![(0, path.to_vec())];
    while let Some((times, text)) = open.pop() {
        if !all.insert((times, text.clone())) {
            continue;
        }
        let backslashes = text.iter().map(|&byte| if byte == b'\\' { b'/' } else { byte }).collect();
        let segments = text.split(|&byte| byte == b'/').enumerate();
        let no_empty: Vec<&[u8]> = segments
            .filter(|(index, segment)| *index == 0 || !segment.is_empty() || text.len() == 1)
            .map(|(_, segment)| segment)
            .collect();
        let mut no_empty = no_empty.join(&b'/');
        if text.ends_with(b"/") && text.len() > 1 {
            no_empty.push(b'/');
        }
        let name = |segment: &[u8]| segment.split(|&byte| byte == b';').next().unwrap_or_default().to_vec();
        let no_parameters: Vec<Vec<u8>> = text.split(|&byte| byte == b'/').map(name).collect();
        for next in [backslashes, no_empty, no_parameters.join(&b'/')] {
            open.push((times, next));
        }
        if times < 2 {
            open.push((times + 1, decoded(&text)));
        }
    }
    all
}

/// A name as the most lenient backend reads it.
pub fn folded(name: &str) -> String {
    name.chars()
        .map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' })
        .collect()
}
