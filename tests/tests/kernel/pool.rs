//! Pools with a known use: gauges at each step against `ss`, busy time against the workload's own timing.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, number};

/// A server and a client of it, each a service of its own.
struct Pair {
    server: Program,
    client: Program,
    port: String,
}

impl Pair {
    fn start(agent: &Agent, v6: bool, apart: bool, plan: &[&str]) -> Result<Self> {
        let family: &[&str] = if v6 { &["--v6"] } else { &[] };
        let serve = [&["answer"], family].concat();
        let (server, facts) = if apart {
            Program::start_in_netns(None, &serve)?
        } else {
            Program::start(&serve)?
        };
        let port = facts["port"].as_u64().context("no port")?.to_string();
        let connect = [&["pool", port.as_str()], family, plan].concat();
        let (client, _) = if apart {
            Program::start_in_netns(Some(&server), &connect)?
        } else {
            Program::start(&connect)?
        };
        agent.wait_for_service(&server.service)?;
        agent.wait_for_service(&client.service)?;
        Ok(Self { server, client, port })
    }

    /// A metric of both ends: the client's connections to the server's service, and the server's from the client's.
    fn both(&self, scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> [f64; 2] {
        let (server, client) = (self.server.service.as_str(), self.client.service.as_str());
        [("out", client, server), ("in", server, client)].map(|(direction, service, peer)| {
            let mut all = vec![
                ("service_name", service),
                ("direction", direction),
                ("peer", peer),
            ];
            all.extend_from_slice(labels);
            scrape.sum(name, &all)
        })
    }

    /// Established connections to the server as `ss` sees them from the client's end.
    fn established(&self) -> Result<f64> {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.client.pid()))
            .args(["ss", "-Htn", "state", "established", "dport", "=", &self.port])
            .output()
            .context("starting ss: cargo xtask setup --tests")?;
        ensure!(output.status.success(), "ss failed");
        Ok(String::from_utf8_lossy(&output.stdout).lines().count() as f64)
    }
}

const OPEN: &str = "tieback_pool_connections";
const PEAK: &str = "tieback_pool_peak_connections";
const MEAN_AGE: &str = "tieback_pool_connection_mean_age_seconds";
const OLDEST_AGE: &str = "tieback_pool_connection_oldest_age_seconds";
const SECONDS: &str = "tieback_pool_connection_seconds_total";

#[test]
fn pools_of_any_size_are_what_ss_counts_at_each_step() -> Result<()> {
    steps(false)
}

#[test]
fn pools_of_another_network_namespace() -> Result<()> {
    steps(true)
}

fn steps(apart: bool) -> Result<()> {
    let agent = Agent::start(&[])?;
    for (v6, count) in [(false, "1"), (true, "30"), (false, "1000")] {
        let mut pair = Pair::start(&agent, v6, apart, &["--count", count, "--requests", "3"])?;
        pair.client.go()?;
        pair.client.expect("connected")?;
        let open = agent.settled()?;
        let expected = pair.established()?;
        assert_eq!(
            expected,
            count.parse::<f64>()?,
            "the workload holds what it was told to"
        );
        assert_eq!(pair.both(&open, OPEN, &[]), [expected; 2], "open, IPv6: {v6}");
        assert_eq!(pair.both(&open, PEAK, &[("state", "open")]), [expected; 2]);
        // One connection is used for three exchanges, which take no time; after that all are idle, at both ends.
        pair.client.go()?;
        pair.client.expect("used")?;
        let used = agent.settled()?;
        assert_eq!(
            pair.both(&used, OPEN, &[("state", "idle")]),
            [expected; 2],
            "idle again"
        );
        assert_eq!(pair.both(&used, OPEN, &[("state", "busy")]), [0.0; 2]);
        assert_eq!(pair.both(&used, "tieback_pool_exchanges_total", &[]), [3.0; 2]);
        pair.client.go()?;
        pair.client.expect("closed")?;
        let closed = agent.settled()?;
        assert_eq!(pair.established()?, 0.0);
        assert_eq!(pair.both(&closed, OPEN, &[]), [0.0; 2], "closed");
        assert_eq!(pair.both(&closed, PEAK, &[("state", "open")]), [expected; 2]);
        assert_eq!(
            pair.both(&closed, "tieback_pool_opened_total", &[]),
            [expected; 2]
        );
        for (service, how) in [(&pair.client.service, "us"), (&pair.server.service, "them")] {
            let ended = closed.sum(
                "tieback_connections_ended_total",
                &[("service_name", service), ("how", how)],
            );
            assert_eq!(ended, expected, "{how}");
        }
    }
    assert_eq!(agent.scrape()?.lost("pool"), 0.0);
    Ok(())
}

/// Connection-seconds that were busy, as read at both ends, and as the client measured; and the length of it all.
fn busy(agent: &Agent, plan: &[&str]) -> Result<([f64; 2], f64, f64)> {
    let mut pair = Pair::start(agent, false, false, plan)?;
    let opening = Instant::now();
    pair.client.go()?;
    pair.client.expect("connected")?;
    let opened = Instant::now();
    let before = agent.settled()?;
    pair.client.go()?;
    let facts = pair.client.expect("used")?;
    let least = opened.elapsed().as_secs_f64();
    let after = agent.settled()?;
    let most = opening.elapsed().as_secs_f64();
    for metric in [MEAN_AGE, OLDEST_AGE] {
        for age in pair.both(&after, metric, &[]) {
            assert!(
                (least..=most).contains(&age),
                "{metric}: {age}, {least} to {most}"
            );
        }
    }
    let state = [("state", "busy")];
    let (before, after) = (
        pair.both(&before, SECONDS, &state),
        pair.both(&after, SECONDS, &state),
    );
    let exchanges = number(&facts, "exchanges")?;
    ensure!(exchanges > 0.0, "nothing happened");
    Ok((
        [after[0] - before[0], after[1] - before[1]],
        number(&facts, "busy_seconds")?,
        number(&facts, "seconds")?,
    ))
}

/// Enough that some forty samples tell the share to two points or so: each connection is one draw in each sample.
const CONNECTIONS: &str = "64";

#[test]
fn the_busy_share_is_what_the_workload_measures() -> Result<()> {
    let agent = Agent::start(&[])?;
    // Half of the time; always, each request right after an answer; hardly ever; with requests far shorter than a jiffy.
    for (work, rest) in [
        ("30000", "30000"),
        ("70000", "0"),
        ("2000", "58000"),
        ("0", "5000"),
    ] {
        let plan = [
            "--count",
            CONNECTIONS,
            "--used",
            CONNECTIONS,
            "--seconds",
            "20",
            "--work-us",
            work,
            "--rest-us",
            rest,
        ];
        let (read, measured, seconds) = busy(&agent, &plan)?;
        let share = |busy: f64| busy / (CONNECTIONS.parse::<f64>().unwrap_or(f64::NAN) * seconds);
        for (end, read) in ["client", "server"].into_iter().zip(read) {
            assert!(
                (share(read) - share(measured)).abs() < 0.05,
                "work {work} µs, rest {rest} µs, {end}: busy {:.3} of the time, measured {:.3}",
                share(read),
                share(measured)
            );
        }
    }
    Ok(())
}

fn findings(agent: &Agent, service: &str) -> Result<Vec<String>> {
    let document: Value = serde_json::from_str(&agent.get("/api/v1/pools")?)?;
    let pools = document["pools"].as_array().context("no pools")?.iter();
    Ok(pools
        .filter(|pool| pool["service"] == service)
        .flat_map(|pool| pool["findings"].as_array().into_iter().flatten())
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect())
}

#[test]
fn a_pool_that_is_far_too_large_is_a_finding() -> Result<()> {
    let agent = Agent::start(&[])?;
    let plan = [
        "--count",
        "100",
        "--used",
        "7",
        "--seconds",
        "6",
        "--work-us",
        "500000",
        "--rest-us",
        "1000",
    ];
    let mut pair = Pair::start(&agent, false, false, &plan)?;
    pair.client.go()?;
    pair.client.expect("connected")?;
    pair.client.go()?;
    pair.client.expect("used")?;
    let scrape = agent.settled()?;
    assert_eq!(pair.both(&scrape, PEAK, &[("state", "busy")]), [7.0; 2]);
    // Nothing is said before there are enough samples.
    agent.wait_for("a finding", |_| {
        findings(&agent, &pair.client.service).is_ok_and(|said| !said.is_empty())
    })?;
    let said = findings(&agent, &pair.client.service)?;
    let expected = format!(
        "holds 100 connections to {}, never used more than 7 at once in ",
        pair.server.service
    );
    assert!(said.len() == 1 && said[0].starts_with(&expected), "{said:?}");
    assert_eq!(findings(&agent, &pair.server.service)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_connection_per_request_is_counted_and_is_a_finding() -> Result<()> {
    let agent = Agent::start(&[])?;
    let plan = ["--each", "--requests", "2000", "--work-us", "2000"];
    let mut pair = Pair::start(&agent, false, false, &plan)?;
    pair.client.go()?;
    pair.client.expect("connected")?;
    pair.client.go()?;
    let facts = pair.client.expect("used")?;
    assert_eq!(number(&facts, "exchanges")?, 2000.0);
    let scrape = agent.settled()?;
    // Before the first sample found the other end, its name was an address.
    for (service, direction) in [(&pair.client.service, "out"), (&pair.server.service, "in")] {
        let labels = [("service_name", service.as_str()), ("direction", direction)];
        for name in [
            "tieback_pool_opened_total",
            "tieback_pool_exchanges_total",
            "tieback_pool_closed_after_one_exchange_total",
        ] {
            assert_eq!(scrape.sum(name, &labels), 2000.0, "{name} {direction}");
        }
    }
    let said = findings(&agent, &pair.client.service)?;
    let expected = format!("opens a connection per request to {}: ", pair.server.service);
    assert!(said.iter().any(|text| text.starts_with(&expected)), "{said:?}");
    Ok(())
}

#[test]
fn connections_that_a_killed_process_left_open_ended_by_its_death() -> Result<()> {
    let agent = Agent::start(&[])?;
    let mut pair = Pair::start(&agent, false, false, &["--count", "50", "--requests", "1"])?;
    pair.client.go()?;
    pair.client.expect("connected")?;
    agent.settled()?;
    let ended = |scrape: &Scrape, service: &str, how| {
        scrape.sum(
            "tieback_connections_ended_total",
            &[("service_name", service), ("how", how)],
        )
    };
    let Pair { server, client, .. } = pair;
    let gone = client.service.clone();
    drop(client);
    let scrape = agent.wait_for("the end of all connections", |scrape| {
        ended(scrape, &gone, "death") + ended(scrape, &server.service, "them") >= 100.0
    })?;
    assert_eq!(ended(&scrape, &gone, "death"), 50.0);
    assert_eq!(ended(&scrape, &server.service, "them"), 50.0);
    Ok(())
}
