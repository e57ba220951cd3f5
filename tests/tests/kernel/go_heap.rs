//! What Go programs allocate, as their runtime's own profile says: against what the program tells, and against the profile that it
//! writes of itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::chains::Chains;
use tieback_tests::pprof::Profile;
use tieback_tests::program::{Program, unique_service};

use super::record::{Talk, finish, record};

/// Go's own period.
const PERIOD: f64 = 524_288.0;
/// Deviations that a single estimate may be off: some dozens are looked at.
const SINGLE: f64 = 4.5;
const FUNCTIONS: [&str; 6] = ["begin", "leak", "cache", "buffer", "small", "deep"];

/// An estimate of bytes is as far off as chance may have it: a sampled allocation stands for a period or more, so the variance is at
/// most the period times the bytes. `room` is what the program allocates to tell of itself.
fn close(what: &str, estimate: f64, truth: f64) {
    let error = (PERIOD * truth.max(PERIOD)).sqrt();
    let off = (estimate - truth) / error;
    eprintln!("{what}: {estimate:.0} of {truth:.0}, {off:.2} standard errors");
    assert!(
        off.abs() < SINGLE,
        "{what}: {estimate}, not {truth}: {off:.1} standard errors"
    );
}

fn fact(facts: &Value, function: &str, what: &str) -> Result<f64> {
    facts[function][what]
        .as_f64()
        .with_context(|| format!("no {what} of {function}"))
}

fn start(programs: &Chains, name: &str, service: &str, arguments: &[&Path]) -> Result<(Program, Value)> {
    let mut command = Command::new(programs.path(name));
    command.args(arguments).env("OTEL_SERVICE_NAME", service);
    Program::spawn(command, service.to_owned())
}

/// What the API says of a service.
fn api(agent: &Agent, service: &str) -> Result<Option<Value>> {
    let document: Value = serde_json::from_str(&agent.get("/api/v1/allocations")?)?;
    let services = document["services"].as_array().context("no services")?;
    Ok(services.iter().find(|found| found["service"] == service).cloned())
}

/// Flat bytes or objects by function of a profile that a Go program wrote, as Go's own tool says them.
fn top(file: &Path, index: &str) -> Result<BTreeMap<String, f64>> {
    let output = Command::new("go")
        .args([
            "tool",
            "pprof",
            "-top",
            "-nodecount=1000",
            "-nodefraction=0",
            "-unit=B",
        ])
        .arg(format!("-sample_index={index}"))
        .arg(file)
        .env("HOME", file.parent().context("no folder")?)
        .output()
        .context("go tool pprof")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [flat, _, _, _, _, name, ..] = words.as_slice() else {
            return None;
        };
        let flat = flat.trim_end_matches('B').parse().ok()?;
        Some(((*name).to_owned(), flat))
    });
    Ok(lines.collect())
}

/// One program that ran before the agent, and one that began later: bytes and objects since, what is in use, and leaks.
#[test]
fn services_have_what_gos_profile_says() -> Result<()> {
    let programs = Chains::build()?;
    let names = ["go-old", "go-new"].map(unique_service);
    let directory = tempfile::tempdir()?;
    let files = names.clone().map(|name| directory.path().join(name));
    let (old, _) = start(&programs, "alloc-go", &names[0], &[&files[0]])?;
    let wanted = format!("{},{}=full", names[0], names[1]);
    let agent = Agent::start(&["--alloc", &wanted])?;
    let (new, _) = start(&programs, "alloc-go", &names[1], &[&files[1]])?;
    let mut running = [old, new];
    for name in &names {
        agent.wait_for("a Go program read", |_| {
            let found = api(&agent, name).ok().flatten();
            found.is_some_and(|found| found["allocated_from"] == serde_json::json!(["runtime profile"]))
        })?;
    }
    let mut last = Vec::new();
    // Leaks are told from ten ticks on, and of a history of which each fifth has more than the one before.
    for phase in 0..12 {
        last.clear();
        for program in &mut running {
            program.order("phase")?;
            last.push(program.expect("counted")?);
        }
        agent.settled()?;
        if phase > 0 {
            continue;
        }
        // What was filled once is there from then on.
        for (name, facts) in names.iter().zip(&last) {
            let scrape = agent.scrape()?;
            let labels = [("service_name", name.as_str())];
            let live = scrape.code("tieback_code_alloc_live_bytes", &labels, "main.cache");
            close("cache", live, fact(facts, "cache", "live")?);
        }
    }
    for ((program, name), (facts, file)) in running.iter_mut().zip(&names).zip(last.iter().zip(&files)) {
        program.order("write")?;
        program.expect("written")?;
        let scrape = agent.settled()?;
        let labels = [("service_name", name.as_str())];
        let from_begin = *name == names[1];
        let mut all = 0.0;
        for function in FUNCTIONS {
            let main = format!("main.{function}");
            let code = |metric| scrape.code(metric, &labels, &main);
            let bytes = match function {
                "begin" if !from_begin => 0.0,
                _ => fact(facts, function, "bytes")?,
            };
            all += bytes;
            close(
                &format!("{name} {function}"),
                code("tieback_code_alloc_bytes_total"),
                bytes,
            );
            let live = code("tieback_code_alloc_live_bytes");
            close(
                &format!("{name} {function} live"),
                live,
                fact(facts, function, "live")?,
            );
        }
        let total = scrape.sum("tieback_alloc_bytes_total", &labels);
        close(&format!("{name} in total"), total, all);
        // The same profile as the program's own: what is in use is the same to the byte.
        let said = top(file, "inuse_space")?;
        let path = format!("/services/-/{name}/profile/alloc_live?format=pprof");
        let profile = Profile::of(&agent.get_bytes(&path)?)?;
        for function in ["main.begin", "main.leak", "main.cache"] {
            let (ours, said) = (profile.sum("inuse_space", function)?, said[function]);
            ensure!((ours - said).abs() <= 64.0, "{function}: {ours}, not {said}");
        }
        let found = api(&agent, name)?.context("no service")?;
        let allocator = found["allocators"][0].as_str().unwrap_or_default();
        ensure!(
            allocator.starts_with("go1.")
                && allocator.ends_with("(runtime profile, a sample for each 512 KiB)"),
            "{found}"
        );
        ensure!(
            found["estimated"] == true && found["refused"] == Value::Array(Vec::new()),
            "{found}"
        );
        ensure!(
            found["live_bytes"].as_f64() > Some(1e6) && found["slowdown"] == 1.0,
            "{found}"
        );
        let leaks = found["leaks"].as_array().context("no leaks")?;
        let leaks: Vec<&str> = leaks
            .iter()
            .filter_map(|leak| leak["function"].as_str())
            .collect();
        assert_eq!(leaks, ["main.leak"], "{found}");
    }
    Ok(())
}

/// A profile that is not kept is said to be so; so is one that is not found.
#[test]
fn programs_without_a_profile_are_told() -> Result<()> {
    let programs = Chains::build()?;
    for (program, why) in [
        ("chain-go", "linker left heap profiles out"),
        ("chain-go-stripped", "without the symbols of its runtime"),
    ] {
        let service = unique_service(program);
        let agent = Agent::start(&["--alloc", &service])?;
        let mut command = Command::new(programs.path(program));
        command.args(["sleep", "1"]).env("OTEL_SERVICE_NAME", &service);
        let (_running, _) = Program::spawn(command, service.clone())?;
        agent.wait_for("a reason", |_| {
            let found = api(&agent, &service).ok().flatten();
            found.is_some_and(|found| found["refused"].to_string().contains(why))
        })?;
    }
    Ok(())
}

/// What C allocates in a Go program is counted by probes, and what Go allocates by its profile; neither takes from the other.
#[test]
fn cgo_programs_have_both() -> Result<()> {
    let programs = Chains::build()?;
    let service = unique_service("cgo");
    let agent = Agent::start(&["--alloc", &format!("{service}=full"), "--alloc-period", "16KiB"])?;
    let (mut program, _) = start(&programs, "alloc-cgo", &service, &[])?;
    agent.wait_for("both read", |_| {
        let found = api(&agent, &service).ok().flatten();
        found.is_some_and(|found| found["allocated_from"] == serde_json::json!(["probes", "runtime profile"]))
    })?;
    let labels = [("service_name", service.as_str())];
    let before = agent.settled()?;
    let mut facts = Value::Null;
    for _ in 0..4 {
        program.go()?;
        facts = program.expect("counted")?;
        agent.settled()?;
    }
    let scrape = agent.settled()?;
    for (metric, function) in [
        ("tieback_code_alloc_bytes_total", "in_c"),
        ("tieback_code_alloc_live_bytes", "in_c"),
        ("tieback_code_alloc_bytes_total", "inGo"),
        ("tieback_code_alloc_live_bytes", "inGo"),
    ] {
        let truth = facts[function].as_f64().context("no truth")?;
        let name = if function == "inGo" { "main.inGo" } else { function };
        close(metric, scrape.code(metric, &labels, name), truth);
    }
    let in_c = scrape.code("tieback_code_alloc_bytes_total", &labels, "in_c");
    let truth = facts["in_c"].as_f64().context("no truth")?;
    let off = (in_c - truth) / (16384.0 * truth).sqrt();
    ensure!(
        off.abs() < SINGLE,
        "{in_c} of {truth}: {off:.1} standard errors of a finer period"
    );
    ensure!(
        before.sum("tieback_alloc_bytes_total", &labels) < truth,
        "counted twice"
    );
    Ok(())
}

/// `tieback record`: the file has what the program's own profile has, function by function, whether the program goes on or ends.
#[test]
fn a_recording_has_the_programs_own_profile() -> Result<()> {
    let programs = Chains::build()?;
    let directory = tempfile::tempdir()?;
    let own = directory.path().join("own.pb.gz");
    let path = programs.path("alloc-go");
    let command = [path.to_str().context("path")?, own.to_str().context("path")?];
    for ends in [false, true] {
        let file = directory.path().join(format!("recorded-{ends}.pb.gz"));
        let mut child = record(&file, &["--alloc"], &command)?;
        let mut talk = Talk::with(&mut child)?;
        talk.facts()?;
        let mut phases = Vec::new();
        for _ in 0..6 {
            talk.say("phase")?;
            phases.push(talk.facts()?);
        }
        let (first, facts) = (&phases[0], &phases[5]);
        talk.say("write")?;
        talk.facts()?;
        let (code, said) = if ends {
            let _output = talk.end();
            finish(child)?
        } else {
            // The first one is the program's, which goes on; the second ends the recording.
            kill_process(Pid::from_child(&child), Signal::INT)?;
            talk.facts()?;
            kill_process(Pid::from_child(&child), Signal::INT)?;
            // The program has what the recording writes to, too, and so ends before that is read to its end.
            child.wait()?;
            let _output = talk.end();
            finish(child)?
        };
        ensure!(code == Some(if ends { 0 } else { 130 }), "{code:?}: {said}");
        ensure!(
            said.contains("runtime profile") && said.contains("main.leak"),
            "{said}"
        );
        let profile = Profile::read(&file)?;
        for (index, signal) in [
            ("alloc_space", "alloc_space"),
            ("alloc_objects", "alloc_objects"),
            ("inuse_space", "inuse_space"),
        ] {
            let own = top(&own, index)?;
            for function in FUNCTIONS {
                let name = format!("main.{function}");
                let (ours, said) = (
                    profile.sum(signal, &name)?,
                    own.get(&name).copied().unwrap_or(0.0),
                );
                ensure!(
                    ends || (ours - said).abs() <= 64.0 + 1e-3 * said,
                    "{signal} of {name}: {ours}, not {said}"
                );
            }
        }
        for function in FUNCTIONS {
            let what = format!("{function}, ended {ends}");
            let name = format!("main.{function}");
            for (signal, fact_of) in [("alloc_space", "bytes"), ("inuse_space", "live")] {
                let (mut truth, ours) = (fact(facts, function, fact_of)?, profile.sum(signal, &name)?);
                if ends && signal == "inuse_space" && truth == 0.0 {
                    // What is garbage now may have been in use when it was read last.
                    continue;
                }
                if ends {
                    // The last tenth of a second before the end was not seen, which may be more than a phase.
                    truth = ours.clamp(fact(first, function, fact_of)?, truth);
                }
                close(&what, ours, truth);
            }
        }
    }
    Ok(())
}
