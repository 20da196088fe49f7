//! The other ways in which a backend could read a path. Pure, and bounded by the path's length.

use std::borrow::Cow;

use crate::rejection::Rejection;

/// Every other common reading of a path: `%2F`, `\` and `%5C` as `/`, `//` as `/`, `;…` cut off, decoded twice, and
/// these together. None for a path without any such character.
///
/// # Errors
/// `AmbiguousPath` for a path that no reading can make safe.
pub(super) fn readings(path: &[u8]) -> Result<Vec<Vec<u8>>, Rejection> {
    if path.first() != Some(&b'/') {
        return Err(Rejection::AmbiguousPath);
    }
    let plain = !path.contains(&b'%');
    let odd = |byte: &u8| matches!(byte, b'\\' | b';');
    if plain && !path.iter().any(odd) && !path.windows(2).any(|pair| pair == b"//") {
        return if has_dot_segment(path) { Err(Rejection::AmbiguousPath) } else { Ok(Vec::new()) };
    }
    let once = decoded(path).ok_or(Rejection::AmbiguousPath)?;
    // Decoding twice meets text that was never meant as an escape: what is none stays as it is.
    let twice = decoded_leniently(&once);
    if once.iter().chain(twice.iter()).any(u8::is_ascii_control) || is_overlong(&once) || is_overlong(&twice)
    {
        return Err(Rejection::AmbiguousPath);
    }
    let mut readings = Vec::new();
    for text in [Cow::Borrowed(path), Cow::Owned(once), Cow::Owned(twice)] {
        if has_dot_segment(&text) {
            return Err(Rejection::AmbiguousPath);
        }
        for slashes in [false, true] {
            let text: Vec<u8> =
                text.iter().map(|&byte| if slashes && byte == b'\\' { b'/' } else { byte }).collect();
            for text in [without_parameters(&text), text] {
                readings.push(without_empty_segments(&text));
                readings.push(text);
            }
        }
    }
    Ok(readings)
}

/// `.` or `..` between separators, `/` or `\`, with or without `;…` behind it.
pub(super) fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or(segment);
        matches!(name, b"." | b"..")
    })
}

/// SECURITY: UTF-8 forbids to write a character longer than need be (RFC 3629 section 3), but lenient decoders read `%C0%AE`
/// as `.` and `%C0%AF` as `/`.
fn is_overlong(path: &[u8]) -> bool {
    path.windows(2)
        .any(|pair| matches!(pair, [0xc0 | 0xc1, 0x80..=0xbf] | [0xe0, 0x80..=0x9f] | [0xf0, 0x80..=0x8f]))
}

/// Percent-decoded; `None` for an escape that is none.
fn decoded(path: &[u8]) -> Option<Vec<u8>> {
    let escapes = path.iter().filter(|&&byte| byte == b'%').count();
    let decoded = decoded_leniently(path);
    (path.len() - decoded.len() == 2 * escapes).then_some(decoded)
}

fn decoded_leniently(path: &[u8]) -> Vec<u8> {
    percent_encoding::percent_decode(path).collect()
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let mut cut = false;
    path.iter()
        .copied()
        .filter(|byte| {
            cut = *byte == b';' || (cut && *byte != b'/');
            !cut
        })
        .collect()
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
