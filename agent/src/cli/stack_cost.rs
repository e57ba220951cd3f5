//! `tieback stack-cost`, which `cargo xtask bench` calls.

use std::process::ExitCode;

use anyhow::Result;

use super::StackCostArgs;
use crate::config::{Config, Flags};
use crate::host::Host;
use crate::pipeline;

pub(super) fn run(arguments: &StackCostArgs) -> Result<ExitCode> {
    let config = Config::load(Flags::default(), &[])?;
    let host = Host::new(&config.host_root);
    pipeline::stack_cost(&host, &config, &arguments.program, &arguments.depths)?;
    Ok(ExitCode::SUCCESS)
}
