//! See `invariants/path_rule.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    keyward_fuzz::path_rule(data);
});
