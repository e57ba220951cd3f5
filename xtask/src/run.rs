//! `cargo xtask run`: the agent on this host, as root.

use crate::{build, command};
use anyhow::{Context as _, Result, bail};
use std::os::unix::process::CommandExt as _;

/// Build the agent and run it on this host as root: `cargo xtask run -- --listen 127.0.0.1:9909`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Handed to `tieback agent`
    #[arg(last = true)]
    args: Vec<String>,
}

/// Becomes the agent: its signals and its exit status are then its own (sudo passes them on).
pub(crate) fn run(args: &Args) -> Result<()> {
    let program = build::run(&build::Args::default())?;
    let Some(mut agent) = command::as_root(&program, []) else {
        bail!(
            "not root, and there is no sudo; type as root: {} agent",
            program.display()
        );
    };
    let error = agent.arg("agent").args(&args.args).exec();
    Err(error).with_context(|| format!("start {}", command::line(&agent)))
}
