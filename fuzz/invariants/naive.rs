//! The rules of routes and of names once more, slow and plain, to compare with.

use std::collections::BTreeSet;

use keyward::route::{Pattern, Route};

use super::lines::decoded;

/// The routes of the place that is most specific for a path as it stands; none when there is none.
pub fn winners<'r>(routes: &'r [Route], host: &str, path: &[u8]) -> Vec<&'r Route> {
    let best = routes.iter().filter_map(|route| specificity(route, host, path)).max();
    routes.iter().filter(|route| best.is_some() && specificity(route, host, path) == best).collect()
}

/// The routes that a service could take a path to be for, though it is not written as theirs: in another letter case, or with a
/// final slash more or less. Only those that are at least as specific as the winners.
pub fn rivals<'r>(routes: &'r [Route], host: &str, path: &[u8], own: &Route) -> Vec<&'r Route> {
    let lower = |path: &[u8]| path.to_ascii_lowercase();
    let no_slash = |path: &str| path.strip_suffix('/').unwrap_or(path).to_owned();
    let best = routes.iter().filter_map(|route| specificity(route, host, path)).max();
    let cased = own.service.case_sensitive;
    let is_rival = |route: &&Route| {
        // Spelled as the route is, as far as only case and a final slash differ.
        let spellings = match &route.pattern {
            Pattern::Exact(own) => vec![no_slash(own), format!("{}/", no_slash(own))],
            Pattern::Prefix(own) => vec![own.to_string()],
        };
        spellings.iter().any(|own| {
            let Some((start, rest)) = path.split_at_checked(own.len()) else { return false };
            let same_case = start == own.as_bytes();
            let all_cased = cased && place_of(routes, route).iter().all(|route| route.service.case_sensitive);
            let alike = same_case || (!all_cased && lower(start) == lower(own.as_bytes()));
            let end = match &route.pattern {
                Pattern::Exact(_) => rest.is_empty(),
                Pattern::Prefix(_) => rest.is_empty() || rest[0] == b'/',
            };
            let host = route.host.as_ref().is_none_or(|own| own.to_lowercase() == host.to_lowercase());
            let own =
                (route.host.is_some(), matches!(route.pattern, Pattern::Exact(_)), length(&route.pattern));
            alike && end && host && best.is_none_or(|best| own >= best)
        })
    };
    routes.iter().filter(is_rival).collect()
}

/// The routes of the same host and path.
pub fn place_of<'r>(routes: &'r [Route], of: &Route) -> Vec<&'r Route> {
    routes.iter().filter(|route| route.host == of.host && route.pattern == of.pattern).collect()
}

/// A final slash does not make an exact path more specific.
fn length(pattern: &Pattern) -> usize {
    match pattern {
        Pattern::Exact(own) => own.trim_end_matches('/').len(),
        Pattern::Prefix(own) => own.len(),
    }
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
    taken.then_some((route.host.is_some(), exact, length(&route.pattern)))
}

/// Every text that the rules of readings make of a path, in any order, decoding at most twice; with how often it was
/// decoded.
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
        let before = |ends: &[u8]| text.split(|byte| ends.contains(byte)).next().unwrap_or_default().to_vec();
        let rewritten = [backslashes, no_empty, no_parameters.join(&b'/'), before(b";"), before(b"?#")];
        for next in rewritten.into_iter().chain(behind_authority(&text)) {
            open.push((times, next));
        }
        if times < 2 {
            open.push((times + 1, decoded(&text)));
        }
    }
    all
}

/// The path of a network-path reference, where a text is one; `/` where it has none.
fn behind_authority(text: &[u8]) -> Option<Vec<u8>> {
    let separator = |byte: &u8| b"/\\".contains(byte);
    (text.len() > 1 && separator(&text[0]) && separator(&text[1])).then(|| {
        let rest: Vec<u8> = text.iter().copied().skip_while(separator).collect();
        let mut path: Vec<u8> = rest.into_iter().skip_while(|byte| !b"/\\?#".contains(byte)).collect();
        if path.first().is_some_and(separator) {
            path[0] = b'/';
            path
        } else {
            b"/".to_vec()
        }
    })
}

/// What a lenient file system or a comparison without letter case makes of a text before it looks it up.
pub fn tidied(text: &[u8]) -> Vec<Vec<u8>> {
    let end_trimmed = |segment: &[u8]| {
        let mut segment = segment.to_vec();
        while segment.first() == Some(&b' ') {
            segment.remove(0);
        }
        while matches!(segment.last(), Some(b' ' | b'.')) {
            segment.pop();
        }
        segment
    };
    let trimmed = text.split(|&byte| byte == b'/').map(end_trimmed).collect::<Vec<_>>().join(&b'/');
    let mut single: Vec<u8> = Vec::new();
    for byte in trimmed {
        if !(byte == b'/' && single.ends_with(b"/")) {
            single.push(byte);
        }
    }
    let mut ascii = single.clone();
    for (letter, plain) in [("\u{130}", b'i'), ("\u{131}", b'i'), ("\u{17f}", b's'), ("\u{212a}", b'k')] {
        while let Some(at) = ascii.windows(letter.len()).position(|part| part == letter.as_bytes()) {
            ascii.splice(at..at + letter.len(), [plain]);
        }
    }
    vec![single, ascii]
}

/// A name as the most lenient backend reads it.
pub fn folded(name: &str) -> String {
    name.chars()
        .map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' })
        .collect()
}
