//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Flags;

/// Ties what a service does at run time back to the code that does it.
#[derive(Debug, Parser)]
#[command(name = "tieback", version, propagate_version = true, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Profile this host and serve metrics, profiles and pages
    Agent(Box<AgentArgs>),
    /// Say what works on this host, probe by probe, and how to mend what does not
    Doctor(DoctorArgs),
    /// Measure what a user stack costs on this host
    #[command(hide = true)]
    StackCost(StackCostArgs),
}

/// Arguments of `tieback stack-cost`.
#[derive(Debug, Args)]
pub struct StackCostArgs {
    /// The program that has the stacks, made from `tests/programs/depth.c`
    pub program: PathBuf,
    /// Depths in frames
    #[arg(required = true)]
    pub depths: Vec<u32>,
}

/// Arguments of `tieback agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// Arguments of `tieback doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Root of the host's file system, for an agent in a container
    #[arg(long, env = "TIEBACK_HOST_ROOT", value_name = "PATH", default_value = "/")]
    pub host_root: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_agent_takes_settings() {
        let cli = Cli::try_parse_from(["tieback", "agent", "--syscall-mode", "exact", "--top", "5"])
            .expect("valid");
        let Command::Agent(args) = cli.command else {
            panic!("not the agent")
        };
        assert_eq!(args.flags.settings.top, Some(5));
        assert!(Cli::try_parse_from(["tieback", "agent", "--cpu-limit", "1"]).is_err());
        assert!(Cli::try_parse_from(["tieback"]).is_err());
    }

    #[test]
    fn help_tells_default_and_variable_of_every_setting() {
        let mut command = Cli::command();
        let agent = command.find_subcommand_mut("agent").expect("there");
        let help = agent.render_long_help().to_string();
        for argument in agent
            .get_arguments()
            .filter(|a| !["help", "version", "config"].contains(&a.get_id().as_str()))
        {
            let name = argument.get_id().as_str();
            let about = argument.get_help().expect("a help text").to_string();
            assert!(about.contains("[default: "), "{name}: {about}");
            assert_eq!(
                argument.get_env().expect("a variable").to_str(),
                Some(format!("TIEBACK_{}", name.to_uppercase()).as_str())
            );
        }
        assert!(
            help.contains("--memory-limit <SIZE>") && help.contains("[default: 256MiB]"),
            "{help}"
        );
    }
}
