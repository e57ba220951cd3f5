//! The command line: one file a subcommand.

mod agent;
mod doctor;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Ties what services do at run time back to the code that does it.
#[derive(Debug, Parser)]
#[command(name = "tieback", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Profile this host and serve metrics and profiles over HTTP.
    Agent(Box<agent::AgentArguments>),
    /// Say what works on this host: kernel features and one line a probe.
    Doctor,
}

/// Runs the command line.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIEBACK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match arguments.command {
        Command::Agent(arguments) => agent::run(&arguments),
        Command::Doctor => doctor::run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tieback: {error:#}");
            ExitCode::FAILURE
        }
    }
}
