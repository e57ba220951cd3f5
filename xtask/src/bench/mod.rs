//! `cargo xtask bench`: what the agent costs the host.

use anyhow::{Result, bail};

/// Measure what the agent costs the programs of this host.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Measures, then prints target beside result.
pub(crate) fn run(_args: &Args) -> Result<()> {
    bail!("this checkout has no measurements yet")
}
