//! Real programs, measured by Tieback and by an independent tool. Needs root.

#[path = "real/containers.rs"]
mod containers;
#[path = "real/names.rs"]
mod names;
#[path = "real/owners.rs"]
mod owners;
#[path = "real/pools.rs"]
mod pools;
#[path = "real/reference.rs"]
mod reference;
#[path = "real/runtimes.rs"]
mod runtimes;
#[path = "real/servers.rs"]
mod servers;
#[path = "real/stacks.rs"]
mod stacks;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::program::unique_service;

/// Bytes, so that dd makes as many reads and writes.
const BYTES: usize = 50_000;
const DD: [&str; 3] = ["of=/dev/null", "bs=1", "count=50000"];

/// Runs a command and gives it its bytes once `ready` returns: until then it waits in its first read.
fn feed(command: &mut Command, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    ready()?;
    let mut input = child.stdin.take().context("no stdin")?;
    std::io::Write::write_all(&mut input, &[0; BYTES])?;
    let status = child.wait()?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// Calls by name as `strace -c` counts them.
fn strace() -> Result<BTreeMap<String, f64>> {
    let file = tempfile::NamedTempFile::new()?;
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-c", "-o"])
        .arg(file.path())
        .arg("dd")
        .args(DD);
    feed(&mut strace, || Ok(()))?;
    let table = std::fs::read_to_string(file.path())?;
    let mut calls = BTreeMap::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [_, _, _, count, .., name] = fields[..]
            && let Ok(count) = count.parse()
        {
            calls.insert(name.to_owned(), count);
        }
    }
    Ok(calls)
}

#[test]
fn dd_makes_the_calls_that_strace_counts() -> Result<()> {
    let truth = strace()?;
    ensure!(
        truth.get("read").is_some_and(|count| *count >= 50_000.0),
        "strace saw no reads"
    );
    let agent = Agent::start(&["--syscall-mode", "exact"])?;
    let service = unique_service("dd");
    let mut dd = Command::new("dd");
    dd.args(DD).env("OTEL_SERVICE_NAME", &service);
    feed(&mut dd, || agent.wait_for_service(&service).map(drop))?;
    let label = ("service_name", service.as_str());
    let scrape = agent.wait_for("dd's calls", |scrape| {
        scrape.sum("tieback_syscalls_total", &[label]) > 100_000.0
            && scrape.sum("tieback_processes", &[label]) == 0.0
    })?;
    for name in ["read", "write", "openat", "dup2"] {
        let got = scrape.sum("tieback_syscalls_total", &[label, ("syscall", name)]);
        assert_eq!(Some(&got), truth.get(name), "{name}");
    }
    Ok(())
}

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
