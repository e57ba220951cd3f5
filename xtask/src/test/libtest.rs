//! Counts what Rust's test harness prints, while passing it on as it comes.

use crate::command;
use anyhow::{Context as _, Result};
use std::{
    fmt,
    io::{Read, Write},
    process::{Command, Stdio},
};

/// How tests ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// What failed, by name.
    pub(crate) failures: Vec<String>,
    /// Inside the list of failed tests that the harness prints before its result.
    listing: bool,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

impl Tally {
    /// One failure that no test reported: a build that failed, a crash.
    pub(crate) fn broken(what: String) -> Self {
        Self {
            failed: 1,
            failures: vec![what],
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
    }

    /// Takes one line of the harness's output.
    fn read_line(&mut self, line: &str) {
        if let Some(counts) = line.trim().strip_prefix("test result: ") {
            for count in counts.split([';', '.']) {
                let mut words = count.split_whitespace();
                let (Some(number), Some(kind)) =
                    (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
                else {
                    continue;
                };
                match kind {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.skipped += number,
                    _ => {}
                }
            }
        }
        // Not from the line of the test itself: a child of the test may have written into it.
        let line = line.trim_end();
        match line.strip_prefix("    ") {
            Some(name) if self.listing => self.failures.push(name.to_owned()),
            _ if !line.is_empty() => self.listing = line == "failures:",
            _ => {}
        }
    }
}

/// Runs a command whose standard output is the harness's, passes that on to `to` and counts. A command that fails without a
/// failed test is one failure, named `what`.
pub(crate) fn run_counted(what: &str, command: &mut Command, to: &mut impl Write) -> Result<Tally> {
    println!("{what}: {}", command::line(command));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", command::line(command)))?;
    let stdout = child.stdout.take().context("the child's output is not piped")?;
    let mut tally = count(stdout, to)?;
    let status = child
        .wait()
        .with_context(|| format!("wait for {}", command::line(command)))?;
    if !status.success() && tally.failed == 0 {
        tally.add(Tally::broken(format!("{what}: {status}")));
    }
    for failure in &mut tally.failures {
        if !failure.starts_with(what) {
            *failure = format!("{what}: {failure}");
        }
    }
    Ok(tally)
}

/// Counts a stream. It is passed on in the pieces in which it comes, so the name of a test shows while it runs.
fn count(mut from: impl Read, to: &mut impl Write) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut line = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let read = from.read(&mut buffer).context("read a test's output")?;
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() {
            tally.read_line(&String::from_utf8_lossy(&line));
            return Ok(tally);
        }
        to.write_all(piece)
            .and_then(|()| to.flush())
            .context("pass a test's output on")?;
        for &byte in piece {
            if byte == b'\n' {
                tally.read_line(&String::from_utf8_lossy(&line));
                line.clear();
            } else {
                line.push(byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Tally, count, run_counted};
    use std::process::Command;

    const OUTPUT: &str = "running 3 tests\r\ntest a::b ... ok\ntest a::c ... noise of a child\nFAILED\ntest d ... ignored\n\n\
        failures:\r\n\r\n---- a::c stdout ----\r\n    indented\n\nfailures:\r\n    a::c\r\n\r\n\
        test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 1.23s\n\
        test result: ok. 40 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\r\n";

    #[test]
    fn results_are_summed_and_passed_on_unchanged() {
        let mut shown = Vec::new();
        let tally = count(OUTPUT.as_bytes(), &mut shown).unwrap();
        assert_eq!(shown, OUTPUT.as_bytes());
        assert_eq!(tally.failures, ["a::c"]);
        assert_eq!(tally.to_string(), "41 passed, 1 failed, 3 skipped");
    }

    #[test]
    fn a_crash_without_a_failed_test_is_a_failure() {
        let tally = run_counted(
            "crash",
            Command::new("sh").args(["-c", "exit 3"]),
            &mut Vec::new(),
        )
        .unwrap();
        assert_eq!((tally.passed, tally.failed), (0, 1));
        assert_eq!(
            run_counted("fine", &mut Command::new("true"), &mut Vec::new()).unwrap(),
            Tally::default()
        );
    }
}
