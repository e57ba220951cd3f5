//! Nanoseconds an event of each program, by the kernel's own statistics for a short while.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Work, loops};
use crate::command;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The statistics as they were, given back when dropped.
struct Statistics(String);

impl Statistics {
    fn on() -> Result<Self> {
        let before = std::fs::read_to_string(SWITCH).context("no BPF statistics")?;
        std::fs::write(SWITCH, "1")?;
        Ok(Self(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        // The file was written a moment ago.
        let _restored = std::fs::write(SWITCH, &self.0);
    }
}

#[derive(serde::Deserialize)]
struct Program {
    #[serde(default)]
    name: String,
    #[serde(default)]
    run_time_ns: u64,
    #[serde(default)]
    run_cnt: u64,
}

fn programs() -> Result<Vec<Program>> {
    Ok(serde_json::from_str(&command::stdout(
        Command::new("bpftool").args(["-j", "prog", "show"]),
    )?)?)
}

/// Drives the hooks for some seconds and prints what each run took. The statistics themselves add about 80 ns to a run
/// (COST.md, 1), so these are upper bounds to compare versions by.
pub(super) fn table() -> Result<String> {
    let _statistics = Statistics::on()?;
    let before = programs()?;
    let slice = Duration::from_millis(500);
    loops::Dd::new()?.slice(slice)?;
    loops::PingPong::new()?.slice(slice)?;
    loops::Connect::new()?.slice(slice)?;
    loops::Exec.slice(slice)?;
    loops::Faults.slice(slice)?;
    let mut text = "| program | runs | ns a run (statistics included) |\n|---|---|---|\n".to_owned();
    for program in programs()? {
        let of = |pick: fn(&Program) -> u64| {
            let old = before.iter().find(|old| old.name == program.name).map_or(0, pick);
            pick(&program).saturating_sub(old)
        };
        let (runs, ns) = (of(|program| program.run_cnt), of(|program| program.run_time_ns));
        let ours = agent_ebpf::probes::ALL
            .iter()
            .flat_map(|probe| probe.hooks)
            .any(|hook| hook.program.starts_with(&program.name) && !program.name.is_empty());
        if ours && runs > 0 {
            writeln!(
                text,
                "| `{}` | {runs} | {:.0} |",
                program.name,
                ns as f64 / runs as f64
            )?;
        }
    }
    Ok(text)
}
