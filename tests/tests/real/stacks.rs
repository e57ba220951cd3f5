//! Stacks of distribution binaries, which have neither frame pointers nor symbol tables.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::server::{Guard, Server};

/// How long the load lasts, and the end of it that is looked at: in the first second, tables are made.
const SECONDS: &str = "20";
const LAST: &str = "since=15s";

/// Values of all stacks of a profile, and of those that were broken off.
fn broken(agent: &Agent, service: &str, kind: &str) -> Result<(f64, f64)> {
    let path = format!("/services/-/{service}/profile/{kind}?format=folded&{LAST}");
    let (mut all, mut broken) = (0.0, 0.0);
    for line in agent.get(&path)?.lines() {
        let (stack, value) = line.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse()?;
        all += value;
        if stack.starts_with("[truncated]") {
            broken += value;
            eprintln!("{service} {kind}: {value} of {stack}");
        }
    }
    Ok((all, broken))
}

#[test]
fn stacks_of_servers_are_whole_and_postgres_itself_waits_for_its_log() -> Result<()> {
    let (postgres, redis, nginx) = (Server::postgres()?, Server::redis()?, Server::nginx()?);
    let agent = Server::watched(&[&postgres, &redis, &nginx])?;
    let mut pgbench = Guard(postgres.pgbench(&["-n", "-c", "4", "-T", SECONDS])?.spawn()?);
    let port = redis.port.to_string();
    let redis_load = Guard::start(
        Command::new("redis-benchmark").args(["-p", &port, "-q", "-l", "-c", "20", "-t", "set,get"]),
    )?;
    let url = format!("http://127.0.0.1:{}/", nginx.port);
    let nginx_load = Guard::start(Command::new("wrk").args(["-t1", "-c20", "-d", SECONDS, &url]))?;
    ensure!(pgbench.0.wait()?.success(), "pgbench failed");
    drop((redis_load, nginx_load));
    let scrape = agent.settled()?;

    // The others wait for requests, which is no wait, or since before the agent knew them.
    for (server, kind) in [
        (&postgres, "wait"),
        (&postgres, "cpu"),
        (&redis, "cpu"),
        (&nginx, "cpu"),
    ] {
        let (all, broken) = broken(&agent, &server.service, kind)?;
        ensure!(all > 1e9, "{kind} of {}: {all} ns", server.service);
        assert!(
            broken <= 0.01 * all,
            "{kind} of {}: {broken} of {all} ns are broken off",
            server.service
        );
    }
    let disk = [("service_name", postgres.service.as_str()), ("cause", "disk")];
    let name = "tieback_code_wait_seconds_total";
    let all = scrape.sum(name, &disk);
    let own: f64 = [
        "XLog",
        "xlog",
        "pg_fsync",
        "FileWrite",
        "mdwrite",
        "SimpleLru",
        "pg_pwrite",
    ]
    .iter()
    .map(|function| scrape.code(name, &disk, function))
    .sum();
    for sample in scrape.select(name, &disk) {
        eprintln!("{:?} {}", sample.labels, sample.value);
    }
    assert!(
        all > 1.0 && own >= 0.95 * all,
        "{own} of {all} seconds on disk are of PostgreSQL's own functions"
    );
    Ok(())
}
