//! The `tieback` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    tieback::cli::run()
}
