//! The `keyward` program. Everything is in the library.

use std::process::ExitCode;

// SECURITY: small things that live long, as remembered bad keys, keep whole pages of glibc's heap from being given back
// after a flood.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keyward::cli::main()
}
