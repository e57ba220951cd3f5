//! `cargo xtask build`: the agent, with the BPF object in it.

use crate::{command, setup, workspace, workspace::Workspace};
use anyhow::Result;
use std::path::PathBuf;

/// Build the agent (after setup).
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Build quickly instead of well
    #[arg(long)]
    debug: bool,
}

/// Builds and tells where the program is.
pub(crate) fn run(args: &Args) -> Result<PathBuf> {
    setup::run(&setup::Args::default())?;
    let mut cargo = command::cargo();
    cargo
        .args(["build", "--package", "tieback"])
        .current_dir(workspace::root());
    if !args.debug {
        cargo.arg("--release");
    }
    command::checked(&mut cargo)?;
    let profile = if args.debug { "debug" } else { "release" };
    Ok(Workspace::load()?.target_directory.join(profile).join("tieback"))
}
