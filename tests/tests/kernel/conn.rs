//! Connections by direction and reason, with gauges right at each step.

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::Program;

fn conn(scrape: &Scrape, name: &str, service: &str, key: &str, value: &str) -> f64 {
    scrape.sum(name, &[("service_name", service), (key, value)])
}

/// Starts a server and a client of it, both known to the agent.
fn pair(agent: &Agent, mode: &str, family: &[&str]) -> Result<(Program, Program)> {
    let (server, facts) = Program::start(&[&["serve", mode], family].concat())?;
    let port = facts["port"].as_u64().context("no port")?.to_string();
    let (client, _) = Program::start(&[&["connect", port.as_str()], family].concat())?;
    agent.wait_for_service(&server.service)?;
    agent.wait_for_service(&client.service)?;
    Ok((server, client))
}

#[test]
fn held_and_reset_connections_are_exact_at_each_step() -> Result<()> {
    let agent = Agent::start(&[])?;
    for family in [&[][..], &["--v6"]] {
        for mode in ["hold", "reset"] {
            let (mut server, mut client) = pair(&agent, mode, family)?;
            let ends = [(client.service.clone(), "out"), (server.service.clone(), "in")];
            server.go()?;
            client.go()?;
            client.expect("connected")?;
            server.expect("accepted")?;
            let open = agent.settled()?;
            for (service, way) in &ends {
                assert_eq!(
                    conn(&open, "tieback_connections", service, "direction", way),
                    1000.0,
                    "{mode} {way}"
                );
            }
            client.go()?;
            server.go()?;
            client.expect("closed")?;
            server.expect("closed")?;
            let closed = agent.settled()?;
            for (service, way) in &ends {
                assert_eq!(
                    conn(&closed, "tieback_connections", service, "direction", way),
                    0.0,
                    "{mode} {way}"
                );
                for name in [
                    "tieback_connections_opened_total",
                    "tieback_connections_closed_total",
                ] {
                    assert_eq!(
                        conn(&closed, name, service, "direction", way),
                        1000.0,
                        "{mode} {way} {name}"
                    );
                }
            }
            let resets = conn(
                &closed,
                "tieback_connection_failures_total",
                &ends[0].0,
                "reason",
                "reset",
            );
            assert_eq!(resets, if mode == "reset" { 1000.0 } else { 0.0 }, "{mode}");
        }
    }
    Ok(())
}

#[test]
fn failed_connects_are_exact_by_reason() -> Result<()> {
    let agent = Agent::start(&[])?;
    for family in [&[][..], &["--v6"]] {
        for (mode, reason) in [("closed", "refused"), ("blackhole", "timeout")] {
            let (_server, mut client) = pair(&agent, mode, family)?;
            client.go()?;
            client.expect("connected")?;
            let scrape = agent.settled()?;
            let failures = conn(
                &scrape,
                "tieback_connection_failures_total",
                &client.service,
                "reason",
                reason,
            );
            assert_eq!(failures, 1000.0, "{mode}");
            assert_eq!(
                conn(
                    &scrape,
                    "tieback_connections_opened_total",
                    &client.service,
                    "direction",
                    "out"
                ),
                0.0
            );
        }
    }
    Ok(())
}
