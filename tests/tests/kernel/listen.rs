//! Accept queues: a server that is slow to accept, against `ss` and the kernel's own counters of a network namespace.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, number};

const BACKLOG: f64 = 40.0;

struct Listener {
    server: Program,
    port: String,
}

impl Listener {
    /// A server in a network namespace of its own, where nobody else connects to anything.
    fn start(family: &[&str]) -> Result<Self> {
        let args = [&["serve", "hold", "--count", "40"], family].concat();
        let (server, facts) = Program::start_in_netns(None, &args)?;
        let port = facts["port"].as_u64().context("no port")?.to_string();
        Ok(Self { server, port })
    }

    fn metric(&self, scrape: &Scrape, name: &str) -> f64 {
        scrape.sum(
            &format!("tieback_listen_{name}"),
            &[("service_name", &self.server.service)],
        )
    }

    /// Connections that wait and that may wait, as `ss` sees them.
    fn queue(&self) -> Result<[f64; 2]> {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.server.pid()))
            .args(["ss", "-Hltn", "sport", "=", &self.port])
            .output()
            .context("starting ss: cargo xtask setup --tests")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [_, queued, limit, ..] = fields[..] else {
            anyhow::bail!("ss says {text}")
        };
        Ok([queued.parse()?, limit.parse()?])
    }

    /// A counter of the network namespace by its name in `/proc/net/netstat`.
    fn netstat(&self, name: &str) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/net/netstat", self.server.pid()))?;
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut both = names.split_whitespace().zip(values.split_whitespace());
        let (_, value) = both
            .find(|(known, _)| *known == name)
            .with_context(|| format!("no {name}"))?;
        Ok(value.parse()?)
    }

    fn connect(&self, family: &[&str], count: &str) -> Result<Program> {
        let args = [&["connect", &self.port, "--count", count], family].concat();
        Ok(Program::start_in_netns(Some(&self.server), &args)?.0)
    }
}

#[test]
fn an_accept_queue_that_overflows_is_what_the_kernel_counts() -> Result<()> {
    let agent = Agent::start(&[])?;
    let family = &["--v6"];
    let mut listener = Listener::start(family)?;
    agent.wait_for_service(&listener.server.service)?;
    let mut client = listener.connect(family, "60")?;
    client.go()?;
    // Linux queues one more than it was told (sk_acceptq_is_full); the rest try twice, which takes three seconds.
    let facts = client.expect("connected")?;
    assert_eq!(
        (number(&facts, "open")?, number(&facts, "timeout")?),
        (BACKLOG + 1.0, 19.0),
        "{facts}"
    );
    let full = agent.settled()?;
    assert_eq!(listener.queue()?, [BACKLOG + 1.0, BACKLOG], "the workload");
    assert_eq!(listener.metric(&full, "queue_connections"), BACKLOG + 1.0);
    assert_eq!(listener.metric(&full, "queue_limit"), BACKLOG);
    assert_eq!(listener.metric(&full, "accepted_total"), 0.0);
    let dropped = listener.netstat("ListenDrops")?;
    assert!(dropped >= 2.0 * 19.0, "{dropped}");
    assert_eq!(listener.netstat("ListenOverflows")?, dropped);
    assert_eq!(listener.metric(&full, "dropped_total"), dropped);
    let document: Value = serde_json::from_str(&agent.get("/api/v1/pools")?)?;
    let listeners = document["listeners"].as_array().context("no listeners")?.iter();
    let ours: Vec<&Value> = listeners
        .filter(|known| known["service"] == listener.server.service.as_str())
        .collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(number(ours[0], "dropped")?, dropped);

    listener.server.go()?;
    listener.server.expect("accepted")?;
    let after = agent.settled()?;
    assert_eq!(
        listener.queue()?,
        [1.0, BACKLOG],
        "it accepts no more than it was told to"
    );
    assert_eq!(listener.metric(&after, "queue_connections"), 1.0);
    assert_eq!(listener.metric(&after, "accepted_total"), BACKLOG);
    // Where nobody listens any more, nothing waits.
    client.go()?;
    listener.server.go()?;
    listener.server.expect("closed")?;
    listener.server.finish()?;
    client.expect("closed")?;
    let closed = agent.settled()?;
    assert_eq!(listener.metric(&closed, "queue_connections"), 0.0);
    assert_eq!(listener.metric(&closed, "queue_limit"), 0.0);
    assert_eq!(listener.metric(&closed, "accepted_total"), BACKLOG);
    Ok(())
}

#[test]
fn the_time_in_the_accept_queue_is_how_long_the_server_slept() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut listener = Listener::start(&[])?;
    agent.wait_for_service(&listener.server.service)?;
    let mut client = listener.connect(&[], "40")?;
    client.go()?;
    ensure!(number(&client.expect("connected")?, "open")? == BACKLOG);
    let queued = Instant::now();
    // Each end of the time is known to a quarter of a second, the mean distance of samples.
    let waiting = agent.wait_for("six seconds of waiting", |scrape| {
        listener.metric(scrape, "queue_connection_seconds_total") >= 6.0 * BACKLOG
    })?;
    assert_eq!(listener.metric(&waiting, "accepted_total"), 0.0);
    listener.server.go()?;
    listener.server.expect("accepted")?;
    let slept = queued.elapsed().as_secs_f64();
    let after = agent.settled()?;
    let waited = listener.metric(&after, "queue_connection_seconds_total");
    assert_eq!(listener.metric(&after, "accepted_total"), BACKLOG);
    assert_within!(waited / BACKLOG, slept, 0.12, "mean seconds in the queue");
    Ok(())
}

#[test]
fn what_an_agent_finds_waiting_is_a_gauge_and_no_count() -> Result<()> {
    let mut listener = Listener::start(&[])?;
    let mut client = listener.connect(&[], "60")?;
    client.go()?;
    client.expect("connected")?;
    let agent = Agent::start(&[])?;
    agent.wait_for_service(&listener.server.service)?;
    let found = agent.settled()?;
    assert_eq!(listener.metric(&found, "queue_connections"), BACKLOG + 1.0);
    assert_eq!(listener.metric(&found, "dropped_total"), 0.0);
    listener.server.go()?;
    listener.server.expect("accepted")?;
    let after = agent.settled()?;
    assert_eq!(listener.metric(&after, "accepted_total"), BACKLOG);
    Ok(())
}

#[test]
fn a_server_sees_its_connections_by_client_service() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (server, facts) = Program::start(&["answer"])?;
    let port = facts["port"].as_u64().context("no port")?.to_string();
    agent.wait_for_service(&server.service)?;
    let mut clients = Vec::new();
    for count in ["7", "30"] {
        let (mut client, _) = Program::start(&["pool", &port, "--count", count, "--requests", "1"])?;
        agent.wait_for_service(&client.service)?;
        client.go()?;
        client.expect("connected")?;
        clients.push((client, count.parse::<f64>()?));
    }
    let scrape = agent.settled()?;
    for (client, count) in &clients {
        let labels = [
            ("service_name", server.service.as_str()),
            ("direction", "in"),
            ("peer", client.service.as_str()),
        ];
        assert_eq!(scrape.sum("tieback_pool_connections", &labels), *count);
    }
    let accepted = scrape.sum(
        "tieback_listen_accepted_total",
        &[("service_name", &server.service)],
    );
    assert_eq!(accepted, 37.0);
    Ok(())
}
