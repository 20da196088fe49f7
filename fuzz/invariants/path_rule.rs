//! A path is taken if, and only if, all its readings are harmless and find the route of the path as sent.
//!
//! Input: patterns, one a line; the path on the last.

use hyper::Method;
use hyper::http::uri::PathAndQuery;
use keyward::rejection::Rejection;
use keyward::route::{Auth, Pattern, Route, RouteTable};

use super::{NO_INPUT, naive};

pub fn path_rule(data: &[u8]) -> &'static str {
    let Ok(text) = std::str::from_utf8(data) else { return NO_INPUT };
    let (patterns, path) = text.rsplit_once('\n').unwrap_or(("/*\n/public/*", text));
    // What hyper lets in, and not longer than all readings of it can be written down.
    if path.len() > 128 || !PathAndQuery::try_from(path).is_ok_and(|uri| uri.path() == path) {
        return NO_INPUT;
    }
    let routes = patterns.lines().take(12).filter_map(|line| Pattern::parse(line).ok()).map(route).collect();
    let Ok(table) = RouteTable::new(routes) else { return NO_INPUT };

    let found = table.find(&Method::GET, "", path);
    let harm = harm(&table, path.as_bytes());
    let winners = naive::winners(table.routes(), "", path.as_bytes());
    match (found, harm) {
        (Err(Rejection::AmbiguousPath), Some(_)) => "refused",
        (Ok(route), None) => {
            assert_eq!(Some(&route.label), winners.first().map(|route| &route.label), "{path}");
            "taken"
        }
        (Err(Rejection::NoRoute), None) => {
            assert!(winners.is_empty(), "{path} is for {winners:?}");
            "no route"
        }
        (found, harm) => panic!("{path} of {patterns:?}: found {found:?}, where {harm:?}"),
    }
}

fn route(pattern: Pattern) -> Route {
    Route {
        label: pattern.to_string().into(),
        host: None,
        pattern,
        methods: None,
        upstream: "".into(),
        auth: Auth::Public,
        preflight: false,
    }
}

/// What is wrong with a path, if anything.
fn harm(table: &RouteTable, path: &[u8]) -> Option<String> {
    let broken =
        |at: usize| !path.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if path.first() != Some(&b'/') || (0..path.len()).any(|at| path[at] == b'%' && broken(at)) {
        return Some("it is not absolute, or an escape is broken".to_owned());
    }
    let place =
        |path: &[u8]| naive::winners(table.routes(), "", path).first().map(|route| route.label.clone());
    naive::readings(path).into_iter().find_map(|(times, reading)| {
        let shown = reading.escape_ascii().to_string();
        let names = reading.split(|byte| b"/\\".contains(byte)).map(|segment| {
            let end = segment.iter().position(|&byte| byte == b';').unwrap_or(segment.len());
            &segment[..end]
        });
        if names.into_iter().any(|name| name == b"." || name == b"..") {
            return Some(format!("a reading has a dot segment: {shown}"));
        }
        if times > 0 && reading.iter().any(|byte| byte.is_ascii_control()) {
            return Some(format!("a reading has a control byte: {shown}"));
        }
        if times > 0 && reading.windows(2).any(|pair| is_overlong(pair[0], pair[1])) {
            return Some(format!("a reading has an overlong character: {shown}"));
        }
        (place(&reading) != place(path)).then(|| format!("a reading takes another route: {shown}"))
    })
}

/// Whether no character that begins so could need as many bytes.
fn is_overlong(lead: u8, next: u8) -> bool {
    let (lead, low) = (u32::from(lead), u32::from(next & 0x3f));
    next & 0xc0 == 0x80
        && match lead {
            0xc0..=0xdf => ((lead & 0x1f) << 6 | low) < 0x80,
            0xe0..=0xef => ((lead & 0x0f) << 12 | low << 6) < 0x800,
            0xf0..=0xf7 => ((lead & 0x07) << 18 | low << 12) < 0x1_0000,
            _ => false,
        }
}
