//! Stacks of interpreters and of code that a program made itself, mixed with native code.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::runtime::Runtime;

/// CPU time that each program has before its stacks are looked at: what it runs often is compiled then.
const WARM_CPU: f64 = 3.0;
/// And time for the agent: idle compiler threads of the JVM wait 5 s at a time, and a wait that began before the tables were made
/// is to be over.
const WARM: Duration = Duration::from_secs(8);
/// CPU time of each that is looked at: 1,000 samples.
const MEASURED_CPU: f64 = 5.0;

/// Functions of the loads that call each other in this order.
const CHAIN: [&str; 3] = ["outerCompute", "innerCompute", "leafCompute"];

/// What a profile says.
#[derive(Debug, Default)]
struct Profile {
    all: f64,
    broken: f64,
    /// Stacks with the leaf of the known chain, and those of them with the whole of it.
    leaf: f64,
    chain: f64,
}

/// The bare name of a function: of `JS:*leafCompute load.js:10:21` and of `long Load.leafCompute(int)`.
fn bare(frame: &str) -> &str {
    let frame = frame.strip_prefix("JS:").unwrap_or(frame);
    let frame = frame.trim_start_matches(['*', '^', '~', '+']);
    let frame = frame.split(['(', ' ']).find(|word| word.contains("Compute"));
    let frame = frame.unwrap_or_default();
    frame.rsplit('.').next().unwrap_or(frame)
}

/// `idle` asks for waits of threads that have nothing to do, too.
fn profile(agent: &Agent, service: &str, kind: &str, idle: bool, since: Duration) -> Result<Profile> {
    let since = since.as_secs();
    let path = format!("/services/-/{service}/profile/{kind}?format=folded&idle={idle}&since={since}s");
    let mut found = Profile::default();
    for line in agent.get(&path)?.lines() {
        let (stack, value) = line.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse()?;
        found.all += value;
        if stack.starts_with("[truncated]") {
            found.broken += value;
            eprintln!("{service} {kind}: {value} of {stack}");
        }
        let names: Vec<&str> = stack.split(';').map(bare).collect();
        if let Some(at) = names.iter().rposition(|name| *name == CHAIN[2]) {
            found.leaf += value;
            let chain = at.checked_sub(2).and_then(|from| names.get(from..=at));
            if chain == Some(&CHAIN) {
                found.chain += value;
            } else {
                eprintln!("{service}: not the chain: {value} of {stack}");
            }
        }
    }
    Ok(found)
}

/// Waits until each program has used so much CPU time since the last scrape that is given.
fn run_for(agent: &Agent, running: &[Runtime], seconds: f64) -> Result<()> {
    let name = "tieback_cpu_seconds_total";
    let used = |scrape: &tieback_tests::metrics::Scrape| -> Vec<f64> {
        let of = |runtime: &Runtime| scrape.sum(name, &[("service_name", &runtime.service)]);
        running.iter().map(of).collect()
    };
    let before = used(&agent.settled()?);
    agent.wait_for("CPU time", |scrape| {
        let now = used(scrape);
        now.iter()
            .zip(&before)
            .all(|(now, before)| now - before >= seconds)
    })?;
    Ok(())
}

#[test]
fn stacks_of_python_node_and_java_are_whole() -> Result<()> {
    let mut running = Vec::new();
    for python in Runtime::pythons()? {
        running.push(Runtime::python(&python)?);
    }
    running.push(Runtime::node()?);
    running.push(Runtime::java(true)?);
    let agent = Agent::start(&["--sample-cpu-hz", "199", "--min-age", "0s"])?;
    let start = Instant::now();
    for runtime in &running {
        agent.wait_for_service(&runtime.service)?;
    }
    run_for(&agent, &running, WARM_CPU)?;
    std::thread::sleep(WARM.saturating_sub(start.elapsed()));
    let _map = running[running.len() - 1].write_perf_map()?;

    let measured = Instant::now();
    run_for(&agent, &running, MEASURED_CPU)?;
    agent.settled()?;
    let since = measured.elapsed();
    for runtime in &running {
        let service = &runtime.service;
        // What the Java virtual machine waits for beside work may be next to nothing.
        let waits = if service.contains("java") { 0.0 } else { 0.1e9 };
        for (kind, idle, least) in [
            ("cpu", false, 0.9e9 * MEASURED_CPU),
            ("wait", false, waits),
            ("wait", true, 0.1e9),
            ("syscall", false, 100.0),
        ] {
            let found = profile(&agent, service, kind, idle, since)?;
            eprintln!("{service} {kind}, idle {idle}: {found:?}");
            ensure!(found.all >= least, "{service} {kind}: {found:?}");
            assert!(
                found.broken <= 0.01 * found.all,
                "{service} {kind}: too much is broken off: {found:?}"
            );
            if kind == "cpu" && !service.contains("python") {
                ensure!(found.leaf >= 0.1 * found.all, "{service}: {found:?}");
                assert!(
                    found.chain >= 0.97 * found.leaf,
                    "{service}: the chain of calls is known: {found:?}"
                );
            }
        }
    }
    Ok(())
}
