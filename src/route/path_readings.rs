//! The ways in which a service could read a path other than as it was sent, found with bounded work for each path.

use std::collections::BTreeSet;

/// Limit of the work for one path, in bytes: each reading costs its length and 64.
/// SECURITY: with HPACK, a long path can take few bytes on the wire, and clients need no key to send one.
const BUDGET: usize = 8 * 1024;

/// How many times a path may be decoded: by a proxy or framework, and again by the code behind it.
const DECODINGS: usize = 2;

/// Finds every other common reading of a path. It is decoded up to twice, and each time these are applied in any order: `\` is
/// read as `/`, `;…` is removed from segments, the path ends at `;`, `?` or `#`, and an authority after two leading separators
/// is removed. Then `//` is read as `/`, and spaces and dots at the ends of segments are removed. The route table ignores letter
/// case and a final slash when it compares.
///
/// For a path without any of these, the result is empty and nothing is allocated.
///
/// # Errors
/// Why the path is unsafe with any routes.
pub(super) fn find_readings(path: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    if path.first() != Some(&b'/') {
        return Err("the path does not begin with '/'");
    }
    if is_plain(path) {
        return Ok(Vec::new());
    }
    if !has_whole_escapes(path) {
        return Err("the path has a malformed percent-encoding");
    }
    let (mut all, mut budget) = (BTreeSet::new(), BUDGET);
    let mut texts = BTreeSet::from([path.to_vec()]);
    for decodings in 0..=DECODINGS {
        // SECURITY: servers remove parameters before or after decoding; with `%2F` in a parameter, the results differ.
        add_rewritten(&mut texts, &mut budget)?;
        for text in &texts {
            if has_dot_segment(text) {
                return Err("the path has a '.' or '..' segment, possibly encoded");
            }
            if decodings > 0 && text.iter().any(u8::is_ascii_control) {
                return Err("the path has an encoded control character");
            }
            if decodings > 0 && is_overlong(text) {
                return Err("the path has a character in an overlong form of UTF-8");
            }
        }
        // Decoded text may contain a `%` that is not an escape; it is kept as it is.
        let decoded: BTreeSet<Vec<u8>> =
            texts.iter().map(|text| percent_encoding::percent_decode(text).collect()).collect();
        let settled = decoded == texts;
        all.append(&mut texts);
        if settled {
            break;
        }
        texts = decoded;
    }
    let mut readings: Vec<Vec<u8>> = all.iter().flat_map(|text| normalized_forms(text)).collect();
    readings.extend(all);
    readings.sort();
    readings.dedup();
    readings.retain(|reading| reading != path);
    Ok(readings)
}

/// Whether every server reads the path as it was sent. Dot segments are found by the dot at the end of a segment.
fn is_plain(path: &[u8]) -> bool {
    let odd = |byte: u8| matches!(byte, b'%' | b'\\' | b';' | b'?' | b'#' | b' ') || !byte.is_ascii();
    let mut last = 0;
    for &byte in path {
        if odd(byte) || (byte == b'/' && matches!(last, b'/' | b'.')) {
            return false;
        }
        last = byte;
    }
    last != b'.'
}

/// Adds all texts that result from the rewritings, applied in any order.
fn add_rewritten(texts: &mut BTreeSet<Vec<u8>>, budget: &mut usize) -> Result<(), &'static str> {
    let mut open: Vec<Vec<u8>> = texts.iter().cloned().collect();
    while let Some(text) = open.pop() {
        let rewritten = [
            with_slashes(&text),
            without_parameters(&text),
            cut_at(&text, b";"),
            cut_at(&text, b"?#"),
            without_authority(&text),
        ];
        for next in rewritten.into_iter().flatten().filter(|next| *next != text) {
            if texts.contains(&next) {
                continue;
            }
            let left = budget.checked_sub(next.len() + 64);
            *budget = left.ok_or("the path is too long for the number of ways to read it")?;
            texts.insert(next.clone());
            open.push(next);
        }
    }
    Ok(())
}

fn with_slashes(text: &[u8]) -> Option<Vec<u8>> {
    let slash = |&byte: &u8| if byte == b'\\' { b'/' } else { byte };
    text.contains(&b'\\').then(|| text.iter().map(slash).collect())
}

/// Removes `;…` from each segment, as servlet containers do.
fn without_parameters(text: &[u8]) -> Option<Vec<u8>> {
    let mut cut = false;
    let kept = |byte: &u8| {
        cut = *byte == b';' || (cut && *byte != b'/');
        !cut
    };
    text.contains(&b';').then(|| text.iter().copied().filter(kept).collect())
}

/// The text before the first of these bytes: Fastify begins the query at `;`, and others end the path at a decoded `?` or `#`.
fn cut_at(text: &[u8], ends: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().position(|byte| ends.contains(byte))?;
    Some(text[..end].to_vec())
}

/// SECURITY: two leading separators begin an authority (RFC 3986 section 4.2), after which parsers of whole URLs begin the path:
/// `//x/api` is `/api` for WHATWG URL, `java.net.URI` and PHP's `parse_url`. WHATWG URL skips any number of `/` and `\`.
fn without_authority(text: &[u8]) -> Option<Vec<u8>> {
    let is_separator = |byte: &u8| matches!(byte, b'/' | b'\\');
    if !text.iter().take(2).all(is_separator) || text.len() < 2 {
        return None;
    }
    let authority = text.iter().position(|byte| !is_separator(byte)).unwrap_or(text.len());
    let path = text[authority..].iter().position(|byte| matches!(byte, b'/' | b'\\' | b'?' | b'#'));
    Some(match path.map(|at| &text[authority + at..]) {
        Some([b'/' | b'\\', rest @ ..]) => [b"/", rest].concat(),
        _ => b"/".to_vec(),
    })
}

/// The normalized forms under which servers and file systems look a path up, as far as they differ from it.
fn normalized_forms(text: &[u8]) -> Vec<Vec<u8>> {
    let has = |condition: fn(&[u8]) -> bool| text.windows(2).any(condition);
    let is_empty_segment = has(|pair| pair == b"//");
    let is_trimmed = has(|pair| matches!(pair, [b'/', b' '] | [b' ' | b'.', b'/']))
        || text.ends_with(b" ")
        || text.ends_with(b".");
    let has_letters = has(|pair| matches!(pair, [0xc4, 0xb0 | 0xb1] | [0xc5, 0xbf] | [0x84, 0xaa]));
    let mut tidied = Vec::new();
    if is_empty_segment {
        tidied.push(without_empty_segments(text));
    }
    if is_trimmed {
        tidied.push(without_empty_segments(&with_trimmed_segments(text)));
    }
    if has_letters {
        tidied.push(with_ascii_letters(&without_empty_segments(&with_trimmed_segments(text))));
    }
    tidied
}

fn without_empty_segments(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    for &byte in path {
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
    out
}

/// Windows opens `secret` for `secret.` and `secret `, and older Spring trims segments.
fn with_trimmed_segments(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for (index, segment) in path.split(|&byte| byte == b'/').enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        let start = segment.iter().position(|&byte| byte != b' ').unwrap_or(segment.len());
        let end = segment.iter().rposition(|&byte| !matches!(byte, b' ' | b'.')).map_or(start, |at| at + 1);
        out.extend_from_slice(segment.get(start..end).unwrap_or_default());
    }
    out
}

/// SECURITY: replaces the four letters outside ASCII that are equal to an ASCII letter without regard to case, for example for
/// Java's `equalsIgnoreCase` and Python's `re.IGNORECASE`.
fn with_ascii_letters(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(&byte) = rest.first() {
        let (letter, length) = match rest {
            [0xc4, 0xb0 | 0xb1, ..] => (b'i', 2),
            [0xc5, 0xbf, ..] => (b's', 2),
            [0xe2, 0x84, 0xaa, ..] => (b'k', 3),
            _ => (byte, 1),
        };
        out.push(letter);
        rest = &rest[length..];
    }
    out
}

/// Whether a segment between `/` or `\` is `.` or `..`, possibly followed by spaces or `;…`.
pub(super) fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or(segment);
        matches!(name.trim_ascii_end(), b"." | b"..")
    })
}

/// SECURITY: UTF-8 forbids overlong encodings (RFC 3629 section 3), but lenient decoders read `%C0%AE` as `.` and `%C0%AF` as `/`.
/// Forms of five and six bytes are from RFC 2279.
fn is_overlong(path: &[u8]) -> bool {
    let overlong = |pair: &[u8]| {
        matches!(
            pair,
            [0xc0 | 0xc1, 0x80..=0xbf]
                | [0xe0, 0x80..=0x9f]
                | [0xf0, 0x80..=0x8f]
                | [0xf8, 0x80..=0x87]
                | [0xfc, 0x80..=0x83]
        )
    };
    path.windows(2).any(overlong)
}

/// Whether every `%` begins a percent-encoded byte.
fn has_whole_escapes(path: &[u8]) -> bool {
    let escapes = path.iter().filter(|&&byte| byte == b'%').count();
    path.len() - percent_encoding::percent_decode(path).count() == 2 * escapes
}
