//! `cargo xtask`: everything that builds, checks, measures and ships Tieback, one file a subcommand.

mod bench;
mod build;
mod command;
mod docs;
mod lint;
mod packages;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm;
mod workspace;

use clap::Parser;
use std::process::ExitCode;

/// Sets up, builds, runs, tests and measures Tieback.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Xtask {
    Setup(setup::Args),
    Build(build::Args),
    Run(run::Args),
    Test(test::Args),
    Vm(vm::Args),
    Bench(bench::Args),
    Lint(lint::Args),
    Docs(docs::Args),
}

fn main() -> ExitCode {
    let done = match Xtask::parse() {
        Xtask::Setup(args) => setup::run(&args),
        Xtask::Build(args) => build::run(&args).map(drop),
        Xtask::Run(args) => run::run(&args),
        Xtask::Test(args) => test::run(&args),
        Xtask::Vm(args) => vm::run(&args),
        Xtask::Bench(args) => bench::run(&args),
        Xtask::Lint(args) => lint::run(&args),
        Xtask::Docs(args) => docs::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
