//! Tables of the kernel side that are full: what is lost is told, and nothing else is lost.

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, number};

/// An agent whose tables have room for so little.
fn agent(room: &str, args: &[&str]) -> Result<Agent> {
    Agent::start_with(args, &[("TIEBACK_TEST_ROOM", room)])
}

fn lost(scrape: &Scrape, probe: &str, reason: &str) -> f64 {
    scrape.sum("tieback_lost_total", &[("probe", probe), ("reason", reason)])
}

/// Holds so many connections, then closes them: what is told of the two ends at both steps.
fn held(agent: &Agent, count: u32) -> Result<[Ends; 2]> {
    let count = count.to_string();
    let (mut server, facts) = Program::start(&["serve", "hold", "--count", &count])?;
    let port = facts["port"].as_u64().context("no port")?.to_string();
    let (mut client, _) = Program::start(&["connect", &port, "--count", &count])?;
    agent.wait_for_service(&server.service)?;
    agent.wait_for_service(&client.service)?;
    let services = [server.service.clone(), client.service.clone()];
    server.go()?;
    client.go()?;
    client.expect("connected")?;
    server.expect("accepted")?;
    let open = Ends::of(&agent.settled()?, &services);
    client.go()?;
    server.go()?;
    client.expect("closed")?;
    server.expect("closed")?;
    let closed = Ends::of(&agent.settled()?, &services);
    Ok([open, closed])
}

/// What is told of the ends of two programs' connections, of both together.
#[derive(Debug, PartialEq)]
struct Ends {
    now: f64,
    opened: f64,
    closed: f64,
}

impl Ends {
    fn of(scrape: &Scrape, services: &[String; 2]) -> Self {
        let [now, opened, closed] = [
            "tieback_connections",
            "tieback_connections_opened_total",
            "tieback_connections_closed_total",
        ]
        .map(|name| {
            let of = |service: &String| scrape.sum(name, &[("service_name", service)]);
            services.iter().map(of).sum()
        });
        Self { now, opened, closed }
    }
}

#[test]
fn connections_beyond_the_table_are_told_and_later_ones_are_exact() -> Result<()> {
    const ROOM: f64 = 64.0;
    let agent = agent("CONNS=64", &["--syscall-mode", "off"])?;
    let reason = "connections_full";
    let before = lost(&agent.settled()?, "conn", reason);
    let [open, closed] = held(&agent, 1000)?;
    assert!((1.0..=ROOM).contains(&open.now), "{open:?}");
    // Others may have given their places back since, to ends that a visit found.
    assert!(open.opened <= open.now && open.closed == 0.0, "{open:?}");
    let told = lost(&agent.settled()?, "conn", reason) - before;
    assert!(told >= 2000.0 - ROOM, "{told} of 2000 ends");
    assert_eq!(closed.now, 0.0, "{closed:?}");

    // All places are free again.
    let [open, closed] = held(&agent, 20)?;
    let [held, ended] = [(40.0, 0.0), (0.0, 40.0)].map(|(now, closed)| Ends {
        now,
        opened: 40.0,
        closed,
    });
    assert_eq!([open, closed], [held, ended]);
    Ok(())
}

#[test]
fn calls_beyond_the_table_are_told_and_waits_stay_exact() -> Result<()> {
    let agent = agent("SYSCALL_COUNTS=4", &["--syscall-mode", "exact"])?;
    let (mut program, _) = Program::start(&["syscalls", "--getppid", "100000", "--openat", "1000"])?;
    agent.wait_for_service(&program.service)?;
    let before = agent.settled()?;
    program.finish()?;
    let (mut waiting, _) = Program::start(&["wait", "sleep", "--times", "20", "--seconds", "0.05"])?;
    agent.wait_for_service(&waiting.service)?;
    let truth = waiting.finish()?;
    let after = agent.settled()?;
    let calls = |scrape: &Scrape| {
        scrape.sum("tieback_syscalls_total", &[]) + lost(scrape, "syscall", "counters_full")
    };
    assert!(lost(&after, "syscall", "counters_full") > lost(&before, "syscall", "counters_full"));
    let seen = calls(&after) - calls(&before);
    // Errors are counted once more by their number.
    assert!(seen >= 101_000.0, "{seen} of 101000 calls and more");
    let waits = [("service_name", waiting.service.as_str()), ("cause", "sleep")];
    let waited = after.sum("tieback_wait_seconds_total", &waits);
    assert_within!(waited, number(&truth, "waited_seconds")?, 0.01, "sleeping");
    Ok(())
}

#[test]
fn samples_beyond_the_ring_are_told_and_totals_stay_exact() -> Result<()> {
    let agent = agent("EVENTS=16384", &["--sample-cpu-hz", "999"])?;
    let (mut spinning, _) = Program::start(&["mixed", "--threads", "4", "--seconds", "5"])?;
    let (mut program, _) = Program::start(&["mixture"])?;
    agent.wait_for_service(&spinning.service)?;
    agent.wait_for_service(&program.service)?;
    spinning.go()?;
    let truth = program.finish()?;
    let spun = spinning.expect("truth")?;
    let scrape = agent.settled()?;
    let told: f64 = scrape
        .select("tieback_lost_total", &[("reason", "ring_full")])
        .map(|sample| sample.value)
        .sum();
    assert!(told > 0.0, "the ring was never full");
    let labels = [("service_name", program.service.as_str()), ("cause", "sleep")];
    let all = scrape.sum("tieback_wait_duration_seconds_count", &labels);
    assert_within!(all, number(&truth, "switches")?, 0.005, "waits");
    let cpu = scrape.cpu(&spinning.service);
    assert_within!(cpu, number(&spun, "process_cpu_seconds")?, 0.02, "CPU time");
    Ok(())
}
