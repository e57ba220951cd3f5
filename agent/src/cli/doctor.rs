//! `tieback doctor`.

use std::process::ExitCode;

use anyhow::Result;

use super::agent::AgentArguments;
use crate::host::Host;
use crate::load::status::Verdict;
use crate::pipeline;

/// Loads everything once, says what came of it and lets it go.
pub(super) fn run() -> Result<ExitCode> {
    let host = Host::new("/");
    println!("kernel     {}", host.kernel_release().unwrap_or_else(|_| "(unknown)".to_owned()));
    let loaded = pipeline::load(&host, &AgentArguments::defaults().settings()?)?;
    let mut good = true;
    for status in loaded.statuses() {
        println!("{:<10} {:<12} {}", status.probe, status.verdict.as_str(), status.reason);
        good &= status.verdict == Verdict::Ok;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
