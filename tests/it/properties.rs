//! The invariants of the fuzz targets, on stable Rust and in seconds, over the committed seeds and texts generated from
//! them, which are the same in every run. docs/fuzzing.md tells how to search for longer.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fastrand::Rng;

#[path = "../../fuzz/invariants/lib.rs"]
mod invariants;

/// Checks the seeds of a target, and then `texts` generated from them and its dictionary. Each of `ways` must be reached.
#[track_caller]
fn hold(target: &str, texts: u64, ways: &[&str], invariant: fn(&[u8]) -> &'static str) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let entries = fs::read_dir(fuzz.join("corpus").join(target)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let words = words(&fs::read_to_string(fuzz.join(format!("dictionaries/{target}.dict"))).unwrap());

    let mut taken = BTreeSet::from([invariants::NO_INPUT]);
    let mut check = |text: &[u8]| {
        let shown = Shown(text);
        taken.insert(invariant(text));
        drop(shown);
    };
    for seed in &seeds {
        check(seed);
    }
    for number in 0..texts {
        check(&made_of(&seeds, &words, &mut Rng::with_seed(number)));
    }
    let mut all: BTreeSet<&str> = ways.iter().copied().collect();
    all.insert(invariants::NO_INPUT);
    assert_eq!(taken, all, "the ways that the texts went");
}

/// Prints the text that violated an invariant.
struct Shown<'t>(&'t [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("broken by: {}", self.0.escape_ascii());
        }
    }
}

/// A seed with some mutations.
fn made_of(seeds: &[Vec<u8>], words: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut text = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..rng.usize(1..6) {
        let start = rng.usize(..=text.len());
        let end = (start + rng.usize(..8)).min(text.len());
        match rng.u8(..8) {
            0 => drop(text.drain(start..end)),
            1 => drop(text.splice(start..start, vec![rng.u8(..)])),
            2 => {
                let part = text[start..end].to_vec();
                drop(text.splice(start..start, part));
            }
            3 => {
                let other = &seeds[rng.usize(..seeds.len())];
                text.truncate(start);
                text.extend(&other[rng.usize(..=other.len())..]);
            }
            4 => drop(text.splice(start..end, words[rng.usize(..words.len())].clone())),
            _ => drop(text.splice(start..start, words[rng.usize(..words.len())].clone())),
        }
    }
    text
}

/// The words of a dictionary, in libFuzzer's notation.
fn words(dictionary: &str) -> Vec<Vec<u8>> {
    let quoted = |line: &str| {
        let mut rest = line.strip_prefix('"')?.strip_suffix('"')?.as_bytes();
        let mut word = Vec::new();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            match (byte, after) {
                (b'\\', [b'x', digits @ ..]) => {
                    word.push(u8::from_str_radix(std::str::from_utf8(&digits[..2]).unwrap(), 16).unwrap());
                    rest = &digits[2..];
                }
                (b'\\', [byte, after @ ..]) => {
                    word.push(*byte);
                    rest = after;
                }
                _ => word.push(byte),
            }
        }
        Some(word)
    };
    dictionary.lines().filter_map(quoted).collect()
}

#[test]
fn path_passes_only_if_all_readings_agree() {
    hold("path_rule", 20_000, &["no route", "refused", "taken", "too long"], invariants::path_rule);
}

#[test]
fn most_specific_route_takes_request() {
    let ways = ["ambiguous", "clash", "found", "never", "no route", "not allowed"];
    hold("route_match", 20_000, &ways, invariants::route_match);
}

#[test]
fn bearer_value_is_one_key_or_none() {
    hold("credential", 20_000, &["key", "no key", "none", "two"], invariants::credential);
}

#[test]
fn no_client_header_can_pass_as_identity() {
    let ways = ["set", "shared", "too large"];
    hold("identity_headers", 10_000, &ways, invariants::identity_headers);
}

#[test]
fn only_hop_by_hop_headers_are_removed() {
    hold("hop_by_hop", 20_000, &["named", "plain"], invariants::hop_by_hop);
}

#[test]
fn key_verdict_follows_only_contract_responses() {
    let ways = ["broken", "fault", "invalid", "valid"];
    hold("scalekit_answers", 20_000, &ways, invariants::scalekit_answers);
}

#[test]
fn config_errors_have_location_and_no_secret() {
    hold("config_file", 2_000, &["problems", "read"], invariants::config_file);
}
