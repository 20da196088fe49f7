//! See `invariants/route_match.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    keyward_fuzz::route_match(data);
});
