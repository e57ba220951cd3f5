//! The command line: one file a subcommand.

mod args;

pub use args::{AgentArgs, Cli, Command, DoctorArgs};
