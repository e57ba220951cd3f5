//! The command line: one file a subcommand.

mod agent;
mod args;
mod doctor;
mod record;
mod running;
mod stack_cost;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;

pub use args::{AgentArgs, Cli, Command, DoctorArgs, RecordArgs, StackCostArgs};

/// Runs the command line.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Cli::parse();
    // A command's own output is not to be mixed with news of probes.
    let level = match arguments.command {
        Command::Record(_) => "warn",
        _ => "info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIEBACK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match arguments.command {
        Command::Agent(arguments) => agent::run(*arguments),
        Command::Record(arguments) => record::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::StackCost(arguments) => stack_cost::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tieback: {error:#}");
            ExitCode::FAILURE
        }
    }
}
