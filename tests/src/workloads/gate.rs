//! How a workload talks with the test: one JSON object a line on standard output, one line on standard input for each
//! step. The wait for a line is a `poll`, which counts as `idle`, so that gates do not disturb what is measured.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};

static GATED_NS: AtomicU64 = AtomicU64::new(0);

/// Prints one line for the test.
pub fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").context("writing to the test")?;
    out.flush().context("writing to the test")
}

/// Prints a step's facts and waits for the test to send a line, which is returned.
pub fn step(name: &str, facts: &Value) -> Result<String> {
    say(&json!({ "step": name, "pid": std::process::id(), "facts": facts }))?;
    let start = Instant::now();
    let line = read_line();
    GATED_NS.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    line
}

/// Prints the last line: the truth, with the time that was spent in gates.
pub fn truth(value: &Value) -> Result<()> {
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        object.insert("step".to_owned(), json!("truth"));
        object.insert("pid".to_owned(), json!(std::process::id()));
        object.insert(
            "gate_seconds".to_owned(),
            json!(GATED_NS.load(Ordering::Relaxed) as f64 / 1e9),
        );
    }
    say(&value)
}

/// Reads a line byte by byte, unbuffered, each after a poll.
fn read_line() -> Result<String> {
    // SAFETY: descriptor 0 is open for the life of the process and is never closed through this handle.
    let mut input = ManuallyDrop::new(unsafe { File::from_raw_fd(0) });
    let mut line = Vec::new();
    loop {
        let mut wait = [PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN)];
        match poll(&mut wait, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("waiting for the test"),
        }
        let mut byte = [0; 1];
        if input.read(&mut byte).context("reading from the test")? == 0 {
            bail!("the test is gone");
        }
        if byte[0] == b'\n' {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
}
