//! Names of the kernel's functions in stacks of waits, against what the kernel itself says of the waiting thread.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::program::Program;

/// Kinds of waits whose thread is in the kernel for as long as the wait lasts, and the function of the program that is its caller.
const KINDS: [(&str, &str); 6] = [
    ("sleep", "wait_sleep"),
    ("pipe", "wait_pipe"),
    ("unix", "wait_unix"),
    ("tcp", "wait_tcp"),
    ("eventfd", "wait_eventfd"),
    ("flock", "wait_flock"),
];
/// Length and number of the waits, so many that some are sampled.
const WAITS: [&str; 4] = ["--seconds", "0.2", "--times", "10"];
/// Between two looks at a thread that is to stay where it is.
const PAUSE: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(60);

/// Functions of the kernel that a thread sleeps in, from the system call's entry on; empty while it is not asleep in one.
fn asleep(pid: u32) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stack")).context("needs CONFIG_STACKTRACE")?;
    let name = |line: &str| {
        let place = line.split_once("] ")?.1;
        Some(place.split('+').next()?.to_owned())
    };
    let mut functions: Vec<_> = text.lines().filter_map(name).collect();
    functions.reverse();
    Ok(functions)
}

/// Functions of the kernel's scheduler, where every thread sleeps: the kernel leaves them out when it says where a thread is.
fn scheduler() -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string("/proc/kallsyms")?;
    let symbols = || {
        text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            Some((address, words.nth(1)?))
        })
    };
    let at = |name: &str| {
        let found = symbols().find(|(_, known)| *known == name);
        found
            .map(|(address, _)| address)
            .with_context(|| format!("no {name}"))
    };
    let range = at("__sched_text_start")?..at("__sched_text_end")?;
    let inside = symbols().filter(|(address, _)| range.contains(address));
    Ok(inside.map(|(_, name)| name.to_owned()).collect())
}

/// The same of the stacks of a profile that have a function of the program as the kernel's caller.
fn sampled(folded: &str, caller: &str) -> Vec<Vec<String>> {
    let stack = |line: &str| {
        let frames: Vec<&str> = line.rsplit_once(' ')?.0.split(';').collect();
        let from = frames.iter().position(|frame| frame.ends_with("_[k]"))?;
        // Where a thread waits for a CPU is not where it blocks.
        let interrupted = |frame: &&str| frame.starts_with("asm_") || frame.starts_with("exit_to_user_mode");
        // Of a system call that is inlined, or made by a function of its own.
        (frames[..from].iter().any(|frame| frame.contains(caller)) && !frames[from..].iter().any(interrupted))
            .then(|| {
                frames[from..]
                    .iter()
                    .map(|frame| frame.trim_end_matches("_[k]").to_owned())
                    .collect()
            })
    };
    folded.lines().filter_map(stack).collect()
}

/// Waits until a thread is asleep in another place than at the test's gate, and stays there.
fn settled(program: &Program, gate: &[String]) -> Result<Vec<String>> {
    let start = Instant::now();
    let mut last = Vec::new();
    loop {
        let now = asleep(program.pid())?;
        if !now.is_empty() && now != gate && now == last {
            return Ok(now);
        }
        ensure!(start.elapsed() < DEADLINE, "never asleep, but {now:?}");
        last = now;
        std::thread::sleep(PAUSE);
    }
}

#[test]
fn functions_of_the_kernel_are_those_that_it_names_itself() -> Result<()> {
    let scheduler = scheduler()?;
    let agent = Agent::start(&[])?;
    let mut running = Vec::new();
    for (kind, _) in KINDS {
        running.push(Program::start(&[&["wait", kind][..], &WAITS].concat())?.0);
    }
    for program in &running {
        agent.wait_for_service(&program.service)?;
    }
    let gates: Vec<_> = running
        .iter()
        .map(|program| settled(program, &[]))
        .collect::<Result<_>>()?;
    for program in &mut running {
        program.go()?;
    }
    let truths: Vec<_> = running
        .iter()
        .zip(&gates)
        .map(|(program, gate)| settled(program, gate))
        .collect::<Result<_>>()?;
    for program in &mut running {
        program.expect("truth")?;
    }
    agent.settled()?;
    for (((kind, caller), program), truth) in KINDS.iter().zip(&running).zip(&truths) {
        let path = format!(
            "/services/-/{}/profile/wait?format=folded&since=5m",
            program.service
        );
        let stacks = sampled(&agent.get(&path)?, caller);
        ensure!(!stacks.is_empty(), "{kind}: no stack of {caller}");
        for stack in stacks {
            let (same, rest) = stack.split_at(truth.len().min(stack.len()));
            assert_eq!(same, truth, "{kind}: {stack:?}");
            ensure!(
                rest.last().is_some_and(|last| last == "__schedule")
                    && rest.iter().all(|function| scheduler.contains(function)),
                "{kind}: {stack:?}"
            );
        }
    }
    Ok(())
}
