//! Ten thousand connections opened, half closed and closed, against `ss` at each step, and their ages against the workload's.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, number};

const COUNT: usize = 10_000;
const HALF: usize = 4_000;

/// A server and a client of it in a network namespace of their own, where nobody else has connections.
struct Crowd {
    server: Program,
    client: Program,
    port: String,
}

impl Crowd {
    fn start(agent: &Agent, family: &[&str]) -> Result<Self> {
        let (count, half) = (COUNT.to_string(), HALF.to_string());
        let serve = [&["crowd-serve", &count], family].concat();
        let (server, facts) = Program::start_in_netns(None, &serve)?;
        let port = facts["port"].as_u64().context("no port")?.to_string();
        let connect = [&["crowd-connect", &port, &count, "--half", &half], family].concat();
        let (client, _) = Program::start_in_netns(Some(&server), &connect)?;
        agent.wait_for_service(&server.service)?;
        agent.wait_for_service(&client.service)?;
        Ok(Self { server, client, port })
    }

    /// Sockets that `ss` finds in a state, the client's and the server's.
    fn ss(&self, state: &str) -> Result<[usize; 2]> {
        let count = |end| {
            let output = Command::new("nsenter")
                .arg(format!("--net=/proc/{}/ns/net", self.server.pid()))
                .args(["ss", "-Htn", "state", state, end, "=", &self.port])
                .output()
                .context("starting ss: cargo xtask setup --tests")?;
            ensure!(output.status.success(), "ss failed");
            Ok(String::from_utf8_lossy(&output.stdout).lines().count())
        };
        Ok([count("dport")?, count("sport")?])
    }

    /// A metric of both ends.
    fn both(&self, scrape: &Scrape, name: &str) -> [f64; 2] {
        [(&self.client, "out"), (&self.server, "in")].map(|(program, direction)| {
            let labels = [
                ("service_name", program.service.as_str()),
                ("direction", direction),
            ];
            scrape.sum(name, &labels)
        })
    }
}

/// Sockets among the descriptors of a process, its output aside.
fn sockets(program: &Program) -> Result<usize> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", program.pid()))?;
    let targets = files
        .flatten()
        .filter_map(|file| std::fs::read_link(file.path()).ok());
    Ok(targets
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count())
}

const OPEN: &str = "tieback_connections";
const IN_POOLS: &str = "tieback_pool_connections";

#[test]
fn ten_thousand_connections_are_what_ss_counts_at_each_step() -> Result<()> {
    let agent = Agent::start(&[])?;
    for family in [&[] as &[&str], &["--v6"]] {
        steps(&agent, family)?;
    }
    let lost = agent.scrape()?;
    for probe in ["conn", "pool"] {
        assert_eq!(lost.lost_for(probe), BTreeMap::new(), "{probe}");
    }
    Ok(())
}

fn steps(agent: &Agent, family: &[&str]) -> Result<()> {
    let (all, half) = (COUNT as f64, HALF as f64);
    let mut crowd = Crowd::start(agent, family)?;
    crowd.server.go()?;
    crowd.client.go()?;
    let opened = number(&crowd.client.expect("connected")?, "opened_at")?;
    crowd.server.expect("accepted")?;
    let open = agent.settled()?;
    assert_eq!(crowd.ss("established")?, [COUNT; 2], "the workload");
    assert_eq!(crowd.both(&open, OPEN), [all; 2]);
    assert_eq!(crowd.both(&open, IN_POOLS), [all; 2]);
    // The one that listens is a socket, too.
    let descriptors = [sockets(&crowd.client)?, sockets(&crowd.server)?];
    assert_eq!(descriptors, [COUNT, COUNT + 1], "the workload's descriptors");
    for (program, sockets) in [&crowd.client, &crowd.server].into_iter().zip(descriptors) {
        let labels = [("service_name", program.service.as_str()), ("kind", "socket")];
        assert_eq!(open.sum("tieback_open_fds", &labels), sockets as f64);
    }

    // Who has closed his side has no open connection any more; who has not may still send.
    crowd.client.go()?;
    crowd.client.expect("half closed")?;
    crowd.server.order(&HALF.to_string())?;
    crowd.server.expect("half closed")?;
    let halves = agent.settled()?;
    assert_eq!(crowd.ss("established")?, [COUNT - HALF; 2], "the workload");
    assert_eq!(crowd.ss("fin-wait-2")?, [HALF, 0], "the workload");
    assert_eq!(crowd.ss("close-wait")?, [0, HALF], "the workload");
    assert_eq!(crowd.both(&halves, OPEN), [all - half, all]);
    assert_eq!(crowd.both(&halves, IN_POOLS), [all - half, all]);

    crowd.client.go()?;
    let closed = number(&crowd.client.expect("closed")?, "closed_at")?;
    crowd.server.go()?;
    let closed_by_server = number(&crowd.server.expect("closed")?, "closed_at")?;
    let none = agent.settled()?;
    for state in ["established", "fin-wait-2", "close-wait"] {
        assert_eq!(crowd.ss(state)?, [0; 2], "the workload");
    }
    assert_eq!(crowd.both(&none, OPEN), [0.0; 2]);
    assert_eq!(crowd.both(&none, IN_POOLS), [0.0; 2]);
    for name in ["opened", "closed"] {
        assert_eq!(
            crowd.both(&none, &format!("tieback_connections_{name}_total")),
            [all; 2],
            "{name}"
        );
    }
    let failures = "tieback_connection_failures_total";
    assert_eq!(crowd.both(&none, failures), [0.0; 2]);
    for (program, first) in [(&crowd.client, "us"), (&crowd.server, "them")] {
        let ended = ["us", "them", "reset", "timeout", "death"].map(|how| {
            let labels = [("service_name", program.service.as_str()), ("how", how)];
            (how, none.sum("tieback_connections_ended_total", &labels))
        });
        let expected = ended.map(|(how, _)| (how, if how == first { all } else { 0.0 }));
        assert_eq!(ended, expected);
    }

    // Each end was there as soon as the client's connect returned; it ended when its owner closed it.
    let ages = crowd.both(&none, "tieback_connection_age_seconds_sum");
    assert_eq!(
        crowd.both(&none, "tieback_connection_age_seconds_count"),
        [all; 2]
    );
    assert_within!(ages[0], closed - opened, 0.01, "the client's ages");
    assert_within!(ages[1], closed_by_server - opened, 0.01, "the server's ages");
    Ok(())
}
