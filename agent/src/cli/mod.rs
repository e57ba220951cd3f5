//! The command line: one file a subcommand.

mod agent;
mod args;
mod doctor;
mod stack_cost;

use std::process::ExitCode;

use clap::Parser as _;

pub use args::{AgentArgs, Cli, Command, DoctorArgs, StackCostArgs};

/// Runs the command line.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIEBACK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let result = match arguments.command {
        Command::Agent(arguments) => agent::run(*arguments),
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
