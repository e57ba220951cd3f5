//! `tieback record`: what the file says, against what the recorded program says of itself.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::assert_within;
use tieback_tests::chains::Chains;
use tieback_tests::pprof::Profile;
use tieback_tests::program::built;

pub(super) fn record(file: &Path, options: &[&str], command: &[&str]) -> Result<Child> {
    Command::new(built("TIEBACK_BIN", "tieback")?)
        .args(["record", "-o"])
        .arg(file)
        .args(options)
        .arg("--")
        .args(command)
        .env("TIEBACK_CPU_LIMIT", "100%")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting tieback record")
}

/// What a recorded program is told, and what it says of itself.
pub(super) struct Talk {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    pub(super) fn with(child: &mut Child) -> Result<Self> {
        Ok(Self {
            input: child.stdin.take().context("no input")?,
            output: BufReader::new(child.stdout.take().context("no output")?).lines(),
        })
    }

    pub(super) fn say(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    pub(super) fn facts(&mut self) -> Result<Value> {
        let line = self.output.next().context("the program ended")??;
        Ok(serde_json::from_str::<Value>(&line)?["facts"].take())
    }

    /// Ends its input. It may still write as long as what is returned lives.
    pub(super) fn end(self) -> Lines<BufReader<ChildStdout>> {
        self.output
    }
}

/// Ends the input, waits, and returns exit status and messages.
pub(super) fn finish(mut child: Child) -> Result<(Option<i32>, String)> {
    drop(child.stdin.take());
    let output = child.wait_with_output()?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

#[test]
fn recorded_allocations_are_those_of_the_program() -> Result<()> {
    const PERIOD: f64 = 16384.0;
    let programs = Chains::build()?;
    let program = programs.path("alloc");
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("alloc.pb.gz");
    // A program that becomes another one.
    let command = ["env", program.to_str().context("path")?, "1", "60", "40000"];
    let mut child = record(&file, &["--alloc", "--alloc-period", "16KiB"], &command)?;
    let mut talk = Talk::with(&mut child)?;
    talk.facts()?;
    // The first second may begin before its allocator was found; all that comes later counts.
    let mut phases = Vec::new();
    for _ in 0..5 {
        talk.say("")?;
        phases.push(talk.facts()?);
    }
    let _output = talk.end();
    let (code, said) = finish(child)?;
    ensure!(code == Some(0), "{code:?}: {said}");
    let profile = Profile::read(&file)?;
    let (first, last) = (&phases[0], &phases[4]);
    let fact = |facts: &Value, function: &str, what: &str| -> Result<f64> {
        facts[function][what]
            .as_f64()
            .with_context(|| format!("no {what} of {function}"))
    };
    let functions = [
        "small", "middle", "zeroed", "grown", "aligned", "leak", "cache", "churn",
    ];
    for (signal, what) in [("alloc_space", "bytes"), ("alloc_objects", "objects")] {
        let all = |facts: &Value| -> Result<f64> {
            functions.iter().map(|function| fact(facts, function, what)).sum()
        };
        let (most, least) = (all(last)?, all(last)? - all(first)?);
        let got = profile.sum(signal, "")?;
        // Threads and streams take a few kilobytes.
        assert!(
            got >= least && got <= most + 16384.0,
            "{signal}: {got}, not {least} to {most}"
        );
    }
    for function in functions {
        let most = fact(last, function, "bytes")?;
        let least = most - fact(first, function, "bytes")?;
        let got = profile.sum("alloc_space", function)?;
        let error = 4.5 * (PERIOD * most.max(PERIOD)).sqrt();
        assert!(
            got > least - error && got < most + error,
            "{function}: {got}, not {least} to {most} with an error of {error}"
        );
    }
    // What lived at the end, though the process has ended since: of the leak, all but what the first second may have missed.
    let leaked = fact(last, "leak", "live")?;
    let error = 4.5 * (PERIOD * leaked).sqrt();
    let live = profile.sum("inuse_space", "leak")?;
    assert!(
        live > leaked - fact(first, "leak", "live")? - error && live < leaked + error,
        "{live} of {leaked} bytes live"
    );
    assert_eq!(profile.sum("inuse_space", "middle")?, 0.0);
    ensure!(
        said.contains("not freed") && said.contains("leak (alloc.c)"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_recording_holds_a_command_whole() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("whole.pb.gz");
    // Two programs in a row and one beside them, all started by the command.
    let command = ["sh", "-c", "sleep 1; sleep 0.5 & wait; exit 7"];
    let child = record(&file, &[], &command)?;
    let (code, said) = finish(child)?;
    ensure!(code == Some(7), "{code:?}: {said}");
    let profile = Profile::read(&file)?;
    // Waiting for a child is no wait for anything; the sleeps are.
    assert_within!(profile.sum("wait", "")? / 1e9, 1.5, 0.05, "seconds of waiting");
    ensure!(said.contains("sleep 1.50"), "{said}");
    Ok(())
}

#[test]
fn recorded_cpu_time_is_that_of_the_program() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("spin.pb.gz");
    let workload = built("TIEBACK_WORKLOAD", "tieback-workload")?;
    let command = [workload.to_str().context("path")?, "spin", "--seconds", "2"];
    let mut child = record(&file, &[], &command)?;
    child.stdin.as_mut().context("no input")?.write_all(b"\n")?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?).lines();
    let truth = output.find_map(|line| {
        let value: Value = serde_json::from_str(&line.ok()?).ok()?;
        (value["step"] == "truth").then_some(value)
    });
    let (code, said) = finish(child)?;
    ensure!(code == Some(0), "{code:?}: {said}");
    let spent = truth
        .as_ref()
        .and_then(|truth| truth["cpu_seconds"].as_f64())
        .context("no truth")?;
    let profile = Profile::read(&file)?;
    // The start of the program is not part of the truth.
    assert_within!(profile.sum("cpu", "")? / 1e9, spent, 0.03, "seconds of CPU time");
    Ok(())
}

#[test]
fn signals_and_failures_are_those_of_the_command() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("signal.svg");
    let mut child = record(
        &file,
        &["--signal", "cpu"],
        // A shell traps no signal that was ignored when it started, as it is below a job in the background. The loop has an
        // end, so that a signal which is lost fails the test and does not hang it.
        &[
            "env",
            "--default-signal=INT",
            "sh",
            "-c",
            "trap 'exit 9' INT; echo; i=0; while [ $i -lt 20000000 ]; do i=$((i+1)); done",
        ],
    )?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )?;
    let (code, said) = finish(child)?;
    ensure!(code == Some(9), "{code:?}: {said}");
    ensure!(std::fs::read_to_string(&file)?.contains("<svg"), "no flame graph");
    let none = directory.path().join("none.folded");
    let (code, said) = finish(record(&none, &[], &["/no/such/program"])?)?;
    ensure!(
        code == Some(127) && said.contains("/no/such/program"),
        "{code:?}: {said}"
    );
    ensure!(!none.exists(), "a file of nothing");
    let (code, said) = finish(record(&none, &["-d", "1"], &["sleep", "2"])?)?;
    ensure!(code == Some(0) && none.exists(), "{code:?}: {said}");
    Ok(())
}
