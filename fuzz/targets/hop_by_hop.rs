//! See `invariants/hop_by_hop.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    keyward_fuzz::hop_by_hop(data);
});
