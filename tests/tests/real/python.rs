//! The time of a Python program by its own functions and lines, against what the program measures itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::pprof::{Place, Profile};
use tieback_tests::program::{Program, unique_service};
use tieback_tests::runtime::{PerfMap, Runtime};
use tieback_tests::{assert_within, nearest};

const TEXT: &str = include_str!("../../programs/shares.py");
const FILE: &str = "shares.py";

fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(FILE)
}

/// The line of the program that has this text.
fn line(text: &str) -> Result<i64> {
    let at = TEXT.lines().position(|line| line.contains(text));
    Ok(1 + i64::try_from(at.with_context(|| format!("no line with {text}"))?)?)
}

/// What the program said, and where the agent has it.
struct Ran {
    service: String,
    truth: Value,
    scrape: Scrape,
    _program: Program,
    _map: PerfMap,
}

impl Ran {
    /// Runs the program from start to end.
    fn new(agent: &Agent, exe: &Path, options: &[&str], kind: &str) -> Result<Self> {
        Self::of(agent, unique_service("shares"), exe, options, kind)
    }

    /// [`Self::new`] with a name.
    fn of(agent: &Agent, service: String, exe: &Path, options: &[&str], kind: &str) -> Result<Self> {
        let mut command = Command::new(exe);
        command.arg("-B").args(options).arg(program()).arg(kind);
        command.env("OTEL_SERVICE_NAME", &service);
        let (mut program, _) = Program::spawn(command, service.clone())?;
        let map = PerfMap::of(program.pid());
        agent.wait_for_service(&service)?;
        agent.settled()?;
        program.go()?;
        let truth = program.expect("done")?;
        let scrape = agent.settled()?;
        Ok(Self {
            service,
            truth,
            scrape,
            _program: program,
            _map: map,
        })
    }

    fn truth(&self, what: &str) -> Result<f64> {
        self.truth[what].as_f64().with_context(|| format!("no {what}"))
    }

    /// What a metric has of a function of the program.
    fn code(&self, metric: &str, cause: Option<&str>, function: &str) -> f64 {
        let mut labels = vec![
            ("service_name", self.service.as_str()),
            ("file", FILE),
            ("function", function),
        ];
        labels.extend(cause.map(|cause| ("cause", cause)));
        self.scrape.sum(metric, &labels)
    }

    /// The stacks of a kind of profile, each as its places, innermost first.
    fn places(&self, agent: &Agent, kind: &str) -> Result<Vec<(Vec<Place>, f64)>> {
        let path = format!(
            "/services/-/{}/profile/{kind}?format=pprof&since=5m",
            self.service
        );
        Profile::of(&agent.get_bytes(&path)?)?.places(kind)
    }
}

/// The frames of a stack that are in files of Python.
fn interpreted(stack: &[Place]) -> Vec<(&str, &str, i64)> {
    let of = stack.iter().filter(|(_, file, _)| file.ends_with(".py"));
    of.map(|(function, file, line)| {
        let file = file.rsplit('/').next().unwrap_or_default();
        // The standard library's lines are those of its version.
        (function.as_str(), file, if file == FILE { *line } else { 0 })
    })
    .collect()
}

/// How a stack of a thread ends.
const THREAD: [(&str, &str, i64); 3] = [
    ("Thread.run", "threading.py", 0),
    ("Thread._bootstrap_inner", "threading.py", 0),
    ("Thread._bootstrap", "threading.py", 0),
];

const CPU: &str = "tieback_code_cpu_seconds_total";
const WAIT: &str = "tieback_code_wait_seconds_total";

/// The pair of what was read and what is true that differs most.
fn worst(pairs: &[(&str, f64, f64)]) -> (f64, f64) {
    let error = |(_, got, want): &&(&str, f64, f64)| (got / want - 1.0).abs();
    eprintln!("{pairs:.3?}");
    let worst = pairs.iter().max_by(|one, two| error(one).total_cmp(&error(two)));
    worst.map_or((0.0, 1.0), |(_, got, want)| (*got, *want))
}

/// Two threads compute at the same time, one of them three times as much, and that in a function which C code calls; then one in C.
#[test]
fn cpu_time_of_python_is_that_of_its_functions() -> Result<()> {
    let agent = Agent::start(&["--sample-cpu-hz", "999"])?;
    for exe in Runtime::pythons()? {
        // Since 3.12, each function then also has code of its own, with a name: it is no second frame.
        for options in [&[][..], &["-X", "perf"]] {
            // A share of p of n samples has a standard error of sqrt(p (1 - p) / n): here 2.7 % of the smaller one.
            let (got, want) = nearest(0.06, || {
                let ran = Ran::new(&agent, &exe, options, "cpu")?;
                let cpu = |function| ran.code(CPU, None, function);
                let large = cpu("large") + cpu("square");
                ensure!(cpu("square") > 0.3 * large, "{} of {large}", cpu("square"));
                squares(&agent, &ran)?;
                Ok(worst(&[
                    ("small", cpu("small"), ran.truth("small")?),
                    ("large", large, ran.truth("large")?),
                    ("digest", cpu("digest"), ran.truth("digest")?),
                ]))
            })?;
            assert_within!(got, want, 0.06, "{} {options:?}", exe.display());
        }
    }
    Ok(())
}

/// A sample may hit the interpreter anywhere, also while the list of its frames is changed; but the stacks that there cannot be
/// are few.
fn squares(agent: &Agent, ran: &Ran) -> Result<()> {
    let outer = THREAD.map(|(function, ..)| function);
    let chain = [&["square", "large", "computes"][..], &outer].concat();
    let (mut all, mut odd, mut inner) = (0.0, 0.0, 0);
    for (stack, time) in ran.places(agent, "cpu")? {
        let own: Vec<_> = interpreted(&stack).iter().map(|one| one.0.to_owned()).collect();
        let Some(at) = chain[..2]
            .iter()
            .position(|name| own.first().is_some_and(|own| own == name))
        else {
            continue;
        };
        all += time;
        inner += usize::from(at == 0);
        if own != chain[at..] {
            odd += time;
            eprintln!("{time} ns of {all} in {stack:?}");
        }
    }
    ensure!(inner > 1, "no stacks of what C code calls");
    ensure!(
        odd <= 0.01 * all,
        "{odd} of {all} ns in stacks that there cannot be"
    );
    Ok(())
}

#[test]
fn waits_of_python_are_those_of_its_functions_and_lines() -> Result<()> {
    let agent = Agent::start(&[])?;
    for exe in Runtime::pythons()? {
        // Which waits are sampled is random where the host has more than a hundred a second.
        let (got, want) = nearest(0.05, || {
            let ran = Ran::new(&agent, &exe, &[], "waits")?;
            chains(&agent, &ran)?;
            let wait = |cause, function| -> Result<_> {
                Ok((
                    function,
                    ran.code(WAIT, Some(cause), function),
                    ran.truth(function)?,
                ))
            };
            // A queue is waited for by means of a lock, but that is no wait for a lock.
            let (_, idle, all) = wait("lock", "idle")?;
            ensure!(idle < 0.01 * all, "{idle} of {all} waits for a lock");
            Ok(worst(&[
                wait("sleep", "nap_short")?,
                wait("sleep", "nap_long")?,
                wait("network", "receive")?,
                wait("lock", "take")?,
            ]))
        })?;
        assert_within!(got, want, 0.05, "{}", exe.display());
    }
    Ok(())
}

/// A list of three million numbers and a buffer whose pages are touched one after the other, and connections that stay open.
#[test]
fn memory_and_connections_of_python_are_those_of_its_functions() -> Result<()> {
    let agent = Agent::start(&[])?;
    for exe in Runtime::pythons()? {
        let ran = Ran::new(&agent, &exe, &[], "grows")?;
        // Until 3.11, the code of a comprehension is a function of its own.
        let of = |metric, function: &str| {
            let inner = format!("{function}.<locals>.<listcomp>");
            ran.code(metric, None, function) + ran.code(metric, None, &inner)
        };
        for function in ["objects", "buffer"] {
            let grown = of("tieback_code_memory_growth_bytes_total", function);
            assert_within!(grown, ran.truth(function)?, 0.1, "{} {function}", exe.display());
        }
        let opened = of("tieback_code_connections_opened_total", "opens");
        assert_within!(opened, ran.truth("opens")?, 0.01, "{}", exe.display());
    }
    Ok(())
}

/// Large blocks, and small ones that are still the C library's: it has all above 512 bytes.
#[test]
fn allocations_of_python_are_those_of_its_functions() -> Result<()> {
    for exe in Runtime::pythons()? {
        let service = unique_service("shares");
        let wanted = format!("{service}=full");
        let agent = Agent::start(&["--alloc", &wanted, "--alloc-slowdown", "10000"])?;
        let ran = Ran::of(&agent, service, &exe, &[], "allocates")?;
        // Of n samples of the small ones, some 400, the error is 1 / sqrt(n): 5 %. Three of these.
        for function in ["slabs", "cells"] {
            let allocated = ran.code("tieback_code_alloc_bytes_total", None, function);
            assert_within!(
                allocated,
                ran.truth(function)?,
                0.15,
                "{} {function}",
                exe.display()
            );
        }
    }
    Ok(())
}

/// All waits of a kind have one chain of functions, each with the line where it is.
fn chains(agent: &Agent, ran: &Ran) -> Result<()> {
    let own = |function, text: &str| Ok::<_, anyhow::Error>((function, FILE, line(text)?));
    let timed = own("timed", "    function(*values)")?;
    let main = [own("waits", "# the naps")?, own("<module>", "# the program")?];
    let nap = |inner, call| Ok::<_, anyhow::Error>([&[inner, timed, own("naps", call)?][..], &main].concat());
    let expected = [
        nap(own("nap_short", "# short")?, "# shorts")?,
        nap(own("nap_long", "time.sleep(  # long")?, "# longs")?,
        [&[own("receive", "# receive")?, timed][..], &THREAD].concat(),
        [&[own("take", "# take")?][..], &THREAD].concat(),
    ];
    let stacks = ran.places(agent, "wait")?;
    for chain in expected {
        let function = chain.first().map_or("", |first| first.0);
        let of = |(stack, _): &&(Vec<Place>, f64)| {
            interpreted(stack)
                .first()
                .is_some_and(|first| first.0 == function)
        };
        let found: Vec<_> = stacks.iter().filter(of).collect();
        ensure!(!found.is_empty(), "no stack of {function}");
        let mut whole = false;
        for (stack, _) in found {
            assert_eq!(interpreted(stack), chain);
            // From the system call to the thread's entry, and nothing of the interpreter's loop. Where the unwind table of a library
            // is not there yet, the chain of Python's functions is whole all the same.
            let last = stack.last().map(|last| &*last.0);
            let entry = if chain.ends_with(&THREAD) {
                "clone3"
            } else {
                "_start"
            };
            ensure!(last == Some(entry) || last == Some("[truncated]"), "{stack:?}");
            whole |= last == Some(entry);
            let of_loop = |place: &Place| place.0 == "_PyEval_EvalFrameDefault";
            assert!(!stack.iter().any(of_loop), "{stack:?}");
        }
        ensure!(whole, "no whole stack of {function}");
    }
    Ok(())
}
