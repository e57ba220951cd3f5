//! Owning frames of programs that libraries and runtimes call back: the functions named are the program's own.

use std::process::Command;

use anyhow::{Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, built, unique_service};

/// A metric by code, what narrows it down, and the functions that must be named by nearly all of it.
struct Wanted {
    metric: &'static str,
    labels: &'static [(&'static str, &'static str)],
    functions: &'static [&'static str],
    /// The part of it that must name them; the rest is what libraries do on threads of their own.
    share: f64,
    /// There must be so much, in the metric's unit.
    least: f64,
}

/// Judges what came between two scrapes.
fn judge(before: &Scrape, after: &Scrape, service: &str, wanted: &Wanted) -> Result<()> {
    let mut labels = vec![("service_name", service)];
    labels.extend(wanted.labels);
    let all = after.sum(wanted.metric, &labels) - before.sum(wanted.metric, &labels);
    let parts: Vec<f64> = wanted
        .functions
        .iter()
        .map(|function| {
            let of = |scrape: &Scrape| scrape.code(wanted.metric, &labels, function);
            of(after) - of(before)
        })
        .collect();
    let named: f64 = parts.iter().sum();
    let found: Vec<_> = after
        .select(wanted.metric, &labels)
        .map(|sample| (sample.labels.get("function"), sample.value))
        .collect();
    ensure!(all >= wanted.least, "{}: only {all}: {found:?}", wanted.metric);
    ensure!(
        named >= wanted.share * all && parts.iter().all(|part| *part >= 0.05 * all),
        "{} {:?}: {parts:?} of {all}: {found:?}",
        wanted.metric,
        wanted.labels
    );
    Ok(())
}

#[test]
fn functions_that_rust_libraries_call_back_own_their_stacks() -> Result<()> {
    let agent = Agent::start(&["--sample-cpu-hz", "199", "--syscall-mode", "exact"])?;
    let service = unique_service("async");
    let mut command = Command::new(built("TIEBACK_ASYNC", "tieback-async")?);
    command.env("OTEL_SERVICE_NAME", &service);
    let (mut program, _) = Program::spawn(command, service)?;
    agent.wait_for_service(&program.service)?;
    program.go()?;
    program.expect("running")?;
    let cpu = "tieback_code_cpu_seconds_total";
    let used = |scrape: &Scrape| scrape.sum(cpu, &[("service_name", &program.service)]);
    // The first stacks of a program are broken off.
    let before = agent.wait_for("CPU time by code", |scrape| used(scrape) >= 2.0)?;
    agent.wait_for("more CPU time by code", |scrape| {
        used(scrape) >= used(&before) + 6.0
    })?;
    program.finish()?;
    let scrape = agent.settled()?;
    let wait = "tieback_code_wait_seconds_total";
    let wanted = [
        Wanted {
            metric: cpu,
            labels: &[],
            functions: &["async::price", "async::render"],
            share: 0.9,
            least: 6.0,
        },
        Wanted {
            metric: wait,
            labels: &[("cause", "network")],
            functions: &["async::fetch"],
            share: 0.95,
            least: 1.0,
        },
        Wanted {
            metric: wait,
            labels: &[("cause", "lock")],
            functions: &["async::contend"],
            share: 0.95,
            least: 1.0,
        },
    ];
    for wanted in &wanted {
        judge(&before, &scrape, &program.service, wanted)?;
    }
    Ok(())
}
