//! Programs whose chains of calls are known, and what is compared with them.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::chains::Chains;
use tieback_tests::program::{Program, unique_service};
use tieback_tests::{in_emulator, tolerance};

use super::shapes::{BESIDE, ENTRY, OWN, leaf, shape};

/// How a program is started, and what its stacks must be.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) command: Vec<String>,
    /// `cpu`, `wait`, `syscall`, `memory` or `conn`.
    pub(super) profile: &'static str,
    /// Frames from the entry point to the leaf; `*` is a frame of the C library, which has no symbols for all of them.
    pub(super) chain: Vec<&'static str>,
    /// Functions in which the program waits, one after the other, until their stacks are whole.
    pub(super) warm: &'static [&'static str],
    /// The frame below the leaf when the leaf called something; `None`: it calls nothing that waits.
    pub(super) callee: Option<&'static str>,
    /// Some of the stacks have one of these below the leaf; none: whatever they have.
    pub(super) seen: &'static [&'static str],
}

/// Runs of the programs.
pub(super) struct Programs(pub(super) Chains);

impl Programs {
    pub(super) fn build() -> Result<Self> {
        Ok(Self(Chains::build()?))
    }

    /// A run of one of the programs made from `chain.c`.
    pub(super) fn case(&self, program: &str, shape_name: &str, work: &str) -> Case {
        let (leaf, profile, callee) = leaf(work);
        let mut chain = shape(shape_name);
        chain.push(leaf);
        if program == "chain-musl" {
            // Its start-up code has as many frames as the compiler left.
            chain.splice(..ENTRY.len(), ["_start", "+"]);
        }
        let path = |name: &str| self.0.path(name).to_string_lossy().into_owned();
        let command = [
            path(program),
            shape_name.to_owned(),
            work.to_owned(),
            "5".to_owned(),
            path(if shape_name == "exec" {
                "chain-exec"
            } else {
                "libthrough.so"
            }),
        ];
        Case {
            name: format!("{program} {shape_name} {work}"),
            command: command.into(),
            profile,
            chain,
            warm: match shape_name {
                "dlopen" => &["warm_up", "warm_again"],
                "dlclose" => &["warm_up", "warm_again", "warm_other"],
                _ => &["warm_up"],
            },
            callee,
            seen: match (program, work) {
                (_, "plt") => &["abs@plt"],
                ("chain", "vdso") => &["clock_gettime"],
                // Where its symbols are not installed, its copies have no name.
                ("chain", "libc") => &["[libc.so.6]", "mem"],
                _ => &[],
            },
        }
    }

    /// The same, started by a shell script that finds the path of the program and its arguments in `$@`, and a folder in `$dir`.
    pub(super) fn by_shell(&self, folder: &Path, script: &str, case: Case) -> Case {
        let shell = [
            "sh".to_owned(),
            "-euc".to_owned(),
            format!("dir=$0; {script}"),
            folder.to_string_lossy().into_owned(),
        ];
        Case {
            command: shell.into_iter().chain(case.command).collect(),
            ..case
        }
    }

    pub(super) fn other(
        &self,
        program: &str,
        work: &str,
        chain: &[&'static str],
        callee: Option<&'static str>,
    ) -> Case {
        let path = self.0.path(program).to_string_lossy().into_owned();
        let (_, profile, _) = leaf(work);
        let command = vec![path, work.to_owned(), "5".to_owned()];
        Case {
            name: format!("{program} {work}"),
            command,
            profile,
            chain: chain.into(),
            warm: &[],
            callee,
            seen: &[],
        }
    }
}

/// Frames that a stack has room for.
const ROOM: usize = 127;

/// Whether frames, from the root on, are what a chain says; `+` is one or more frames of the C library, `f..` one or
/// more of `f`. A stack that is cut off is as long as there is room.
fn fits(frames: &[&str], case: &Case) -> bool {
    let library = |frame: &str| !OWN.contains(&frame);
    if case.chain.first() == Some(&"[truncated]") && frames.len() != 1 + ROOM {
        return false;
    }
    let mut at = 0;
    for want in &case.chain {
        match *want {
            "+" => {
                let start = at;
                while frames.get(at).is_some_and(|frame| library(frame)) {
                    at += 1;
                }
                if at == start {
                    return false;
                }
            }
            "*" => {
                if !frames.get(at).is_some_and(|frame| library(frame)) {
                    return false;
                }
                at += 1;
            }
            want => {
                let function = want.strip_suffix("..");
                if frames.get(at) != Some(&function.unwrap_or(want)) {
                    return false;
                }
                at += 1;
                while function.is_some() && frames.get(at) == function.as_ref() {
                    at += 1;
                }
            }
        }
    }
    let rest = &frames[at..];
    match case.callee {
        // The clock that ends the loop.
        // Or Go's scheduler interrupts it by a signal.
        None => rest.len() <= 3 || rest.contains(&"runtime.sigtramp"),
        // Or the dynamic linker looks the function up, once.
        Some("*") => rest.len() <= 3 || rest.contains(&"[ld-linux-x86-64.so.2]"),
        // The clock that ends the loop is a system call where the machine has no steady one.
        Some(callee) => {
            let called = |frame: &&str| frame.contains(callee) || frame.contains("clock_gettime");
            rest.len() <= 4 && rest.first().is_some_and(called)
        }
    }
}

/// Function names without the parameters that C++ has, and without frames of the kernel and inlined ones.
fn frames(stack: &str) -> Vec<&str> {
    stack
        .split(';')
        .filter(|frame| !frame.ends_with("_[k]") && !frame.ends_with("_[i]"))
        .map(|frame| frame.split('(').next().unwrap_or(frame))
        .collect()
}

/// Longest time to get warm: an emulator shares one slow CPU among all programs and the agent.
const DEADLINE: Duration = Duration::from_secs(240);

/// Waits for a whole stack of this function among the samples of the CPU.
fn whole_stack(agent: &Agent, service: &str, function: &str) -> Result<()> {
    let path = format!("/services/-/{service}/profile/cpu?format=folded&since=5m");
    let start = Instant::now();
    loop {
        let text = agent.get(&path).unwrap_or_default();
        let stacks = text.lines().map(frames);
        let whole = |frames: &Vec<&str>| frames.first() != Some(&"[truncated]") && frames.contains(&function);
        if stacks.into_iter().any(|frames| whole(&frames)) {
            return Ok(());
        }
        ensure!(start.elapsed() < DEADLINE, "no whole stack of {function}: {text}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Runs all programs at once, and compares each stack with what is known.
pub(super) fn run(cases: &[Case]) -> Result<()> {
    run_with(cases).map(drop)
}

/// Samples of the CPU clock a second.
const CPU_HZ: f64 = 199.0;
/// Samples of its start and its end that a program may have.
const FEW_SAMPLES: f64 = 6.0;

/// The same; returns the agent.
pub(super) fn run_with(cases: &[Case]) -> Result<Agent> {
    let agent = Agent::start(&["--sample-cpu-hz", &CPU_HZ.to_string()])?;
    let mut running = Vec::new();
    for case in cases {
        let service = unique_service("chain");
        let mut command = Command::new(&case.command[0]);
        command
            .args(&case.command[1..])
            .env("OTEL_SERVICE_NAME", &service);
        let (program, _) = Program::spawn(command, service)?;
        running.push(program);
    }
    for program in &running {
        agent.wait_for_service(&program.service)?;
    }
    // While they warm up, their tables are loaded.
    for program in &mut running {
        program.go()?;
    }
    for (case, program) in cases.iter().zip(&mut running) {
        for function in case.warm {
            program.expect("warming")?;
            let seen = whole_stack(&agent, &program.service, function);
            seen.with_context(|| format!("{} does not get warm", case.name))?;
            program.go()?;
        }
        if case.warm.is_empty() {
            program.expect("warm")?;
            program.go()?;
        }
    }
    for program in &mut running {
        program.expect("truth")?;
    }
    let scrape = agent.settled()?;
    let whole = scrape.sum("tieback_unwind_first_stack_seconds_count", &[]);
    ensure!(
        whole >= cases.len() as f64,
        "{whole} programs had a whole stack, of {} and more",
        cases.len()
    );
    let mut wrong = Vec::new();
    for (case, program) in cases.iter().zip(&running) {
        let path = format!(
            "/services/-/{}/profile/{}?format=folded&since=5m",
            program.service, case.profile
        );
        let text = agent.get(&path)?;
        if let Err(error) = judge(case, &text) {
            wrong.push(format!("{}: {error:#}", case.name));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(agent)
}

fn judge(case: &Case, folded: &str) -> Result<()> {
    let leaf = case.chain.last().context("an empty chain")?;
    let (mut right, mut seen, mut other) = (0.0, 0.0, 0.0);
    for line in folded.lines() {
        let (stack, value) = line.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse()?;
        let frames = frames(stack);
        if frames.contains(leaf) {
            ensure!(fits(&frames, case), "not as it was: {stack}");
            right += value;
            let mut below = frames.iter().skip_while(|frame| *frame != leaf).skip(1);
            if below.any(|frame| case.seen.iter().any(|name| frame.contains(name))) {
                seen += value;
            }
        } else if !frames.iter().any(|frame| BESIDE.contains(frame)) {
            other += value;
            eprintln!("{}: beside the leaf: {value} of {stack}", case.name);
        }
    }
    ensure!(right > 0.0, "no stack with {leaf}: {folded}");
    // An emulator interrupts a program between pieces of translated code only.
    ensure!(
        case.seen.is_empty() || in_emulator() || seen > 0.02 * right,
        "{seen} of {right} have one of {:?} below {leaf}: {folded}",
        case.seen
    );
    // In an emulator a program has so little time that its start is a good part of it. Elsewhere start and end are some milliseconds, of
    // which chance may take several samples: three of a program of 480 ms were seen once, which are 14 ms.
    let start = if tolerance(0.02) > 0.02 { 0.25 } else { 0.02 };
    let few = if case.profile == "cpu" {
        FEW_SAMPLES * 1e9 / CPU_HZ
    } else {
        0.0
    };
    ensure!(
        other <= few.max(start * (right + other)),
        "{other} of {} have no {leaf}",
        right + other
    );
    Ok(())
}
