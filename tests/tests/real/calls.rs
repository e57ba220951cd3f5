//! Counts of system calls by Tieback and by strace.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::program::unique_service;
use tieback_tests::server::{Guard, Server};

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
    table(file.path())
}

/// Calls by name in what `strace -c -o` wrote.
fn table(file: &Path) -> Result<BTreeMap<String, f64>> {
    let table = std::fs::read_to_string(file)?;
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
fn redis_makes_the_calls_that_strace_counts() -> Result<()> {
    let redis = Server::redis()?;
    let agent = Server::watched_with(&[&redis], &["--syscall-mode", "exact"])?;
    let file = tempfile::NamedTempFile::new()?;
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(file.path());
    strace
        .arg("-p")
        .arg(redis.pid().to_string())
        .stderr(Stdio::piped());
    let mut strace = Guard(strace.spawn()?);
    let mut said = String::new();
    BufReader::new(strace.0.stderr.take().context("no stderr")?).read_line(&mut said)?;
    ensure!(said.contains("attached"), "strace: {said}");

    let before = agent.settled()?;
    let mut load = Command::new("redis-benchmark");
    load.args(["-p", &redis.port.to_string(), "-q", "-n", "20000", "-c", "10"]);
    let status = load.args(["-t", "set,get"]).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "redis-benchmark failed: {status}");
    let after = agent.settled()?;
    kill_process(Pid::from_child(&strace.0), Signal::INT)?;
    strace.0.wait()?;

    let truth = table(file.path())?;
    let made = |call| {
        let labels = [("service_name", redis.service.as_str()), ("syscall", call)];
        after.sum("tieback_syscalls_total", &labels) - before.sum("tieback_syscalls_total", &labels)
    };
    for call in ["write", "accept4", "setsockopt"] {
        let counted = truth
            .get(call)
            .copied()
            .with_context(|| format!("strace saw no {call}"))?;
        assert_eq!(made(call), counted, "{call}");
    }
    assert!(made("write") >= 40_000.0, "an answer for each request");
    // Redis also reads about itself when nobody asks, ten times a second; strace watches for longer.
    assert_within!(made("read"), truth["read"], 0.01, "read");
    Ok(())
}
