//! The `keyward` program. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyward::cli::main()
}
