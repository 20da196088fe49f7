//! Spellings of paths that a server could read as another path.

use fastrand::Rng;

const TARGETS: [&str; 6] =
    ["/api/secret", "/api", "/v1/admin/users", "/v1/admin", "/v1/rotate", "/v1/rotate/now"];

/// Prefixes of a path.
const STARTS: [&str; 20] = [
    "//x", "///x", "/\\x", "/\\\\x", "\\/x", "/%2fx", "/%5cx", "/%252fx", "//x:80", "//user@x", "//[::1]",
    "//x//y", "//x/", "/", "//", "/;", "/;x", "/%2f", "/x;/..", "/%20",
];

/// Replacements of a separator.
const SEPARATORS: [&str; 18] = [
    "//",
    "\\",
    "%2f",
    "%2F",
    "%5c",
    "%5C",
    "%252f",
    "%255c",
    "/;x/",
    ";a=b/",
    ";/",
    "/%20/",
    "%20/",
    "./",
    "/./",
    "/x/../",
    "%c0%af",
    "%f8%80%80%80%af",
];

/// Suffixes of a path.
const ENDS: [&str; 18] = [
    "/", "//", ";", ";x", ";x/y", "/;x", "%3f", "%3fx/y", "%23", "%23/x", ".", "..", "%20", "%2e", "?",
    "?x=/y", "%3b/x", "%253f",
];

/// The first `count` spellings, the same in every run.
pub fn spellings(count: u64) -> Vec<String> {
    (0..count).map(|number| spelling(&mut Rng::with_seed(number))).collect()
}

fn spelling(rng: &mut Rng) -> String {
    let target = TARGETS[rng.usize(..TARGETS.len())];
    let mut text =
        if rng.u8(..3) == 0 { STARTS[rng.usize(..STARTS.len())].to_owned() } else { String::new() };
    for (at, char) in target.chars().enumerate() {
        match (char, rng.u8(..24)) {
            ('/', 0..4) if at > 0 => text.push_str(SEPARATORS[rng.usize(..SEPARATORS.len())]),
            ('/', _) => text.push('/'),
            (char, 0..2) => text.push(char.to_ascii_uppercase()),
            (char, 2) => text.push_str(&format!("%{:02x}", u32::from(char))),
            (char, 3) => text.push_str(&format!("%25{:02X}", u32::from(char))),
            ('s', 4) => text.push_str("%c5%bf"),
            ('i', 4..8) => text.push_str("%c4%b1"),
            (char, _) => text.push(char),
        }
    }
    if rng.u8(..4) == 0 {
        text.push_str(ENDS[rng.usize(..ENDS.len())]);
    }
    // The absolute form has an authority before the path.
    if rng.u8(..8) == 0 && text.starts_with('/') { format!("http://api.test{text}") } else { text }
}
