//! Real programs, measured by Tieback and by an independent tool. Needs root.

#[path = "real/calls.rs"]
mod calls;
#[path = "real/containers.rs"]
mod containers;
#[path = "real/descriptors.rs"]
mod descriptors;
#[path = "real/go_packages.rs"]
mod go_packages;
#[path = "real/massif.rs"]
mod massif;
#[path = "real/names.rs"]
mod names;
#[path = "real/owned.rs"]
mod owned;
#[path = "real/owner_rules.rs"]
mod owner_rules;
#[path = "real/owners.rs"]
mod owners;
#[path = "real/pools.rs"]
mod pools;
#[path = "real/python.rs"]
mod python;
#[path = "real/reference.rs"]
mod reference;
#[path = "real/runtimes.rs"]
mod runtimes;
#[path = "real/selftests.rs"]
mod selftests;
#[path = "real/servers.rs"]
mod servers;
#[path = "real/stacks.rs"]
mod stacks;
#[path = "real/unix.rs"]
mod unix;
#[path = "real/upstream.rs"]
mod upstream;

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;

#[test]
fn promtool_finds_nothing_wrong() -> Result<()> {
    let agent = Agent::start(&[])?;
    agent.settled()?;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start promtool")?;
    let text = agent.get("/metrics")?;
    ensure!(text.contains("tieback_wait_seconds_total"), "no waits");
    std::io::Write::write_all(&mut promtool.stdin.take().context("no stdin")?, text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    Ok(())
}
