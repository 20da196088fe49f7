//! See `invariants/identity_headers.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    keyward_fuzz::identity_headers(data);
});
