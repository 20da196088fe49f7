//! The other ways in which a backend could read a path. Pure; at most 310 of them, each no longer than the path.

use crate::rejection::Rejection;

/// Every other common reading of a path: `%2F`, `\` and `%5C` as `/`, `//` as `/`, `;…` cut off, decoded twice, and
/// these together, in any order. None for a path without any such character.
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
    if !is_escaped_well(path) {
        return Err(Rejection::AmbiguousPath);
    }
    let mut readings: Vec<Vec<u8>> = Vec::new();
    let mut texts = vec![path.to_vec()];
    for decodings in 0..=2 {
        // SECURITY: servers cut parameters before they decode, or after, or both; with `%2F` in one, these are other paths.
        texts = texts.into_iter().flat_map(|text| separated(&text)).collect();
        texts.sort();
        texts.dedup();
        for text in &texts {
            if has_dot_segment(text)
                || (decodings > 0 && (text.iter().any(u8::is_ascii_control) || is_overlong(text)))
            {
                return Err(Rejection::AmbiguousPath);
            }
        }
        readings.extend(texts.iter().map(|text| without_empty_segments(text)));
        readings.extend_from_slice(&texts);
        // Decoding twice meets text that was never meant as an escape: what is none stays as it is.
        texts = texts.iter().map(|text| percent_encoding::percent_decode(text).collect()).collect();
    }
    readings.sort();
    readings.dedup();
    Ok(readings)
}

/// The ways to read a text's separators: `\` as one or not, `;…` cut off or not, in either order.
fn separated(text: &[u8]) -> [Vec<u8>; 5] {
    let (slashes, cut) = (with_slashes(text), without_parameters(text));
    [text.to_vec(), without_parameters(&slashes), with_slashes(&cut), slashes, cut]
}

fn with_slashes(text: &[u8]) -> Vec<u8> {
    text.iter().map(|&byte| if byte == b'\\' { b'/' } else { byte }).collect()
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

/// Whether every `%` begins an escape.
fn is_escaped_well(path: &[u8]) -> bool {
    let escapes = path.iter().filter(|&&byte| byte == b'%').count();
    path.len() - percent_encoding::percent_decode(path).count() == 2 * escapes
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
