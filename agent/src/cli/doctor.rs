//! `tieback doctor`.

use std::process::ExitCode;

use anyhow::Result;

use super::DoctorArgs;
use crate::config::{Config, Flags};
use crate::host::Host;
use crate::load::status::Verdict;
use crate::pipeline;

/// Loads everything once, says what came of it and lets it go.
pub(super) fn run(arguments: &DoctorArgs) -> Result<ExitCode> {
    let host = Host::new(&arguments.host_root);
    println!(
        "kernel     {}",
        host.kernel_release().unwrap_or_else(|_| "(unknown)".to_owned())
    );
    let loaded = pipeline::load(&host, &Config::load(Flags::default(), &[])?)?;
    let mut good = true;
    for status in loaded.statuses() {
        println!(
            "{:<10} {:<12} {}",
            status.probe,
            status.verdict.as_str(),
            status.reason
        );
        good &= status.verdict == Verdict::Ok;
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
