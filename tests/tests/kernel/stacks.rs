//! Truth of stacks: programs whose chains of calls are known, frame by frame, compiled in the ways that compilers have.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::chains::Chains;
use tieback_tests::program::{Program, unique_service};

use super::chains::{Programs, run, run_with};
use super::shapes::ENTRY;

/// What the compiler made of the same program in different ways; the last one's names are in a debug file of its own.
const BUILDS: [&str; 9] = [
    "chain-debug",
    "chain-debug-frame",
    "chain-unoptimized",
    "chain-static",
    "chain-static-pie",
    "chain-no-pie",
    "chain-frame-pointers",
    "chain-cxx",
    "chain-linked",
];

#[test]
fn stacks_without_frame_pointers_are_exact() -> Result<()> {
    let programs = Programs::build()?;
    let mut cases = Vec::new();
    for work in [
        "cpu", "libc", "vdso", "plt", "sleep", "pipe", "lock", "fault", "syscall", "connect",
    ] {
        cases.push(programs.case("chain", "plain", work));
    }
    for shape in [
        "deep", "alloca", "setjmp", "signal", "altstack", "qsort", "thread", "dlopen", "trap",
    ] {
        cases.push(programs.case("chain", shape, "sleep"));
    }
    run(&cases)
}

#[test]
fn stubs_are_named_however_a_program_was_built() -> Result<()> {
    let programs = Programs::build()?;
    let cases = ["chain-no-pie", "chain-cxx", "chain-linked"];
    run(&cases.map(|program| programs.case(program, "plain", "plt")))
}

#[test]
fn stacks_of_127_frames_are_whole() -> Result<()> {
    let programs = Programs::build()?;
    let cases = ["cpu", "pipe", "fault", "syscall"].map(|work| programs.case("chain", "deepest", work));
    run(&cases)
}

/// What is deeper is cut off at the root, and said to be.
#[test]
fn a_stack_that_is_too_deep_is_said_to_be_truncated() -> Result<()> {
    let programs = Programs::build()?;
    // The second is nearly always in what the leaf calls, with one more frame at this end.
    let cases = ["cpu", "vdso"].map(|work| programs.case("chain", "bottomless", work));
    let agent = run_with(&cases)?;
    let walks = |result| {
        let labels = [("result", result)];
        agent
            .scrape()
            .map(|scrape| scrape.sum("tieback_unwind_total", &labels))
    };
    // Half of five seconds of each, sampled 199 times each.
    let deep = walks("too_deep")?;
    ensure!(deep > 2.0 * 2.5 * 199.0, "{deep} walks were too deep");
    Ok(())
}

#[test]
fn stacks_are_exact_however_a_program_was_built() -> Result<()> {
    let programs = Programs::build()?;
    let mut cases = Vec::new();
    for program in BUILDS {
        cases.push(programs.case(program, "deep", "cpu"));
        cases.push(programs.case(program, "signal", "sleep"));
    }
    // No call frame information at all, where the compiler for it is there.
    if programs.0.path("chain-musl").exists() {
        for shape in ["deep", "signal", "qsort"] {
            cases.push(programs.case("chain-musl", shape, "cpu"));
        }
        cases.push(programs.case("chain-musl", "plain", "sleep"));
    }
    run(&cases)
}

#[test]
fn stacks_of_faults_and_system_calls_are_exact_however_a_program_was_built() -> Result<()> {
    let programs = Programs::build()?;
    let mut builds = BUILDS.to_vec();
    if programs.0.path("chain-musl").exists() {
        builds.push("chain-musl");
    }
    for work in ["fault", "syscall"] {
        let cases: Vec<_> = builds
            .iter()
            .map(|program| programs.case(program, "deep", work))
            .collect();
        run(&cases)?;
    }
    Ok(())
}

#[test]
fn stacks_are_exact_wherever_a_program_is() -> Result<()> {
    let programs = Programs::build()?;
    let folder = tempfile::tempdir()?;
    let scripts = [
        // Gone from its folder before it runs.
        (
            "chain-deleted",
            "cp $1 $dir/gone; exec 9<$dir/gone; rm $dir/gone; shift; exec /proc/self/fd/9 \"$@\"",
        ),
        // In a file system that only its own mount namespace has.
        (
            "chain-namespace",
            "mkdir $dir/ns; p=$1; shift; \
             exec unshare -m sh -euc 'd=$0; p=$1; shift; mount -t tmpfs none $d; cp $p $d/own; exec $d/own \"$@\"' \
             $dir/ns $p \"$@\"",
        ),
        // In an overlay, as in a container: the file's device in /proc/PID/maps is not that of its inode.
        (
            "chain-overlay",
            "mkdir $dir/ov; p=$1; shift; \
             exec unshare -m sh -euc 'd=$0; p=$1; shift; mount -t tmpfs none $d; mkdir $d/low $d/up $d/work $d/all; \
             cp $p $d/low/own; \
             mount -t overlay none -o lowerdir=$d/low,upperdir=$d/up,workdir=$d/work $d/all; exec $d/all/own \"$@\"' \
             $dir/ov $p \"$@\"",
        ),
        // The same, copied to the upper layer: a change of its times does that.
        (
            "chain-copied-up",
            "mkdir $dir/ov; p=$1; shift; \
             exec unshare -m sh -euc 'd=$0; p=$1; shift; mount -t tmpfs none $d; mkdir $d/low $d/up $d/work $d/all; \
             cp $p $d/low/own; \
             mount -t overlay none -o lowerdir=$d/low,upperdir=$d/up,workdir=$d/work $d/all; \
             touch $d/all/own; exec $d/all/own \"$@\"' \
             $dir/ov $p \"$@\"",
        ),
    ];
    let mut cases = Vec::new();
    for (program, script) in scripts {
        for work in ["cpu", "sleep"] {
            let folder = folder.path().join(format!("{program}-{work}"));
            std::fs::create_dir(&folder)?;
            let case = programs.case(program, "deep", work);
            cases.push(programs.by_shell(&folder, script, case));
        }
    }
    // Became another program after the agent had met it.
    cases.push(programs.case("chain", "exec", "sleep"));
    // Other libraries came and went.
    cases.push(programs.case("chain", "dlclose", "sleep"));
    let mut prelinked = programs.case("chain", "dlopen", "sleep");
    prelinked.name += " prelinked";
    prelinked.command.pop();
    let library = programs.0.path("libprelinked.so");
    prelinked.command.push(library.to_string_lossy().into_owned());
    cases.push(prelinked);
    run(&cases)
}

#[test]
fn stacks_of_rust_and_go_are_exact() -> Result<()> {
    let programs = Programs::build()?;
    let mut cases = Vec::new();
    // Without unwinding, the compiler's own `main` has no call frame information: its instructions tell.
    for program in ["chain-rust", "chain-rust-abort"] {
        for (work, leaf, callee) in [
            ("cpu", "chain::leaf_cpu", None),
            ("sleep", "chain::leaf_sleep", Some("sleep")),
            ("fault", "chain::leaf_fault", None),
            ("syscall", "chain::leaf_syscall", Some("getppid")),
        ] {
            let mut chain = ENTRY.to_vec();
            chain.extend([
                "main",
                "+",
                "chain::main",
                "chain::first",
                "chain::second",
                "<chain::Shape as chain::Through>::through",
                "chain::second::{{closure}}",
                "chain::third",
                leaf,
            ]);
            cases.push(programs.other(program, work, &chain, callee));
        }
    }
    // Without symbols and call frame information, Go's own table has both.
    for program in ["chain-go", "chain-go-stripped"] {
        for (work, leaf, callee) in [
            ("cpu", "main.leafCPU", None),
            ("sleep", "main.leafSleep", Some("syscall.")),
            ("fault", "main.leafFault", None),
            ("syscall", "main.leafSyscall", Some("syscall.")),
        ] {
            let chain = [
                "*",
                "runtime.main",
                "main.main",
                "main.first",
                "main.second",
                "main.first.func1",
                "main.third",
                leaf,
            ];
            cases.push(programs.other(program, work, &chain, callee));
        }
    }
    run(&cases)
}

/// Seconds that the profile of waits has of stacks through generated code, and of those that are whole.
fn through_generated(agent: &Agent, service: &str) -> Result<[f64; 2]> {
    let profile = agent.get(&format!(
        "/services/-/{service}/profile/wait?format=folded&since=300s"
    ))?;
    let mut found = [0.0; 2];
    for line in profile.lines().filter(|line| line.contains(";doze;")) {
        let (stack, value) = line.rsplit_once(' ').context("no value")?;
        let seconds = value.parse::<f64>()? / 1e9;
        found[0] += seconds;
        if !stack.starts_with("[truncated]") && stack.contains(";main;run;[jit];doze;") {
            found[1] += seconds;
        } else {
            eprintln!("not whole: {seconds} s of {stack}");
        }
    }
    Ok(found)
}

#[test]
fn stacks_through_code_that_was_just_made_are_whole() -> Result<()> {
    const PIECES: f64 = 50.0;
    const MILLISECONDS: f64 = 40.0;
    let programs = Chains::build()?;
    let agent = Agent::start(&[])?;
    let service = unique_service("grow");
    let mut command = Command::new(programs.path("grow"));
    command
        .args([PIECES, MILLISECONDS].map(|number| number.to_string()))
        .env("OTEL_SERVICE_NAME", &service);
    let (mut program, _) = Program::spawn(command, service)?;
    let service = &program.service.clone();
    // It is known, with the first piece of its code.
    agent.wait_for("a whole stack", |_| {
        through_generated(&agent, service).is_ok_and(|[_, whole]| whole > 0.5)
    })?;
    let before = through_generated(&agent, service)?;
    program.go()?;
    ensure!(program.wait()?.success(), "grow");
    agent.settled()?;
    let after = through_generated(&agent, service)?;
    let [all, whole] = [after[0] - before[0], after[1] - before[1]];
    assert!(all >= PIECES * MILLISECONDS / 1e3, "{all} s");
    assert!(whole >= 0.99 * all, "{whole} of {all} s");
    Ok(())
}

/// A program that goes to sleep at once has no unwind tables yet. What runtimes do first is to start threads that wait for work, and
/// that wait may be a long one.
#[test]
fn waits_that_began_before_the_tables_were_loaded_have_owners() -> Result<()> {
    const RUNS: usize = 20;
    let programs = Chains::build()?;
    let agent = Agent::start(&["--syscall-mode", "exact"])?;
    // The first stack of all is of other programs.
    agent.settled()?;
    for (what, cause, function) in [("sleep", "sleep", "doze"), ("park", "lock", "park_for_work")] {
        let service = unique_service(what);
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let mut command = Command::new(programs.path("early"));
            command.args([what, "1500"]).env("OTEL_SERVICE_NAME", &service);
            runs.push(command.spawn()?);
        }
        for mut run in runs {
            ensure!(run.wait()?.success(), "early {what}");
        }
        let scrape = agent.settled()?;
        let metric = "tieback_code_wait_seconds_total";
        let labels = [("service_name", service.as_str()), ("cause", cause)];
        let all = scrape.sum(metric, &labels);
        let named = scrape.code(metric, &labels, function);
        assert_within!(all, 1.5 * RUNS as f64, 0.05, "time of {what}");
        assert!(named >= 0.9 * all, "{function}: {named} of {all} s");
    }
    Ok(())
}
