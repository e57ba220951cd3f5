//! Allocations at high rates: what windows say of them, and when watching all the time is given up.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::chains::Chains;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::Program;

use super::alloc::{FUNCTIONS, Watched, truth, watch};

/// How far shares may be off after a minute. What a sample more or less does shrinks with the square root of the time.
const MINUTE: f64 = 0.02;

/// Bytes of a service by function.
fn by_function(scrape: &Scrape, labels: &[(&str, &str)]) -> Vec<f64> {
    let name = "tieback_code_alloc_bytes_total";
    FUNCTIONS
        .iter()
        .map(|function| scrape.code(name, labels, function))
        .collect()
}

/// For how long; `TIEBACK_TEST_DUTY_SECONDS` says another time, for measurements by hand.
fn seconds() -> Result<(String, f64)> {
    let text = std::env::var("TIEBACK_TEST_DUTY_SECONDS").unwrap_or_else(|_| "20".to_owned());
    let seconds = text.parse().context("TIEBACK_TEST_DUTY_SECONDS")?;
    Ok((text, seconds))
}

/// Most rounds of [`seconds`].
const ROUNDS: u32 = 3;

/// Shares by code of a program that pauses, at some 20 thousand allocations a second, and of one that does nothing but allocate, at
/// some ten millions. Where they are not near enough, another round is added: there is less chance in all of them together, and less
/// is allowed. (One in which a hypervisor took the CPU for most of the windows has few of them.)
#[test]
fn windows_tell_shares_by_code_whatever_the_rate() -> Result<()> {
    let (length, seconds) = seconds()?;
    for (name, plan) in [
        ("alloc", [length.as_str(), "10", "4500"]),
        ("alloc-cxx", [length.as_str(), "1000", "0"]),
    ] {
        let mut sums = vec![(0.0, 0.0); FUNCTIONS.len()];
        for round in 1..=ROUNDS {
            for (sum, (found, wanted)) in sums.iter_mut().zip(watch_for_a_while(name, plan, seconds)?) {
                *sum = (sum.0 + found, sum.1 + wanted);
            }
            let wrong = wrong_shares(&sums, MINUTE * (60.0 / (seconds * f64::from(round))).sqrt());
            if wrong.is_empty() {
                break;
            }
            ensure!(round < ROUNDS, "{name}: {wrong:?}");
        }
    }
    Ok(())
}

/// Bytes by function that windows say of a program, and what it says itself.
fn watch_for_a_while(name: &'static str, plan: [&str; 3], seconds: f64) -> Result<Vec<(f64, f64)>> {
    let (agent, mut watched) = watch(&[name], "duty", plan, &[])?;
    let watched = &mut watched[0];
    watched.program.go()?;
    let facts = watched.program.expect("counted")?;
    let scrape = agent.settled()?;
    let found = by_function(&scrape, &watched.labels());
    let of = |what| -> Result<Vec<f64>> {
        let each = FUNCTIONS.iter().map(|function| truth(&facts, function, what));
        each.collect()
    };
    let (wanted, objects) = (of("bytes")?, of("objects")?);
    eprintln!(
        "{name}: {:.0} allocations a second, {:.0} of {:.0} bytes",
        objects.iter().sum::<f64>() / seconds,
        found.iter().sum::<f64>(),
        wanted.iter().sum::<f64>()
    );
    let service = watched.api(&agent)?.context("no service")?;
    assert_eq!(service["estimated"], true);
    assert_eq!(service["live_bytes"], Value::Null);
    assert_eq!(service["leaks"], Value::Array(Vec::new()));
    assert_eq!(service["leaks_from"], "growth by code");
    let growth = service["growth"].as_array().context("no growth")?;
    // By whoever was the first to touch a page, which need not be who leaks.
    let own = |entry: &Value| entry["file"] == "alloc.c";
    ensure!(growth.iter().any(own), "no growth by the program: {growth:?}");
    Ok(found.into_iter().zip(wanted).collect())
}

/// Functions whose share of what was found is not that of what is true.
fn wrong_shares(sums: &[(f64, f64)], room: f64) -> Vec<String> {
    let (all, truth) = sums.iter().fold((0.0, 0.0), |(all, truth), (found, wanted)| {
        (all + found, truth + wanted)
    });
    let mut wrong = Vec::new();
    for (function, (found, wanted)) in FUNCTIONS.iter().zip(sums) {
        let (found, share) = (found / all, wanted / truth);
        eprintln!(
            "  {function}: {:.2} of {:.2} points",
            found * 100.0,
            share * 100.0
        );
        if (found - share).abs() > room {
            wrong.push(format!("{function}: {found:.4}, not {share:.4} ± {room:.4}"));
        }
    }
    wrong
}

/// A process that is watched in the place of one that ended begins with nothing.
#[test]
fn what_a_process_allocated_is_not_said_of_the_next() -> Result<()> {
    let (agent, mut watched) = watch(&["alloc"], "duty", ["5", "1000", "0"], &[])?;
    let mut first = watched.remove(0);
    first.program.go()?;
    first.program.expect("counted")?;
    let labels = [("service_name", first.program.service.clone())];
    let labels = labels.each_ref().map(|(name, value)| (*name, value.as_str()));
    let told = |scrape: &Scrape| scrape.sum("tieback_alloc_bytes_total", &labels);
    let service = first.program.service.clone();
    drop(first);
    agent.wait_for("the first one gone", |scrape| {
        scrape.sum("tieback_processes", &labels) == 0.0
    })?;
    let before = told(&agent.settled()?);
    // 10 rounds, 100 allocations, and a pause.
    let plan = ["5", "10", "4500"];
    let mut second = Watched::start(&Chains::build()?, "alloc", service, plan)?;
    second.followed(&agent)?;
    second.program.go()?;
    let facts = second.program.expect("counted")?;
    let bytes = FUNCTIONS.iter().map(|function| truth(&facts, function, "bytes"));
    let truth: f64 = bytes.sum::<Result<f64>>()?;
    let found = told(&agent.settled()?) - before;
    // Some twenty windows of at most 40 ms.
    ensure!(
        (0.5..2.0).contains(&(found / truth)),
        "{found} of {truth} bytes, after {before} of the first"
    );
    Ok(())
}

/// CPU seconds of a process.
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let ticks: Vec<f64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / rustix::param::clock_ticks_per_second() as f64)
}

/// At ten million allocations a second all the time is too much: how much is told, it is given up, that is said, and the program is
/// as fast as before.
#[test]
fn watching_all_is_given_up_where_it_slows_too_much() -> Result<()> {
    // With many samples of the clock, what is told has little chance in it.
    let (agent, mut watched) = watch(
        &["alloc-cxx"],
        "full",
        ["3", "100", "0"],
        &["--sample-cpu-hz", "199"],
    )?;
    let watched = &mut watched[0];
    let pid = watched.program.pid();
    let service = watched.program.service.clone();
    let mut all = 0.0;
    // Rounds for each second of CPU time.
    let mut turn = |program: &mut Program| -> Result<f64> {
        let began = cpu(pid)?;
        program.go()?;
        let facts = program.expect("counted")?;
        let rounds = facts["rounds"].as_f64().context("no rounds")?;
        let done = rounds - std::mem::replace(&mut all, rounds);
        Ok(done / (cpu(pid)? - began))
    };
    let slowed = turn(&mut watched.program)?;
    agent.settled()?;
    let told = watched.api(&agent)?.context("no service")?["slowdown"]
        .as_f64()
        .context("no slowdown")?;
    drop(agent);
    let free = turn(&mut watched.program)?;
    let truth = free / slowed;
    eprintln!("told to be {told:.1} times slower, {truth:.1} in truth");
    // Code that comes back from a trap is slower than it would be without, so it seems to need more than it does.
    ensure!(truth > 10.0, "{truth} times slower is no load for this test");
    ensure!(
        told > truth / 8.0 && told < truth * 1.25,
        "{told} instead of {truth}"
    );

    let full = format!("{service}=full");
    let agent = Agent::start(&[
        "--alloc",
        &full,
        "--alloc-slowdown",
        "5",
        "--sample-cpu-hz",
        "199",
    ])?;
    agent.wait_for("allocator watched", |_| {
        let service = watched.api(&agent).ok().flatten();
        service.is_some_and(|service| service["allocated_from"][0] == "probes")
    })?;
    let mut turns = 0;
    loop {
        turn(&mut watched.program)?;
        agent.settled()?;
        let service = watched.api(&agent)?.context("no service")?;
        let why = service["refused"].to_string();
        if why.contains("times slower than without, more than --alloc-slowdown 5") {
            assert_eq!(service["duty"], 0.0);
            break;
        }
        // Where the program hardly gets a CPU, one of them has too few samples.
        turns += 1;
        ensure!(turns < 5, "not given up: {service}");
    }
    let status = agent.get("/status")?;
    ensure!(
        status.contains("not watched: it ran at least") && status.contains("more than --alloc-slowdown 5"),
        "{status}"
    );
    let labels = [("service_name", service.as_str())];
    let counted = |scrape: &Scrape| scrape.sum("tieback_alloc_objects_total", &labels);
    let before = counted(&agent.settled()?);
    let with = turn(&mut watched.program)?;
    assert_eq!(counted(&agent.settled()?), before, "it is counted no more");
    drop(agent);
    let without = turn(&mut watched.program)?;
    eprintln!("{with:.0} rounds a second after it was given up, {without:.0} without the agent");
    // Traced, it would be a fifth at most; what the agent's other probes and the host's noise cost is far less than half.
    ensure!(
        with > 0.5 * without,
        "{with} rounds a second, {without} without the agent"
    );
    Ok(())
}

/// The kill switch lets go of allocators, too.
#[test]
fn the_kill_switch_ends_watching() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let switch = directory.path().join("disable");
    let path = switch.to_str().context("path")?;
    let (agent, mut watched) = watch(
        &["alloc"],
        "full",
        ["0.2", "10", "1000"],
        &["--kill-switch", path],
    )?;
    let watched = &mut watched[0];
    let service = watched.program.service.clone();
    let labels = [("service_name", service.as_str())];
    let counted = |scrape: &Scrape| scrape.sum("tieback_alloc_objects_total", &labels);
    let told = |program: &mut Program| -> Result<f64> {
        program.go()?;
        let facts = program.expect("counted")?;
        FUNCTIONS
            .iter()
            .map(|function| truth(&facts, function, "objects"))
            .sum()
    };
    let first = told(&mut watched.program)?;
    assert_eq!(counted(&agent.settled()?), first);
    std::fs::write(&switch, "")?;
    agent.wait_for("the kill switch", |scrape| {
        scrape.sum("tieback_kill_switch", &[]) == 1.0
    })?;
    let missed = told(&mut watched.program)?;
    std::fs::remove_file(&switch)?;
    agent.wait_for("watching again", |scrape| {
        let service = watched.api(&agent).ok().flatten();
        scrape.sum("tieback_kill_switch", &[]) == 0.0
            && service.is_some_and(|service| service["allocated_from"][0] == "probes")
    })?;
    let before = counted(&agent.settled()?);
    let last = told(&mut watched.program)?;
    let after = counted(&agent.settled()?);
    ensure!(missed > first && last > missed, "{first}, {missed}, {last}");
    assert_eq!(after - before, last - missed, "what was allocated since");
    ensure!(before <= first, "{before} of {first} before it was let go");
    Ok(())
}
