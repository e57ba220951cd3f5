//! Connections by direction and reason, with gauges right at each step.

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, unique_service};

fn conn(scrape: &Scrape, name: &str, service: &str, key: &str, value: &str) -> f64 {
    scrape.sum(name, &[("service_name", service), (key, value)])
}

/// Starts a server and a client of it, both known to the agent; in a network namespace of their own with `apart`.
fn pair(agent: &Agent, mode: &str, family: &[&str], apart: bool) -> Result<(Program, Program)> {
    let serve = [&["serve", mode], family].concat();
    let (server, facts) = if apart {
        Program::start_in_netns(None, &serve)?
    } else {
        Program::start(&serve)?
    };
    let port = facts["port"].as_u64().context("no port")?.to_string();
    let connect = [&["connect", port.as_str()], family].concat();
    let (client, _) = if apart {
        Program::start_in_netns(Some(&server), &connect)?
    } else {
        Program::start(&connect)?
    };
    agent.wait_for_service(&server.service)?;
    agent.wait_for_service(&client.service)?;
    Ok((server, client))
}

const FAMILIES: [&[&str]; 2] = [&[], &["--v6"]];

#[test]
fn held_and_reset_connections_are_exact_at_each_step() -> Result<()> {
    held_and_reset(false)
}

#[test]
fn held_and_reset_connections_of_another_network_namespace() -> Result<()> {
    held_and_reset(true)
}

fn held_and_reset(apart: bool) -> Result<()> {
    let agent = Agent::start(&[])?;
    for family in FAMILIES {
        for mode in ["hold", "reset"] {
            let (mut server, mut client) = pair(&agent, mode, family, apart)?;
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
            let wanted = if mode == "reset" { 1000.0 } else { 0.0 };
            assert_eq!(resets, wanted, "{mode}");
            let ended = |service, how| conn(&closed, "tieback_connections_ended_total", service, "how", how);
            assert_eq!(ended(&ends[0].0, "reset"), wanted, "{mode}");
            for (service, way) in &ends {
                let all = ["us", "them", "reset", "timeout", "death"].map(|how| ended(service, how));
                assert_eq!(all.iter().sum::<f64>(), 1000.0, "{mode} {way}: {all:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn failed_connects_are_exact_by_reason() -> Result<()> {
    failed(false)
}

#[test]
fn failed_connects_of_another_network_namespace() -> Result<()> {
    failed(true)
}

fn failed(apart: bool) -> Result<()> {
    let agent = Agent::start(&[])?;
    for family in FAMILIES {
        for (mode, reason) in [("closed", "refused"), ("blackhole", "timeout")] {
            let (_server, mut client) = pair(&agent, mode, family, apart)?;
            client.go()?;
            let facts = client.expect("connected")?;
            assert_eq!(facts[reason].as_u64(), Some(1000), "{mode}: {facts}");
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

/// A flood of connects is counted exactly, though few of its callers are sampled.
#[test]
fn callers_of_a_flood_are_sampled_by_its_logarithm() -> Result<()> {
    const COUNT: usize = 20_000;
    let agent = Agent::start(&[])?;
    let (mut program, _) = Program::start(&["flood", &COUNT.to_string()])?;
    agent.wait_for_service(&program.service)?;
    let service = program.service.clone();
    let labels = [("service_name", service.as_str())];
    let name = "tieback_code_connections_opened_total";
    // Once the tables are there by which its stacks are walked.
    let mut before = agent.scrape()?;
    while before.code(name, &labels, "flood_") == 0.0 {
        program.go()?;
        program.expect("begun")?;
        before = agent.settled()?;
    }
    program.order("flood")?;
    program.expect("truth")?;
    let after = agent.settled()?;
    let more = |pick: &dyn Fn(&Scrape) -> f64| pick(&after) - pick(&before);
    let opened = more(&|scrape| {
        conn(
            scrape,
            "tieback_connections_opened_total",
            &service,
            "direction",
            "out",
        )
    });
    assert_eq!(opened, COUNT as f64);

    let code = more(&|scrape| scrape.sum(name, &labels));
    assert_eq!(code, opened, "each has its code, and no more");
    let rarely = more(&|scrape| scrape.code(name, &labels, "flood_rarely")) / opened;
    let often = more(&|scrape| scrape.code(name, &labels, "flood_often")) / opened;
    // In one window: 128 samples of each weight 1, 2, ..., 64 and 29 of weight 128, each of the rare function by a chance of a
    // quarter. The standard deviation of its sum is 470 of 20,000; of four of them nobody is wrong by chance.
    assert!((rarely - 0.25).abs() < 4.0 * 470.0 / 20_000.0, "{rarely}");
    assert!(rarely + often > 0.99, "{rarely} + {often}");

    let walked = |scrape: &Scrape| scrape.sum("tieback_unwind_total", &[]);
    let stacks = walked(&after) - walked(&before);
    assert!(stacks < COUNT as f64 / 2.0, "{stacks} stacks");
    Ok(())
}

/// A listener and connections that a program leaves to the one that it becomes are that one's.
#[test]
fn what_a_program_leaves_to_the_next_goes_on() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (mut program, _) = Program::start(&["hand-over"])?;
    let service = program.service.clone();
    agent.wait_for_service(&service)?;
    let both =
        |scrape: &Scrape, name: &str| ["in", "out"].map(|way| conn(scrape, name, &service, "direction", way));
    program.go()?;
    program.expect("connected")?;
    let first = agent.settled()?;
    assert_eq!(both(&first, "tieback_connections"), [5.0; 2]);
    program.go()?;
    program.expect("taken")?;
    // The first program's numbers are read a last time, then the other's begin.
    agent.settled()?;
    let taken = agent.settled()?;
    assert_eq!(both(&taken, "tieback_connections"), [5.0; 2]);
    program.go()?;
    program.expect("more")?;
    let more = agent.settled()?;
    assert_eq!(both(&more, "tieback_connections"), [25.0; 2]);
    program.go()?;
    program.expect("closed")?;
    let closed = agent.settled()?;
    assert_eq!(both(&closed, "tieback_connections"), [0.0; 2]);
    for name in [
        "tieback_connections_opened_total",
        "tieback_connections_closed_total",
    ] {
        assert_eq!(both(&closed, name), [25.0; 2], "{name}");
    }
    Ok(())
}

/// In whatever order they are found, and in every network namespace.
#[test]
fn connections_older_than_the_agent_have_the_direction_that_they_had() -> Result<()> {
    let mut programs = Vec::new();
    for family in FAMILIES {
        let args = [&["move-listener"], family].concat();
        programs.push(Program::start(&args)?.0);
        programs.push(Program::start_in_netns(None, &args)?.0);
    }
    let agent = Agent::start(&[])?;
    for program in &programs {
        agent.wait_for_service(&program.service)?;
    }
    let open = agent.settled()?;
    for program in &mut programs {
        program.go()?;
        program.expect("closed")?;
    }
    let closed = agent.settled()?;
    for program in &programs {
        let both = |scrape: &Scrape, name: &str| {
            ["in", "out"].map(|way| conn(scrape, name, &program.service, "direction", way))
        };
        assert_eq!(both(&open, "tieback_connections"), [5.0; 2]);
        assert_eq!(both(&closed, "tieback_connections"), [0.0; 2]);
        assert_eq!(both(&closed, "tieback_connections_opened_total"), [0.0; 2]);
        // Each end is a pool of what the program has with itself: no peer is a port that the kernel chose.
        assert_eq!(
            conn(
                &open,
                "tieback_pool_connections",
                &program.service,
                "peer",
                &program.service
            ),
            10.0
        );
    }
    Ok(())
}

/// A listener that a service manager keeps open for a service is the service's, from the first connection on that it accepts.
#[test]
fn what_a_service_manager_listens_for_is_of_the_service_that_accepts() -> Result<()> {
    let agent = Agent::start(&["--syscall-mode", "exact"])?;
    let service = unique_service("launched");
    let (mut manager, _) = Program::start(&["launch", &service])?;
    agent.wait_for_service(&manager.service)?;
    manager.go()?;
    manager.expect("taken")?;
    agent.wait_for_service(&service)?;
    // It is found to be the manager's, which still has it.
    agent.settled()?;
    manager.go()?;
    manager.expect("more")?;
    let open = agent.settled()?;
    manager.go()?;
    manager.expect("closed")?;
    let closed = agent.settled()?;
    let opened = |scrape: &Scrape| {
        let name = "tieback_connections_opened_total";
        [&manager.service, &service].map(|service| conn(scrape, name, service, "direction", "in"))
    };
    // The first one was there before it was accepted.
    assert_eq!(opened(&open), [1.0, 19.0]);
    assert_eq!(opened(&closed), [1.0, 19.0]);
    manager.go()?;
    manager.expect("truth")?;
    let now = conn(&closed, "tieback_connections", &service, "direction", "in");
    assert_eq!(now, 0.0);
    Ok(())
}
