//! See `invariants/scalekit_answers.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    keyward_fuzz::scalekit_answers(data);
});
