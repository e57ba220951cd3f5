//! Lives: of processes, of the agent, and what each misses of the other's.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::Program;

#[test]
fn short_lived_children_are_all_charged() -> Result<()> {
    // Profiles reach back a few seconds only: what windows hold is the same after each storm, so that a growth is a leak.
    let agent = Agent::start(&["--syscall-mode", "exact", "--retention", "10s"])?;
    let mut storms = 0;
    let mut warm: Option<[f64; 2]> = None;
    for (args, children) in [
        // The first one also pays for the symbols of the workload, once.
        (&["storm", "--exec", "--children", "500"][..], 500.0),
        (&["storm", "--exec", "--children", "500"], 500.0),
        // The heap finds its size in the first two: 2 to 8 MB more after the second than after the first, 1 MB after later
        // ones, and 10 MB in all over twenty.
        (&["storm"], 10_000.0),
        (&["storm"], 10_000.0),
        (&["storm"], 10_000.0),
    ] {
        let (mut program, _) = Program::start(args)?;
        let service = program.service.clone();
        agent.wait_for_service(&service)?;
        program.go()?;
        program.expect("done")?;
        let scrape = agent.settled()?;
        let labels = [("service_name", service.as_str())];
        let calls = scrape.sum("tieback_syscalls_total", &[labels[0], ("syscall", "getppid")]);
        assert_eq!(calls, 10.0 * children, "calls of the children");
        assert_eq!(scrape.sum("tieback_processes", &labels), 1.0, "processes left");
        for probe in ["process", "wait", "ring"] {
            assert_eq!(scrape.lost(probe), 0.0, "lost by {probe}");
        }
        if children < 10_000.0 {
            continue;
        }
        let memory = [
            "tieback_agent_resident_memory_bytes",
            "tieback_agent_bpf_map_bytes",
        ]
        .map(|name| scrape.sum(name, &[]));
        storms += 1;
        if storms < 2 {
            continue;
        }
        for (before, after) in warm.unwrap_or(memory).into_iter().zip(memory) {
            // A kilobyte left by each of 10,000 children would be seen.
            assert!(after < before + 8e6, "memory grew from {before} to {after}");
        }
        warm = Some(memory);
    }
    ensure!(storms == 3, "no memory was compared");
    Ok(())
}

#[test]
fn children_that_nobody_waits_for_are_no_processes() -> Result<()> {
    let agent = Agent::start(&[])?;
    let unknown = |scrape: &Scrape| scrape.sum("tieback_processes", &[("service_name", "(unknown)")]);
    let before = unknown(&agent.settled()?);
    let mut zombies = Vec::new();
    for _ in 0..50 {
        zombies.push(Command::new("true").spawn()?);
    }
    for child in &zombies {
        let stat = format!("/proc/{}/stat", child.id());
        let start = Instant::now();
        while !std::fs::read_to_string(&stat)?.contains(") Z ") {
            ensure!(start.elapsed() < Duration::from_secs(30), "a child does not end");
        }
    }
    let during = unknown(&agent.settled()?);
    for mut child in zombies {
        child.wait()?;
    }
    // Half of them are room for what else begins and ends on this host.
    assert!(
        during < before + 25.0,
        "{before} unknown processes became {during}"
    );
    Ok(())
}

/// Ids of the BPF objects that a process holds, by kind, as its descriptors say.
fn held(kind: &str, pid: u32) -> Result<BTreeSet<u64>> {
    let mut ids = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else {
            continue;
        };
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{kind}_id:")));
        // A link's descriptor also tells the id of its program.
        if kind == "link" || !text.contains("link_id:") {
            ids.extend(id.and_then(|id| id.trim().parse::<u64>().ok()));
        }
    }
    Ok(ids)
}

/// Ids of all BPF objects of the host, as bpftool sees them.
fn present(kind: &str) -> Result<BTreeSet<u64>> {
    let output = Command::new("bpftool")
        .args(["-j", kind, "show"])
        .output()
        .context("start bpftool")?;
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).context("what bpftool says")?;
    Ok(all.iter().filter_map(|object| object["id"].as_u64()).collect())
}

#[test]
fn a_killed_agent_leaves_nothing_behind() -> Result<()> {
    let agent = Agent::start(&["--syscall-mode", "exact"])?;
    let mut ids = Vec::new();
    for kind in ["prog", "map", "link"] {
        let held = held(kind, agent.pid())?;
        ensure!(held.len() > 5, "the agent holds only {} of {kind}", held.len());
        ensure!(
            held.is_subset(&present(kind)?),
            "bpftool does not see each {kind}"
        );
        ids.push((kind, held));
    }
    agent.kill()?;
    // The kernel frees them after a grace period.
    let deadline = Instant::now() + Duration::from_secs(30);
    for (kind, ids) in ids {
        while !present(kind)?.is_disjoint(&ids) {
            ensure!(Instant::now() < deadline, "a {kind} of the agent is left");
        }
    }
    Ok(())
}

#[test]
fn programs_older_than_the_agent_are_like_any_other() -> Result<()> {
    let (mut sleeper, _) = Program::start(&["wait", "sleep"])?;
    let (mut server, facts) = Program::start(&["serve", "hold"])?;
    let port = facts["port"].as_u64().context("no port")?.to_string();
    let (mut client, _) = Program::start(&["connect", &port])?;
    server.go()?;
    client.go()?;
    client.expect("connected")?;
    server.expect("accepted")?;

    let agent = Agent::start(&[])?;
    for program in [&sleeper, &server, &client] {
        agent.wait_for_service(&program.service)?;
    }
    let ends = [(client.service.clone(), "out"), (server.service.clone(), "in")];
    let open = agent.settled()?;
    for (service, way) in &ends {
        let labels = [("service_name", service.as_str()), ("direction", way)];
        assert_eq!(open.sum("tieback_connections", &labels), 1000.0, "{way}");
        assert_eq!(
            open.sum("tieback_connections_opened_total", &labels),
            0.0,
            "{way}"
        );
    }
    let truth = sleeper.finish()?;
    client.go()?;
    server.go()?;
    client.expect("closed")?;
    server.expect("closed")?;
    let closed = agent.settled()?;
    for (service, way) in &ends {
        let labels = [("service_name", service.as_str()), ("direction", way)];
        assert_eq!(closed.sum("tieback_connections", &labels), 0.0, "{way}");
        assert_eq!(
            closed.sum("tieback_connections_closed_total", &labels),
            1000.0,
            "{way}"
        );
    }
    let labels = [("service_name", sleeper.service.as_str()), ("cause", "sleep")];
    let want = truth["waited_seconds"].as_f64().context("no waited_seconds")?;
    assert_within!(
        closed.sum("tieback_wait_seconds_total", &labels),
        want,
        0.01,
        "sleep"
    );
    Ok(())
}

#[test]
fn over_the_memory_limit_symbols_are_let_go_and_nothing_else() -> Result<()> {
    let agent = Agent::start(&["--memory-limit", "64MiB"])?;
    let (mut program, _) = Program::start(&["mixture", "--turns", "10"])?;
    agent.wait_for_service(&program.service)?;
    let truth = program.finish()?;
    let scrape = agent.wait_for("letting go", |scrape| {
        scrape.sum("tieback_agent_memory_sheds_total", &[]) > 0.0
    })?;
    let labels = [("service_name", program.service.as_str()), ("cause", "sleep")];
    let known = truth["long_seconds"].as_f64().context("no long_seconds")?;
    assert!(agent.settled()?.sum("tieback_wait_seconds_total", &labels) >= 0.99 * known);
    assert!(scrape.sum("tieback_agent_memory_limit_bytes", &[]) == f64::from(64 << 20));
    Ok(())
}

#[test]
fn the_kill_switch_detaches_all_and_nothing_of_the_pause_is_invented() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let switch = dir.path().join("disable");
    let path = switch.to_str().context("path")?.to_owned();
    let agent = Agent::start(&["--syscall-mode", "exact", "--kill-switch", &path])?;
    let (mut sleeper, _) = Program::start(&["wait", "sleep"])?;
    let (mut unseen, _) = Program::start(&["syscalls"])?;
    for program in [&sleeper, &unseen] {
        agent.wait_for_service(&program.service)?;
    }
    std::fs::write(&switch, "")?;
    agent.wait_for("the pause", |scrape| {
        scrape.sum("tieback_kill_switch", &[]) == 1.0
    })?;
    ensure!(held("link", agent.pid())?.is_empty(), "a link is left");
    unseen.finish()?;
    let (mut counted, _) = Program::start(&["syscalls"])?;
    std::fs::remove_file(&switch)?;
    for program in [&sleeper, &counted] {
        agent.wait_for_service(&program.service)?;
    }
    counted.finish()?;
    let truth = sleeper.finish()?;
    let scrape = agent.settled()?;
    let calls = |service: &str| {
        scrape.sum(
            "tieback_syscalls_total",
            &[("service_name", service), ("syscall", "getppid")],
        )
    };
    assert_eq!(calls(&unseen.service), 0.0, "calls of the pause");
    assert_eq!(calls(&counted.service), 1e6, "calls after the pause");
    let labels = [("service_name", sleeper.service.as_str()), ("cause", "sleep")];
    let want = truth["waited_seconds"].as_f64().context("no waited_seconds")?;
    assert_within!(
        scrape.sum("tieback_wait_seconds_total", &labels),
        want,
        0.01,
        "sleep after the pause"
    );
    Ok(())
}
