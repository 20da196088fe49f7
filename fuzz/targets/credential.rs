//! See `invariants/credential.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    keyward_fuzz::credential(data);
});
