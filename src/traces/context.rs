//! The trace that a request belongs to, by W3C Trace Context (`traceparent` and `tracestate`). What does not follow its grammar is
//! ignored as a whole, as section 3.2.2.5 requires.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Section 3.3.1.1.
const MAX_MEMBERS: usize = 32;
/// The longest `tracestate` that is kept, in bytes: as much as section 3.3.1.5 asks for. Spans hold it until they are exported.
const MAX_STATE: usize = 512;
/// A trace id of random bits (section 3.2.3.3 of level 2), passed on as it came.
const RANDOM: u8 = 0x02;

/// The trace and the span that a request names as its parent; `None` without exactly one valid `traceparent`.
pub(super) fn parse_parent(headers: &HeaderMap) -> Option<SpanContext> {
    let (trace_id, span_id, flags) = parse_traceparent(headers)?;
    let flags = TraceFlags::new(flags & (TraceFlags::SAMPLED.to_u8() | RANDOM));
    Some(SpanContext::new(trace_id, span_id, flags, true, parse_state(headers).unwrap_or_default()))
}

/// The trace id of the request's `traceparent`, as text.
pub fn parse_trace_id(headers: &HeaderMap) -> Option<HeaderValue> {
    // Looked up by hand first, as most requests have none.
    headers.get(&TRACEPARENT)?;
    let (trace_id, ..) = parse_traceparent(headers)?;
    HeaderValue::try_from(trace_id.to_string()).ok()
}

/// Makes the span `span_id` the parent of what the upstream does. `tracestate` stays only with the trace that it came with.
pub(super) fn set_parent(headers: &mut HeaderMap, context: &SpanContext, keeps_state: bool) {
    let (trace_id, span_id) = (context.trace_id(), context.span_id());
    let text = format!("00-{trace_id}-{span_id}-{:02x}", context.trace_flags().to_u8());
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(TRACEPARENT, value);
    }
    if !keeps_state || parse_state(headers).is_none() {
        headers.remove(TRACESTATE);
    }
}

/// Section 3.2.2. A later version may append fields, after another hyphen.
fn parse_traceparent(headers: &HeaderMap) -> Option<(TraceId, SpanId, u8)> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (fields, rest) = value.split_at_checked(55)?;
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let hyphens = [2, 35, 52];
    let is_well_formed = fields
        .iter()
        .enumerate()
        .all(|(at, byte)| if hyphens.contains(&at) { *byte == b'-' } else { is_hex(byte) });
    let text = std::str::from_utf8(fields).ok().filter(|_| is_well_formed)?;
    match &text[..2] {
        "00" if !rest.is_empty() => return None,
        "ff" => return None,
        _ if !rest.is_empty() && rest[0] != b'-' => return None,
        _ => {}
    }
    let trace_id = TraceId::from_hex(&text[3..35]).ok()?;
    let span_id = SpanId::from_hex(&text[36..52]).ok()?;
    let flags = u8::from_str_radix(&text[53..], 16).ok()?;
    (trace_id != TraceId::INVALID && span_id != SpanId::INVALID).then_some((trace_id, span_id, flags))
}

/// Section 3.3.1. `None` if it is absent, invalid or too long.
fn parse_state(headers: &HeaderMap) -> Option<TraceState> {
    let mut members: Vec<(&str, &str)> = Vec::new();
    let mut length = 0;
    for value in headers.get_all(&TRACESTATE) {
        length += value.len();
        for member in value.to_str().ok()?.split(',') {
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            if !is_key(key) || !is_value(value) || members.iter().any(|(other, _)| *other == key) {
                return None;
            }
            members.push((key, value));
        }
    }
    if members.is_empty() || members.len() > MAX_MEMBERS || length > MAX_STATE {
        return None;
    }
    TraceState::from_key_value(members).ok()
}

fn is_key(key: &str) -> bool {
    let is_plain = |part: &str, longest: usize| {
        part.len() <= longest
            && part.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/".contains(&byte))
    };
    match key.split_once('@') {
        None => is_plain(key, 256),
        Some((tenant, system)) => is_plain(tenant, 241) && is_plain(system, 14),
    }
}

fn is_value(value: &str) -> bool {
    let is_allowed = |byte: u8| matches!(byte, b' '..=b'~') && !b",=".contains(&byte);
    (1..=256).contains(&value.len()) && value.bytes().all(is_allowed) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn traceparent_of_this_and_later_versions_is_read() {
        let later = PARENT.replacen("00", "cc", 1);
        for value in [PARENT.to_owned(), later.clone(), format!("{later}-what-the-future-will-be")] {
            let parent = parse_parent(&headers(TRACEPARENT, &[&value])).unwrap();
            assert_eq!(parent.trace_id().to_string(), TRACE, "{value}");
            assert_eq!(parent.span_id().to_string(), "00f067aa0ba902b7");
            assert!(parent.is_sampled() && parent.is_remote());
        }
        let unsampled = parse_parent(&headers(TRACEPARENT, &[&PARENT.replace("-01", "-fe")])).unwrap();
        assert_eq!((unsampled.is_sampled(), unsampled.trace_flags().to_u8()), (false, RANDOM));
    }

    #[test]
    fn malformed_traceparent_is_ignored() {
        for value in [
            "",
            "00",
            &PARENT.replacen("00", "ff", 1),
            &PARENT.to_uppercase(),
            &format!("{PARENT}-extra"),
            &format!("{PARENT} "),
            &format!("{}.", PARENT.replacen("00", "01", 1)),
            &PARENT.replace(TRACE, &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT.replace('-', "_"),
            &PARENT.replace("-01", "-0g"),
            &PARENT.replace("4bf9", "+bf9"),
            &PARENT.replace("-01", "-1"),
        ] {
            let headers = headers(TRACEPARENT, &[value]);
            assert_eq!((parse_parent(&headers), parse_trace_id(&headers)), (None, None), "{value}");
        }
        assert_eq!(parse_parent(&headers(TRACEPARENT, &[PARENT, PARENT])), None, "two values");
    }

    #[test]
    fn malformed_tracestate_is_dropped_as_a_whole() {
        let state = |values: &[&str]| parse_state(&headers(TRACESTATE, values)).map(|state| state.header());
        assert_eq!(state(&["a=1, b@c=2 ,,", "d-*/_=x y"]).as_deref(), Some("a=1,b@c=2,d-*/_=x y"));
        let many: Vec<_> = (0..33).map(|number| format!("k{number}=v")).collect();
        for value in ["", "a", "a=", "A=1", "a=1,a=2", "a=b=c", "@a=1", "a@=1", "a=é", &many.join(",")] {
            assert_eq!(state(&[value]), None, "{value}");
        }
        assert_eq!(state(&[&format!("a={}", "x".repeat(256)), &format!("b={}", "x".repeat(256))]), None);
    }

    #[test]
    fn upstream_gets_new_parent_and_valid_state() {
        let context = parse_parent(&headers(TRACEPARENT, &[PARENT])).unwrap();
        for (state, keeps_state, expected) in
            [("a=1", true, Some("a=1")), ("a=1", false, None), ("not a state", true, None)]
        {
            let mut headers = headers(TRACEPARENT, &["junk", "junk"]);
            headers.insert(TRACESTATE, HeaderValue::from_str(state).unwrap());
            set_parent(&mut headers, &context, keeps_state);
            assert_eq!(headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>(), [PARENT]);
            assert_eq!(headers.get(TRACESTATE).map(|value| value.to_str().unwrap()), expected);
        }
    }
}
