//! Tieback's stacks against those of another unwinder, on the same run, call by call.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::elf::Files;
use tieback_tests::reference::{Chains, Perf, Place, tieback};
use tieback_tests::runtime::Runtime;
use tieback_tests::server::{Guard, Server};

/// How long perf looks.
const SECONDS: u32 = 6;
/// Its samples a second of CPU time; the agent takes twice as many, so that it hardly misses a chain that perf meets often. No
/// multiple of each other: two clocks that tick together would always see the same.
const PERF_HZ: u32 = 199;
const AGENT_HZ: &str = "499";
/// Share of the samples from which on a chain must be known to the other.
const HOT: f64 = 0.01;

/// The hot chains of one that the other does not have.
fn missing<'a>(of: &'a Chains, other: &Chains) -> Vec<(&'a Vec<Place>, f64)> {
    of.hot(HOT)
        .filter(|(chain, _)| !other.whole.contains_key(*chain))
        .collect()
}

/// Looks at some processes of a service with both unwinders for a while; the chains that only one of the two has.
fn compare(agent: &Agent, files: &mut Files, service: &str, pids: &[u32]) -> Result<usize> {
    agent.wait_for("a second of CPU time, in which tables are made", |scrape| {
        scrape.sum("tieback_cpu_seconds_total", &[("service_name", service)]) > 1.0
    })?;
    let start = Instant::now();
    let perf = Perf::start(pids, PERF_HZ, SECONDS)?.chains(files)?;
    agent.settled()?;
    let since = format!("{}s", start.elapsed().as_secs());
    let own = tieback(agent, service, &since, files)?;
    let hot = |chains: &Chains| {
        let hot: Vec<f64> = chains.hot(HOT).map(|(_, weight)| weight).collect();
        format!(
            "{} hot chains, {:.0} % of all",
            hot.len(),
            100.0 * hot.iter().sum::<f64>() / chains.weight()
        )
    };
    eprintln!(
        "{service}: perf {} samples, {} broken, {}",
        perf.samples,
        perf.broken_weight(),
        hot(&perf)
    );
    eprintln!(
        "{service}: Tieback {:.3} s, {:.3} s broken, {}",
        own.weight() / 1e9,
        own.broken_weight() / 1e9,
        hot(&own)
    );
    for (chain, weight) in &own.broken {
        eprintln!("{service}: Tieback broke off {weight} of {chain:x?}");
    }
    ensure!(perf.samples >= 300, "{service}: perf has few samples");
    ensure!(
        perf.broken_weight() <= 0.05 * perf.samples as f64,
        "{service}: perf did not get to the entry point"
    );
    assert!(
        own.broken_weight() <= 0.01 * (own.weight() + own.broken_weight()),
        "{service}: broken off"
    );
    let mut wrong = 0;
    for (of, chains) in [("Tieback", missing(&perf, &own)), ("perf", missing(&own, &perf))] {
        for (chain, weight) in chains {
            wrong += 1;
            eprintln!("{service}: {of} lacks {weight} of {chain:x?}");
        }
    }
    Ok(wrong)
}

/// One program after the other, so that each has the machine and perf enough samples of it.
#[test]
fn chains_are_those_of_an_independent_unwinder() -> Result<()> {
    let options = ["--sample-cpu-hz", AGENT_HZ, "--min-age", "0s"];
    let mut files = Files::default();
    let mut wrong = 0;
    {
        let postgres = Server::postgres()?;
        let agent = Server::watched_with(&[&postgres], &options)?;
        // A server process is told by its parent, which the agent sees only from now on.
        let older = postgres.pids()?;
        let load = "-n -c 2 -T 300 -b tpcb-like@1 -b select-only@9";
        let options: Vec<&str> = load.split(' ').collect();
        let _pgbench = Guard(postgres.pgbench(&options)?.spawn()?);
        let backends = || {
            let mut pids = postgres.pids().unwrap_or_default();
            pids.retain(|pid| !older.contains(pid));
            pids
        };
        agent.wait_for("server processes", |_| backends().len() == 2)?;
        wrong += compare(&agent, &mut files, &postgres.service, &backends())?;
    }
    {
        let redis = Server::redis()?;
        let port = redis.port.to_string();
        let load = ["-p", &port, "-q", "-l", "-c", "20", "-t", "set,get"];
        let _load = Guard::start(Command::new("redis-benchmark").args(load))?;
        let agent = Server::watched_with(&[&redis], &options)?;
        wrong += compare(&agent, &mut files, &redis.service, &redis.pids()?)?;
    }
    {
        let nginx = Server::nginx()?;
        let url = format!("http://127.0.0.1:{}/", nginx.port);
        let _load = Guard::start(Command::new("wrk").args(["-t1", "-c20", "-d", "300", &url]))?;
        let agent = Server::watched_with(&[&nginx], &options)?;
        wrong += compare(&agent, &mut files, &nginx.service, &nginx.pids()?)?;
    }
    {
        let python = Runtime::python(Path::new("/usr/bin/python3"))?;
        let agent = Server::watched_with(&[], &options)?;
        wrong += compare(&agent, &mut files, &python.service, &[python.pid()])?;
    }
    assert_eq!(wrong, 0, "chains that only one of the two has");
    Ok(())
}

/// Of programs that make code themselves: what that code calls, and threads without any of it.
#[test]
fn native_chains_of_node_and_java_are_those_of_an_independent_unwinder() -> Result<()> {
    let options = ["--sample-cpu-hz", AGENT_HZ, "--min-age", "0s"];
    let mut files = Files::default();
    let mut wrong = 0;
    for start in [Runtime::node, || Runtime::java(false)] {
        let runtime = start()?;
        let agent = Server::watched_with(&[], &options)?;
        wrong += compare(&agent, &mut files, &runtime.service, &[runtime.pid()])?;
    }
    assert_eq!(wrong, 0, "chains that only one of the two has");
    Ok(())
}
