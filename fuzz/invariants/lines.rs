//! Inputs as lines. A byte that would end one, or that is no text, is written as `%0A`.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

/// The lines of an input, and what follows the first empty one.
pub fn head_and_rest(data: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut lines = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    (lines, rest)
}

/// What is before and after the first `mark`.
pub fn cut<'l>(line: &'l [u8], mark: &[u8]) -> Option<(&'l [u8], &'l [u8])> {
    let at = line.windows(mark.len()).position(|part| part == mark)?;
    Some((&line[..at], &line[at + mark.len()..]))
}

/// Percent-decoded once; what is no escape stays.
pub fn decoded(mut text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut out = Vec::new();
    while let Some((&byte, rest)) = text.split_first() {
        match (byte, digit(rest.first()), digit(rest.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                text = &rest[2..];
            }
            _ => {
                out.push(byte);
                text = rest;
            }
        }
    }
    out
}

/// The same, as text.
pub fn decoded_text(text: &[u8]) -> String {
    String::from_utf8_lossy(&decoded(text)).into_owned()
}

/// `name: value` on each line; what can be no header is left out, as hyper does not let it in.
pub fn headers<'l>(lines: impl IntoIterator<Item = &'l [u8]>) -> HeaderMap {
    let header = |line: &'l [u8]| {
        let (name, value) = cut(line, b": ")?;
        let value = HeaderValue::from_bytes(&decoded(value)).ok()?;
        Some((HeaderName::from_bytes(name).ok()?, value))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.into_iter().filter_map(header).take(100) {
        headers.append(name, value);
    }
    headers
}
