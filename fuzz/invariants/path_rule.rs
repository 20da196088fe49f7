//! A path is taken if, and only if, all its readings are harmless and lead to routes that ask for the same as the route of the
//! path as sent.
//!
//! Input: routes, one a line, as `/a/*`, which asks for a role of its own, or `/a/* open,cased,other` with any of these words: `open`
//! asks for no key, `cased` tells letter case apart, `other` is another service; the path on the last.

use hyper::Method;
use hyper::http::uri::PathAndQuery;
use keyward::policy::Requirement;
use keyward::rejection::Rejection;
use keyward::route::{Ambiguity, Auth, Pattern, Route, RouteTable, Service};

use super::{NO_INPUT, naive};

pub fn path_rule(data: &[u8]) -> &'static str {
    let Ok(text) = std::str::from_utf8(data) else { return NO_INPUT };
    let (patterns, path) = text.rsplit_once('\n').unwrap_or(("/*\n/public/*", text));
    // What hyper lets in, and not longer than all readings of it can be written down.
    if path.len() > 128 || !PathAndQuery::try_from(path).is_ok_and(|uri| uri.path() == path) {
        return NO_INPUT;
    }
    let routes = patterns.lines().take(12).filter_map(route).collect();
    let Ok(table) = RouteTable::new(routes) else { return NO_INPUT };

    let found = table.find(&Method::GET, "", path);
    if table.explain_ambiguity(&Method::GET, "", path) == Some(Ambiguity::Unsafe(TOO_LONG)) {
        let cost: usize = naive::readings(path.as_bytes()).iter().map(|(_, text)| text.len() + 64).sum();
        assert!(cost > 8 * 1024 && found.is_err(), "{path} costs {cost}");
        return "too long";
    }
    let winners = naive::winners(table.routes(), "", path.as_bytes());
    let harm = unsafe_text(path.as_bytes()).or_else(|| elsewhere(table.routes(), path.as_bytes()));
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

const TOO_LONG: &str = "the path is too long for the number of ways to read it";

fn route(line: &str) -> Option<Route> {
    let (path, words) = line.split_once(' ').unwrap_or((line, ""));
    let has = |word| words.split(',').any(|other| other == word);
    let own = Requirement { roles: vec![path.to_owned()], ..Requirement::default() };
    Some(Route {
        label: path.into(),
        host: None,
        pattern: Pattern::parse(path).ok()?,
        methods: None,
        upstream: "".into(),
        service: Service {
            name: if has("other") { "other" } else { "" }.into(),
            case_sensitive: has("cased"),
        },
        auth: if has("open") { Auth::Public } else { Auth::Key(own) },
        preflight: false,
        rate_limits: Vec::new(),
    })
}

/// What is wrong with a path whatever the routes are, if anything.
fn unsafe_text(path: &[u8]) -> Option<String> {
    let broken =
        |at: usize| !path.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if path.first() != Some(&b'/') || (0..path.len()).any(|at| path[at] == b'%' && broken(at)) {
        return Some("it is not absolute, or an escape is broken".to_owned());
    }
    naive::readings(path).into_iter().find_map(|(times, reading)| {
        let shown = reading.escape_ascii().to_string();
        let mut names = reading.split(|byte| b"/\\".contains(byte)).map(|segment| {
            let end = segment.iter().position(|&byte| byte == b';').unwrap_or(segment.len());
            segment[..end].trim_ascii_end()
        });
        if names.any(|name| name == b"." || name == b"..") {
            return Some(format!("a reading has a dot segment: {shown}"));
        }
        if times > 0 && reading.iter().any(|byte| byte.is_ascii_control()) {
            return Some(format!("a reading has a control byte: {shown}"));
        }
        let overlong = times > 0 && reading.windows(2).any(|pair| is_overlong(pair[0], pair[1]));
        overlong.then(|| format!("a reading has an overlong character: {shown}"))
    })
}

/// The reading that leads to a route which asks for something else, if one does.
fn elsewhere(routes: &[Route], path: &[u8]) -> Option<String> {
    let own = *naive::winners(routes, "", path).first()?;
    let asks = |route: &Route| (format!("{:?}", route.auth), route.service.name.clone());
    let mut texts: Vec<Vec<u8>> = vec![path.to_vec()];
    for (_, text) in naive::readings(path) {
        texts.extend(naive::tidied(&text));
        texts.push(text);
    }
    texts.into_iter().find_map(|text| {
        let mut rivals = naive::rivals(routes, "", &text, own);
        rivals.extend(naive::winners(routes, "", &text));
        let served = !naive::winners(routes, "", &text).is_empty();
        let shown = text.escape_ascii();
        (!served || rivals.iter().any(|rival| asks(rival) != asks(own)))
            .then(|| format!("a reading leads elsewhere: {shown}"))
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
            0xf8..=0xfb => ((lead & 0x03) << 24 | low << 18) < 0x20_0000,
            0xfc..=0xfd => ((lead & 0x01) << 30 | low << 24) < 0x400_0000,
            _ => false,
        }
}
