//! A C++ program's memory by stack, against valgrind's massif, which counts every byte.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::chains::Chains;
use tieback_tests::pprof::Profile;
use tieback_tests::program::unique_service;

use super::selftests::answered;

/// Bytes that a sample stands for.
const PERIOD: f64 = 16384.0;

/// Bytes by stack: the program's own functions, innermost first.
type Stacks = BTreeMap<Vec<String>, f64>;

/// A name without arguments: the tools differ in how they write these. None of a library, where they differ in what they show.
fn own(name: &str) -> Option<String> {
    let name = name.strip_prefix("shop::")?;
    Some(name.split('(').next().unwrap_or(name).to_owned())
}

/// Runs the program under massif until it ends by itself.
fn under_massif(program: &Path, file: &Path) -> Result<()> {
    let output = answered(
        Command::new("valgrind")
            .args(["--tool=massif", "--peak-inaccuracy=0.0", "--threshold=0.0"])
            .args(["--depth=40", "--heap-admin=0"])
            .arg(format!("--massif-out-file={}", file.display()))
            .arg(program),
        "ab",
    )?;
    ensure!(output == "ready\ndone\n", "{output}");
    Ok(())
}

/// Runs it watched by the agent, and returns the profile of what lives when it has allocated all.
fn under_tieback(program: &Path) -> Result<Profile> {
    let service = unique_service("shop");
    let agent = Agent::start(&["--alloc", &format!("{service}=full"), "--alloc-period", "16KiB"])?;
    let mut child = Command::new(program)
        .env("OTEL_SERVICE_NAME", &service)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut input = child.stdin.take().context("no input")?;
    let mut next = || lines.next().context("the program ended")?.context("read");
    ensure!(next()? == "ready", "not ready");
    agent.wait_for("allocations watched", |_| {
        let text = agent.get("/api/v1/allocations").unwrap_or_default();
        text.contains(&service) && text.contains("\"allocated_from\":[\"probes\"]")
    })?;
    agent.settled()?;
    input.write_all(b"a")?;
    ensure!(next()? == "done", "not done");
    agent.settled()?;
    let path = format!("/services/-/{service}/profile/alloc_live?format=pprof");
    let profile = Profile::of(&agent.get_bytes(&path)?)?;
    input.write_all(b"b")?;
    ensure!(child.wait()?.success(), "the program failed");
    Ok(profile)
}

/// The heap when it was largest. A line is `n2: 1234 0xADDRESS: function (file:line)`, two spaces deeper for each caller; 2 callers
/// follow, which share these bytes.
fn massif(file: &Path) -> Result<Stacks> {
    let text = std::fs::read_to_string(file)?;
    let peak = text.split("heap_tree=peak\n").nth(1).context("no peak")?;
    let mut stacks = Stacks::new();
    let mut path: Vec<Option<String>> = Vec::new();
    for line in peak.lines() {
        let depth = line.len() - line.trim_start_matches(' ').len();
        let Some((callers, rest)) = line
            .trim()
            .strip_prefix('n')
            .and_then(|line| line.split_once(": "))
        else {
            break;
        };
        let (bytes, place) = rest.split_once(' ').context("no place")?;
        let (callers, bytes): (usize, f64) = (callers.parse()?, bytes.parse()?);
        let function = place.split_once(": ").and_then(|(_, name)| own(name));
        path.truncate(depth);
        path.push(function);
        if callers == 0 {
            let stack: Vec<String> = path.iter().flatten().cloned().collect();
            *stacks.entry(stack).or_default() += bytes;
        }
    }
    Ok(stacks)
}

fn by_size(stacks: &Stacks) -> Vec<(&Vec<String>, f64)> {
    let mut all: Vec<_> = stacks
        .iter()
        .filter(|(stack, bytes)| !stack.is_empty() && **bytes > 0.0)
        .map(|(stack, bytes)| (stack, *bytes))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

#[test]
fn stacks_and_bytes_are_those_of_massif() -> Result<()> {
    let programs = Chains::build()?;
    let program = programs.path("shop");
    let directory = tempfile::tempdir()?;
    let counted = directory.path().join("massif");
    under_massif(&program, &counted)?;
    let truth = massif(&counted)?;
    let mut found = Stacks::new();
    for (stack, bytes) in under_tieback(&program)?.stacks("inuse_space")? {
        let stack: Vec<String> = stack.iter().filter_map(|name| own(name)).collect();
        *found.entry(stack).or_default() += bytes;
    }
    let (truth, found) = (by_size(&truth), by_size(&found));
    ensure!(truth.len() == 6, "stacks of massif: {truth:?}");
    let names = |stacks: &[(&Vec<String>, f64)]| -> Vec<Vec<String>> {
        stacks.iter().map(|(stack, _)| (*stack).clone()).collect()
    };
    assert_eq!(names(&found), names(&truth), "the same stacks in the same order");
    for ((stack, bytes), (_, wanted)) in found.iter().zip(&truth) {
        // A sampled allocation of S bytes, which has the chance p = 1 - e^(-S/T), stands for S/p: its part of the variance is
        // S²(1-p)/p, less than S·T. So that of the sum is less than the bytes times the period.
        let error = (PERIOD * wanted).sqrt();
        let off = (bytes - wanted) / error;
        eprintln!(
            "{}: {bytes:.0} of {wanted}, {off:.2} standard errors",
            stack.join(" < ")
        );
        ensure!(off.abs() <= 3.0, "{stack:?}: {bytes}, not {wanted}");
    }
    Ok(())
}
