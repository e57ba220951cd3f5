//! Connections over a slow link: how long connecting takes, what they carry, and what is sent again, against the workload's
//! timing and the kernel's own counters.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, number};
use tieback_tests::{assert_within, nearest};

/// Brief connections, and bytes over the long one.
const COUNT: usize = 60;
const BYTES: usize = 400_000;
/// A handshake of two segments of 74 bytes takes 25 ms and more: far longer than it takes a thread to be woken.
const SLOW: &[&str] = &["rate", "48kbit", "burst", "1600", "latency", "5s"];
/// Room for few segments, so that some are dropped.
const NARROW: &[&str] = &["rate", "4mbit", "burst", "3000", "latency", "10ms"];

/// A server and a client of it in a network namespace whose loopback is slow.
struct Link {
    server: Program,
    client: Program,
}

impl Link {
    fn start(agent: &Agent, family: &[&str]) -> Result<Self> {
        let (count, bytes) = (COUNT.to_string(), BYTES.to_string());
        let serve = [&["link-serve", &count], family].concat();
        let (server, facts) = Program::start_in_netns(None, &serve)?;
        let port = facts["port"].as_u64().context("no port")?.to_string();
        let connect = [&["link-connect", &port, &count, &bytes], family].concat();
        let (client, _) = Program::start_in_netns(Some(&server), &connect)?;
        let link = Self { server, client };
        // The segments of other links: those of loopback are larger than the whole queue.
        link.run(&["ip", "link", "set", "lo", "mtu", "1500"])?;
        link.shape("add", SLOW)?;
        for program in [&link.server, &link.client] {
            agent.wait_for_service(&program.service)?;
        }
        Ok(link)
    }

    fn run(&self, command: &[&str]) -> Result<()> {
        let status = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.server.pid()))
            .args(command)
            .status()?;
        ensure!(status.success(), "{command:?} failed");
        Ok(())
    }

    fn shape(&self, how: &str, limits: &[&str]) -> Result<()> {
        self.run(&[&["tc", "qdisc", how, "dev", "lo", "root", "tbf"], limits].concat())
    }

    /// Segments that were sent again in this namespace, as the kernel counts them.
    fn retransmitted(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/net/snmp", self.server.pid()))?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = lines.next().zip(lines.next()).context("no counters of TCP")?;
        let at = names.split(' ').position(|name| name == "RetransSegs");
        let value = at
            .and_then(|at| values.split(' ').nth(at))
            .context("no RetransSegs")?;
        Ok(value.parse()?)
    }

    /// A metric of one direction: the client's or the server's.
    fn of(&self, scrape: &Scrape, name: &str, direction: &str, more: &[(&str, &str)]) -> f64 {
        let program = if direction == "out" {
            &self.client
        } else {
            &self.server
        };
        let mut labels = vec![
            ("service_name", program.service.as_str()),
            ("direction", direction),
        ];
        labels.extend_from_slice(more);
        scrape.sum(name, &labels)
    }
}

#[test]
fn connecting_takes_what_the_client_measures() -> Result<()> {
    let agent = Agent::start(&[])?;
    for family in [&[] as &[&str], &["--v6"]] {
        // A host that wakes the client late makes its times longer than those of its connections.
        let (got, want) = nearest(0.01, || {
            let mut link = Link::start(&agent, family)?;
            link.server.go()?;
            link.client.go()?;
            let measured = number(&link.client.expect("connected")?, "seconds")?;
            let scrape = agent.settled()?;
            let name = "tieback_connect_duration_seconds";
            for what in ["opened", "closed"] {
                let name = format!("tieback_connections_{what}_total");
                assert_eq!(link.of(&scrape, &name, "out", &[]), COUNT as f64, "{what}");
                assert_eq!(link.of(&scrape, &name, "in", &[]), COUNT as f64, "{what}");
            }
            // Of few is it not told when they were established.
            let timed = link.of(&scrape, &format!("{name}_count"), "out", &[]);
            ensure!(timed >= 0.95 * COUNT as f64, "{timed} of {COUNT} are timed");
            ensure!(
                measured > 0.02 * COUNT as f64,
                "the link is not slow: {measured} s"
            );
            Ok((link.of(&scrape, &format!("{name}_sum"), "out", &[]), measured))
        })?;
        assert_within!(got, want, 0.01, "seconds of connecting, {family:?}");
    }
    Ok(())
}

#[test]
fn bytes_and_retransmits_are_what_the_ends_and_the_kernel_count() -> Result<()> {
    let agent = Agent::start(&[])?;
    for family in [&[] as &[&str], &["--v6"]] {
        let mut link = Link::start(&agent, family)?;
        link.server.go()?;
        link.client.go()?;
        link.client.expect("connected")?;
        link.shape("change", NARROW)?;
        link.client.go()?;
        let sent = link.client.expect("sent")?;
        let served = link.server.expect("served")?;
        let scrape = agent.settled()?;
        for (direction, facts) in [("out", &sent), ("in", &served)] {
            for way in ["sent", "received"] {
                let got = link.of(
                    &scrape,
                    "tieback_connection_bytes_total",
                    direction,
                    &[("way", way)],
                );
                assert_eq!(got, number(facts, way)?, "{way} by {direction}");
            }
        }
        let resent = |program: &Program| {
            let labels = [("service_name", program.service.as_str())];
            scrape.sum("tieback_tcp_retransmits_total", &labels)
        };
        let both = resent(&link.client) + resent(&link.server);
        let truth = link.retransmitted()?;
        ensure!(truth > 5.0, "only {truth} segments were sent again");
        assert_eq!(both, truth, "segments sent again");
    }
    Ok(())
}
